"""The state behind the routes: models, collections, writers, jobs, and search threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from api.collections.job_manager import Jobs
from api.collections.open_collection import CollectionState
from api.collections.open_collections import Collections
from api.collections.writers import Writers
from api.http.error_responses import ApiError
from api.inference.model import Model, State
from api.inference.model_registry import Models
from api.inference.selfcheck import PROBE_PATIENCE_S, check
from api.telemetry.batch_report import BatchReport
from embedserve.errors import EmbedserveError

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder
    from indexing import Collection

logger = logging.getLogger(__name__)

SEARCH_THREADS = 4

T = TypeVar("T")


class Service:
    """Loads the default model, opens collections, and runs searches and writes in threads.

    Args:
        settings: The settings of the service.
        encoder: A loaded encoder. Default: load ``settings.model`` at the start.
        observe: Called with a model's name and the report of each batch, in its compute thread.
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
        """Start loading the default model and collection, in a thread."""
        self._searchers = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="search")
        self.models.start()
        self._loader = threading.Thread(target=self._load, name="load", daemon=True)
        self._loader.start()

    def close(self) -> None:
        """Finish queued requests, then close the collections; the service can be started again."""
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
        except Exception as error:  # the service must not stay in the state loading
            logger.exception("loading failed")
            self.failure, self.state = EmbedserveError(f"the service cannot start: {error}"), "failed"
        finally:
            self.finished_loading.set()

    def _open_default(self, collections: Collections) -> None:
        """Open the default collection if it exists; its users and ``/readyz`` report a failure."""
        with contextlib.suppress(EmbedserveError), collections.use(self.settings.collection):
            pass

    @property
    def collections(self) -> Collections:
        """The collections; raises an error 503 while loading."""
        if self._collections is None or self.state != "ready":
            raise self._unready()
        return self._collections

    @property
    def writers(self) -> Writers:
        """The writers of collections; raises an error 503 while loading."""
        if self._writers is None or self.state != "ready":
            raise self._unready()
        return self._writers

    @property
    def jobs(self) -> Jobs:
        """The jobs; raises an error 503 while loading."""
        if self._jobs is None or self.state != "ready":
            raise self._unready()
        return self._jobs

    def _unready(self) -> ApiError:
        if self.failure is not None:
            return ApiError(503, "model_failed", f"the model could not be loaded: {self.failure.message}")
        return self.models.default.unready()

    def model(self, name: str | None = None) -> Model:
        """Return a model by name (default: the default model); raise an error 404 if unknown, 503 while loading."""
        if self.state != "ready":
            raise self._unready()
        return self.models.get(name)

    async def in_search_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run ``work`` in one of the search threads, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._searchers, partial(work, *arguments))

    async def open(self, name: str) -> None:
        """Wait until a collection can be searched; raise the reason if it cannot."""
        opening = self.collections.refresh(name)
        if opening is not None:
            await asyncio.shield(asyncio.wrap_future(opening))  # shared with other requests
        error = self.collections.error(name)
        if error is not None and not self.collections.is_open(name):
            raise error

    async def write(self, name: str, work: Callable[[Collection], T]) -> T:
        """Run ``work`` on the collection, opened for writing, in its writer thread.

        The work is finished even if the caller disconnects.
        """
        return await asyncio.shield(asyncio.wrap_future(self.writers.submit(name, work)))

    async def survey(self) -> list[CollectionState]:
        """Return the state of every collection on disk."""
        return await asyncio.to_thread(self.collections.states)

    async def check(self) -> dict[str, str]:
        """Check that every loaded model embeds and the default collection opens; raise an error 503 otherwise."""
        name = self.model().encoder.name
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
