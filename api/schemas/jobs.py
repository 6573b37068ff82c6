"""Jobs as they are submitted, and what is told of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.schemas.collections import Name
from api.schemas.common import WHOLE, Count, Request

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
MOST = 2**31 - 1
FieldName = Annotated[str | None, Field(min_length=1, max_length=200)]


class JobRequest(Request):
    """A collection to build from a source, in place of the one of that name."""

    collection: Annotated[Name, Field(description="What is built.")]
    source: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="A file or folder below the server's jobs_dir, or python-docs; left out where a file is sent.",
        ),
    ] = None
    model: Annotated[
        str | None, Field(min_length=1, description="What makes the vectors; the server's default model unless given.")
    ] = None
    format: Annotated[
        Literal["folder", "jsonl", "csv", "tsv", "parquet", "beir", "dataset"] | None,
        Field(description="The name tells unless given."),
    ] = None
    id_field: Annotated[FieldName, Field(description="Field of the id; id or _id unless given.")] = None
    text_field: Annotated[FieldName, Field(description="Field of the text; text unless given.")] = None
    title_field: Annotated[FieldName, Field(description="Field of the title; title unless given.")] = None
    index: Annotated[FieldName, Field(description="auto, flat, fastscan, ivf, hnsw, exact, or a faiss string.")] = None
    passage_tokens: Annotated[
        int | None, Field(ge=1, le=MOST, description="Split documents into passages of at most so many tokens."), WHOLE
    ] = None
    overlap: Annotated[int | None, Field(ge=0, le=MOST, description="Tokens that passages share, at most."), WHOLE] = (
        None
    )
    shard_size: Annotated[
        int | None, Field(ge=1, le=MOST, description="Records in a shard: what a kill can cost."), WHOLE
    ] = None
    on_error: Annotated[
        Literal["dead-letter", "stop"], Field(description="Whether a bad record is left out or ends the job.")
    ] = "dead-letter"


class ProgressItem(BaseModel):
    """How far a job is."""

    stage: str
    done: Count
    total: Annotated[int | None, Field(description="Null where the source does not tell.")]
    resumed: Annotated[Count, Field(description="Of those done, what an earlier run had made.")]
    rate: Annotated[float, Field(description="Records a second in this stage.")]
    eta_s: Annotated[float | None, Field(description="Seconds until the stage is done.")]


class JobAnswer(BaseModel):
    """One job."""

    id: str
    collection: str
    source: str
    model: Annotated[str | None, Field(description="What makes the vectors; null where an earlier server did not say.")]
    state: State
    created: str
    started: str | None
    finished: str | None
    attempts: Annotated[Count, Field(description="How often it was begun.")]
    progress: ProgressItem | None
    dead_letters: Annotated[Count, Field(description="Records left out, as far as it is known.")]
    report: Annotated[dict[str, Any] | None, Field(description="What `embedserve index build --json` says.")]
    error: Annotated[str | None, Field(description="Why it failed.")]


class JobsAnswer(BaseModel):
    """All jobs, the newest first."""

    jobs: list[JobAnswer]
