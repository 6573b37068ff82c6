"""Checks of a model: whether it embeds, and whether its vectors equal its reference vectors."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np

from api.http.error_responses import ApiError
from api.inference.encode_options import EncodeOptions
from api.inference.reference_vectors import kept_reference
from embedserve.loading.reference import TASKS, TEXTS, TOLERANCE, row_of

if TYPE_CHECKING:
    from api.inference.model import Model

PROBE_EVERY_S = 10.0
PROBE_PATIENCE_S = 10.0


async def check(model: Model) -> None:
    """Raise an error 503 unless the model embedded a text in the last seconds, or does so now."""
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
    except (Exception, CancelledError) as error:  # the check reports any failure
        raise ApiError(503, "embedding_failed", f"embedding one text failed: {error}") from error


async def selfcheck(model: Model) -> dict[str, Any]:
    """Embed the reference texts and return the largest difference from the reference vectors.

    Raises:
        CorruptFileError: The file of reference vectors is damaged.
    """
    encoder = model.encoder
    vectors = {task: row_of((await model.embed(TEXTS, EncodeOptions(task)))[0]) for task in TASKS}
    reference = await asyncio.to_thread(kept_reference, model.data_dir, encoder)
    tolerance = TOLERANCE[encoder.spec.dtype]
    values: dict[str, Any] = {"passed": None, "largest_difference": None, "tolerance": tolerance, "texts": len(TEXTS)}
    if reference is None:
        return values
    if any(reference[task].shape != vectors[task].shape for task in TASKS):
        return values | {"passed": False}
    largest = max(float(np.abs(reference[task] - vectors[task]).max(initial=0)) for task in TASKS)
    return values | {"passed": largest <= tolerance, "largest_difference": largest}
