"""GET /livez, /readyz and /info: liveness, readiness, and what the service runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from api.collections.open_collection import CollectionState
from api.http.routing import Operations
from api.responses.json_response import json_response
from api.routes.app_state import service_of
from api.schemas.health import InfoResponse, LiveResponse, ReadyResponse
from embedserve import __version__

if TYPE_CHECKING:
    from api.settings import Settings
    from embedserve import Encoder

LIMITS = ("max_inputs", "max_text_chars", "max_body_bytes", "max_top_k", "max_hits", "queue_limit")

operations = Operations("service")


@operations.get("/livez", needs="open", operation_id="livez", summary="Check liveness", response=LiveResponse)
async def livez(request: Request) -> Response:
    """Respond immediately, whatever the state of the model."""
    return json_response({"status": "alive"})


@operations.get(
    "/readyz",
    needs="open",
    operation_id="readyz",
    summary="Check readiness",
    response=ReadyResponse,
    errors=(503,),
)
async def readyz(request: Request) -> Response:
    """Respond 200 if the model embeds: it did within the last seconds, or does so now.

    `checks` reports a default collection that is not built yet or is served from an older build; one that cannot be
    searched, because it is damaged or of another encoder, is an error 503 with the reason.
    """
    return json_response({"status": "ready", "checks": await service_of(request).check()})


@operations.get(
    "/info", needs="read", operation_id="info", summary="Describe the service", response=InfoResponse, errors=(503,)
)
async def info(request: Request) -> Response:
    """Return the version, the model, the limits and the collections, and the fields that clients of TEI read."""
    service = service_of(request)
    settings = service.settings
    values: dict[str, Any] = {
        "version": __version__,
        "status": service.state,
        "model": settings.model,
        "fingerprint": None,
        "dim": None,
        "max_tokens": None,
        "default_collection": settings.collection,
        "limits": {name: getattr(settings, name) for name in LIMITS},
        "pending": 0,
        "collections": [],
        **tei_info(settings),
    }
    if service.state == "ready":
        model = service.model()
        encoder = model.encoder
        values |= {
            "model": encoder.name,
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            "max_tokens": encoder.max_tokens,
            "pending": model.batcher.pending,
            "collections": [collection_values(state) for state in await service.survey()],
            **tei_info(settings, encoder),
        }
    return json_response(values)


def tei_info(settings: Settings, encoder: Encoder | None = None) -> dict[str, Any]:
    """Return the fields of ``/info`` in Text Embeddings Inference (TEI); without an encoder some are null."""
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
    """Return a collection as JSON values."""
    return {
        "name": state.name,
        "status": state.status,
        "documents": state.documents,
        "error": state.error.message if state.error else None,
    }
