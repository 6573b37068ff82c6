"""/v1/collections/{name}/snapshots: a collection as it was, to keep, to take elsewhere, and to go back to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.actions.collections import details
from api.http.body import read_body
from api.http.error_responses import ApiError
from api.openapi.bodies import json_body
from api.openapi.document import errors
from api.responses.json_response import json_answer
from api.responses.tar_stream import TarStream
from api.schemas.collections import CollectionDetail
from api.schemas.snapshots import RestoreRequest, SnapshotItem, SnapshotRequest, SnapshotsAnswer, VerifiedAnswer
from api.service import Service
from embedserve.errors import InputError

if TYPE_CHECKING:
    from indexing import Collection

AT = "/v1/collections/{name}/snapshots"


def snapshots_router(service: Service) -> APIRouter:
    """Return the routes of snapshots."""
    router = APIRouter(tags=["snapshots"])
    data_dir = service.settings.data_dir

    @router.post(
        AT,
        operation_id="create_snapshot",
        summary="Take a snapshot",
        status_code=201,
        responses={201: {"model": SnapshotItem}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(SnapshotRequest, {"name": "before-friday"}),
    )
    async def take(request: Request, name: str) -> Response:
        """Keep the collection as it is now. The files are shared with it, so this takes little time and space."""
        body = await read_body(request, SnapshotRequest)
        snapshot = await service.write(name, lambda collection: _take(collection, body.name))
        return json_answer(await asyncio.to_thread(_described, service, service.collections.key(name), snapshot), 201)

    @router.get(
        AT,
        operation_id="list_snapshots",
        summary="Which snapshots are there?",
        responses={200: {"model": SnapshotsAnswer}, **errors(422, 500, 503)},
    )
    async def list_all(name: str) -> Response:
        """Return the snapshots of a collection, which may be deleted already."""
        from indexing.collections.snapshots import list_snapshots

        key = service.collections.key(name)
        found = await asyncio.to_thread(list_snapshots, data_dir, key)
        values = [await asyncio.to_thread(_described, service, key, snapshot) for snapshot in found]
        return json_answer({"snapshots": values})

    @router.get(
        AT + "/{snapshot}",
        operation_id="download_snapshot",
        summary="Download a snapshot",
        response_class=StreamingResponse,
        responses={
            200: {"description": "A tar archive.", "content": {"application/x-tar": {"schema": {"type": "string"}}}},
            **errors(404, 422, 500, 503),
        },
    )
    async def download(name: str, snapshot: str) -> Response:
        """Return the files of a snapshot as a tar archive, made while it is sent.

        Unpacked in `DATA_DIR/snapshots/COLLECTION` of another machine it can be restored there.
        """
        from indexing.collections.snapshots import snapshot_path

        key = service.collections.key(name)
        folder = await asyncio.to_thread(snapshot_path, data_dir, key, snapshot)
        stream = await asyncio.to_thread(TarStream, folder, snapshot)
        headers = {
            "Content-Length": str(stream.size),
            "Content-Disposition": f'attachment; filename="{key}-{snapshot}.tar"',
        }
        return StreamingResponse(iter(stream), media_type="application/x-tar", headers=headers)

    @router.get(
        AT + "/{snapshot}/verify",
        operation_id="verify_snapshot",
        summary="Is a snapshot whole?",
        responses={200: {"model": VerifiedAnswer}, **errors(404, 422, 500, 503)},
    )
    async def verify(name: str, snapshot: str) -> Response:
        """Read every byte of a snapshot and compare it with what was written."""
        from indexing.collections.snapshots import verify_snapshot

        checks = await asyncio.to_thread(verify_snapshot, data_dir, service.collections.key(name), snapshot)
        files = [{"file": c.name, "bytes": c.bytes, "ok": c.ok, "problem": c.problem or None} for c in checks]
        return json_answer({"ok": all(check.ok for check in checks), "files": files})

    @router.post(
        AT + "/{snapshot}/restore",
        operation_id="restore_snapshot",
        summary="Go back to a snapshot",
        responses={200: {"model": CollectionDetail}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(RestoreRequest, {"to": "as-it-was"}),
    )
    async def restore(request: Request, name: str, snapshot: str) -> Response:
        """Put a snapshot in the place of its collection, or of another one, in one step; the snapshot stays.

        Until then searches find what was there; what was written since the snapshot is gone afterwards.
        """
        body = await read_body(request, RestoreRequest)
        target = await asyncio.to_thread(_restore, service, service.collections.key(name), snapshot, body.to)
        await service.open(target)
        return json_answer(await asyncio.to_thread(details, service, target))

    return router


def _take(collection: Collection, name: str | None) -> str:
    try:
        return collection.snapshot(name)
    except InputError as error:
        raise ApiError(409, "already_exists", error.message, param="name") from None


def _described(service: Service, key: str, snapshot: str) -> dict[str, Any]:
    from indexing.collections.manifest import read_manifest
    from indexing.collections.snapshots import snapshot_path
    from indexing.storage.files import folder_bytes

    folder = snapshot_path(service.settings.data_dir, key, snapshot)
    return {"name": snapshot, "documents": read_manifest(folder).count, "bytes": folder_bytes(folder)}


def _restore(service: Service, key: str, snapshot: str, to: str | None) -> str:
    from indexing.collections.snapshots import restore

    target = to or key
    with service.writers.reserved(target, "a snapshot is being restored"):
        manifest = restore(service.settings.data_dir, key, snapshot, to=target)
        service.collections.forget(target)
    return manifest.name
