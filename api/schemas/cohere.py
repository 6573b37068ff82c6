"""Request and response of POST /v2/embed, in the format of Cohere."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from api.schemas.common import Count, Dimensions, IsIntegral, MaxTokens, ModelName, NullMeans, Request, SomeOf, TextList

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
Priority = Annotated[
    Annotated[int, Field(ge=0, le=999), IsIntegral] | None,
    Field(description="Above 0, the request waits after all other requests."),
]


class CohereRequest(Request):
    """Texts to embed as vectors of one or several types, in Cohere's format."""

    field_codes: ClassVar[bool] = True
    hints: ClassVar[dict[str, str]] = {"texts": "send one text as a list with one entry"}
    examples: ClassVar[dict[str, Any]] = {
        "Two types of vector": {"texts": ["first text", "second text"], "embedding_types": ["float", "ubinary"]}
    }

    texts: Annotated[TextList, Field(description="A list of texts, none of them empty.")]
    model: ModelName = None
    input_type: Annotated[
        Literal["search_query", "search_document", "classification", "clustering"],
        NullMeans("search_document"),
        Field(description="search_query for queries; the others are embedded as documents."),
    ] = "search_document"
    embedding_types: Annotated[
        list[EmbeddingType],
        Field(min_length=1),
        *SomeOf,
        NullMeans(["float"]),
        Field(description="Types of the vectors; base64 is that of little-endian float32 bytes."),
    ] = ["float"]
    output_dimension: Dimensions = None
    max_tokens: Annotated[
        MaxTokens | None, Field(description="Maximum tokens of one text. Default: the model's maximum.")
    ] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"],
        NullMeans("END"),
        Field(description="Which end of a text that is too long is cut; NONE rejects such a text."),
    ] = "END"
    priority: Priority = None


class CohereEmbeddings(BaseModel):
    """Vectors by type; only the requested types are present."""

    float_: Annotated[list[list[float]] | None, Field(alias="float")] = None
    int8: list[list[Annotated[int, Field(ge=-127, le=127)]]] | None = None
    uint8: list[list[Annotated[int, Field(ge=1, le=255)]]] | None = None
    binary: list[list[Annotated[int, Field(ge=-128, le=127)]]] | None = None
    ubinary: list[list[Annotated[int, Field(ge=0, le=255)]]] | None = None
    base64: list[str] | None = None


class CohereUnits(BaseModel):
    """Number of tokens read."""

    input_tokens: Count


class CohereVersion(BaseModel):
    """Version of the format."""

    version: Literal["2"]


class CohereMeta(BaseModel):
    """Version of the format, and number of tokens read."""

    api_version: CohereVersion
    billed_units: CohereUnits


class CohereResponse(BaseModel):
    """Vectors by type, each list in the order of the texts."""

    id: str
    embeddings: CohereEmbeddings
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"]
