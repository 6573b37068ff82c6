"""One model of the service: its encoder, and the thread and the queue in front of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from api.http.error_responses import ApiError
from api.inference.batcher import Batcher
from api.inference.reference_vectors import keep_reference
from api.inference.request_queue import Answer, OnPart
from api.inference.truncation import MIN_MAX_TOKENS, Texts, token_rows
from api.telemetry import metrics
from api.telemetry.batch_report import BatchReport
from api.telemetry.request_record import add_stage, count_tokens
from embedserve.errors import EmbedserveError, LoadError
from embedserve.types import Task

if TYPE_CHECKING:
    from embedserve import Encoder, EncoderSpec

logger = logging.getLogger(__name__)

INLINE_CHARS = 500  # tokenised at once, in half a millisecond at most: to hand them to a thread costs more
SHORT_CHARS = 2000  # tokenised in a moment: a batch that begins meanwhile waits for it
CHARS_PER_TOKEN = 4  # about: what a text counts until its tokens are known

YOUNG_OBJECTS = 10_000  # before the garbage collector looks for cycles; Python's 700 take 2 % of a short request

State = Literal["unloaded", "loading", "ready", "failed"]


class Model:
    """One encoder with its own queue; others wait for it and for nothing else.

    Args:
        name: What requests call it.
        source: Returns what `Encoder.load` takes.
        device: Where it runs.
        queue_limit: Tokens that may wait.
        data_dir: Where its reference vectors are kept.
        encoder: An encoder that is loaded already.
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
        self.source, self._given = source, encoder
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None
        self._tokenizers: ThreadPoolExecutor | None = None
        self._arriving = 0  # tokens, about, of the texts that are being cut into them
        self._active = 0  # requests that use the encoder
        self._loading = threading.Lock()
        self.state: State = "unloaded"

    def load(self) -> None:
        """Load the encoder, embed the reference texts, and open the queue; a failure is kept and told to who asks."""
        with self._loading:
            if self.state == "ready":
                return
            self.state, self.failure = "loading", None
            started = time.monotonic()
            try:
                encoder = self._given or self._read()
                keep_reference(self.data_dir, encoder)
            except EmbedserveError as error:
                self._fail(error)
            except Exception as error:  # whatever it is, it must not stay loading for ever; the log has it whole
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
                seconds = time.monotonic() - started
                metrics.model_load(self.name, seconds)
                logger.info("model loaded name=%s seconds=%.1f", encoder.name, seconds)

    def _read(self) -> Encoder:
        from embedserve import Encoder

        return Encoder.load(self.source(), device=self.device)

    def _fail(self, error: EmbedserveError) -> None:
        self.failure, self.state = error, "failed"
        logger.error("loading failed: %s", error.message)

    def close(self) -> None:
        """Finish what is queued and let go of the encoder; it may be loaded again."""
        with self._loading:
            self._release()

    def close_idle(self, seconds: float) -> bool:
        """Let go of the encoder where no request used it for so long; return whether that was done."""
        with self._loading:
            if self.state != "ready" or time.monotonic() - self.last_used < seconds:
                return False
            self.state = "unloaded"  # who comes from here on has it loaded again, when this is done
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
        """The loaded encoder; an error 503 that says why there is none."""
        if self._encoder is None or self.state != "ready":
            self.begin_loading()
            raise self.unready()
        if self.batcher.failure is not None:
            raise self.batcher.failure
        return self._encoder

    @property
    def batcher(self) -> Batcher:
        """The queue; an error 503 where the model is not loaded."""
        if self._batcher is None:
            raise self.unready()
        return self._batcher

    def begin_loading(self) -> None:
        """Have an unloaded model loaded by a thread."""
        if self.state == "unloaded":
            self.state = "loading"
            threading.Thread(target=self.load, name="load", daemon=True).start()

    def unready(self) -> ApiError:
        """Return the error that says why nothing can be embedded."""
        if self.failure is not None:
            return ApiError(503, "model_failed", f"the model could not be loaded: {self.failure.message}")
        return ApiError(503, "loading", f"the model {self.name!r} is still loading; try again in a second")

    async def embed(self, texts: Texts, task: Task, **how: Any) -> tuple[Answer, float]:
        """Return what the encoder makes of ``texts``, and the seconds that tokenising took; see `Service.embed`."""
        self._active += 1
        try:
            return await self._embed(texts, task, **how)
        finally:
            self._active -= 1
            self.last_used = time.monotonic()

    async def _embed(
        self,
        texts: Texts,
        task: Task,
        *,
        field: str = "input",
        priority: str | None = None,
        prompt: str | None = None,
        truncate: str = "end",
        max_tokens: int | None = None,
        on_part: OnPart | None = None,
    ) -> tuple[Answer, float]:
        encoder, batcher = self.encoder, self.batcher
        batcher.loop = asyncio.get_running_loop()
        if max_tokens is not None and not MIN_MAX_TOKENS <= max_tokens <= encoder.max_tokens:
            message = f"max_tokens is {max_tokens}; {encoder.name} reads {MIN_MAX_TOKENS} to {encoder.max_tokens}"
            raise ApiError(422, "max_tokens_out_of_range", message, param="max_tokens")
        longest = max_tokens or encoder.max_tokens
        in_front = len(prompt or "")
        cost = sum(min((in_front + len(text)) // CHARS_PER_TOKEN, longest) for text in texts)
        # The estimate may be twice what it is; the tokens decide once they are known.
        batcher.check_room(cost // 2, self._arriving)

        def name(place: int) -> str:
            return field if len(texts) == 1 else f"{field}[{place}]"

        read = partial(
            token_rows, encoder, texts, task, prompt=prompt, max_tokens=max_tokens, truncate=truncate, name=name
        )
        chars = sum(map(len, texts)) + len(texts) * in_front
        started = time.monotonic()
        if chars <= INLINE_CHARS:
            rows = read()
            tokenize_s = time.monotonic() - started
            queued = batcher.submit(rows, priority or task, on_part)
        else:
            is_short = chars <= SHORT_CHARS
            self._arriving += cost
            if is_short:
                batcher.expect()
            try:
                rows = await batcher.loop.run_in_executor(self._tokenizers, read)
                tokenize_s = time.monotonic() - started
                queued = batcher.submit(rows, priority or task, on_part)
            finally:
                self._arriving -= cost
                if is_short:
                    batcher.came()
        answer = await asyncio.wrap_future(queued)
        self._count(answer, task, tokenize_s)
        return answer, tokenize_s

    def _count(self, answer: Answer, task: Task, tokenize_s: float) -> None:
        """Tell the metrics, and the record of the request, what was embedded."""
        found, now = answer.encoded, time.perf_counter()
        tokens = sum(found.tokens.tolist())  # of few texts, as most requests have, far faster than numpy's
        metrics.tokenized(self.name, tokenize_s)
        metrics.embedded(self.name, task, tokens, sum(found.truncated.tolist()))
        count_tokens(tokens)
        for stage, spent in (("compute", answer.compute_s), ("queue", answer.queue_s), ("tokenize", tokenize_s)):
            add_stage(stage, now - spent, now)
            now -= spent


def settle_heap() -> None:
    """Free what is garbage and keep the garbage collector off everything else that is there.

    Packages and models are a million objects that stay. Looking through them is what a full collection mostly does, and
    it holds up every request for a third of a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def checked_dimensions(encoder: Encoder, dimensions: int | None) -> int | None:
    """Return ``dimensions``; raise an error 422 where the encoder has not so many."""
    if dimensions is not None and not 1 <= dimensions <= encoder.dim:
        message = f"dimensions is {dimensions}; {encoder.name} gives 1 to {encoder.dim}"
        raise ApiError(422, "dimensions_out_of_range", message, param="dimensions")
    return dimensions


def timing_ms(answer: Answer, tokenize_s: float) -> dict[str, float]:
    """Return the milliseconds of each stage of an answer."""
    seconds = {"tokenize": tokenize_s, "queue": answer.queue_s, "compute": answer.compute_s}
    return {stage: round(1000 * value, 3) for stage, value in seconds.items()}
