"""The only file that knows sentence-transformers 5.3 from 6: where modules live and what changed its name."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from sentence_transformers import SentenceTransformer

LIBRARY_VERSION = int(version("sentence-transformers").split(".")[0])

if TYPE_CHECKING or LIBRARY_VERSION >= 6:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.base.modules.module import Module
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
else:
    from sentence_transformers.models import Dense, InputModule, Module, Normalize, Pooling, Transformer

__all__ = [
    "Dense",
    "InputModule",
    "Module",
    "Normalize",
    "Pooling",
    "Transformer",
    "decoder_of",
    "module_width",
    "new_model",
    "new_transformer",
    "set_decoder",
    "vector_width",
]

T = TypeVar("T", bound=Transformer)


def new_model(modules: list[Any], device: str, prompts: dict[str, str]) -> Any:
    """Return the library's model over ``modules``: of vectors for each token where the first says so."""
    options: dict[str, Any] = {"modules": modules, "device": device, "prompts": prompts}
    if LIBRARY_VERSION >= 6 and getattr(modules[0], "multi_vector", False):
        return MultiVectorEncoder(**options)
    return SentenceTransformer(**options, similarity_fn_name="cosine")


def new_transformer(kind: type[T], folder: str, dtype: Any, **options: Any) -> T:
    """Build an input module from local files: 6 takes ``model_kwargs``, 5.3 ``model_args``."""
    model, processor = (
        ("model_kwargs", "processor_kwargs") if LIBRARY_VERSION >= 6 else ("model_args", "tokenizer_args")
    )
    arguments: dict[str, Any] = {
        model: {"dtype": dtype, "local_files_only": True},
        processor: {"local_files_only": True},
    }
    return kind(folder, **arguments, **options)


def decoder_of(transformer: Any) -> Any:
    """Return the Hugging Face model inside an input module: ``model`` in 6, ``auto_model`` in 5.3."""
    return transformer.model if LIBRARY_VERSION >= 6 else transformer.auto_model


def set_decoder(transformer: Any, model: Any) -> None:
    """Put another Hugging Face model into an input module."""
    setattr(transformer, "model" if LIBRARY_VERSION >= 6 else "auto_model", model)


def new_pooling(width: int, modes: tuple[str, ...]) -> Any:
    """Return the library's pooling that joins several ``modes``, in this order: cls, mean, lasttoken."""
    if LIBRARY_VERSION >= 6:
        return Pooling(width, pooling_mode=modes)
    names = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}
    return Pooling(width, pooling_mode=None, **{name: mode in modes for mode, name in names.items()})


def module_width(module: Any) -> int:
    """Return the width of the vectors that a module makes."""
    for name in ("get_embedding_dimension", "get_sentence_embedding_dimension", "get_word_embedding_dimension"):
        if hasattr(module, name):
            return int(getattr(module, name)())
    raise TypeError(f"{type(module).__name__} does not say how wide its vectors are")


def vector_width(modules: list[Any]) -> int:
    """Return the width of the vectors that leave ``modules``: what the last one that says so says."""
    for module in reversed(modules[1:]):
        with suppress(TypeError):
            return module_width(module)
    return module_width(modules[0])
