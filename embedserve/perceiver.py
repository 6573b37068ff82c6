"""Attention of one set of vectors over another, with a feed-forward layer behind it: a block of Perceiver (2021).

The heads of multi-layer pooling (Tang and Yang 2024, arXiv 2409.02727) and of NV-Embed (Lee et al. 2024,
arXiv 2405.17428, section 3.1) are this block; they differ in which set asks and which is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.errors import SpecError

BLOCK_OPTIONS: dict[str, Any] = {"heads": 8, "head_width": None, "ff_mult": 4}


class PerceiverBlock(nn.Module):
    """Queries (B, R, D) read a context (B, N, D); the mean (B, D) of what they become is the block's result.

        Y = to_out(attention(to_q(LN(Q)), to_kv(LN(C)))) + Q        z = mean over r of (FF(LN(Y)) + Y)_r

    ``to_kv`` makes keys and values in one, the keys first. FF is GEGLU (Shazeer 2020): the first half of ``up`` times
    the exact GELU of its second half, then ``down``.

    Args:
        width: D.
        heads: H.
        head_width: Width of one head; inner = heads · head_width.
        ff_mult: The feed-forward layer is so many times D wide.
    """

    def __init__(self, width: int, heads: int, head_width: int, ff_mult: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm_queries = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.norm_ff = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * ff_mult * width)
        self.down = nn.Linear(ff_mult * width, width)

    def forward(
        self, queries: Tensor, context: Tensor, *, context_mask: Tensor | None = None, query_mask: Tensor | None = None
    ) -> Tensor:
        """Return the mean (B, D), float32.

        Args:
            queries: (B, R, D) or (1, R, D), float32.
            context: (B, N, D) or (1, N, D), float32.
            context_mask: (B, N), 0 where the context is not read; None reads all of it.
            query_mask: (B, R), 0 at queries that the mean leaves out; None leaves none out.
        """
        updated = self.attend(queries, context, context_mask) + queries
        values, gates = self.up(self.norm_ff(updated)).chunk(2, dim=-1)
        # `down` is linear, so it comes after the mean: one row instead of R, a third of the feed-forward's cost less.
        hidden: Tensor = self.down(mean(values * functional.gelu(gates), query_mask)) + mean(updated, query_mask)
        return hidden

    def attend(self, queries: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """Return what each query read, (B, R, D), without the residual."""
        batch = max(len(queries), len(context))
        asked = self._split(self.to_q(self.norm_queries(queries)), batch)
        keys, values = (self._split(half, batch) for half in self.to_kv(self.norm_context(context)).chunk(2, dim=-1))
        seen = None if context_mask is None else context_mask.bool()[:, None, None, :]
        read = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=seen)
        result: Tensor = self.to_out(read.transpose(1, 2).flatten(2))
        return result

    def _split(self, projected: Tensor, batch: int) -> Tensor:
        """Return ``projected`` (B or 1, N, inner) as (B, H, N, head width), without copying it."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(batch, -1, -1, -1)


def mean(vectors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean (B, D) of ``vectors`` (B, R, D), of those alone where ``mask`` (B, R) is not 0."""
    if mask is None:
        return vectors.mean(dim=1)
    weights = mask.bool().float()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[:, None] @ vectors)[:, 0]


def block_sizes(options: dict[str, Any], width: int) -> dict[str, int]:
    """Return the sizes of a block over vectors of ``width`` D; ``head_width`` None makes inner about D.

    Raises:
        SpecError: One of them is no positive whole number.
    """
    for name in BLOCK_OPTIONS:
        if options[name] is not None or name != "head_width":
            check_count(options[name], name)
    head_width = max(1, width // options["heads"]) if options["head_width"] is None else options["head_width"]
    return {"heads": options["heads"], "head_width": head_width, "ff_mult": options["ff_mult"]}


def check_count(value: Any, name: str) -> None:
    """Raise `SpecError` unless the option ``name`` is a positive whole number."""
    if type(value) is not int or value < 1:
        message = f"options.{name} must be a whole number of at least 1, got {value!r}"
        raise SpecError(message, field=f"options.{name}")


def new_latents(count: int, width: int) -> nn.Parameter:
    """Return ``count`` random vectors (R, D), small beside what they are added to; norms scale them before use."""
    return nn.Parameter(0.02 * torch.randn(count, width))
