"""What a job reads, and the options of the command that reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from api.http.error_responses import ApiError
from api.schemas.jobs import JobRequest
from api.settings import Settings

if TYPE_CHECKING:
    from embedserve import EncoderSpec

SAMPLE = "python-docs"
OPTIONS = ("format", "id_field", "text_field", "title_field", "index", "passage_tokens", "overlap", "shard_size")


def source_of(settings: Settings, source: str | None) -> str:
    """Return the file or folder that a request names, which lies below ``jobs_dir``.

    Raises:
        ApiError: 422, there is none, or it lies elsewhere.
    """
    if source is None:
        message = "source is missing; name a file below the server's jobs_dir, or send a file as multipart/form-data"
        raise ApiError(422, "missing_field", message, param="source")
    if source == SAMPLE:
        return source
    if settings.jobs_dir is None:
        message = "this server reads no files of its own: set EMBEDSERVE_JOBS_DIR, or send the file with the job"
        raise ApiError(422, "no_jobs_dir", message, param="source")
    root = settings.jobs_dir.expanduser().resolve()
    try:
        path = (root / source).resolve()
        there = path.is_relative_to(root) and path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        message = f"there is no {source!r} below the server's jobs_dir"
        raise ApiError(422, "source_not_found", message, param="source")
    return str(path)


def arguments_of(
    settings: Settings, body: JobRequest, source: str, model: Callable[[], str | EncoderSpec]
) -> list[str]:
    """Return the arguments of ``embedserve index build`` that a job is of.

    Args:
        settings: Of the service.
        body: What was asked.
        source: What is read.
        model: Returns what makes the vectors, as `Encoder.load` takes it.

    Raises:
        ApiError: 409, the collection's name is an alias.
    """
    from indexing.collections.aliases import list_aliases

    aliases = list_aliases(settings.data_dir)
    if body.collection in aliases:
        message = f"{body.collection!r} is an alias of {aliases[body.collection]!r}; build that one, or another name"
        raise ApiError(409, "already_exists", message, param="collection")
    given = {name: getattr(body, name) for name in OPTIONS}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    return [source, *options, f"--on-error={body.on_error}", *model_arguments(model())]


def model_arguments(model: str | EncoderSpec) -> list[str]:
    """Return the arguments by which the command line loads what `Encoder.load` takes."""
    if isinstance(model, str):
        return [f"--model={model}"]
    return [f"--model={model.backbone}", f"--strategy={json.dumps(model.to_dict())}"]
