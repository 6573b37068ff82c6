"""Requests that submit jobs, and the responses that describe them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.collections import Name
from api.schemas.common import Count, IsIntegral, Request

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
MOST = 2**31 - 1
FieldName = Annotated[str, Field(min_length=1, max_length=200)]
AtLeast1 = Annotated[int, Field(ge=1, le=MOST), IsIntegral]


_OVERLAP_NEEDS_PASSAGES: list[Any] = [
    {"properties": {"overlap": {"type": "null"}}},
    {"properties": {"passage_tokens": {"type": "integer"}}, "required": ["passage_tokens"]},
]


class JobRequest(Request):
    """A collection to build from a source; it replaces the collection of that name."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _OVERLAP_NEEDS_PASSAGES})
    examples: ClassVar[dict[str, Any]] = {
        "A file of the server": {"collection": "papers", "source": "papers.jsonl.zst", "passage_tokens": 256}
    }

    collection: Annotated[Name, Field(description="Name of the collection.")]
    source: Annotated[
        Annotated[str, Field(min_length=1, max_length=1000)] | None,
        Field(description="A file or folder below the server's jobs_dir, or python-docs; omit it if a file is sent."),
    ] = None
    model: Annotated[
        Annotated[str, Field(min_length=1)] | None, Field(description="Name of the model. Default: the default model.")
    ] = None
    format: Annotated[
        Literal["folder", "jsonl", "csv", "tsv", "parquet", "beir", "dataset"] | None,
        Field(description="Format of the source. Default: detected by its name."),
    ] = None
    id_field: Annotated[FieldName | None, Field(description="Field of the id. Default: id or _id.")] = None
    text_field: Annotated[FieldName | None, Field(description="Field of the text. Default: text.")] = None
    title_field: Annotated[FieldName | None, Field(description="Field of the title. Default: title.")] = None
    index: Annotated[
        FieldName | None, Field(description="auto, flat, fastscan, ivf, hnsw, exact, or a faiss factory string.")
    ] = None
    passage_tokens: Annotated[
        AtLeast1 | None, Field(description="Splits documents into passages of at most this many tokens.")
    ] = None
    overlap: Annotated[
        Annotated[int, Field(ge=0, le=MOST), IsIntegral] | None,
        Field(description="Maximum number of tokens that neighbouring passages share."),
    ] = None
    shard_size: Annotated[
        AtLeast1 | None, Field(description="Records of a shard; at most one shard is lost if the job is killed.")
    ] = None
    on_error: Annotated[
        Literal["dead-letter", "stop"], Field(description="Whether a bad record is skipped or ends the job.")
    ] = "dead-letter"


class ProgressItem(BaseModel):
    """Progress of a job."""

    stage: str
    done: Count
    total: Annotated[int | None, Field(description="Null if the source does not know.")]
    resumed: Annotated[Count, Field(description="Records of these that an earlier run completed.")]
    rate: Annotated[float, Field(description="Records per second in this stage.")]
    eta_s: Annotated[float | None, Field(description="Estimated seconds to the end of the stage.")]


class JobResponse(BaseModel):
    """One job."""

    id: str
    collection: str
    source: str
    model: Annotated[str | None, Field(description="The model; null if an earlier server did not record it.")]
    state: State
    created: str
    started: str | None
    finished: str | None
    attempts: Annotated[Count, Field(description="Number of runs.")]
    progress: ProgressItem | None
    dead_letters: Annotated[Count, Field(description="Number of skipped records so far.")]
    report: Annotated[dict[str, Any] | None, Field(description="The report, as of `embedserve index build --json`.")]
    error: Annotated[str | None, Field(description="Reason of the failure.")]


class JobsResponse(BaseModel):
    """All jobs, newest first."""

    jobs: list[JobResponse]
