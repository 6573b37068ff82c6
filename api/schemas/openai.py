"""POST /v1/embeddings as OpenAI's clients send and read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.schemas.common import Count, Request, Usage
from api.schemas.external_formats import Dimensions, InputOrIds, Model, check_choice


class OpenAIRequest(Request):
    """Texts or token ids to turn into vectors, in OpenAI's shape with a few fields more."""

    input: InputOrIds
    model: Model = None
    dimensions: Dimensions = None
    encoding_format: Annotated[
        Literal["float", "base64"],
        check_choice("float", "base64", default="float"),
        Field(description="Numbers, or the bytes of little-endian float32 in base64, which is smaller and exact."),
    ] = "float"
    user: Annotated[str | None, Field(description="Taken and ignored.")] = None
    input_type: Annotated[
        Literal["query", "document"],
        check_choice("query", "document", default="document"),
        Field(description="Not OpenAI's: whether the texts are queries or documents."),
    ] = "document"
    prompt_name: Annotated[
        str | None, Field(description="Not OpenAI's: the name of a prompt of the model, in place of input_type's.")
    ] = None
    instruction: Annotated[
        str | None, Field(description="Not OpenAI's: put in front of each text, in place of the model's prompt.")
    ] = None
    truncate: Annotated[
        Literal["end", "start", "none"],
        check_choice("end", "start", "none", default="end"),
        Field(description="Not OpenAI's: where a text longer than the model reads is cut; none refuses it."),
    ] = "end"


class OpenAIItem(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: Annotated[Count, Field(description="Place of the text in the input.")]
    embedding: Annotated[list[float] | str, Field(description="Unit vector, as encoding_format says.")]


class OpenAIAnswer(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"]
    data: list[OpenAIItem]
    model: str
    usage: Usage
