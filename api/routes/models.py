"""GET /v1/models and what is done with a model: loading, unloading, other names, a check of its vectors."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.http.error_responses import ApiError
from api.inference.model import Model
from api.inference.selfcheck import selfcheck
from api.openapi.document import errors
from api.responses.json_response import json_answer
from api.schemas.models import ModelItem, ModelsAnswer, SelfcheckAnswer
from api.service import Service

ONE = "/v1/models/{id:path}"
ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": "Of a model."}
OF_MODEL = {"parameters": [ID]}
OF_ALIAS = {"parameters": [ID, {**ID, "name": "alias", "description": "Another name of the model."}]}


def models_router(service: Service) -> APIRouter:
    """Return the routes of models."""
    router = APIRouter(tags=["models"])
    models = service.models

    def item(model: Model) -> dict[str, Any]:
        names = {"id": models.id_of(model), "aliases": models.aliases_of(model)}
        return {**names, **described(model), "default": model is models.default}

    def named(request: Request) -> Model:
        return models.known(unquote(request.path_params["id"]))

    @router.get(
        "/v1/models",
        operation_id="list_models",
        summary="Which models are there?",
        responses={200: {"model": ModelsAnswer}},
    )
    async def list_models() -> Response:
        """Return every model that requests may name, loaded or not."""
        return json_answer({"object": "list", "data": [item(model) for model in models]})

    @router.post(
        f"{ONE}/load",
        operation_id="load_model",
        summary="Load a model",
        responses={200: {"model": ModelItem}, **errors(404, 500, 503)},
        openapi_extra=OF_MODEL,
    )
    async def load(request: Request) -> Response:
        """Answer when the model is loaded; at once where it is. The next start of the server loads it, too.

        Requests that name an unloaded model load it as well, for this time.
        """
        model = named(request)
        await asyncio.to_thread(model.load)
        if model.failure is not None:
            raise model.unready()
        await asyncio.to_thread(models.keep_loaded, model, True)
        return json_answer(item(model))

    @router.post(
        f"{ONE}/unload",
        operation_id="unload_model",
        summary="Unload a model",
        responses={200: {"model": ModelItem}, **errors(404, 409, 500)},
        openapi_extra=OF_MODEL,
    )
    async def unload(request: Request) -> Response:
        """Finish what waits for the model, then let go of its memory. The default model stays."""
        model = named(request)
        if model is models.default:
            message = "the default model stays loaded: collections are searched with it; unload another one"
            raise ApiError(409, "default_model", message, param="id")
        await asyncio.to_thread(model.close)
        await asyncio.to_thread(models.keep_loaded, model, False)
        return json_answer(item(model))

    @router.put(
        f"{ONE}/aliases/{{alias}}",
        operation_id="put_model_alias",
        summary="Give a model another name",
        responses={200: {"model": ModelItem}, **errors(404, 409, 500)},
        openapi_extra=OF_ALIAS,
    )
    async def put_alias(request: Request) -> Response:
        """Let requests that name the alias get this model from now on, in place of the one that had it before.

        It holds beyond a restart, and goes before the aliases of the settings.
        """
        model = named(request)
        await asyncio.to_thread(models.put_alias, unquote(request.path_params["alias"]), model)
        return json_answer(item(model))

    @router.delete(
        f"{ONE}/aliases/{{alias}}",
        operation_id="delete_model_alias",
        summary="Take a name from a model",
        responses={200: {"model": ModelItem}, **errors(404, 500)},
        openapi_extra=OF_ALIAS,
    )
    async def delete_alias(request: Request) -> Response:
        """Forget the alias, beyond a restart too."""
        model = named(request)
        await asyncio.to_thread(models.delete_alias, unquote(request.path_params["alias"]), model)
        return json_answer(item(model))

    @router.get(
        f"{ONE}/selfcheck",
        operation_id="selfcheck_model",
        summary="Does it still make the same vectors?",
        responses={200: {"model": SelfcheckAnswer}, **errors(404, 429, 500, 503)},
        openapi_extra=OF_MODEL,
    )
    async def check_model(request: Request) -> Response:
        """Embed a few texts and compare with the vectors that came with the model.

        A model that came without is compared with what it made when it was first loaded here.
        """
        model = named(request)
        encoder = model.encoder
        values = {"model": models.id_of(model), "fingerprint": encoder.fingerprint}
        return json_answer({**values, **await selfcheck(model)})

    @router.get(
        ONE,
        operation_id="get_model",
        summary="One model",
        responses={200: {"model": ModelItem}, **errors(404)},
        openapi_extra=OF_MODEL,
    )
    async def get_model(request: Request) -> Response:
        """Return one model, loaded or not."""
        model = named(request)
        return json_answer(item(model))

    return router


def described(model: Model) -> dict[str, Any]:
    """Return what is known of a model beside its names."""
    ready = model.state == "ready"
    encoder = model.encoder if ready else None
    return {
        "object": "model",
        "created": model.created,
        "owned_by": "embedserve",
        "state": model.state,
        "fingerprint": encoder and encoder.fingerprint,
        "dim": encoder and encoder.dim,
        "max_tokens": encoder and encoder.max_tokens,
        "outputs": list(encoder.outputs) if encoder else [],
        "device": str(encoder.device) if encoder else model.device,
        "pending": model.batcher.pending if ready else 0,
        "error": model.failure and model.failure.message,
    }
