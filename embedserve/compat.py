"""Compatibility with sentence-transformers 5.3 and 6: locations, renamed arguments, and modules that 5.3 lacks."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

LIBRARY_VERSION = int(version("sentence-transformers").split(".")[0])

if TYPE_CHECKING or LIBRARY_VERSION >= 6:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.base.modules.module import Module
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
else:
    from sentence_transformers.evaluation import SentenceEvaluator
    from sentence_transformers.models import Dense, InputModule, Module, Normalize, Pooling, Transformer

__all__ = [
    "Dense",
    "InputModule",
    "Module",
    "Normalize",
    "Pooling",
    "SentenceEvaluator",
    "Transformer",
    "decoder_of",
    "load_token_projection",
    "module_width",
    "new_model",
    "new_transformer",
    "set_decoder",
    "token_normalize",
    "token_projection",
    "vector_width",
]

T = TypeVar("T", bound=Transformer)


def new_model(modules: list[Any], device: str, prompts: dict[str, str]) -> Any:
    """Return the library's model of ``modules``; a multi-vector model if the first module is multi-vector."""
    options: dict[str, Any] = {"modules": modules, "device": device, "prompts": prompts}
    if LIBRARY_VERSION >= 6 and getattr(modules[0], "multi_vector", False):
        return MultiVectorEncoder(**options)
    model = SentenceTransformer(**options, similarity_fn_name="cosine")
    if LIBRARY_VERSION < 6:
        for module in model.modules():
            if getattr(module, "pooling_mode_weightedmean_tokens", False) and not module._forward_pre_hooks:
                module.register_forward_pre_hook(_first_pooled_first)
    return model


def _first_pooled_first(_: nn.Module, arguments: tuple[dict[str, Tensor]]) -> tuple[dict[str, Tensor]]:
    """Rotate each row so that its first pooled token is at position 0; sentence-transformers 5.3 counts from there."""
    states, mask = arguments[0]["token_embeddings"], arguments[0]["attention_mask"]
    first = (mask != 0).int().argmax(dim=1, keepdim=True)  # (B, 1)
    order = (torch.arange(mask.shape[1], device=mask.device) + first) % mask.shape[1]  # (B, T)
    rotated = states.gather(1, order[..., None].expand_as(states))
    return ({**arguments[0], "token_embeddings": rotated, "attention_mask": mask.gather(1, order)},)


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
    """Return the library's pooling that concatenates ``modes``, in the order cls, mean, lasttoken."""
    if LIBRARY_VERSION >= 6:
        return Pooling(width, pooling_mode=modes)
    names = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}
    return Pooling(width, pooling_mode=None, **{name: mode in modes for mode, name in names.items()})


class TokenDense(Dense):  # type: ignore[misc]
    """A linear map of token vectors for 5.3, whose Dense maps only text vectors."""

    def __init__(self, *args: Any, use_residual: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **{name: value for name, value in kwargs.items() if not name.startswith("module_")})
        self.use_residual = use_residual
        if use_residual and self.in_features != self.out_features:
            self.residual = nn.Linear(self.in_features, self.out_features, bias=False)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Map ``token_embeddings`` (B, T, D)."""
        states = features["token_embeddings"]
        mapped = self.activation_function(self.linear(states))
        if self.use_residual:
            mapped = mapped + (self.residual(states) if hasattr(self, "residual") else states)
        features["token_embeddings"] = mapped
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments for `load`."""
        return {**super().get_config_dict(), "use_residual": self.use_residual}


class TokenNormalize(Normalize):  # type: ignore[misc]
    """Normalisation of token vectors for 5.3."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale ``token_embeddings`` (B, T, d) to unit length."""
        features["token_embeddings"] = functional.normalize(features["token_embeddings"], dim=-1)
        return features


def token_projection(width: int, dim: int, weight: Tensor | None = None) -> Any:
    """Return a linear map of token vectors from ``width`` D to ``dim``, without bias."""
    options: dict[str, Any] = {"bias": False, "activation_function": nn.Identity(), "init_weight": weight}
    if LIBRARY_VERSION >= 6:
        return Dense(width, dim, module_input_name="token_embeddings", **options)
    return TokenDense(width, dim, **options)


def load_token_projection(folder: str) -> Any:
    """Load the linear map of token vectors that PyLate or the library saved to ``folder``."""
    module: Any = (Dense if LIBRARY_VERSION >= 6 else TokenDense).load(folder)
    module.module_input_name = module.module_output_name = "token_embeddings"
    return module


def token_normalize() -> Any:
    """Return a module that scales token vectors to unit length."""
    return Normalize(module_input_name="token_embeddings") if LIBRARY_VERSION >= 6 else TokenNormalize()


def module_width(module: Any) -> int:
    """Return the width of a module's output vectors."""
    for name in ("get_embedding_dimension", "get_sentence_embedding_dimension", "get_word_embedding_dimension"):
        if hasattr(module, name):
            return int(getattr(module, name)())
    raise TypeError(f"{type(module).__name__} has no method that returns the width of its vectors")


def vector_width(modules: list[Any]) -> int:
    """Return the output width of ``modules``, from the last module that states one."""
    for module in reversed(modules[1:]):
        with suppress(TypeError):
            return module_width(module)
    return module_width(modules[0])
