"""/v1/collections/{name}/documents, count and facets: what is in a collection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.actions.documents import Given, Written, from_file, from_json, from_lines, write
from api.http.body import read_body, shown, while_connected
from api.http.error_responses import ApiError
from api.http.forms import read_form
from api.openapi.bodies import FILTER, json_body
from api.openapi.document import errors
from api.openapi.documents import FORM, write_body
from api.responses.json_response import json_answer
from api.schemas.common import Limits
from api.schemas.documents import (
    PAGE,
    CountAnswer,
    CountRequest,
    DeletedAnswer,
    DeleteRequest,
    DocumentAnswer,
    FacetAnswer,
    FacetRequest,
    PageAnswer,
    WriteRequest,
    WrittenAnswer,
)
from api.service import Service
from embedserve.errors import did_you_mean

if TYPE_CHECKING:
    from indexing import Collection, Document

T = TypeVar("T")
OnError = Annotated[
    str,
    Query(
        description="What becomes of a record of NDJSON or a file that cannot be used.",
        json_schema_extra={"enum": ["stop", "skip"]},
    ),
]
NDJSON = ("application/x-ndjson", "application/jsonl", "application/ndjson")


def documents_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that write and read documents."""
    router = APIRouter(tags=["documents"])

    async def reading(name: str, work: Callable[[Collection], T]) -> T:
        await service.open(name)
        return await service.in_search_thread(_with, service, name, work)

    @router.post(
        "/v1/collections/{name}/documents",
        operation_id="write_documents",
        summary="Write documents",
        responses={200: {"model": WrittenAnswer}, **errors(400, 404, 409, 413, 415, 422, 429, 500, 503)},
        openapi_extra=write_body(limits),
    )
    async def upsert(request: Request, name: str, on_error: OnError = "stop") -> Response:
        """Write documents, each in place of the one with its id, as JSON, NDJSON or a file.

        Once this answers, they are on the disk and every search finds them. JSON is written whole or not at all;
        NDJSON and files are checked whole and then written batch by batch.
        """
        service.collections.refresh(name)  # an unknown collection is refused before its documents are read
        if on_error not in ("stop", "skip"):
            raise ApiError(
                422, "invalid_value", f"on_error must be stop or skip, got {shown(on_error)}", param="on_error"
            )
        written = Written()
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            given = await _from_form(request, skip=on_error == "skip", written=written)
        elif kind in NDJSON:
            body = await request.body()
            given = await asyncio.to_thread(from_lines, body, limits, skip=on_error == "skip", written=written)
        else:
            given = from_json(await read_body(request, WriteRequest, limits), limits)
        as_json = kind not in (*NDJSON, "multipart/form-data")
        priority = "document" if as_json else "bulk"
        work = write(service, name, given, written, priority=priority, at_once=as_json)
        return json_answer((await while_connected(request, work)).plain())

    @router.delete(
        "/v1/collections/{name}/documents",
        operation_id="delete_documents",
        summary="Delete documents",
        responses={200: {"model": DeletedAnswer}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(DeleteRequest, {"ids": ["rain"]}, {"filter": FILTER}),
    )
    async def delete(request: Request, name: str) -> Response:
        """Delete documents by `ids` or by `filter`; they are gone for every search once this answers."""
        body = await read_body(request, DeleteRequest, limits)
        count = await service.write(name, lambda collection: collection.delete(body.ids, filter=body.filter))
        return json_answer({"deleted": count})

    @router.get(
        "/v1/collections/{name}/documents",
        operation_id="scroll_documents",
        summary="Read documents page by page",
        responses={200: {"model": PageAnswer}, **errors(404, 409, 422, 500, 503)},
    )
    async def scroll(
        name: str,
        cursor: Annotated[
            str | None, Query(description="Of the page before.", json_schema_extra={"pattern": "^[0-9]{1,19}$"})
        ] = None,
        limit: Annotated[
            Any,
            Query(
                description="Documents of a page, 1 to 1000.",
                json_schema_extra={"type": "integer", "minimum": 1, "maximum": 1000},
            ),
        ] = PAGE,
        filter: Annotated[
            str | None,
            Query(
                description="A filter, as JSON.",
                json_schema_extra={"contentMediaType": "application/json", "contentSchema": FILTER},
            ),
        ] = None,
    ) -> Response:
        """Return documents in the order of writing; one that is not written meanwhile comes exactly once."""
        text = str(limit)
        count = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else limit
        wanted = _filter_of(filter)
        page = await reading(name, lambda collection: collection.scroll(cursor, count, filter=wanted))
        return json_answer({"documents": [values_of(d) for d in page.documents], "cursor": page.cursor})

    @router.get(
        "/v1/collections/{name}/documents/{id:path}",
        operation_id="get_document",
        summary="Read a document",
        responses={200: {"model": DocumentAnswer}, **errors(404, 409, 422, 500, 503)},
    )
    async def get(name: str, id: str) -> Response:
        """Return the document with an id."""
        found = (await reading(name, lambda collection: collection.get([id])))[0]
        if found is None:
            message = f"collection {name!r} has no document {id!r}"
            raise ApiError(404, "document_not_found", message, param="id")
        return json_answer(values_of(found))

    @router.post(
        "/v1/collections/{name}/count",
        operation_id="count_documents",
        summary="Count documents",
        responses={200: {"model": CountAnswer}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(CountRequest, {"filter": {"field": "kind", "eq": "function"}}, {"filter": FILTER}),
    )
    async def count(request: Request, name: str) -> Response:
        """Return how many documents pass a filter; of all without one."""
        body = await read_body(request, CountRequest, limits)
        return json_answer({"count": await reading(name, lambda collection: collection.count(body.filter))})

    @router.post(
        "/v1/collections/{name}/facets",
        operation_id="count_values",
        summary="Count the values of a field",
        responses={200: {"model": FacetAnswer}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(FacetRequest, {"field": "kind", "limit": 5}, {"filter": FILTER}),
    )
    async def facets(request: Request, name: str) -> Response:
        """Return the most frequent values of a field of the metadata, and how many documents have each."""
        body = await read_body(request, FacetRequest, limits)
        found = await reading(
            name, lambda collection: collection.facet(body.field, limit=body.limit, filter=body.filter)
        )
        return json_answer({"field": body.field, "values": [{"value": value, "count": n} for value, n in found]})

    return router


def _with(service: Service, name: str, work: Callable[[Collection], T]) -> T:
    with service.collections.use(name) as collection:
        return work(collection)


def values_of(document: Document) -> dict[str, Any]:
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


async def _from_form(request: Request, *, skip: bool, written: Written) -> list[Given]:
    """Return the documents of the file in a form."""
    async with read_form(request, len(FORM)) as (file, fields):
        for field in fields:
            if field not in FORM:
                hint = did_you_mean(field, ("file", *FORM))
                message = f"unknown field {field!r}; {hint}the fields are file, {', '.join(FORM)}"
                raise ApiError(422, "unknown_field", message, param=field)
        content, name = await file.read(), file.filename or "upload"
    options: dict[str, Any] = {field: fields[field] for field in FORM[1:] if fields.get(field)}
    options["fmt"] = fields.get("format") or None
    return await asyncio.to_thread(from_file, content, name, options, skip=skip, written=written)
