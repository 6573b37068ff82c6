"""What the routes stand on: the models, the threads that compute with them, and the collections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from api.collections.job_manager import Jobs
from api.collections.open_collection import CollectionState
from api.collections.open_collections import Collections
from api.collections.writers import Writers
from api.http.error_responses import ApiError
from api.inference.batcher import Batcher
from api.inference.model import Model, State, checked_dimensions, timing_ms
from api.inference.model_registry import Models
from api.inference.request_queue import OnPart
from api.inference.selfcheck import PROBE_PATIENCE_S, check
from api.inference.truncation import Texts
from api.telemetry.batch_report import BatchReport
from embedserve.errors import EmbedserveError
from embedserve.types import Encoded, Task

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder
    from indexing import Collection

logger = logging.getLogger(__name__)

SEARCH_THREADS = 4

T = TypeVar("T")


class Service:
    """Loads the default model and answers with it and with the others.

    Args:
        settings: The settings of the service.
        encoder: An encoder that is loaded already; left out, ``settings.model`` is loaded at the start.
        observe: Called with a model's name and each of its batches, in the thread that computed it.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder | None = None,
        observe: Callable[[str, BatchReport], None] | None = None,
    ) -> None:
        self.settings = settings
        self.models = Models(settings, encoder, observe)
        self.failure: EmbedserveError | None = None
        self.state: State = "loading"
        self.finished_loading = threading.Event()
        self._loader: threading.Thread | None = None
        self._collections: Collections | None = None
        self._writers: Writers | None = None
        self._jobs: Jobs | None = None
        self._searchers: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Begin to load the default model and collection, in a thread."""
        self._searchers = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="search")
        self.models.start()
        self._loader = threading.Thread(target=self._load, name="load", daemon=True)
        self._loader.start()

    def close(self) -> None:
        """Finish what is queued, then close the collections; the service may be started again."""
        if self._loader is not None:
            self._loader.join()
        self.models.close()
        if self._searchers is not None:
            self._searchers.shutdown()
        if self._jobs is not None:
            self._jobs.close()
        if self._writers is not None:
            self._writers.close()
        if self._collections is not None:
            self._collections.close()
        self.state = "loading"
        self.finished_loading.clear()

    def _load(self) -> None:
        try:
            model = self.models.default
            model.load()
            if model.failure is not None:
                self.failure, self.state = model.failure, "failed"
                return
            self._collections = Collections(self.settings.data_dir, self.models.encoders, self.models.unloaded)
            self._writers = Writers(self._collections, self.settings.write_idle_s)
            self._jobs = Jobs(self.settings, self._writers)
            self._open_default(self._collections)
            self.state = "ready"
            self.models.load_kept()
        except Exception as error:  # whatever it is, the service must not stay loading for ever; the log has it whole
            logger.exception("loading failed")
            self.failure, self.state = EmbedserveError(f"the service cannot start: {error}"), "failed"
        finally:
            self.finished_loading.set()

    def _open_default(self, collections: Collections) -> None:
        """Open the default collection if it is there; if it cannot be opened, its users and ``/readyz`` are told."""
        with contextlib.suppress(EmbedserveError), collections.use(self.settings.collection):
            pass

    @property
    def encoder(self) -> Encoder:
        """The default model's encoder; an error 503 that says why there is none."""
        return self.model().encoder

    @property
    def batcher(self) -> Batcher:
        """The default model's queue; an error 503 before it is loaded."""
        return self.models.default.batcher

    @property
    def collections(self) -> Collections:
        """The collections; an error 503 while loading."""
        if self._collections is None or self.state != "ready":
            raise self._unready()
        return self._collections

    @property
    def writers(self) -> Writers:
        """Who writes to collections; an error 503 while loading."""
        if self._writers is None or self.state != "ready":
            raise self._unready()
        return self._writers

    @property
    def jobs(self) -> Jobs:
        """The jobs; an error 503 while loading."""
        if self._jobs is None or self.state != "ready":
            raise self._unready()
        return self._jobs

    def _unready(self) -> ApiError:
        if self.failure is not None:
            return ApiError(503, "model_failed", f"the model could not be loaded: {self.failure.message}")
        return self.models.default.unready()

    def model(self, name: str | None = None) -> Model:
        """Return the model that a request names; an error 404 where there is none, 503 while the service loads."""
        if self.state != "ready":
            raise self._unready()
        return self.models.get(name)

    async def embed(
        self,
        texts: Texts,
        task: Task,
        dimensions: int | None = None,
        *,
        field: str = "input",
        model: str | None = None,
        priority: str | None = None,
        prompt: str | None = None,
        truncate: str = "end",
        max_tokens: int | None = None,
    ) -> Encoded:
        """Return what a model's encoder makes of ``texts``, in their order.

        Args:
            texts: At least one, each with something to read in it; or rows of token ids, which are read as they are.
            task: ``query`` or ``document``.
            dimensions: Keep only so many leading dimensions, normalised again.
            field: What an error calls the texts: ``field`` where there is one, else ``field[place]``.
            model: Name of the model; None for the default one.
            priority: ``query``, ``document`` or ``bulk``: who goes first; the task unless given.
            prompt: Put in front of each text in place of the task's prompt.
            truncate: ``end`` or ``start``: what a text loses that is too long; ``none`` makes it an error.
            max_tokens: Tokens to read of one text; left out, as many as the model can.

        Raises:
            ApiError: 404, 422, 429 or 503, as the routes answer it.
        """
        found, _ = await self.embed_timed(
            texts,
            task,
            dimensions,
            field=field,
            model=model,
            priority=priority,
            prompt=prompt,
            truncate=truncate,
            max_tokens=max_tokens,
        )
        return found

    async def embed_timed(
        self,
        texts: Texts,
        task: Task,
        dimensions: int | None = None,
        *,
        model: str | None = None,
        normalize: bool = True,
        on_part: OnPart | None = None,
        **how: Any,
    ) -> tuple[Encoded, dict[str, float]]:
        """Return what `embed` returns, and the milliseconds of ``tokenize``, ``queue`` and ``compute``.

        ``normalize=False`` leaves vectors that ``dimensions`` cut as they are; ``on_part`` is called as batches finish.
        """
        used = self.model(model)
        checked_dimensions(used.encoder, dimensions)

        def shortened(places: np.ndarray, part: Encoded) -> None:
            if on_part is not None:
                on_part(places, part.shortened(dimensions, normalize=normalize))

        answer, tokenize_s = await used.embed(texts, task, on_part=on_part and shortened, **how)
        return answer.encoded.shortened(dimensions, normalize=normalize), timing_ms(answer, tokenize_s)

    async def in_search_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what ``work`` returns, off the event loop, in one of the few threads that searches have."""
        return await asyncio.get_running_loop().run_in_executor(self._searchers, partial(work, *arguments))

    async def open(self, name: str) -> None:
        """Return once a collection can be searched; raise the reason if it cannot."""
        opening = self.collections.refresh(name)
        if opening is not None:
            await asyncio.shield(asyncio.wrap_future(opening))  # others wait for it too
        error = self.collections.error(name)
        if error is not None and not self.collections.is_open(name):
            raise error

    async def write(self, name: str, work: Callable[[Collection], T]) -> T:
        """Return what ``work`` does with the collection, open for writing, in the thread that writes to it.

        It is done once this returns, and done too where the caller has gone meanwhile.
        """
        return await asyncio.shield(asyncio.wrap_future(self.writers.submit(name, work)))

    async def survey(self) -> list[CollectionState]:
        """Return every collection on disk, and of each whether it is open or why it is not."""
        return await asyncio.to_thread(self.collections.states)

    async def check(self) -> dict[str, str]:
        """Return what was checked and found; raise an error 503 that says what is wrong.

        Every loaded model embeds a text, unless it did in the last seconds.
        """
        name = self.encoder.name
        await asyncio.gather(*(check(model) for model in self.models if model.state == "ready"))
        return {"model": name, "collection": await self._check_default()}

    async def _check_default(self) -> str:
        name = self.settings.collection
        try:
            await asyncio.wait_for(self.open(name), PROBE_PATIENCE_S)
        except TimeoutError:
            return f"{name}: being opened"
        except ApiError:
            return f"{name}: not built yet"
        except EmbedserveError as error:
            message = f"collection {name!r} cannot be opened: {error.message}"
            raise ApiError(503, "collection_failed", message) from None
        newer = self.collections.error(name)
        return f"{name}: open" if newer is None else f"{name}: open, an older build; the newest fails: {newer.message}"


def stages_ms(started: float, embedded: float, done: float, spent: Mapping[str, float]) -> dict[str, float]:
    """Return the milliseconds of each stage of a search, 0 for those that there were not.

    Args:
        started: When it began, in seconds.
        embedded: When the queries were embedded.
        done: When it ended.
        spent: Seconds of the stages between, as `indexing.Collection.find` gives them.
    """
    return {
        "embed": 1000 * (embedded - started),
        **{stage: 1000 * spent.get(stage, 0.0) for stage in ("retrieve", "fuse", "rerank", "fetch")},
        "search": 1000 * (done - embedded),
        "total": 1000 * (done - started),
    }
