"""A lean forward pass: the same operations without what only generation and training need.

Much of the time of a short text is spent around the arithmetic: options of every call, caches, masks, norms in six
steps, dropout. The lean pass omits that, for decoders with Llama's layers and encoders with BERT's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from embedserve.compat import decoder_of

# Families known to use full attention. For others the 12-token trial cannot see differences that appear only on long
# inputs (sliding windows, scaled RoPE).
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "bert")


class LeanPass:
    """The lean forward pass of one model; see `lean_pass`.

    Args:
        transformer: The input module around the model.
    """

    def __init__(self, transformer: Any) -> None:
        self.model = decoder_of(transformer)
        self._parts = tuple(transformer.modules())

    def is_free(self, model: Any) -> bool:
        """Return whether ``model`` is the one that was tried, in evaluation mode, without hooks or replaced parts."""
        return (
            model is self.model
            and not model.training
            and not any(
                module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
                for module in self._parts
            )
        )

    def states(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the last states (B, T, D).

        Args:
            ids: (B, T) int64, padding on the right.
            mask: (B, T), 1 at real tokens. Default: no padding. A decoder does not need it.
        """
        return (
            _llama_states(self.model, ids) if "layers" in self.model._modules else _bert_states(self.model, ids, mask)
        )


@torch.inference_mode()
def lean_pass(transformer: Any, own: Callable[[Tensor, Tensor], Tensor]) -> tuple[LeanPass | None, str]:
    """Return the lean pass of the model in an input module, or None and the reason why it is not used.

    The family must be known, and a trial must give the same states. It is not used in half precision, where norms are
    rounded differently, nor with sliding windows.

    Args:
        transformer: The input module.
        own: Returns its states (B, T, D) for ids and mask (B, T).
    """
    model = decoder_of(transformer)
    config = model.config
    if config.model_type not in FAMILIES:
        return None, f"the family {config.model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
    if model.dtype != torch.float32:
        return None, f"the weights are {str(model.dtype).removeprefix('torch.')}, not float32"
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    if {*kinds} != {"full_attention"}:
        return None, "some layers use a sliding window"
    ids = torch.arange(3, 27, device=model.device).reshape(2, 12) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    lean = LeanPass(transformer)
    try:
        states = lean.states(ids, mask)[mask.bool()]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # layers of another structure
        return None, f"the layers have another structure: {type(error).__name__}: {error}"
    if not torch.allclose(states, own(ids, mask)[mask.bool()], rtol=1e-4, atol=1e-5):
        return None, "a trial gave other states than the model"
    return lean, ""


def _llama_states(model: Any, ids: Tensor) -> Tensor:
    states = functional.embedding(ids, model.embed_tokens.weight)
    cos, sin = model.rotary_emb(states, torch.arange(ids.shape[1], device=ids.device)[None])  # (1, T, h)
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[:, None]
    for layer in model.layers:
        inner, mlp = layer.self_attn, layer.mlp
        states = states + _causal_attention(inner, _norm(layer.input_layernorm, states), cos, sin)
        normed = _norm(layer.post_attention_layernorm, states)
        states = states + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return _norm(model.norm, states)


def _causal_attention(inner: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the output of causal attention (B, T, D); several heads may share keys and values."""
    shape = (*states.shape[:2], -1, inner.head_dim)
    queries, keys, values = (project(states).view(shape) for project in (inner.q_proj, inner.k_proj, inner.v_proj))
    if "q_norm" in inner._modules:
        queries, keys = _norm(inner.q_norm, queries), _norm(inner.k_norm, keys)
    heads = queries.shape[2]
    rotated = torch.cat((queries, keys), dim=2).transpose(1, 2)  # (B, heads, T, h)
    rotated = rotated * cos + rotated.roll(shape[-1] // 2, dims=-1) * sin
    attended = functional.scaled_dot_product_attention(
        rotated[:, :heads],
        rotated[:, heads:],
        values.transpose(1, 2),
        is_causal=True,
        scale=inner.scaling,
        enable_gqa=heads != keys.shape[2],
    )
    return inner.o_proj(attended.transpose(1, 2).flatten(2))


def _norm(norm: Any, states: Tensor) -> Tensor:
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _bert_states(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    read = model.embeddings
    states = functional.embedding(ids, read.word_embeddings.weight) + read.token_type_embeddings.weight[0]
    states = read.LayerNorm(states + read.position_embeddings.weight[: ids.shape[1]])
    visible = None if mask is None else mask[:, None, None, :].bool()
    for layer in model.encoder.layer:
        inner, joined = layer.attention.self, layer.attention.output
        shape = (*ids.shape, -1, inner.attention_head_size)
        projections = (inner.query, inner.key, inner.value)
        queries, keys, values = (project(states).view(shape).transpose(1, 2) for project in projections)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        states = joined.LayerNorm(states + joined.dense(attended.transpose(1, 2).flatten(2)))
        wide = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states))
        states = layer.output.LayerNorm(states + layer.output.dense(wide))
    return states
