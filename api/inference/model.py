"""One model of the service: its encoder, its queue and its threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from api.http.error_responses import ApiError
from api.inference.batcher import Batcher
from api.inference.encode_options import EncodeOptions
from api.inference.reference_vectors import keep_reference
from api.inference.request_queue import BatchedResult, OnPart
from api.inference.truncation import MIN_MAX_TOKENS, Texts, token_rows
from api.telemetry import metrics
from api.telemetry.batch_report import BatchReport
from api.telemetry.request_record import add_stage, count_tokens
from embedserve.errors import EmbedserveError, LoadError
from embedserve.types import Encoded, Task

if TYPE_CHECKING:
    from embedserve import Encoder, EncoderSpec

logger = logging.getLogger(__name__)

INLINE_CHARS = 500  # tokenised on the event loop, in at most half a millisecond: a thread would cost more
SHORT_CHARS = 2000  # tokenised so fast that a batch about to start waits for it
CHARS_PER_TOKEN = 4  # estimate until the tokens are known

YOUNG_OBJECTS = 10_000  # threshold of the garbage collector; Python's 700 cost 2 % of a short request

State = Literal["unloaded", "loading", "ready", "failed"]


class Model:
    """One encoder with a queue of its own.

    Args:
        name: Name in requests.
        source: Returns the argument of `Encoder.load`.
        device: Device to run on.
        queue_limit: Maximum number of queued tokens.
        data_dir: Folder of its reference vectors.
        encoder: An encoder that is already loaded.
        observe: Called after each batch.
    """

    def __init__(
        self,
        name: str,
        source: Callable[[], str | EncoderSpec],
        *,
        device: str,
        queue_limit: int,
        data_dir: Path,
        encoder: Encoder | None = None,
        observe: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.name, self.device, self.queue_limit, self.data_dir = name, device, queue_limit, data_dir
        self.created = int(time.time())
        self.observe = observe
        self.failure: EmbedserveError | None = None
        self.last_used = time.monotonic()
        self.source, self._preloaded = source, encoder
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None
        self._tokenizers: ThreadPoolExecutor | None = None
        self._arriving = 0  # estimated tokens of the texts being tokenised
        self._active = 0  # requests in progress
        self._loading = threading.Lock()
        self.state: State = "unloaded"

    def load(self) -> None:
        """Load the encoder, embed the reference texts and start the queue; a failure is stored in ``failure``."""
        with self._loading:
            if self.state == "ready":
                return
            self.state, self.failure = "loading", None
            start = time.monotonic()
            try:
                encoder = self._preloaded or self._read()
                keep_reference(self.data_dir, encoder)
            except EmbedserveError as error:
                self._fail(error)
            except Exception as error:  # the model must not stay in the state loading
                logger.exception("loading failed")
                self._fail(LoadError(f"model {self.name!r} cannot be loaded: {error}", field="model"))
            else:
                encoder.on_halved = partial(metrics.oom_retry, self.name)
                self._encoder = encoder
                self._batcher = Batcher(encoder, limit=self.queue_limit, observe=self.observe)
                self._tokenizers = ThreadPoolExecutor(encoder.workers + 1, thread_name_prefix="tokenize")
                settle_heap()
                self.last_used = time.monotonic()
                self.state = "ready"
                seconds = time.monotonic() - start
                metrics.model_load(self.name, seconds)
                logger.info("model loaded name=%s seconds=%.1f", encoder.name, seconds)

    def _read(self) -> Encoder:
        from embedserve import Encoder

        return Encoder.load(self.source(), device=self.device)

    def _fail(self, error: EmbedserveError) -> None:
        self.failure, self.state = error, "failed"
        logger.error("loading failed: %s", error.message)

    def close(self) -> None:
        """Finish queued requests and release the encoder; it can be loaded again."""
        with self._loading:
            self._release()

    def close_idle(self, seconds: float) -> bool:
        """Release the encoder if no request used it for ``seconds``; return whether it was released."""
        with self._loading:
            if self.state != "ready" or time.monotonic() - self.last_used < seconds:
                return False
            self.state = "unloaded"  # a request from now on loads it again afterwards
            if self._active:
                self.state = "ready"
                return False
            self._release()
            return True

    def _release(self) -> None:
        self.state = "unloaded"
        if self._tokenizers is not None:
            self._tokenizers.shutdown()
        if self._batcher is not None:
            self._batcher.close()
        self._encoder = self._batcher = self._tokenizers = None
        settle_heap()

    @property
    def encoder(self) -> Encoder:
        """The loaded encoder; raises an error 503 with the reason if there is none."""
        if self._encoder is None or self.state != "ready":
            self.begin_loading()
            raise self.unready()
        if self.batcher.failure is not None:
            raise self.batcher.failure
        return self._encoder

    @property
    def batcher(self) -> Batcher:
        """The queue; raises an error 503 if the model is not loaded."""
        if self._batcher is None:
            raise self.unready()
        return self._batcher

    def begin_loading(self) -> None:
        """Load an unloaded model in a thread."""
        if self.state == "unloaded":
            self.state = "loading"
            threading.Thread(target=self.load, name="load", daemon=True).start()

    def unready(self) -> ApiError:
        """Return the error that says why the model cannot embed."""
        if self.failure is not None:
            return ApiError(503, "model_failed", f"the model could not be loaded: {self.failure.message}")
        return ApiError(503, "loading", f"the model {self.name!r} is still loading; try again in a second")

    async def embed(
        self, texts: Texts, options: EncodeOptions, on_part: OnPart | None = None
    ) -> tuple[Encoded, dict[str, float]]:
        """Embed texts.

        Args:
            texts: At least one, not blank; or rows of token ids, which are used unchanged.
            options: How to embed them.
            on_part: Called in the compute thread as batches finish, with the indices of their texts and their vectors.

        Returns:
            The outputs of the encoder, in the order of the texts, and the milliseconds of ``tokenize``, ``queue`` and
            ``compute``.

        Raises:
            ApiError: 422, 429 or 503.
            OverloadedError: The queue is full.
        """
        self._active += 1
        try:
            encoder, batcher = self.encoder, self.batcher
            _check_options(encoder, options)
            dimensions, normalize = options.dimensions, options.normalize

            def shorten_part(indices: np.ndarray, part: Encoded) -> None:
                if on_part is not None:
                    on_part(indices, part.shortened(dimensions, normalize=normalize))

            queued, tokenize_s = await self._submit(encoder, batcher, texts, options, on_part and shorten_part)
            result = await asyncio.wrap_future(queued)
            self._count(result, options.task, tokenize_s)
            timings = {"tokenize": tokenize_s, "queue": result.queue_s, "compute": result.compute_s}
            encoded = result.encoded.shortened(dimensions, normalize=normalize)
            return encoded, {stage: round(1000 * seconds, 3) for stage, seconds in timings.items()}
        finally:
            self._active -= 1
            self.last_used = time.monotonic()

    async def _submit(
        self, encoder: Encoder, batcher: Batcher, texts: Texts, options: EncodeOptions, on_part: OnPart | None
    ) -> tuple[Future[BatchedResult], float]:
        """Tokenise and queue texts; return the future of the result and the seconds of tokenising."""
        batcher.loop = asyncio.get_running_loop()
        longest = options.max_tokens or encoder.max_tokens
        prefix = len(options.prompt or "")
        cost = sum(min((prefix + len(text)) // CHARS_PER_TOKEN, longest) for text in texts)
        # The estimate may be twice the real number; the check is repeated when the tokens are known.
        batcher.check_room(cost // 2, self._arriving)
        chars = sum(map(len, texts)) + len(texts) * prefix
        priority = options.priority or options.task
        start = time.monotonic()
        if chars <= INLINE_CHARS:
            rows = token_rows(encoder, texts, options)
            tokenize_s = time.monotonic() - start
            return batcher.submit(rows, priority, on_part), tokenize_s
        is_short = chars <= SHORT_CHARS
        self._arriving += cost
        if is_short:
            batcher.expect()
        try:
            rows = await batcher.loop.run_in_executor(self._tokenizers, token_rows, encoder, texts, options)
            tokenize_s = time.monotonic() - start
            return batcher.submit(rows, priority, on_part), tokenize_s
        finally:
            self._arriving -= cost
            if is_short:
                batcher.arrived()

    def _count(self, result: BatchedResult, task: Task, tokenize_s: float) -> None:
        """Update the metrics and the record of the request."""
        encoded, end = result.encoded, time.perf_counter()
        tokens = sum(encoded.tokens.tolist())  # for a few texts much faster than numpy's sum
        metrics.tokenized(self.name, tokenize_s)
        metrics.embedded(self.name, task, tokens, sum(encoded.truncated.tolist()))
        count_tokens(tokens)
        for stage, seconds in (("compute", result.compute_s), ("queue", result.queue_s), ("tokenize", tokenize_s)):
            add_stage(stage, end - seconds, end)
            end -= seconds


def _check_options(encoder: Encoder, options: EncodeOptions) -> None:
    """Raise an error 422 if the encoder does not support the options."""
    tokens, dimensions = options.max_tokens, options.dimensions
    if tokens is not None and not MIN_MAX_TOKENS <= tokens <= encoder.max_tokens:
        message = f"max_tokens is {tokens}; {encoder.name} supports {MIN_MAX_TOKENS} to {encoder.max_tokens}"
        raise ApiError(422, "max_tokens_out_of_range", message, param="max_tokens")
    if dimensions is not None and not 1 <= dimensions <= encoder.dim:
        message = f"dimensions is {dimensions}; {encoder.name} supports 1 to {encoder.dim}"
        raise ApiError(422, "dimensions_out_of_range", message, param="dimensions")


def settle_heap() -> None:
    """Free garbage, and exclude everything else from garbage collection.

    Packages and models are a million objects that stay alive. A full collection mostly traverses them and blocks every
    request for a third of a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
