"""The routes of Text Embeddings Inference (TEI) as its clients send and read them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator

from api.schemas.common import Count, Request, check_texts
from api.schemas.external_formats import (
    Dimensions,
    InputOrIds,
    check_choice,
    check_flag,
    check_ids,
    check_one_text,
    check_text_list,
)

Direction = Annotated[
    Literal["left", "right"],
    check_choice("left", "right", default="right", any_case=True),
    Field(description="Which end of a text that is too long is cut."),
]
Truncate = Annotated[
    bool, check_flag(default=True), Field(description="Whether a text that is too long is cut; false refuses it.")
]
PromptName = Annotated[
    str | None, Field(description="query or document: whose prompt stands in front; document unless given.")
]


class Cut(Request):
    """How a text that is too long is treated."""

    truncate: Truncate = True
    truncation_direction: Direction = "right"

    @property
    def side(self) -> Literal["end", "start", "none"]:
        """Which end is cut, by the names of POST /embed."""
        if not self.truncate:
            return "none"
        return "end" if self.truncation_direction == "right" else "start"


class TEITokensRequest(Cut):
    """Texts or token ids, for vectors of their tokens or weights of vocabulary entries."""

    inputs: InputOrIds
    prompt_name: PromptName = None


class TEIEmbedRequest(TEITokensRequest):
    """Texts or token ids to turn into vectors, in TEI's shape."""

    normalize: Annotated[
        bool, check_flag(default=True), Field(description="Whether vectors that dimensions cut get length 1 again.")
    ] = True
    dimensions: Dimensions = None
    encoding_format: Annotated[
        Literal["float"] | None, check_choice("float"), Field(description="Numbers; there is no other format here.")
    ] = None


class Sentences(Request):
    """A text and those that it is compared with."""

    source_sentence: Annotated[str, BeforeValidator(check_one_text), Field(description="A text.")]
    sentences: Annotated[
        list[str], BeforeValidator(check_text_list), Field(description="The texts that it is compared with.")
    ]


class SimilarityParameters(Cut):
    """How the texts are read."""

    prompt_name: PromptName = None


class TEISimilarityRequest(Request):
    """A text and those that it is compared with, in TEI's shape."""

    inputs: Annotated[Sentences, Field(description="An object with source_sentence and sentences.")]
    parameters: Annotated[
        SimilarityParameters | None, Field(description="An object with truncate, truncation_direction, prompt_name.")
    ] = None


class TEITokenizeRequest(Request):
    """Texts to cut into tokens."""

    inputs: Annotated[
        list[str], BeforeValidator(check_texts), Field(description="One text or a list of texts, none of them empty.")
    ]
    add_special_tokens: Annotated[
        bool,
        check_flag(default=True),
        Field(description="Whether to add the tokens that the model reads around a text."),
    ] = True
    prompt_name: PromptName = None


class TEIDecodeRequest(Request):
    """Token ids to turn back into texts."""

    ids: Annotated[
        list[list[int]],
        PlainValidator(check_ids),
        Field(description="A list of token ids, or a list of such lists."),
    ]
    skip_special_tokens: Annotated[
        bool, check_flag(default=True), Field(description="Whether special tokens are left out.")
    ] = True


class TEIRerankRequest(Cut):
    """A query and the texts to put in order, in TEI's shape."""

    query: Annotated[str, BeforeValidator(check_one_text), Field(description="The query.")]
    texts: Annotated[list[str], BeforeValidator(check_text_list), Field(description="The texts to put in order.")]
    raw_scores: Annotated[
        bool, check_flag(default=False), Field(description="Taken; scores are cosines or MaxSim sums either way.")
    ] = False
    return_text: Annotated[
        bool, check_flag(default=False), Field(description="Whether each text stands beside its score.")
    ] = False


class TEIWeight(BaseModel):
    """The weight of one vocabulary entry."""

    index: Count
    value: float


class TEIToken(BaseModel):
    """One token; ``start`` and ``stop`` count characters, prompt included, and are null for a special token."""

    id: Count
    text: str
    special: bool
    start: int | None
    stop: int | None


class TEIRank(BaseModel):
    """One text with its score; higher is better."""

    index: Annotated[Count, Field(description="Place of the text in the request.")]
    score: float
    text: str | None = None


class TEIError(BaseModel):
    """An error as TEI's clients read it."""

    error: str
    error_type: Annotated[str, Field(description="validation, overloaded, unhealthy, backend or not_found.")]
