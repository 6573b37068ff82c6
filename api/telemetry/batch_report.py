"""What one batch was: the values that metrics read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchReport:
    """What one batch was, for those who count.

    Attributes:
        texts: Rows.
        tokens: Real tokens.
        padded_tokens: Tokens computed, padding included.
        compute_s: Seconds of the forward pass.
        waits_s: Seconds that each request waited whose first rows are in this batch.
    """

    texts: int
    tokens: int
    padded_tokens: int
    compute_s: float
    waits_s: tuple[float, ...]
