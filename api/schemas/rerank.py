"""Rerank as Cohere's and Jina's clients send and read it, and Jina's vectors of tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo

from api.http.body import kind_of
from api.inference.quantise import VECTOR_TYPES
from api.schemas.cohere import CohereMeta
from api.schemas.common import Count, Request, Usage, check_texts, problem
from api.schemas.external_formats import Dimensions, Model, check_choice, check_flag, check_number, check_one_text

MultiType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
MULTI_TYPES: tuple[MultiType, ...] = (*VECTOR_TYPES, "base64")


def check_documents(value: object, info: ValidationInfo) -> list[str]:
    """Return the texts of a list of strings or of objects that hold nothing but ``text``."""
    field = info.field_name or "documents"
    if not isinstance(value, list):
        message = f"{field} must be a list of strings or of objects with a text, got {kind_of(value)}"
        raise problem("invalid_type", field, message)
    texts = []
    for place, document in enumerate(value):
        if isinstance(document, dict):
            if list(document) != ["text"]:
                message = f"{field}[{place}] must be a string or an object with a text and nothing else"
                raise problem("invalid_type", f"{field}[{place}]", message)
            document = document["text"]
        texts.append(document)
    return check_texts(texts, info)


class RerankRequest(Request):
    """A query and the documents to put in order, in the shape of Cohere and Jina."""

    query: Annotated[str, BeforeValidator(check_one_text), Field(description="The query.")]
    documents: Annotated[
        list[str],
        BeforeValidator(check_documents),
        Field(description="The documents to put in order: strings, or objects with a text."),
    ]
    model: Model = None
    top_n: Annotated[
        int | None, check_number(1), Field(description="How many of the best to return; all unless given.")
    ] = None
    return_documents: Annotated[
        bool, check_flag(default=False), Field(description="Whether each document stands beside its score.")
    ] = False
    max_tokens_per_doc: Annotated[
        int | None, check_number(1), Field(description="Tokens to read of one document; left out, the model's limit.")
    ] = None
    priority: Annotated[
        int | None, check_number(0, 999), Field(description="Above 0, the request waits behind all others.")
    ] = None


class RerankDocument(BaseModel):
    """A document as it was sent."""

    text: str


class RerankItem(BaseModel):
    """One document with its score."""

    index: Annotated[Count, Field(description="Place of the document in the request.")]
    relevance_score: Annotated[
        float, Field(description="Cosine, or MaxSim sum over the query's tokens; more is better.")
    ]
    document: RerankDocument | None = None


class RerankAnswer(BaseModel):
    """The best documents first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RerankItem]
    usage: Usage
    meta: CohereMeta


class MultiVectorRequest(Request):
    """Texts to turn into a vector for each token, in Jina's shape."""

    input: Annotated[
        list[str], BeforeValidator(check_texts), Field(description="One text or a list of texts, none of them empty.")
    ]
    model: Model = None
    input_type: Annotated[
        Literal["query", "document"],
        check_choice("query", "document", default="document"),
        Field(description="Whether the texts are queries or documents."),
    ] = "document"
    embedding_type: Annotated[
        MultiType,
        check_choice(*MULTI_TYPES, default="float"),
        Field(description="Type of the vectors; base64 is that of the bytes of little-endian float32, token by token."),
    ] = "float"
    dimensions: Dimensions = None


class MultiVectorItem(BaseModel):
    """The vectors of one text's tokens."""

    object: Literal["embeddings"]
    index: Annotated[Count, Field(description="Place of the text in the input.")]
    embeddings: Annotated[list[list[float]] | list[str], Field(description="One for each token.")]


class MultiVectorAnswer(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    model: str
    data: list[MultiVectorItem]
    usage: Usage
