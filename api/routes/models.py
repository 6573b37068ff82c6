"""/v1/models: list, load, unload and check models, and manage their aliases."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from api.http.error_responses import ApiError
from api.http.routing import Operations
from api.inference.model import Model
from api.inference.model_registry import Models
from api.inference.selfcheck import selfcheck
from api.responses.json_response import json_response
from api.routes.app_state import service_of
from api.schemas.models import ModelItem, ModelsResponse, SelfcheckResponse

MODEL = "/v1/models/{id:path}"

operations = Operations("models")


@operations.get("/v1/models", needs="read", operation_id="list_models", summary="List models", response=ModelsResponse)
async def list_models(request: Request) -> Response:
    """Return every model that requests may name, loaded or not."""
    models = service_of(request).models
    return json_response({"object": "list", "data": [model_values(models, model) for model in models]})


@operations.post(
    f"{MODEL}/load",
    operation_id="load_model",
    summary="Load a model",
    response=ModelItem,
    errors=(404, 500, 503),
)
async def load(request: Request) -> Response:
    """Load a model and respond when it is ready; the server also loads it at its next start.

    A request that names an unloaded model loads it too, until the next start.
    """
    models, model = _requested(request)
    await asyncio.to_thread(model.load)
    if model.failure is not None:
        raise model.unready()
    await asyncio.to_thread(models.keep_loaded, model, True)
    return json_response(model_values(models, model))


@operations.post(
    f"{MODEL}/unload",
    operation_id="unload_model",
    summary="Unload a model",
    response=ModelItem,
    errors=(404, 409, 500),
)
async def unload(request: Request) -> Response:
    """Finish the queued requests of a model, then free its memory. The default model cannot be unloaded."""
    models, model = _requested(request)
    if model is models.default:
        message = "the default model cannot be unloaded: collections are searched with it; name another model"
        raise ApiError(409, "default_model", message, param="id")
    await asyncio.to_thread(model.close)
    await asyncio.to_thread(models.keep_loaded, model, False)
    return json_response(model_values(models, model))


@operations.put(
    f"{MODEL}/aliases/{{alias}}",
    operation_id="put_model_alias",
    summary="Set an alias of a model",
    response=ModelItem,
    errors=(404, 409, 500),
)
async def put_alias(request: Request) -> Response:
    """Point an alias at this model, in place of any other model.

    The alias is persistent and precedes the aliases of the settings.
    """
    models, model = _requested(request)
    await asyncio.to_thread(models.put_alias, unquote(request.path_params["alias"]), model)
    return json_response(model_values(models, model))


@operations.delete(
    f"{MODEL}/aliases/{{alias}}",
    operation_id="delete_model_alias",
    summary="Delete an alias of a model",
    response=ModelItem,
    errors=(404, 500),
)
async def delete_alias(request: Request) -> Response:
    """Delete an alias, permanently."""
    models, model = _requested(request)
    await asyncio.to_thread(models.delete_alias, unquote(request.path_params["alias"]), model)
    return json_response(model_values(models, model))


@operations.get(
    f"{MODEL}/selfcheck",
    needs="read",
    operation_id="selfcheck_model",
    summary="Check the vectors of a model",
    response=SelfcheckResponse,
    errors=(404, 429, 500, 503),
)
async def selfcheck_model(request: Request) -> Response:
    """Embed a few texts and compare the vectors with those shipped with the model.

    A model without such vectors is compared with those of its first load by this server.
    """
    models, model = _requested(request)
    encoder = model.encoder
    values = {"model": models.id_of(model), "fingerprint": encoder.fingerprint}
    return json_response({**values, **await selfcheck(model)})


@operations.get(
    MODEL, needs="read", operation_id="get_model", summary="Describe a model", response=ModelItem, errors=(404,)
)
async def get_model(request: Request) -> Response:
    """Return one model, loaded or not."""
    return json_response(model_values(*_requested(request)))


def _requested(request: Request) -> tuple[Models, Model]:
    """Return the models and the one in the path; an error 404 if there is no such model."""
    models = service_of(request).models
    return models, models.known(unquote(request.path_params["id"]))


def model_values(models: Models, model: Model) -> dict[str, Any]:
    """Return a model as JSON values."""
    ready = model.state == "ready"
    encoder = model.encoder if ready else None
    return {
        "id": models.id_of(model),
        "aliases": models.aliases_of(model),
        "object": "model",
        "created": model.created,
        "owned_by": "embedserve",
        "state": model.state,
        "fingerprint": encoder and encoder.fingerprint,
        "dim": encoder and encoder.dim,
        "max_tokens": encoder and encoder.max_tokens,
        "outputs": list(encoder.outputs) if encoder else [],
        "lean_pass": (encoder.lean_reason or "used") if encoder else None,
        "device": str(encoder.device) if encoder else model.device,
        "pending": model.batcher.pending if ready else 0,
        "error": model.failure and model.failure.message,
        "default": model is models.default,
    }
