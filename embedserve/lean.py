"""A decoder's forward pass without what only generation needs: the same operations, called one after another.

Most of the time that a short text takes is not arithmetic but what the library does around it: options of every call,
caches, masks, norms in six steps. Two thirds of that are left out here, for the families whose layers are Llama's
(Llama, Mistral, Qwen2, Qwen3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def lean_states(model: Any, ids: Tensor) -> Tensor:
    """Return the states (B, T, D) behind the final norm, where every token sees those before it.

    Args:
        model: A decoder for which `runs_lean` holds.
        ids: (B, T) int64, padding on the right.
    """
    states = functional.embedding(ids, model.embed_tokens.weight)
    cos, sin = model.rotary_emb(states, torch.arange(ids.shape[1], device=ids.device)[None])  # (1, T, h)
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[:, None]
    for layer in model.layers:
        inner, mlp = layer.self_attn, layer.mlp
        states = states + _attention(inner, _norm(layer.input_layernorm, states), cos, sin)
        normed = _norm(layer.post_attention_layernorm, states)
        states = states + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return _norm(model.norm, states)


def _attention(inner: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return what causal attention adds to states (B, T, D); heads may share keys and values."""
    shape = (*states.shape[:2], -1, inner.head_dim)
    queries, keys, values = (project(states).view(shape) for project in (inner.q_proj, inner.k_proj, inner.v_proj))
    if "q_norm" in inner._modules:
        queries, keys = _norm(inner.q_norm, queries), _norm(inner.k_norm, keys)
    heads = queries.shape[2]
    turned = torch.cat((queries, keys), dim=2).transpose(1, 2)  # (B, heads, T, h)
    turned = turned * cos + turned.roll(shape[-1] // 2, dims=-1) * sin
    found = functional.scaled_dot_product_attention(
        turned[:, :heads],
        turned[:, heads:],
        values.transpose(1, 2),
        is_causal=True,
        scale=inner.scaling,
        enable_gqa=heads != keys.shape[2],
    )
    return inner.o_proj(found.transpose(1, 2).flatten(2))


def _norm(norm: Any, states: Tensor) -> Tensor:
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def is_hooked(model: Any) -> bool:
    """Say whether somebody reads, edits or replaces what layers do, which `lean_states` would not notice."""
    return any(layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer) for layer in model.layers)


@torch.inference_mode()
def runs_lean(model: Any) -> bool:
    """Say whether `lean_states` gives the states of the model itself. Found by trial, not by its name.

    Not in half precision, where norms are rounded elsewhere, nor where tokens see a window only, or all layers are
    asked for.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windowed = getattr(config, "sliding_window", None) is not None if kinds is None else {*kinds} != {"full_attention"}
    if windowed or config.output_hidden_states or model.dtype != torch.float32:
        return False
    ids = torch.arange(3, 27, device=model.device).reshape(2, 12) % config.vocab_size
    try:
        own = model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.allclose(lean_states(model, ids), own, rtol=1e-4, atol=1e-5)
    except (AttributeError, TypeError, RuntimeError):
        return False  # another family
