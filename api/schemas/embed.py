"""Request and response of POST /embed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.inference.encode_options import Truncate
from api.inference.quantise import VectorType
from api.inference.request_queue import Priority
from api.inference.truncation import MIN_MAX_TOKENS
from api.schemas.common import (
    ONE_PROMPT,
    Count,
    Dimensions,
    InputType,
    IsIntegral,
    ModelName,
    NullMeans,
    PromptName,
    Request,
    SomeOf,
    TextOrTexts,
    Usage,
    text_list,
)

Output = Literal["dense", "sparse", "multi"]


class EmbedRequest(Request):
    """Texts to embed."""

    model_config = ConfigDict(json_schema_extra=ONE_PROMPT)
    field_codes: ClassVar[bool] = True
    examples: ClassVar[dict[str, Any]] = {
        "One text": {"input": "join arrays along a new axis"},
        "Several documents": {"input": ["first text", "second text"], "input_type": "document"},
        "A query, as 16 dimensions of one byte each": {
            "input": "join arrays", "input_type": "query", "embedding_types": ["int8"], "dimensions": 16,
        },
    }  # fmt: skip

    model: ModelName = None
    input: Annotated[TextOrTexts, Field(description="One text or a list of texts, none of them empty.")]
    input_type: InputType = "document"
    prompt_name: PromptName = None
    instruction: Annotated[
        str | None, Field(description="Precedes each text verbatim, in place of the model's prompt.")
    ] = None
    outputs: Annotated[
        Annotated[
            list[Output], Field(min_length=1, json_schema_extra={"items": {"enum": "limit:outputs"}}), *SomeOf
        ] | None,
        Field(description="Outputs of the forward pass: dense, sparse, multi. Default: all that the model supports."),
    ] = None  # fmt: skip
    dimensions: Dimensions = None
    normalize: Annotated[
        bool, NullMeans(True), Field(description="Whether vectors shortened by dimensions are normalised again.")
    ] = True
    embedding_types: Annotated[
        Annotated[list[VectorType], Field(min_length=1), *SomeOf] | None,
        Field(description="Types of the dense vectors, returned by type under embeddings."),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"],
        NullMeans("float"),
        Field(description="base64: vectors are the base64 of their bytes, float32 little-endian."),
    ] = "float"
    truncate: Annotated[
        Truncate,
        NullMeans("end"),
        Field(description="Which end of a text that is too long is cut; none rejects such a text."),
    ] = "end"
    max_tokens: Annotated[
        Annotated[int, Field(ge=MIN_MAX_TOKENS, json_schema_extra={"maximum": "limit:max_tokens"}), IsIntegral] | None,
        Field(description="Maximum tokens of one text, prompt included. Default: the model's maximum."),
    ] = None
    priority: Annotated[
        Priority | None,
        Field(description="Queue priority: query before document before bulk. Default: the input_type."),
    ] = None

    @property
    def texts(self) -> list[str]:
        """The texts as a list."""
        return text_list(self.input)


# Response models document the shapes; responses are serialised from arrays without them.

Numbers = Annotated[list[float] | str, Field(description="Numbers, or base64 of their bytes.")]


class SparseItem(BaseModel):
    """Weights of vocabulary entries; two texts are compared by the dot product of their weights."""

    indices: Annotated[list[Count], Field(description="Vocabulary entries, ascending.")]
    values: Annotated[list[float], Field(description="Their weights, above 0.")]


class EmbeddingItem(BaseModel):
    """The outputs of one text."""

    index: Annotated[Count, Field(description="Index of the text in the input.")]
    embedding: Annotated[
        Numbers | None, Field(description="Unit vector, float32; absent if the model has token vectors only.")
    ] = None
    embeddings: Annotated[
        dict[str, Numbers] | None, Field(description="The vector in each of embedding_types, in place of embedding.")
    ] = None
    multi: Annotated[
        list[list[float]] | str | None,
        Field(description="Unit vectors of the tokens, for late interaction; base64 is of all rows in order."),
    ] = None
    multi_token_ids: Annotated[
        list[int] | None,
        Field(description="Vocabulary entry of each token vector; -1 for a vector pooled from several tokens."),
    ] = None
    sparse: Annotated[SparseItem | None, Field(description="Weights of vocabulary entries.")] = None
    tokens: Annotated[Count, Field(description="Number of tokens the model read.")]
    truncated: Annotated[bool, Field(description="Whether the text was cut to fit the model.")]


class EmbedTiming(BaseModel):
    """Durations in milliseconds."""

    tokenize: Annotated[float, Field(description="Tokenising the texts.")]
    queue: Annotated[float, Field(description="From there to the first batch with one of the texts.")]
    compute: Annotated[float, Field(description="The batches that held the texts, shared batches included.")]
    total: Annotated[float, Field(description="From the validated request to the response.")]


class EmbedResponse(BaseModel):
    """Vectors in the order of the texts."""

    model: str
    fingerprint: Annotated[str, Field(description="Vectors with equal fingerprints may be compared.")]
    dim: Annotated[int, Field(ge=1)]
    data: list[EmbeddingItem]
    usage: Usage
    timing_ms: EmbedTiming
