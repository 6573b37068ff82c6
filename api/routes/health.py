"""GET /livez, /readyz and /info: is it there, can it answer, what is it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import Response

from api.collections.open_collections import CollectionState
from api.openapi.document import errors
from api.responses.json_response import json_answer
from api.schemas.common import InfoAnswer, LiveAnswer, ReadyAnswer
from api.service import Service
from embedserve import __version__

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder


def health_router(service: Service) -> APIRouter:
    """Return the routes that tell how the service is."""
    router = APIRouter(tags=["service"])

    @router.get("/livez", operation_id="livez", summary="Does the process run?", responses={200: {"model": LiveAnswer}})
    async def livez() -> Response:
        """Answer at once, whatever the model does."""
        return json_answer({"status": "alive"})

    @router.get(
        "/readyz",
        operation_id="readyz",
        summary="Can it answer?",
        responses={200: {"model": ReadyAnswer}, **errors(503)},
    )
    async def readyz() -> Response:
        """Answer 200 where the model embeds: it did in the last seconds, or does now.

        A default collection that is not built yet, or of which an older build is served, is noted under `checks`;
        one that cannot be searched, being damaged or built by another encoder, gives 503 with the reason.
        """
        return json_answer({"status": "ready", "checks": await service.check()})

    @router.get(
        "/info", operation_id="info", summary="What is it?", responses={200: {"model": InfoAnswer}, **errors(503)}
    )
    async def info() -> Response:
        """Return the version, the model, the limits and the collections; at the end what clients of TEI read."""
        settings = service.settings
        values: dict[str, Any] = {
            "version": __version__,
            "status": service.state,
            "model": settings.model,
            "fingerprint": None,
            "dim": None,
            "max_tokens": None,
            "default_collection": settings.collection,
            "limits": {
                "max_inputs": settings.max_inputs,
                "max_text_chars": settings.max_text_chars,
                "max_body_bytes": settings.max_body_bytes,
                "max_top_k": settings.max_top_k,
                "max_hits": settings.max_hits,
                "queue_limit": settings.queue_limit,
            },
            "pending": 0,
            "collections": [],
            **tei_info(settings),
        }
        if service.state == "ready":
            encoder = service.encoder
            values |= {
                "model": encoder.name,
                "fingerprint": encoder.fingerprint,
                "dim": encoder.dim,
                "max_tokens": encoder.max_tokens,
                "pending": service.batcher.pending,
                "collections": [collection_values(state) for state in await service.survey()],
                **tei_info(settings, encoder),
            }
        return json_answer(values)

    return router


def tei_info(settings: Settings, encoder: Encoder | None = None) -> dict[str, Any]:
    """Return what Text Embeddings Inference (TEI) says under ``/info``, as far as it is known without an encoder."""
    return {
        "model_id": settings.model,
        "served_model_name": encoder.name if encoder else settings.model,
        "model_sha": None,
        "model_dtype": encoder and encoder.spec.dtype,
        "model_type": {"embedding": {"pooling": encoder.spec.strategy} if encoder else {}},
        "max_input_length": encoder and encoder.max_tokens,
        "max_batch_tokens": encoder and encoder.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_inputs,
        "max_concurrent_requests": settings.queue_limit,
        "auto_truncate": True,
        "tokenization_workers": encoder and encoder.workers + 1,
    }


def collection_values(state: CollectionState) -> dict[str, Any]:
    """Return a collection as ``/info`` tells of it."""
    return {
        "name": state.name,
        "status": state.status,
        "documents": state.documents,
        "error": state.error.message if state.error else None,
    }
