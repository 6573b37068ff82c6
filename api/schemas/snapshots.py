"""Requests about snapshots, and what the answers look like."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from api.schemas.collections import Name
from api.schemas.common import Count, Request


class SnapshotRequest(Request):
    """A snapshot to take."""

    name: Annotated[Name | None, Field(description="Its name; made of the number of writes unless given.")] = None


class RestoreRequest(Request):
    """Where a snapshot is to be put."""

    to: Annotated[Name | None, Field(description="A collection; the one that it was taken of unless given.")] = None


class SnapshotItem(BaseModel):
    """One snapshot."""

    name: str
    documents: Count
    bytes: Annotated[Count, Field(description="Of its files, which it shares with the collection as long as it can.")]


class SnapshotsAnswer(BaseModel):
    """The snapshots of a collection."""

    snapshots: list[SnapshotItem]


class FileItem(BaseModel):
    """One file, as it was found."""

    file: str
    bytes: Count
    ok: bool
    problem: str | None


class VerifiedAnswer(BaseModel):
    """Whether every byte is as it was written."""

    ok: bool
    files: list[FileItem]
