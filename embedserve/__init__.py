"""Turn any decoder language model into a text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedserve.errors import (
    CorruptFileError,
    EmbedserveError,
    IndexMismatchError,
    InputError,
    LoadError,
    NotFoundError,
    OverloadedError,
    SpecError,
)
from embedserve.spec import EncoderSpec
from embedserve.types import Embeddings, Encoded, SparseEmbeddings, Task, TokenEmbeddings, TokenRows

if TYPE_CHECKING:
    from embedserve.encoder import Encoder

__version__ = "0.1.0"

__all__ = [
    "CorruptFileError",
    "Embeddings",
    "EmbedserveError",
    "Encoded",
    "Encoder",
    "EncoderSpec",
    "IndexMismatchError",
    "InputError",
    "LoadError",
    "NotFoundError",
    "OverloadedError",
    "SparseEmbeddings",
    "SpecError",
    "Task",
    "TokenEmbeddings",
    "TokenRows",
]


def __getattr__(name: str) -> object:
    """Import the encoder, and with it torch, only when it is asked for."""
    if name == "Encoder":
        from embedserve.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'embedserve' has no attribute {name!r}")
