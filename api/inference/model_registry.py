"""The models of the service, their names and aliases, and which of them are loaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from api.http.error_responses import ApiError
from api.inference.model import Model
from api.inference.saved_registry import KeptModels, read_kept, write_kept
from api.telemetry.batch_report import BatchReport
from embedserve.errors import did_you_mean
from embedserve.spec import parse_model, parse_spec

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder, EncoderSpec

logger = logging.getLogger(__name__)


class Models:
    """The models of one service, each with its own queue.

    Args:
        settings: The settings of the service.
        encoder: The encoder of the default model, if already loaded.
        observe: Called with a model's name and the report of each of its batches.

    Raises:
        CorruptFileError: The saved state of the models is damaged.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder | None = None,
        observe: Callable[[str, BatchReport], None] | None = None,
    ) -> None:
        self._settings, self._observe = settings, observe
        named, strategy = settings.model, settings.strategy
        self.default = self._model(
            named, lambda: named if strategy is None else parse_spec(strategy, backbone=named), encoder
        )
        self._all = {self.default.name: self.default}
        for name, spec in settings.models.items():
            self._all.setdefault(name, self._model(name, partial(parse_model, spec)))
        self._changing = threading.Lock()  # held while the saved state is written
        self._kept = read_kept(settings.data_dir)
        for name in sorted({*filter(None, self._kept.aliases.values()), *self._kept.loaded} - self._all.keys()):
            logger.warning("%r was loaded or has an alias, but is no longer a model of this server", name)
        self._ending = threading.Event()

    def _model(self, name: str, source: Callable[[], str | EncoderSpec], encoder: Encoder | None = None) -> Model:
        observe = self._observe
        return Model(
            name,
            source,
            device=self._settings.device,
            queue_limit=self._settings.queue_limit,
            data_dir=self._settings.data_dir,
            encoder=encoder,
            observe=None if observe is None else lambda report: observe(name, report),
        )

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._all.values()))

    @property
    def _aliases(self) -> dict[str, str]:
        """Model names by alias: those of the settings, overridden by those set over HTTP."""
        aliases = {**self._settings.model_aliases, **self._kept.aliases}
        return {alias: name for alias, name in aliases.items() if name is not None}

    def encoders(self) -> list[Encoder]:
        """Return the encoders that are loaded."""
        return [model.encoder for model in self if model.state == "ready"]

    def unloaded(self) -> list[str]:
        """Return the names of the models that are not loaded."""
        return [model.name for model in self if model.state == "unloaded"]

    def get(self, name: str | None) -> Model:
        """Return the model that a request names, by name or fingerprint; the default one for None.

        Raises:
            ApiError: 404 if no model has that name, 503 if that is not known yet.
        """
        if name is None:
            return self.default
        model = self._find(name)
        if model is None and self.default.state != "ready":
            raise self.default.unready()
        return model or self._unknown(name)

    def known(self, name: str) -> Model:
        """Return the model of a name, loaded or not; raise an error 404 if there is none."""
        return self._find(name) or self._unknown(name)

    def _find(self, name: str) -> Model | None:
        name = name if name in self._all else self._aliases.get(name, name)
        if name in self._all:
            return self._all[name]
        loaded = [model for model in self if model.state == "ready"]
        return next((model for model in loaded if name in (model.encoder.name, model.encoder.fingerprint)), None)

    def _unknown(self, name: str) -> NoReturn:
        known = [self.id_of(model) for model in self] + list(self._aliases)
        message = f"there is no model {name!r}; {did_you_mean(name, known)}there are {', '.join(map(repr, known))}"
        raise ApiError(404, "model_not_found", message, param="model")

    def id_of(self, model: Model) -> str:
        """Return a model's id in responses."""
        return model.encoder.name if model is self.default and model.state == "ready" else model.name

    def aliases_of(self, model: Model) -> list[str]:
        """Return the aliases of a model, sorted."""
        return sorted(alias for alias, name in self._aliases.items() if self._find(name) is model)

    def put_alias(self, alias: str, model: Model) -> None:
        """Point ``alias`` to ``model``; the alias survives restarts.

        Raises:
            ApiError: 409 if a model already has that name.
            EmbedserveError: The disk cannot be written; the alias is unchanged.
        """
        with self._changing:
            if alias in self._all or (alias not in self._aliases and self._find(alias) is not None):
                message = f"{alias!r} is a model's own name; choose another alias"
                raise ApiError(409, "name_taken", message, param="alias")
            self._keep(replace(self._kept, aliases={**self._kept.aliases, alias: model.name}))

    def delete_alias(self, alias: str, model: Model) -> None:
        """Delete ``alias`` durably; raises as `put_alias` does, and an error 404 if the model has no such alias."""
        with self._changing:
            if alias not in self.aliases_of(model) and self._kept.aliases.get(alias) != model.name:
                names = ", ".join(self.aliases_of(model)) or "none"
                message = f"{self.id_of(model)!r} has no alias {alias!r}; it has {names}"
                raise ApiError(404, "alias_not_found", message, param="alias")
            aliases = {name: of for name, of in self._kept.aliases.items() if name != alias}
            if alias in self._settings.model_aliases:
                aliases[alias] = None
            self._keep(replace(self._kept, aliases=aliases))

    def keep_loaded(self, model: Model, load: bool) -> None:
        """Set whether the next start loads ``model``; raises `EmbedserveError` if the disk cannot be written."""
        with self._changing:
            if model is self.default or (model.name in self._kept.loaded) == load:
                return
            others = [name for name in self._kept.loaded if name != model.name]
            self._keep(replace(self._kept, loaded=(*others, *([model.name] if load else []))))

    def _keep(self, kept: KeptModels) -> None:
        write_kept(self._settings.data_dir, kept)
        self._kept = kept

    def load_kept(self) -> None:
        """Start loading the models that were loaded over HTTP before the last shutdown."""
        for name in self._kept.loaded:
            if name in self._all:
                self._all[name].begin_loading()

    def start(self) -> None:
        """Start the thread that unloads idle models, if the settings enable it."""
        seconds = self._settings.model_keep_alive_s
        self._ending.clear()
        if seconds and len(self._all) > 1:
            threading.Thread(target=self._unload_idle, args=(seconds,), name="keep-alive", daemon=True).start()

    def _unload_idle(self, seconds: float) -> None:
        while not self._ending.wait(min(seconds / 4, 60.0)):
            for model in self:
                if model is not self.default and model.close_idle(seconds):
                    logger.info("model unloaded name=%s: unused for %.0f s", model.name, seconds)

    def close(self) -> None:
        """Finish the queued requests of every model and release the encoders."""
        self._ending.set()
        for model in self:
            model.close()
