"""The models that requests may name: which there are, which is meant, and which are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from api.batcher import BatchReport
from api.errors import ApiError
from api.model import Model
from embedserve.errors import did_you_mean

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder


class Models:
    """The models of one service, each with its own queue.

    Args:
        settings: The settings of the service.
        encoder: The default model's, where it is loaded already.
        observe: Called with a model's name and each of its batches.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder | None = None,
        observe: Callable[[str, BatchReport], None] | None = None,
    ) -> None:
        self._settings, self._observe = settings, observe
        self.default = self._model(settings.model, settings.model, settings.strategy, encoder)
        self._all = {self.default.name: self.default}

    def _model(self, name: str, spec: str, strategy: str | None = None, encoder: Encoder | None = None) -> Model:
        observe = self._observe
        return Model(
            name,
            spec,
            strategy=strategy,
            device=self._settings.device,
            queue_limit=self._settings.queue_limit,
            encoder=encoder,
            observe=None if observe is None else lambda report: observe(name, report),
        )

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._all.values()))

    def encoders(self) -> list[Encoder]:
        """Return the encoders that are loaded."""
        return [model.encoder for model in self if model.state == "ready"]

    def get(self, name: str | None) -> Model:
        """Return the model that a request names, by name or fingerprint; the default one for None.

        Raises:
            ApiError: 404 for a name that is no model's, 503 where that cannot be known yet.
        """
        if name is None:
            return self.default
        if name in self._all:
            return self._all[name]
        loaded = [model for model in self if model.state == "ready"]
        for model in loaded:
            if name in (model.encoder.name, model.encoder.fingerprint):
                return model
        if self.default not in loaded:
            raise self.default.unready()
        known = list(dict.fromkeys([self.default.encoder.name, *self._all]))
        message = f"there is no model {name!r}; {did_you_mean(name, known)}there are {', '.join(map(repr, known))}"
        raise ApiError(404, "model_not_found", message, param="model")
