"""/v1/jobs: submit, follow, stop and resume index builds of the server."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from api.actions.jobs import plan_of, source_of
from api.collections.job_manager import ENDED, WORK, Job, Jobs
from api.http.body import parse, read_body
from api.http.error_responses import ApiError
from api.http.forms import read_form
from api.http.routing import Operations
from api.openapi.document import JSON, request_body, request_schema
from api.responses.json_response import json_response
from api.routes.app_state import service_of
from api.schemas.jobs import JobRequest, JobResponse, JobsResponse

POLL_S = 0.25
KEEP_ALIVE_POLLS = 40  # polls without a change after which a comment keeps the connection open
NAME_CHARS = 60  # last characters of an uploaded file's name that are used; file systems allow 255 bytes
FORM_TYPE = "multipart/form-data"
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["job", "end"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobResponse"},
        },
    },
    "required": ["event", "data"],
}
ERRORS = (404, 422, 500, 503)

operations = Operations("jobs")


def job_bodies() -> dict[str, Any]:
    """Return the media types of the body that submits a job: JSON names a source, a form has a file."""
    schema = request_schema(JobRequest)
    required = {name: _not_null(field) for name, field in schema["properties"].items()}
    with_source = schema["properties"] | {"source": required["source"]}
    file = {"type": "string", "format": "binary", "description": "JSONL, CSV, TSV or Parquet."}
    with_file = {name: field for name, field in required.items() if name != "source"} | {"file": file}
    body = request_body(JobRequest)
    body["schema"] = {**schema, "properties": with_source, "required": ["collection", "source"]}
    return {
        JSON: body,
        FORM_TYPE: {"schema": {**schema, "properties": with_file, "required": ["collection", "file"]}},
    }


def _not_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field without null."""
    values = {name: value for name, value in field.items() if name != "default"}
    if isinstance(field.get("type"), list):
        values["type"] = field["type"][0]
    if None in field.get("enum", ()):
        values["enum"] = [value for value in field["enum"] if value is not None]
    return values


@operations.post(
    "/v1/jobs",
    operation_id="submit_job",
    summary="Build a collection",
    status=202,
    body_types=job_bodies(),
    response=JobResponse,
    errors=(*ERRORS, 400, 409, 413, 415),
)
async def submit(request: Request) -> Response:
    """Build a collection from a file of the server or an uploaded file; it replaces the collection of that name.

    This returns immediately; the old collection is searched until the new one is complete.
    """
    service = service_of(request)
    jobs, models = service.jobs, service.models
    folder = await asyncio.to_thread(jobs.new_folder)
    try:
        if request.headers.get("content-type", "").startswith(FORM_TYPE):
            body, upload = await _from_form(request, folder)
            path, source = str(upload), upload.name.removeprefix("upload-")
        else:
            body = await read_body(request, JobRequest)
            path, source = await asyncio.to_thread(source_of, service.settings, body.source), str(body.source)
        model = models.default if body.model is None else models.known(body.model)
        plan = await asyncio.to_thread(plan_of, service.settings, body, path, model.source, folder / WORK)
        job = await asyncio.to_thread(jobs.submit, folder, source, models.id_of(model), plan)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise
    return json_response(job_values(job), 202)


@operations.get(
    "/v1/jobs",
    needs="read",
    operation_id="list_jobs",
    summary="List jobs",
    response=JobsResponse,
    errors=(500, 503),
)
async def list_jobs(request: Request) -> Response:
    """Return every job, newest first."""
    return json_response({"jobs": [job_values(job) for job in service_of(request).jobs.all()]})


@operations.get(
    "/v1/jobs/{job}",
    needs="read",
    operation_id="get_job",
    summary="Describe a job",
    response=JobResponse,
    errors=ERRORS,
)
async def get_job(request: Request) -> Response:
    """Return a job's state, progress, and report or error."""
    return json_response(job_values(_requested(request)[1]))


@operations.get(
    "/v1/jobs/{job}/events",
    needs="read",
    operation_id="follow_job",
    summary="Follow a job",
    response_types={"text/event-stream": {"itemSchema": EVENT}},
    response_description="Server-sent events: `job` with every change, each as `GET /v1/jobs/{job}` returns it, and "
    "`end` with the last.",
    errors=ERRORS,
)
async def events(request: Request) -> Response:
    """Send the job now and with every change, until it has ended."""
    _, job = _requested(request)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request, job), media_type="text/event-stream", headers=headers)


@operations.post(
    "/v1/jobs/{job}/cancel",
    operation_id="cancel_job",
    summary="Stop a job",
    response=JobResponse,
    errors=(*ERRORS, 409),
)
async def cancel(request: Request) -> Response:
    """Stop a queued or running job. Its finished shards are kept: `resume` continues from there."""
    jobs, job = _requested(request)
    await asyncio.to_thread(jobs.cancel, job)
    return json_response(job_values(job))


@operations.post(
    "/v1/jobs/{job}/resume",
    operation_id="resume_job",
    summary="Resume a job",
    response=JobResponse,
    errors=(*ERRORS, 409),
)
async def resume(request: Request) -> Response:
    """Continue a job that failed or was stopped; it embeds only what is missing."""
    jobs, job = _requested(request)
    await asyncio.to_thread(jobs.resume, job)
    return json_response(job_values(job))


@operations.delete(
    "/v1/jobs/{job}",
    operation_id="delete_job",
    summary="Delete a job",
    response=JobsResponse,
    errors=(*ERRORS, 409),
)
async def delete(request: Request) -> Response:
    """Delete an ended job with its file and shards; the collection is kept."""
    jobs, job = _requested(request)
    await asyncio.to_thread(jobs.remove, job)
    return await list_jobs(request)


@operations.get(
    "/v1/jobs/{job}/dead-letters",
    needs="read",
    operation_id="job_dead_letters",
    summary="List the skipped records of a job",
    response_types={"application/x-ndjson": {"schema": {"type": "string"}}},
    response_description="A line for each record: source, line, reason and the record.",
    errors=ERRORS,
)
async def dead_letters(request: Request) -> Response:
    """Return the records that the job skipped, one JSON object on each line."""
    jobs, job = _requested(request)
    path = jobs.dead_letters(job)
    if not path.exists():
        return Response(b"", media_type="application/x-ndjson")
    return FileResponse(path, media_type="application/x-ndjson")


def _requested(request: Request) -> tuple[Jobs, Job]:
    """Return the jobs and the one in the path; an error 404 if there is no such job."""
    jobs = service_of(request).jobs
    return jobs, jobs.get(request.path_params["job"])


def job_values(job: Job) -> dict[str, Any]:
    """Return a job as JSON values."""
    values = dataclasses.asdict(job)
    del values["plan"], values["cancelled"]
    report = job.report["report"] if job.report is not None else {}
    return {**values, "dead_letters": report.get("dead_letters", 0)}


async def _events(request: Request, job: Job) -> AsyncIterator[bytes]:
    last, unchanged = b"", 0
    while True:
        ended = job.state in ENDED
        data = orjson.dumps(job_values(job))
        if data != last or ended:
            yield b"event: " + (b"end" if ended else b"job") + b"\ndata: " + data + b"\n\n"
            last, unchanged = data, 0
        if ended or request.app.state.drain.began:
            return
        unchanged += 1
        if unchanged % KEEP_ALIVE_POLLS == 0:
            yield b": still running\n\n"
        await asyncio.sleep(POLL_S)


async def _from_form(request: Request, folder: Path) -> tuple[JobRequest, Path]:
    """Return the job in a form, and the path that its file was written to."""
    async with read_form(request, 20) as (file, fields):
        values: dict[str, Any] = dict(fields)
        for name in ("passage_tokens", "overlap", "shard_size"):
            text = fields.get(name, "")
            if text.isascii() and text.isdigit() and len(text) <= 10:
                values[name] = int(text)
        body = parse(orjson.dumps(values), JobRequest)
        if body.source is not None:
            raise ApiError(422, "conflicting_fields", "a file was sent; remove source", param="source")
        name = "".join(letter for letter in Path(file.filename or "").name if letter.isalnum() or letter in "._-")
        path = folder / f"upload-{name[-NAME_CHARS:]}"
        with path.open("wb") as target:
            while data := await file.read(1024 * 1024):
                await asyncio.to_thread(target.write, data)
    return body, path
