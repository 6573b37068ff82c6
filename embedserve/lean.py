"""A forward pass without what only generation and training need: the same operations, called one after another.

Much of the time that a short text takes is not arithmetic but what the library does around it: options of every call,
caches, masks, norms in six steps, dropout. It is left out here, for decoders whose layers are Llama's (Llama, Mistral,
Qwen2, Qwen3) and encoders whose layers are BERT's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def lean_states(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the last states (B, T, D) of a model for which `runs_lean` holds.

    Args:
        model: A decoder or an encoder.
        ids: (B, T) int64, padding on the right.
        mask: (B, T), 1 at real tokens; left out where there is no padding. A decoder does not need it.
    """
    return _llama_states(model, ids) if _is_decoder(model) else _bert_states(model, ids, mask)


def _is_decoder(model: Any) -> bool:
    return "layers" in model._modules


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
    """Return what attention adds to states (B, T, D); several heads may share keys and values."""
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
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        states = joined.LayerNorm(states + joined.dense(found.transpose(1, 2).flatten(2)))
        wide = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states))
        states = layer.output.LayerNorm(states + layer.output.dense(wide))
    return states


def is_hooked(model: Any) -> bool:
    """Say whether somebody reads, edits or replaces what layers do, which `lean_states` would not notice."""
    layers = model.layers if _is_decoder(model) else model.encoder.layer
    return any(layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer) for layer in layers)


@torch.inference_mode()
def runs_lean(model: Any, *, hides_padding: bool) -> bool:
    """Say whether `lean_states` gives the states of the model itself. Found by trial, not by its name.

    Not in half precision, where norms are rounded elsewhere, nor where tokens see a window only, or all layers are
    asked for.

    Args:
        model: Any model of Hugging Face.
        hides_padding: Whether padding on the right was seen not to change the states before it.
    """
    try:
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
        if {*kinds} != {"full_attention"} or config.output_hidden_states or model.dtype != torch.float32:
            return False
        if hides_padding != _is_decoder(model):
            return False
        ids = torch.arange(3, 27, device=model.device).reshape(2, 12) % config.vocab_size
        mask = torch.ones_like(ids)
        mask[1, 8:] = 0
        own, found = model(input_ids=ids, attention_mask=mask).last_hidden_state, lean_states(model, ids, mask)
        return torch.allclose(found[mask.bool()], own[mask.bool()], rtol=1e-4, atol=1e-5)
    except (AttributeError, TypeError, RuntimeError):
        return False  # another family
