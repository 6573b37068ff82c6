"""Whether a model embeds, and whether it still makes the vectors that it made when it was first loaded."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np

from api.http.error_responses import ApiError
from api.inference.reference_vectors import kept_reference
from embedserve.loading.reference import TASKS, TEXTS, TOLERANCE, row_of

if TYPE_CHECKING:
    from api.inference.model import Model

PROBE_EVERY_S = 10.0
PROBE_PATIENCE_S = 10.0


async def check(model: Model) -> None:
    """Raise an error 503 unless the model embeds: it did in the last seconds, or does now."""
    encoder, batcher = model.encoder, model.batcher
    last = batcher.last_success
    if last is not None and time.monotonic() - last <= PROBE_EVERY_S:
        return
    try:
        probe = asyncio.wrap_future(batcher.submit(encoder.tokenize(["ready"], "query"), "urgent"))
        await asyncio.wait_for(probe, PROBE_PATIENCE_S)
    except TimeoutError:
        message = f"one text was not embedded within {PROBE_PATIENCE_S:.0f} s; {batcher.pending:,} tokens wait"
        raise ApiError(503, "too_slow", message) from None
    except (Exception, CancelledError) as error:  # any failure to embed is what the check is to find
        raise ApiError(503, "embedding_failed", f"embedding one text failed: {error}") from error


async def selfcheck(model: Model) -> dict[str, Any]:
    """Embed the reference texts, and return how far that is from what is kept of them.

    Raises:
        CorruptFileError: What is kept is damaged.
    """
    encoder = model.encoder
    made = {task: row_of((await model.embed(TEXTS, task))[0].encoded) for task in TASKS}
    kept = await asyncio.to_thread(kept_reference, model.data_dir, encoder)
    tolerance = TOLERANCE[encoder.spec.dtype]
    values: dict[str, Any] = {"passed": None, "largest_difference": None, "tolerance": tolerance, "texts": len(TEXTS)}
    if kept is None:
        return values
    if any(kept[task].shape != made[task].shape for task in TASKS):
        return values | {"passed": False}
    largest = max(float(np.abs(kept[task] - made[task]).max(initial=0)) for task in TASKS)
    return values | {"passed": largest <= tolerance, "largest_difference": largest}
