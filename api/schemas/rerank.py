"""Requests and responses of rerank, in the format of Cohere and Jina, and of Jina's POST /v1/multi-vector."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from api.schemas.cohere import CohereMeta, EmbeddingType, Priority
from api.schemas.common import (
    AtLeastOne,
    Branches,
    Count,
    Dimensions,
    InputType,
    IsIntegral,
    MaxTokens,
    ModelName,
    NullMeans,
    OneText,
    Request,
    Text,
    TextOrTexts,
    Usage,
    WithinLimits,
    text_list,
)


class TextDocument(Request):
    """A document with its text."""

    text: Text

    def __len__(self) -> int:
        return len(self.text)


class RerankRequest(Request):
    """A query and the documents to order, in the format of Cohere and Jina."""

    field_codes: ClassVar[bool] = True
    examples: ClassVar[dict[str, Any]] = {
        "Two documents": {
            "query": "copy a file", "documents": ["rain", "duplicate a file"], "top_n": 1, "return_documents": True,
        }
    }  # fmt: skip

    query: Annotated[OneText, Field(description="The query.")]
    documents: Annotated[
        list[Annotated[Text | TextDocument, Branches("a string", "an object with only a text")]],
        AtLeastOne(),
        Field(description="The documents to order: strings, or objects with a text."),
        WithinLimits,
    ]
    model: ModelName = None
    top_n: Annotated[
        Annotated[int, Field(ge=1), IsIntegral] | None,
        Field(description="Maximum number of documents to return. Default: all."),
    ] = None
    return_documents: Annotated[
        bool, NullMeans(False), Field(description="Whether to return the text of each document.")
    ] = False
    max_tokens_per_doc: Annotated[
        MaxTokens | None, Field(description="Maximum tokens of one document. Default: the model's maximum.")
    ] = None
    priority: Priority = None

    @property
    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankDocument(BaseModel):
    """A document as it was sent."""

    text: str


class RerankItem(BaseModel):
    """One document with its score."""

    index: Annotated[Count, Field(description="Index of the document in the request.")]
    relevance_score: Annotated[
        float, Field(description="Cosine, or MaxSim sum over the query's tokens; higher is better.")
    ]
    document: RerankDocument | None = None


class RerankResponse(BaseModel):
    """Documents by score, best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RerankItem]
    usage: Usage
    meta: CohereMeta


class MultiVectorRequest(Request):
    """Texts to embed as one vector for each token, in Jina's format."""

    field_codes: ClassVar[bool] = True
    examples: ClassVar[dict[str, Any]] = {"A query": {"input": "copy a file", "input_type": "query"}}

    input: Annotated[TextOrTexts, Field(description="One text or a list of texts, none of them empty.")]
    model: ModelName = None
    input_type: InputType = "document"
    embedding_type: Annotated[
        EmbeddingType,
        NullMeans("float"),
        Field(description="Type of the vectors; base64 is that of little-endian float32 bytes, token by token."),
    ] = "float"
    dimensions: Dimensions = None

    @property
    def texts(self) -> list[str]:
        """The texts as a list."""
        return text_list(self.input)


class MultiVectorItem(BaseModel):
    """The vectors of one text's tokens."""

    object: Literal["embeddings"]
    index: Annotated[Count, Field(description="Index of the text in the input.")]
    embeddings: Annotated[list[list[float]] | list[str], Field(description="One for each token.")]


class MultiVectorResponse(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    model: str
    data: list[MultiVectorItem]
    usage: Usage
