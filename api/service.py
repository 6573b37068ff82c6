"""What the routes stand on: one encoder, the thread that computes with it, and the collections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from api.collections import Collections, CollectionState
from api.compute import ComputeThread
from api.errors import ApiError
from embedserve.errors import EmbedserveError, InputError, LoadError, did_you_mean, name_texts
from embedserve.types import Encoded, Task

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder
    from indexing import Hit

logger = logging.getLogger(__name__)

STEP_TEXTS = 256
STEP_CHARS = 32_000
PROBE_EVERY_S = 10.0
PROBE_PATIENCE_S = 10.0
SEARCH_THREADS = 4

State = Literal["loading", "ready", "failed"]
T = TypeVar("T")


class Service:
    """Loads the encoder in the compute thread and answers with it.

    Args:
        settings: The settings of the service.
        encoder: An encoder that is loaded already; left out, ``settings.model`` is loaded at the start.
    """

    def __init__(self, settings: Settings, encoder: Encoder | None = None) -> None:
        self.settings = settings
        self.state: State = "loading"
        self.failure: EmbedserveError | None = None
        self.finished_loading = threading.Event()
        self._compute: ComputeThread | None = None
        self._encoder: Encoder | None = encoder
        self._collections: Collections | None = None
        self._searchers: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Begin to load the encoder and the default collection in the compute thread."""
        self._searchers = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="search")
        self._compute = ComputeThread("compute", limit=self.settings.queue_limit)
        self._compute.submit([(0, self._load)], urgent=True)

    def close(self) -> None:
        """Finish what is queued, then close the collections; the service may be started again."""
        if self._compute is not None:
            self._compute.close()
        if self._searchers is not None:
            self._searchers.shutdown()
        if self._collections is not None:
            self._collections.close()
        self.state = "loading"
        self.finished_loading.clear()

    def _load(self) -> None:
        started = time.monotonic()
        try:
            if self._encoder is None:
                from embedserve import Encoder
                from embedserve.spec import parse_spec

                model, strategy = self.settings.model, self.settings.strategy
                spec = model if strategy is None else parse_spec(strategy, backbone=model)
                self._encoder = Encoder.load(spec, device=self.settings.device)
            self._encoder.encode(["ready"], task="query")
            self._collections = Collections(self.settings.data_dir, self._encoder)
            self._open_default(self._collections)
            self.state = "ready"
            seconds = time.monotonic() - started
            logger.info("model loaded name=%s seconds=%.1f", self._encoder.name, seconds)
        except EmbedserveError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the service must not stay loading for ever; the log has it whole
            logger.exception("loading failed")
            self._fail(LoadError(f"model {self.settings.model!r} cannot be loaded: {error}", field="model"))
        finally:
            self.finished_loading.set()

    def _open_default(self, collections: Collections) -> None:
        """Open the default collection if it is there; if it cannot be opened, its users and ``/readyz`` are told."""
        with contextlib.suppress(EmbedserveError), collections.use(self.settings.collection):
            pass

    def _fail(self, error: EmbedserveError) -> None:
        self.failure, self.state = error, "failed"
        logger.error("loading failed: %s", error.message)

    @property
    def encoder(self) -> Encoder:
        """The loaded encoder; an error 503 that says why there is none."""
        if self._encoder is None or self.state != "ready":
            raise self._unready()
        return self._encoder

    @property
    def compute(self) -> ComputeThread:
        """The compute thread; an error 503 before the start."""
        if self._compute is None:
            raise self._unready()
        return self._compute

    @property
    def collections(self) -> Collections:
        """The collections; an error 503 while loading."""
        if self._collections is None or self.state != "ready":
            raise self._unready()
        return self._collections

    def _unready(self) -> ApiError:
        if self.failure is not None:
            return ApiError(503, "model_failed", f"the model could not be loaded: {self.failure.message}")
        message = f"the model {self.settings.model!r} is still loading; try again in a second"
        return ApiError(503, "loading", message)

    def check_model(self, name: str | None) -> None:
        """Raise an error 404 unless ``name`` is the loaded encoder's."""
        encoder = self.encoder
        if name is not None and name not in (encoder.name, self.settings.model, encoder.fingerprint):
            message = f"there is no model {name!r}; {did_you_mean(name, [encoder.name])}{encoder.name!r} is loaded here"
            raise ApiError(404, "model_not_found", message, param="model")

    async def embed(
        self, texts: Sequence[str], task: Task, dimensions: int | None = None, *, field: str = "input"
    ) -> Encoded:
        """Return what the encoder makes of ``texts``, in their order.

        An error names the text as ``field`` or ``field[place]``.
        """
        encoder = self.encoder
        if dimensions is not None and not 1 <= dimensions <= encoder.dim:
            message = f"dimensions is {dimensions}; {encoder.name} gives 1 to {encoder.dim}"
            raise ApiError(422, "dimensions_out_of_range", message, param="dimensions")

        def name_from(first: int) -> Callable[[int], str]:
            return lambda place: field if len(texts) == 1 else f"{field}[{first + place}]"

        steps = [
            (sum(map(len, part)), partial(_embed_part, encoder, part, task, dimensions, name_from(first)))
            for first, part in in_steps(texts)
        ]
        return Encoded.concatenate(await self.compute.run(steps))

    async def search(
        self, name: str, queries: Sequence[str], k: int, *, field: str
    ) -> tuple[list[list[Hit]], dict[str, float]]:
        """Return the hits of each query, in their order, and the milliseconds of each stage."""
        started = time.perf_counter()
        await self._open(name)
        found = (await self.embed(queries, "query", field=field)).dense
        if found is None:
            made = " and ".join(self.encoder.outputs)
            message = f"{self.encoder.name} makes {made} vectors; collections hold one vector for each text"
            raise ApiError(422, "no_dense_vectors", message)
        embedded = time.perf_counter()
        hits = await self.in_search_thread(self._find, name, found.vectors, k)
        done = time.perf_counter()
        return hits, stages_ms(started, embedded, done)

    async def in_search_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what ``work`` returns, off the event loop, in one of the few threads that searches have."""
        return await asyncio.get_running_loop().run_in_executor(self._searchers, partial(work, *arguments))

    async def _open(self, name: str) -> None:
        """Return once a collection can be searched; raise the reason if it cannot."""
        opening = self.collections.refresh(name)
        if opening is not None:
            await asyncio.shield(asyncio.wrap_future(opening))  # others wait for it too
        error = self.collections.error(name)
        if error is not None and not self.collections.is_open(name):
            raise error

    def _find(self, name: str, vectors: np.ndarray, k: int) -> list[list[Hit]]:
        with self.collections.use(name) as collection:
            return collection.search_vectors(vectors, k)

    async def survey(self) -> list[CollectionState]:
        """Return every collection on disk, and of each whether it is open or why it is not."""
        return await asyncio.to_thread(self.collections.all)

    async def check(self) -> dict[str, str]:
        """Return what was checked and found; raise an error 503 that says what is wrong.

        An embedding that succeeded in the last seconds counts; otherwise one is made now.
        """
        encoder, compute = self.encoder, self.compute
        last = compute.last_success
        if last is None or time.monotonic() - last > PROBE_EVERY_S:
            probe = compute.run([(0, partial(encoder.encode, ["ready"], task="query"))], urgent=True)
            try:
                await asyncio.wait_for(probe, PROBE_PATIENCE_S)
            except TimeoutError:
                queued = f"{compute.pending:,} characters of text wait"
                message = f"one text was not embedded within {PROBE_PATIENCE_S:.0f} s; {queued}"
                raise ApiError(503, "too_slow", message) from None
            except (Exception, CancelledError) as error:  # any failure to embed is what the check is to find
                raise ApiError(503, "embedding_failed", f"embedding one text failed: {error}") from error
        return {"model": encoder.name, "collection": await self._check_default()}

    async def _check_default(self) -> str:
        name = self.settings.collection
        try:
            await asyncio.wait_for(self._open(name), PROBE_PATIENCE_S)
        except TimeoutError:
            return f"{name}: being opened"
        except ApiError:
            return f"{name}: not built yet"
        except EmbedserveError as error:
            message = f"collection {name!r} cannot be opened: {error.message}"
            raise ApiError(503, "collection_failed", message) from None
        newer = self.collections.error(name)
        return f"{name}: open" if newer is None else f"{name}: open, an older build; the newest fails: {newer.message}"


def stages_ms(started: float, embedded: float, done: float) -> dict[str, float]:
    """Return the milliseconds of each stage of a search, from the seconds at which they ended."""
    return {
        "embed": 1000 * (embedded - started),
        "search": 1000 * (done - embedded),
        "total": 1000 * (done - started),
    }


def in_steps(texts: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Cut texts, in their order, into parts that the compute thread takes in one go.

    Returns:
        Each part's place in ``texts``, and the part.
    """
    parts: list[tuple[int, list[str]]] = []
    chars = 0
    for place, text in enumerate(texts):
        if not parts or len(parts[-1][1]) >= STEP_TEXTS or chars + len(text) > STEP_CHARS:
            parts.append((place, []))
            chars = 0
        parts[-1][1].append(text)
        chars += len(text)
    return parts


def _embed_part(
    encoder: Encoder, texts: list[str], task: Task, dimensions: int | None, name: Callable[[int], str]
) -> Encoded:
    """Embed one part; name a bad text by its place in the request."""
    try:
        return encoder.encode(texts, task=task, dimensions=dimensions)
    except InputError as error:
        raise name_texts(error, name) from error
