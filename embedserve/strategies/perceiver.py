"""A Perceiver block (Jaegle et al. 2021): cross-attention of queries over a context, then a feed-forward layer.

The heads of multi-layer pooling (Tang and Yang 2024, arXiv 2409.02727) and of NV-Embed (Lee et al. 2024,
arXiv 2405.17428, section 3.1) are this block; they differ in which set queries and which is the context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.strategies.strategy import Strategy, option


class PerceiverBlock(nn.Module):
    """Queries (B, R, D) attend over a context (B, N, D); the result is the mean (B, D) of the updated queries.

        Y = to_out(attention(to_q(LN(Q)), to_kv(LN(C)))) + Q        z = mean over r of (FF(LN(Y)) + Y)_r

    ``to_kv`` computes keys and values in one product, keys first. FF is GEGLU (Shazeer 2020): the first half of ``up``
    times the exact GELU of its second half, then ``down``.

    Args:
        width: D.
        heads: H.
        head_width: Width of one head; inner = heads · head_width.
        ff_mult: Width of the feed-forward layer, in multiples of D.
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
            context_mask: (B, N), 0 where the context is ignored. Default: all of it is read.
            query_mask: (B, R), 0 at queries that the mean omits. Default: all are averaged.
        """
        updated = self.attend(queries, context, context_mask) + queries
        values, gates = self.up(self.norm_ff(updated)).chunk(2, dim=-1)
        # `down` is linear, so it can follow the mean: one row instead of R, a third less feed-forward cost.
        hidden: Tensor = self.down(mean(values * functional.gelu(gates), query_mask)) + mean(updated, query_mask)
        return hidden

    def attend(self, queries: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """Return the attention output of each query, (B, R, D), without the residual."""
        batch = max(len(queries), len(context))
        heads = self._split(self.to_q(self.norm_queries(queries)), batch)
        keys, values = (self._split(half, batch) for half in self.to_kv(self.norm_context(context)).chunk(2, dim=-1))
        mask = None if context_mask is None else context_mask.bool()[:, None, None, :]
        output = functional.scaled_dot_product_attention(heads, keys, values, attn_mask=mask)
        result: Tensor = self.to_out(output.transpose(1, 2).flatten(2))
        return result

    def _split(self, projected: Tensor, batch: int) -> Tensor:
        """Return ``projected`` (B or 1, N, inner) as (B, H, N, head width), without a copy."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(batch, -1, -1, -1)


def mean(vectors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean (B, D) of ``vectors`` (B, R, D), restricted to rows where ``mask`` (B, R) is not 0."""
    if mask is None:
        return vectors.mean(dim=1)
    weights = mask.bool().float()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[:, None] @ vectors)[:, 0]


def new_latents(count: int, width: int) -> nn.Parameter:
    """Return ``count`` random vectors (R, D), small relative to the states they are added to."""
    return nn.Parameter(0.02 * torch.randn(count, width))


@dataclass(frozen=True)
class PerceiverStrategy(Strategy):
    """The options of a strategy whose head is a `PerceiverBlock` with trained latents."""

    heads: int = option(8, "attention heads", minimum=1)
    head_width: int | None = option(None, "width of a head; null: D / heads", minimum=1)
    ff_mult: int = option(4, "width of the feed-forward layer, in multiples of D", minimum=1)

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def block_sizes(self, width: int) -> dict[str, int]:
        """Return the arguments of `PerceiverBlock` for vectors of ``width`` D."""
        head_width = max(1, width // self.heads) if self.head_width is None else self.head_width
        return {"heads": self.heads, "head_width": head_width, "ff_mult": self.ff_mult}
