"""POST /v2/embed as Cohere's clients send and read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from api.inference.quantise import VECTOR_TYPES
from api.schemas.common import Count, Request
from api.schemas.external_formats import Model, check_choice, check_choices, check_number, check_text_list

InputType = Literal["search_query", "search_document", "classification", "clustering"]
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
INPUT_TYPES = ("search_query", "search_document", "classification", "clustering")
EMBEDDING_TYPES: tuple[EmbeddingType, ...] = (*VECTOR_TYPES, "base64")


class CohereRequest(Request):
    """Texts to turn into vectors of one or several types, in Cohere's shape."""

    texts: Annotated[
        list[str], BeforeValidator(check_text_list), Field(description="A list of texts, none of them empty.")
    ]
    model: Model = None
    input_type: Annotated[
        InputType,
        check_choice(*INPUT_TYPES, default="search_document"),
        Field(description="search_query for queries; the others are embedded as documents."),
    ] = "search_document"
    embedding_types: Annotated[
        list[EmbeddingType],
        check_choices(*EMBEDDING_TYPES, default="float"),
        Field(description="Types of the vectors; base64 is that of the bytes of little-endian float32."),
    ] = ["float"]
    output_dimension: Annotated[
        int | None, check_number(1), Field(description="Keep only so many leading dimensions, normalised again.")
    ] = None
    max_tokens: Annotated[
        int | None, check_number(1), Field(description="Tokens to read of one text; left out, the model's limit.")
    ] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"],
        check_choice("NONE", "START", "END", default="END"),
        Field(description="Which end of a text that is too long is cut; NONE refuses it."),
    ] = "END"
    priority: Annotated[
        int | None, check_number(0, 999), Field(description="Above 0, the request waits behind all others.")
    ] = None


class CohereEmbeddings(BaseModel):
    """Vectors by type; the types that were not asked for are absent."""

    float_: Annotated[list[list[float]] | None, Field(alias="float")] = None
    int8: list[list[Annotated[int, Field(ge=-127, le=127)]]] | None = None
    uint8: list[list[Annotated[int, Field(ge=1, le=255)]]] | None = None
    binary: list[list[Annotated[int, Field(ge=-128, le=127)]]] | None = None
    ubinary: list[list[Annotated[int, Field(ge=0, le=255)]]] | None = None
    base64: list[str] | None = None


class CohereUnits(BaseModel):
    """What was read."""

    input_tokens: Count


class CohereVersion(BaseModel):
    """The version of the shape."""

    version: Literal["2"]


class CohereMeta(BaseModel):
    """What was read, and of which version the shape is."""

    api_version: CohereVersion
    billed_units: CohereUnits


class CohereAnswer(BaseModel):
    """Vectors by type, each list in the order of the texts."""

    id: str
    embeddings: CohereEmbeddings
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"]
