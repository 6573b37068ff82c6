"""Measurements of one batch, for the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchReport:
    """Measurements of one batch.

    Attributes:
        texts: Number of rows.
        tokens: Tokens without padding.
        padded_tokens: Tokens computed, padding included.
        compute_s: Seconds of the forward pass.
        waits_s: Queueing seconds of each request whose first batch this is.
    """

    texts: int
    tokens: int
    padded_tokens: int
    compute_s: float
    waits_s: tuple[float, ...]
