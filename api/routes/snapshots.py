"""/v1/collections/{name}/snapshots: take, list, verify, download and restore snapshots."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.actions.collections import details
from api.http.body import read_body
from api.http.error_responses import ApiError
from api.http.routing import Operations
from api.responses.json_response import json_response
from api.responses.tar_stream import TarStream
from api.routes.app_state import service_of
from api.schemas.collections import CollectionDetail
from api.schemas.snapshots import RestoreRequest, SnapshotItem, SnapshotRequest, SnapshotsResponse, VerifiedResponse
from api.service import Service
from embedserve.errors import InputError

if TYPE_CHECKING:
    from indexing import Collection

SNAPSHOTS = "/v1/collections/{name}/snapshots"

operations = Operations("snapshots")


@operations.post(
    SNAPSHOTS,
    needs="write",
    operation_id="create_snapshot",
    summary="Take a snapshot",
    status=201,
    bodies=[SnapshotRequest],
    response=SnapshotItem,
    errors=(404, 409, 422, 500, 503),
)
async def take_snapshot(request: Request) -> Response:
    """Take a snapshot of the collection. Its files are shared with the collection, so it is fast and small."""
    body = await read_body(request, SnapshotRequest)
    service, name = service_of(request), request.path_params["name"]
    snapshot = await service.write(name, lambda collection: _take(collection, body.name))
    return json_response(await asyncio.to_thread(_values, service, service.collections.key(name), snapshot), 201)


@operations.get(
    SNAPSHOTS,
    needs="read",
    operation_id="list_snapshots",
    summary="List snapshots",
    response=SnapshotsResponse,
    errors=(422, 500, 503),
)
async def list_all(request: Request) -> Response:
    """Return the snapshots of a collection; the collection may have been deleted."""
    from indexing.collections.snapshots import list_snapshots

    service = service_of(request)
    key = service.collections.key(request.path_params["name"])
    names = await asyncio.to_thread(list_snapshots, service.settings.data_dir, key)
    return json_response({"snapshots": [await asyncio.to_thread(_values, service, key, name) for name in names]})


@operations.get(
    f"{SNAPSHOTS}/{{snapshot}}",
    needs="admin",
    operation_id="download_snapshot",
    summary="Download a snapshot",
    response_types={"application/x-tar": {"schema": {"type": "string"}}},
    response_description="A tar archive.",
    errors=(404, 422, 500, 503),
)
async def download(request: Request) -> Response:
    """Return the files of a snapshot as a tar archive.

    Unpacked into `DATA_DIR/snapshots/COLLECTION` of another machine, it can be restored there.
    """
    from indexing.collections.snapshots import snapshot_path

    service, snapshot = service_of(request), request.path_params["snapshot"]
    key = service.collections.key(request.path_params["name"])
    folder = await asyncio.to_thread(snapshot_path, service.settings.data_dir, key, snapshot)
    stream = await asyncio.to_thread(TarStream, folder, snapshot)
    headers = {
        "Content-Length": str(stream.size),
        "Content-Disposition": f'attachment; filename="{key}-{snapshot}.tar"',
    }
    return StreamingResponse(iter(stream), media_type="application/x-tar", headers=headers)


@operations.get(
    f"{SNAPSHOTS}/{{snapshot}}/verify",
    needs="read",
    operation_id="verify_snapshot",
    summary="Verify a snapshot",
    response=VerifiedResponse,
    errors=(404, 422, 500, 503),
)
async def verify(request: Request) -> Response:
    """Read every byte of a snapshot and compare it with what was written."""
    from indexing.collections.snapshots import verify_snapshot

    service, snapshot = service_of(request), request.path_params["snapshot"]
    key = service.collections.key(request.path_params["name"])
    checks = await asyncio.to_thread(verify_snapshot, service.settings.data_dir, key, snapshot)
    files = [{"file": c.name, "bytes": c.bytes, "ok": c.ok, "problem": c.problem or None} for c in checks]
    return json_response({"ok": all(check.ok for check in checks), "files": files})


@operations.post(
    f"{SNAPSHOTS}/{{snapshot}}/restore",
    needs="admin",
    operation_id="restore_snapshot",
    summary="Restore a snapshot",
    bodies=[RestoreRequest],
    response=CollectionDetail,
    errors=(404, 409, 422, 500, 503),
)
async def restore_snapshot(request: Request) -> Response:
    """Replace a collection, or another one, by a snapshot, atomically; the snapshot is kept.

    Searches see the old documents until then; what was written after the snapshot is lost.
    """
    body = await read_body(request, RestoreRequest)
    service, snapshot = service_of(request), request.path_params["snapshot"]
    key = service.collections.key(request.path_params["name"])
    target = await asyncio.to_thread(_restore, service, key, snapshot, body.to)
    await service.open(target)
    return json_response(await asyncio.to_thread(details, service, target))


def _take(collection: Collection, name: str | None) -> str:
    try:
        return collection.snapshot(name)
    except InputError as error:
        raise ApiError(409, "already_exists", error.message, param="name") from None


def _values(service: Service, key: str, snapshot: str) -> dict[str, Any]:
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
