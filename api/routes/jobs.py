"""/v1/jobs: index builds that the server runs, their progress, and what they left out."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from api.actions.jobs import plan_of, source_of
from api.collections.job_manager import ENDED, WORK, Job, Jobs
from api.http.body import parse, read_body
from api.http.error_responses import ApiError
from api.http.forms import read_form
from api.openapi.bodies import schema_of
from api.openapi.document import errors
from api.responses.json_response import json_answer
from api.schemas.jobs import JobAnswer, JobRequest, JobsAnswer
from api.service import Service

EVERY_S = 0.25
ALIVE_EVERY = 40  # looks without news, after which a comment keeps the connection open
EXAMPLE = {"collection": "papers", "source": "papers.jsonl.zst", "passage_tokens": 256}
NAME_CHARS = 60  # kept of a sent file's name, from its end: file systems take 255 bytes
SCHEMA = schema_of(JobRequest)
GIVEN = {  # the same fields where they are not null
    name: {**field.get("anyOf", [field])[0], "description": field.get("description", "")}
    for name, field in SCHEMA["properties"].items()
}
JSON = {
    **SCHEMA,
    "properties": {**SCHEMA["properties"], "source": GIVEN["source"]},
    "required": ["collection", "source"],
}
FILE = {"type": "string", "format": "binary", "description": "JSONL, CSV, TSV or Parquet."}
FORM = {
    **SCHEMA,
    "properties": {**{name: field for name, field in GIVEN.items() if name != "source"}, "file": FILE},
    "required": ["collection", "file"],
}
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["job", "end"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobAnswer"},
        },
    },
    "required": ["event", "data"],
}
BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": JSON,
                "examples": {"example": {"summary": "A file of the server", "value": EXAMPLE}},
            },
            "multipart/form-data": {"schema": FORM},
        },
    }
}


def jobs_router(service: Service) -> APIRouter:
    """Return the routes of jobs."""
    router = APIRouter(tags=["jobs"])

    @router.post(
        "/v1/jobs",
        operation_id="submit_job",
        summary="Build a collection",
        status_code=202,
        responses={202: {"model": JobAnswer}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=BODIES,
    )
    async def submit(request: Request) -> Response:
        """Build a collection, in place of the one of that name, from a file of the server or one that is sent.

        The answer comes at once; the old collection is searched until the new one is complete.
        """
        jobs = service.jobs
        folder = await asyncio.to_thread(jobs.new_folder)
        try:
            if request.headers.get("content-type", "").startswith("multipart/form-data"):
                body, sent = await _from_form(request, folder)
                place, source = str(sent), sent.name.removeprefix("upload-")
            else:
                body = await read_body(request, JobRequest)
                place = await asyncio.to_thread(source_of, service.settings, body.source)
                source = str(body.source)
            models = service.models
            model = models.default if body.model is None else models.known(body.model)
            plan = await asyncio.to_thread(plan_of, service.settings, body, place, model.source, folder / WORK)
            job = await asyncio.to_thread(jobs.submit, folder, source, models.id_of(model), plan)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        return json_answer(job_values(jobs, job), 202)

    @router.get(
        "/v1/jobs",
        operation_id="list_jobs",
        summary="Which jobs are there?",
        responses={200: {"model": JobsAnswer}, **errors(500, 503)},
    )
    async def list_all() -> Response:
        """Return every job, the newest first."""
        return json_answer({"jobs": [job_values(service.jobs, job) for job in service.jobs.all()]})

    @router.get(
        "/v1/jobs/{job}",
        operation_id="get_job",
        summary="How is a job?",
        responses={200: {"model": JobAnswer}, **errors(404, 422, 500, 503)},
    )
    async def get(job: str) -> Response:
        """Return a job's state, progress, and report or error."""
        return json_answer(job_values(service.jobs, service.jobs.get(job)))

    @router.get(
        "/v1/jobs/{job}/events",
        operation_id="follow_job",
        summary="Follow a job",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Server-sent events `job`, each a job as `GET /v1/jobs/{job}` returns it, with every "
                "change, and `end` with the last.",
                "content": {"text/event-stream": {"itemSchema": EVENT}},
            },
            **errors(404, 422, 500, 503),
        },
    )
    async def events(request: Request, job: str) -> Response:
        """Send the job now and with every change, until it has ended."""
        found = service.jobs.get(job)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(request, service.jobs, found), media_type="text/event-stream", headers=headers)

    @router.post(
        "/v1/jobs/{job}/cancel",
        operation_id="cancel_job",
        summary="Stop a job",
        responses={200: {"model": JobAnswer}, **errors(404, 409, 422, 500, 503)},
    )
    async def cancel(job: str) -> Response:
        """Stop a job that waits or runs. What it has embedded is kept: `resume` goes on from there."""
        found = service.jobs.get(job)
        await asyncio.to_thread(service.jobs.cancel, found)
        return json_answer(job_values(service.jobs, found))

    @router.post(
        "/v1/jobs/{job}/resume",
        operation_id="resume_job",
        summary="Go on with a job",
        responses={200: {"model": JobAnswer}, **errors(404, 409, 422, 500, 503)},
    )
    async def resume(job: str) -> Response:
        """Go on with a job that failed or was stopped; it embeds only what is missing."""
        found = service.jobs.get(job)
        await asyncio.to_thread(service.jobs.resume, found)
        return json_answer(job_values(service.jobs, found))

    @router.delete(
        "/v1/jobs/{job}",
        operation_id="delete_job",
        summary="Forget a job",
        responses={200: {"model": JobsAnswer}, **errors(404, 409, 422, 500, 503)},
    )
    async def delete(job: str) -> Response:
        """Take an ended job away, with its file and what it embedded; the collection stays."""
        await asyncio.to_thread(service.jobs.remove, service.jobs.get(job))
        return await list_all()

    @router.get(
        "/v1/jobs/{job}/dead-letters",
        operation_id="job_dead_letters",
        summary="What did a job leave out?",
        response_class=FileResponse,
        responses={
            200: {
                "description": "A line for each record: source, line, reason and the record.",
                "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            },
            **errors(404, 422, 500, 503),
        },
    )
    async def dead_letters(job: str) -> Response:
        """Return the records that could not be used, one JSON object on each line."""
        path = service.jobs.dead_letters(service.jobs.get(job))
        if not path.exists():
            return Response(b"", media_type="application/x-ndjson")
        return FileResponse(path, media_type="application/x-ndjson")

    return router


def job_values(jobs: Jobs, job: Job) -> dict[str, Any]:
    """Return what is told of a job."""
    values = dataclasses.asdict(job)
    del values["plan"], values["cancelled"]
    report = job.report["report"] if job.report is not None else {}
    return {**values, "dead_letters": report.get("dead_letters", 0)}


async def _events(request: Request, jobs: Jobs, job: Job) -> AsyncIterator[bytes]:
    last, quiet = b"", 0
    while True:
        ended = job.state in ENDED
        data = orjson.dumps(job_values(jobs, job))
        if data != last or ended:
            yield b"event: " + (b"end" if ended else b"job") + b"\ndata: " + data + b"\n\n"
            last, quiet = data, 0
        drain = getattr(request.app.state, "drain", None)
        if ended or (drain is not None and drain.began):
            return
        quiet += 1
        if quiet % ALIVE_EVERY == 0:
            yield b": still running\n\n"
        await asyncio.sleep(EVERY_S)


async def _from_form(request: Request, folder: Path) -> tuple[JobRequest, Path]:
    """Return the job in a form, and the place that its file was written to."""
    async with read_form(request, 20) as (file, fields):
        values: dict[str, Any] = dict(fields)
        for name in ("passage_tokens", "overlap", "shard_size"):
            text = fields.get(name, "")
            if text.isascii() and text.isdigit() and len(text) <= 10:
                values[name] = int(text)
        body = parse(orjson.dumps(values), JobRequest)
        if body.source is not None:
            raise ApiError(422, "conflicting_fields", "a file was sent; leave source out", param="source")
        name = "".join(letter for letter in Path(file.filename or "").name if letter.isalnum() or letter in "._-")
        path = folder / f"upload-{name[-NAME_CHARS:]}"
        with path.open("wb") as target:
            while data := await file.read(1024 * 1024):
                await asyncio.to_thread(target.write, data)
    return body, path
