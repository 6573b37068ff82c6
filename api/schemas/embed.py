"""POST /embed: its request as it is checked, and its answer as it is documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field

from api.inference.quantise import VECTOR_TYPES, VectorType
from api.inference.request_queue import PRIORITIES, Priority
from api.inference.truncation import MIN_MAX_TOKENS, TRUNCATE, Truncate
from api.schemas.common import Count, Request, Usage, check_dimensions, check_input_type, check_texts
from api.schemas.external_formats import check_choice, check_choices, check_flag, check_number

Output = Literal["dense", "sparse", "multi"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


def _or_null(check: BeforeValidator) -> BeforeValidator:
    inner: Any = check.func
    return BeforeValidator(lambda value, info: None if value is None else inner(value, info))


class EmbedRequest(Request):
    """Texts to turn into vectors."""

    model: Annotated[str | None, Field(description="Name of a model; left out, the default one.")] = None
    input: Annotated[
        list[str], BeforeValidator(check_texts), Field(description="One text or a list of texts, none of them empty.")
    ]
    input_type: Annotated[
        Literal["query", "document"],
        BeforeValidator(check_input_type),
        Field(description="Whether the texts are queries or documents; models with prompts treat them differently."),
    ] = "document"
    prompt_name: Annotated[
        str | None, Field(description="query or document: whose prompt is put in front, and what the texts are.")
    ] = None
    instruction: Annotated[
        str | None, Field(description="Put in front of each text as it stands, in place of the model's prompt.")
    ] = None
    outputs: Annotated[
        list[Output] | None,
        _or_null(check_choices(*OUTPUTS, default="dense")),
        Field(description="What to return of the one forward pass: dense, sparse, multi; all that the model makes."),
    ] = None
    dimensions: Annotated[
        int | None,
        BeforeValidator(check_dimensions),
        Field(description="Keep only so many leading dimensions, normalised again."),
    ] = None
    normalize: Annotated[
        bool,
        check_flag(default=True),
        Field(description="With false, vectors that dimensions cut keep the length that is left."),
    ] = True
    embedding_types: Annotated[
        list[VectorType] | None,
        _or_null(check_choices(*VECTOR_TYPES, default="float")),
        Field(description="Types of the dense vectors; they then stand under embeddings, by type."),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"],
        check_choice("float", "base64", default="float"),
        Field(description="base64: vectors are the base64 of their bytes, float32 little-endian."),
    ] = "float"
    truncate: Annotated[
        Truncate,
        check_choice(*TRUNCATE, default="end"),
        Field(description="What a text loses that is too long: its end or its start; none makes it an error."),
    ] = "end"
    max_tokens: Annotated[
        int | None,
        check_number(MIN_MAX_TOKENS),
        Field(description="Tokens to read of one text, prompt included; left out, as many as the model can."),
    ] = None
    priority: Annotated[
        Priority | None,
        _or_null(check_choice(*PRIORITIES)),
        Field(description="Who goes first: query, then document, then bulk; left out, the input_type."),
    ] = None


# Answers: they document the shapes and are never built on the hot path.

Numbers = Annotated[list[float] | str, Field(description="Numbers, or base64 of their bytes.")]


class SparseItem(BaseModel):
    """Weights of vocabulary entries; two texts are compared by the dot product of their weights."""

    indices: Annotated[list[Count], Field(description="Vocabulary entries, ascending.")]
    values: Annotated[list[float], Field(description="Their weights, above 0.")]


class EmbeddingItem(BaseModel):
    """What the encoder makes of one text."""

    index: Annotated[Count, Field(description="Place of the text in the input.")]
    embedding: Annotated[
        Numbers | None, Field(description="Unit vector, float32; absent from an encoder of token vectors alone.")
    ] = None
    embeddings: Annotated[
        dict[str, Numbers] | None, Field(description="The vector in each of embedding_types, in place of embedding.")
    ] = None
    multi: Annotated[
        list[list[float]] | str | None,
        Field(description="Unit vectors of the tokens, for late interaction; as base64, one behind the other."),
    ] = None
    multi_token_ids: Annotated[
        list[int] | None,
        Field(description="The vocabulary entry of each of these tokens; -1 where a vector stands for several."),
    ] = None
    sparse: Annotated[SparseItem | None, Field(description="Weights of vocabulary entries.")] = None
    tokens: Annotated[Count, Field(description="Tokens the model read.")]
    truncated: Annotated[bool, Field(description="Whether the text was cut to fit the model.")]


class EmbedTiming(BaseModel):
    """Milliseconds."""

    tokenize: Annotated[float, Field(description="Cutting the texts into tokens.")]
    queue: Annotated[float, Field(description="From there to the first batch with one of the texts.")]
    compute: Annotated[float, Field(description="The batches that the texts were in, those of others among them.")]
    total: Annotated[float, Field(description="From the checked request to the answer.")]


class EmbedAnswer(BaseModel):
    """Vectors in the order of the texts."""

    model: str
    fingerprint: Annotated[str, Field(description="Vectors may be compared where this is equal.")]
    dim: Annotated[int, Field(ge=1)]
    data: list[EmbeddingItem]
    usage: Usage
    timing_ms: EmbedTiming
