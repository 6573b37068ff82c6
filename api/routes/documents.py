"""/v1/collections/{name}/documents, count and facets: write, read and count documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.actions.documents import DocumentItem, Written, from_file, from_json, from_lines, write
from api.http.body import read_body, shown, while_connected
from api.http.error_responses import ApiError
from api.http.forms import read_form
from api.http.routing import Operations
from api.responses.json_response import json_response
from api.routes.app_state import service_of
from api.schemas.documents import (
    PAGE,
    CountRequest,
    CountResponse,
    DeletedResponse,
    DeleteRequest,
    DocumentResponse,
    FacetRequest,
    FacetResponse,
    PageResponse,
    WriteRequest,
    WrittenResponse,
)
from api.schemas.filter_schema import FILTER
from api.service import Service
from embedserve.errors import did_you_mean

if TYPE_CHECKING:
    from indexing import Collection, Document

T = TypeVar("T")

DOCUMENTS = "/v1/collections/{name}/documents"
FORM_TYPE = "multipart/form-data"
NDJSON_TYPES = ("application/x-ndjson", "application/jsonl", "application/ndjson")
FORM_FIELDS = ("format", "id_field", "text_field", "title_field")
LINES = '{"id": "rain", "text": "It rained all night."}\n{"id": "bread", "text": "Knead the dough."}\n'
FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSONL, CSV, TSV or Parquet."},
        "format": {"type": "string", "enum": ["jsonl", "csv", "tsv", "parquet"]},
        **{name: {"type": "string"} for name in FORM_FIELDS[1:]},
    },
    "required": ["file"],
    "additionalProperties": False,
}
ON_ERROR = {
    "description": "Whether an invalid record of NDJSON or of a file ends the request or is skipped.",
    "type": "string",
    "enum": ["stop", "skip"],
    "default": "stop",
}
SCROLL_PARAMETERS = {
    "cursor": {"description": "Cursor of the page before.", "type": "string", "pattern": "^[0-9]{1,19}$"},
    "limit": {
        "description": "Documents of a page, 1 to 1000.",
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": PAGE,
    },
    "filter": {"description": "A filter, as JSON.", "contentMediaType": "application/json", "contentSchema": FILTER},
}
ERRORS = (404, 409, 422, 500, 503)

operations = Operations("documents")


@operations.post(
    DOCUMENTS,
    needs="write",
    operation_id="write_documents",
    summary="Write documents",
    query={"on_error": ON_ERROR},
    bodies=[WriteRequest],
    body_types={
        "application/x-ndjson": {"schema": {"type": "string", "description": LINES}},
        FORM_TYPE: {"schema": FORM},
    },
    response=WrittenResponse,
    errors=(*ERRORS, 429),
)
async def upsert(request: Request) -> Response:
    """Write documents as JSON, NDJSON or a file; each replaces the document with its id.

    When this returns, the documents are durable and visible to searches. JSON is written atomically; NDJSON and files
    are validated as a whole and then written batch by batch.
    """
    service, name = service_of(request), request.path_params["name"]
    service.collections.refresh(name)  # reject an unknown collection before its documents are read
    on_error = request.query_params.get("on_error", "stop")
    if on_error not in ("stop", "skip"):
        message = f"on_error must be stop or skip, got {shown(on_error)}"
        raise ApiError(422, "invalid_value", message, param="on_error")
    written, skip, limits = Written(), on_error == "skip", request.app.state.limits
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    as_json = False
    if media_type == FORM_TYPE:
        documents = await _from_form(request, skip=skip, written=written)
    elif media_type in NDJSON_TYPES:
        body = await request.body()
        documents = await asyncio.to_thread(from_lines, body, limits, skip=skip, written=written)
    else:
        documents, as_json = from_json(await read_body(request, WriteRequest), limits), True
    priority = "document" if as_json else "bulk"
    work = write(service, name, documents, written, priority=priority, atomic=as_json)
    return json_response((await while_connected(request, work)).plain())


@operations.delete(
    DOCUMENTS,
    needs="write",
    operation_id="delete_documents",
    summary="Delete documents",
    bodies=[DeleteRequest],
    response=DeletedResponse,
    errors=ERRORS,
)
async def delete_documents(request: Request) -> Response:
    """Delete documents by `ids` or by `filter`; when this returns, no search finds them."""
    body = await read_body(request, DeleteRequest)
    count = await service_of(request).write(
        request.path_params["name"], lambda collection: collection.delete(body.ids, filter=body.filter)
    )
    return json_response({"deleted": count})


@operations.get(
    DOCUMENTS,
    needs="read",
    operation_id="scroll_documents",
    summary="Read documents page by page",
    query=SCROLL_PARAMETERS,
    response=PageResponse,
    errors=ERRORS,
)
async def scroll(request: Request) -> Response:
    """Return documents in the order in which they were written; one that does not change appears exactly once."""
    parameters = request.query_params
    limit: Any = parameters.get("limit", str(PAGE))
    if limit.isascii() and limit.isdigit() and len(limit) < 9:
        limit = int(limit)
    cursor, condition = parameters.get("cursor"), _filter_of(parameters.get("filter"))
    page = await _read(request, lambda collection: collection.scroll(cursor, limit, filter=condition))
    return json_response({"documents": [document_values(d) for d in page.documents], "cursor": page.cursor})


@operations.get(
    f"{DOCUMENTS}/{{id:path}}",
    needs="read",
    operation_id="get_document",
    summary="Read a document",
    response=DocumentResponse,
    errors=ERRORS,
)
async def get_document(request: Request) -> Response:
    """Return the document with an id."""
    document_id = request.path_params["id"]
    (document,) = await _read(request, lambda collection: collection.get([document_id]))
    if document is None:
        message = f"collection {request.path_params['name']!r} has no document {document_id!r}"
        raise ApiError(404, "document_not_found", message, param="id")
    return json_response(document_values(document))


@operations.post(
    "/v1/collections/{name}/count",
    needs="read",
    operation_id="count_documents",
    summary="Count documents",
    bodies=[CountRequest],
    response=CountResponse,
    errors=ERRORS,
)
async def count(request: Request) -> Response:
    """Return the number of documents that match a filter. Default: all."""
    body = await read_body(request, CountRequest)
    return json_response({"count": await _read(request, lambda collection: collection.count(body.filter))})


@operations.post(
    "/v1/collections/{name}/facets",
    needs="read",
    operation_id="count_values",
    summary="Count the values of a field",
    bodies=[FacetRequest],
    response=FacetResponse,
    errors=ERRORS,
)
async def facets(request: Request) -> Response:
    """Return the most frequent values of a metadata field, with the number of documents of each."""
    body = await read_body(request, FacetRequest)
    values = await _read(request, lambda collection: collection.facet(body.field, limit=body.limit, filter=body.filter))
    return json_response({"field": body.field, "values": [{"value": value, "count": n} for value, n in values]})


async def _read(request: Request, work: Callable[[Collection], T]) -> T:
    """Return the result of ``work`` on the collection of the path, in a search thread."""
    service, name = service_of(request), request.path_params["name"]
    await service.open(name)
    return await service.in_search_thread(_with_collection, service, name, work)


def _with_collection(service: Service, name: str, work: Callable[[Collection], T]) -> T:
    with service.collections.use(name) as collection:
        return work(collection)


def document_values(document: Document) -> dict[str, Any]:
    """Return a document as JSON values."""
    return {
        "id": document.id,
        "text": document.text,
        "title": document.title,
        "metadata": dict(document.metadata),
    }


def _filter_of(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ApiError(422, "invalid_filter", f"filter is not JSON: {error}", param="filter") from None


async def _from_form(request: Request, *, skip: bool, written: Written) -> list[DocumentItem]:
    """Return the documents of the file in a form."""
    async with read_form(request, len(FORM_FIELDS)) as (file, fields):
        for field in fields:
            if field not in FORM_FIELDS:
                hint = did_you_mean(field, ("file", *FORM_FIELDS))
                message = f"unknown field {field!r}; {hint}the fields are file, {', '.join(FORM_FIELDS)}"
                raise ApiError(422, "unknown_field", message, param=field)
        content, name = await file.read(), file.filename or "upload"
    options: dict[str, Any] = {field: fields[field] for field in FORM_FIELDS[1:] if fields.get(field)}
    options["fmt"] = fields.get("format") or None
    return await asyncio.to_thread(from_file, content, name, options, skip=skip, written=written)
