"""Turns a job request into a build plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from api.http.error_responses import ApiError
from api.schemas.jobs import JobRequest
from api.settings import Settings

if TYPE_CHECKING:
    from embedserve import EncoderSpec
    from indexing.jobs.build_plan import BuildPlan

SAMPLE = "python-docs"
FIELDS = ("format", "id_field", "text_field", "title_field", "index", "passage_tokens", "overlap", "shard_size")


def source_of(settings: Settings, source: str | None) -> str:
    """Return the path of a requested source, which must be inside ``jobs_dir``.

    Raises:
        ApiError: 422, the source is missing, does not exist or is outside of ``jobs_dir``.
    """
    if source is None:
        message = "source is missing; name a file in the server's jobs_dir, or send a file as multipart/form-data"
        raise ApiError(422, "missing_field", message, param="source")
    if source == SAMPLE:
        return source
    if settings.jobs_dir is None:
        message = "this server has no jobs_dir: set EMBEDSERVE_JOBS_DIR, or send the file with the request"
        raise ApiError(422, "no_jobs_dir", message, param="source")
    root = settings.jobs_dir.expanduser().resolve()
    try:
        path = (root / source).resolve()
        exists = path.is_relative_to(root) and path.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        message = f"the server's jobs_dir has no file or folder {source!r}"
        raise ApiError(422, "source_not_found", message, param="source")
    return str(path)


def plan_of(
    settings: Settings, body: JobRequest, source: str, model: Callable[[], str | EncoderSpec], work: Path
) -> BuildPlan:
    """Return the build plan of a job.

    Args:
        settings: Settings of the service.
        body: The request.
        source: Path of the source.
        model: Returns the model, as `Encoder.load` takes it.
        work: Folder for shards and reports.

    Raises:
        ApiError: 409, the collection's name is an alias.
        InputError: The options contradict each other.
    """
    from indexing.collections.aliases import list_aliases
    from indexing.jobs.build_plan import BuildPlan

    aliases = list_aliases(settings.data_dir)
    if body.collection in aliases:
        target = aliases[body.collection]
        message = f"{body.collection!r} is an alias of {target!r}; build that collection, or choose another name"
        raise ApiError(409, "already_exists", message, param="collection")
    encoder = model()
    name, strategy = (encoder, None) if isinstance(encoder, str) else (encoder.backbone, json.dumps(encoder.to_dict()))
    return BuildPlan(
        source=source,
        collection=body.collection,
        data_dir=settings.data_dir.resolve(),
        model=name,
        strategy=strategy,
        device=settings.device,
        on_error=body.on_error,
        job_dir=work.resolve(),
        **{field: value for field in FIELDS if (value := getattr(body, field)) is not None},
    )
