"""Request and response of POST /v1/embeddings, in the format of OpenAI."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.common import (
    ONE_PROMPT,
    Count,
    Dimensions,
    InputType,
    ModelName,
    NullMeans,
    PromptName,
    Request,
    TextsOrIds,
    Usage,
    text_or_id_rows,
)

IDS = "Token ids are read unchanged: they include special tokens and the prompt, as POST /tokenize returns them."
Input = Annotated[
    TextsOrIds, Field(description=f"One text, a list of texts, a list of token ids, or a list of such lists. {IDS}")
]


class OpenAIRequest(Request):
    """Texts or token ids to embed, in OpenAI's format with a few more fields."""

    model_config = ConfigDict(json_schema_extra=ONE_PROMPT)
    field_codes: ClassVar[bool] = True
    examples: ClassVar[dict[str, Any]] = {
        "Several texts": {"input": ["first text", "second text"]},
        "A query, in base64": {"input": "join arrays", "input_type": "query", "encoding_format": "base64"},
    }

    input: Input
    model: ModelName = None
    dimensions: Dimensions = None
    encoding_format: Annotated[
        Literal["float", "base64"],
        NullMeans("float"),
        Field(description="Numbers, or the base64 of little-endian float32 bytes, which is smaller and exact."),
    ] = "float"
    user: Annotated[str | None, Field(description="Accepted and ignored.")] = None
    input_type: InputType = "document"
    prompt_name: PromptName = None
    instruction: Annotated[
        str | None, Field(description="Extension: precedes each text verbatim, in place of the model's prompt.")
    ] = None
    truncate: Annotated[
        Literal["end", "start", "none"],
        NullMeans("end"),
        Field(description="Extension: which end of a text that is too long is cut; none rejects such a text."),
    ] = "end"

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """The texts, or rows of token ids, as a list."""
        return text_or_id_rows(self.input)


class OpenAIItem(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: Annotated[Count, Field(description="Index of the text in the input.")]
    embedding: Annotated[list[float] | str, Field(description="Unit vector, in the encoding_format.")]


class OpenAIResponse(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"]
    data: list[OpenAIItem]
    model: str
    usage: Usage
