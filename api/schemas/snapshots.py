"""Requests about snapshots, and their responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from api.schemas.collections import Name
from api.schemas.common import Count, Request


class SnapshotRequest(Request):
    """A snapshot to take."""

    examples: ClassVar[dict[str, Any]] = {"A name": {"name": "before-friday"}}

    name: Annotated[Name | None, Field(description="Name of the snapshot. Default: the number of writes.")] = None


class RestoreRequest(Request):
    """The target of a restore."""

    examples: ClassVar[dict[str, Any]] = {"Another collection": {"to": "as-it-was"}}

    to: Annotated[Name | None, Field(description="A collection. Default: the one the snapshot was taken of.")] = None


class SnapshotItem(BaseModel):
    """One snapshot."""

    name: str
    documents: Count
    bytes: Annotated[Count, Field(description="Size of its files; unchanged files are shared with the collection.")]


class SnapshotsResponse(BaseModel):
    """The snapshots of a collection."""

    snapshots: list[SnapshotItem]


class FileItem(BaseModel):
    """Result of verifying one file."""

    file: str
    bytes: Count
    ok: bool
    problem: str | None


class VerifiedResponse(BaseModel):
    """Whether every file equals what was written."""

    ok: bool
    files: list[FileItem]
