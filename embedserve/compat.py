"""The only file that knows sentence-transformers 5.3 from 6: where the modules live and what changed its name."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or int(version("sentence-transformers").split(".")[0]) >= 6:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
else:
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

__all__ = ["Dense", "Normalize", "Pooling", "Transformer", "decoder_of", "module_width"]


def decoder_of(transformer: Any) -> Any:
    """Return the Hugging Face model inside an input module: ``model`` in 6, ``auto_model`` in 5.3."""
    return transformer.model if hasattr(transformer, "model") else transformer.auto_model


def module_width(module: Any) -> int:
    """Return the width of the vectors that a module makes."""
    for name in ("get_embedding_dimension", "get_sentence_embedding_dimension", "get_word_embedding_dimension"):
        if hasattr(module, name):
            return int(getattr(module, name)())
    raise TypeError(f"{type(module).__name__} does not say how wide its vectors are")
