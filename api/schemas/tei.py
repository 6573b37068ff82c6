"""Requests and responses of the routes of Text Embeddings Inference (TEI)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, Field

from api.schemas.common import (
    Count,
    Dimensions,
    Ids,
    NullMeans,
    OneText,
    PromptName,
    Request,
    TextList,
    TextOrTexts,
    text_list,
    text_or_id_rows,
)
from api.schemas.openai import Input


class TEIRequest(Request):
    """Base of TEI's bodies."""

    field_codes: ClassVar[bool] = True
    hints: ClassVar[dict[str, str]] = {"texts": "send one text as a list with one entry"}


class TruncationOptions(TEIRequest):
    """How a text that is too long is treated."""

    truncate: Annotated[
        bool, NullMeans(True), Field(description="Whether a text that is too long is cut; false rejects it.")
    ] = True
    truncation_direction: Annotated[
        Literal["Left", "Right", "left", "right"],
        NullMeans("Right"),
        Field(description="Which end of a text that is too long is cut."),
    ] = "Right"

    @property
    def side(self) -> Literal["end", "start", "none"]:
        """Which end is cut, in the terms of POST /embed."""
        if not self.truncate:
            return "none"
        return "end" if self.truncation_direction.lower() == "right" else "start"


class TEITokensRequest(TruncationOptions):
    """Texts or token ids to embed as token vectors or as sparse weights."""

    examples: ClassVar[dict[str, Any]] = {"One text": {"inputs": "join arrays along a new axis"}}

    inputs: Input
    prompt_name: PromptName = None

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """The texts, or rows of token ids, as a list."""
        return text_or_id_rows(self.inputs)


class TEIEmbedRequest(TEITokensRequest):
    """Texts or token ids to embed, in TEI's format."""

    examples: ClassVar[dict[str, Any]] = {
        "Two texts, in TEI's format": {"inputs": ["first text", "second text"], "truncate": True}
    }

    normalize: Annotated[
        bool, NullMeans(True), Field(description="Whether vectors shortened by dimensions are normalised again.")
    ] = True
    dimensions: Dimensions = None
    encoding_format: Annotated[Literal["float"] | None, Field(description="float is the only format.")] = None


class Sentences(TEIRequest):
    """A text and the texts to compare it with."""

    source_sentence: Annotated[OneText, Field(description="A text.")]
    sentences: Annotated[TextList, Field(description="The texts to compare it with.")]


class SimilarityParameters(TruncationOptions):
    """How the texts are embedded."""

    prompt_name: PromptName = None


class TEISimilarityRequest(TEIRequest):
    """A text and the texts to compare it with, in TEI's format."""

    examples: ClassVar[dict[str, Any]] = {
        "Compare with two texts": {
            "inputs": {"source_sentence": "copy a file", "sentences": ["duplicate a file", "rain"]}
        }
    }

    inputs: Annotated[Sentences, Field(description="An object with source_sentence and sentences.")]
    parameters: Annotated[
        SimilarityParameters | None, Field(description="An object with truncate, truncation_direction, prompt_name.")
    ] = None


class TEITokenizeRequest(TEIRequest):
    """Texts to tokenise."""

    examples: ClassVar[dict[str, Any]] = {"One text": {"inputs": "copy a file"}}

    inputs: Annotated[TextOrTexts, Field(description="One text or a list of texts, none of them empty.")]
    add_special_tokens: Annotated[
        bool, NullMeans(True), Field(description="Whether to add the special tokens that the model reads.")
    ] = True
    prompt_name: PromptName = None

    @property
    def texts(self) -> list[str]:
        """The texts as a list."""
        return text_list(self.inputs)


class TEIDecodeRequest(TEIRequest):
    """Token ids to decode."""

    examples: ClassVar[dict[str, Any]] = {"One row of ids": {"ids": [4, 5, 6]}}

    ids: Annotated[Ids, Field(description="A list of token ids, or a list of such lists.")]
    skip_special_tokens: Annotated[
        bool, NullMeans(True), Field(description="Whether to leave special tokens out of the texts.")
    ] = True

    @property
    def rows(self) -> list[list[int]]:
        """The token ids as a list of rows."""
        return cast("list[list[int]]", text_or_id_rows(self.ids))


class TEIRerankRequest(TruncationOptions):
    """A query and the texts to order, in TEI's format."""

    examples: ClassVar[dict[str, Any]] = {
        "Two texts, in TEI's format": {
            "query": "copy a file", "texts": ["duplicate a file", "rain"], "return_text": True,
        }
    }  # fmt: skip

    query: Annotated[OneText, Field(description="The query.")]
    texts: Annotated[TextList, Field(description="The texts to order.")]
    raw_scores: Annotated[
        bool, NullMeans(False), Field(description="Accepted; scores are always cosines or MaxSim sums.")
    ] = False
    return_text: Annotated[bool, NullMeans(False), Field(description="Whether to return each text.")] = False


class TEIWeight(BaseModel):
    """The weight of one vocabulary entry."""

    index: Count
    value: float


class TEIToken(BaseModel):
    """One token; ``start`` and ``stop`` are character offsets, prompt included; null for a special token."""

    id: Count
    text: str
    special: bool
    start: int | None
    stop: int | None


class TEIRank(BaseModel):
    """One text with its score; higher is better."""

    index: Annotated[Count, Field(description="Index of the text in the request.")]
    score: float
    text: str | None = None


class TEIError(BaseModel):
    """An error in TEI's format."""

    error: str
    error_type: Annotated[str, Field(description="validation, overloaded, unhealthy, backend or not_found.")]
