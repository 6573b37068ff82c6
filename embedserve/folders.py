"""Folders of saved encoders and heads: a record with digests, and atomic replacement."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from embedserve.disk_records import read_record, record_text

RECORD = "embedserve.json"
DIGEST_SIZE = 16
T = TypeVar("T")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``record`` and its digest to ``embedserve.json``."""
    (folder / RECORD).write_text(record_text(record, indent=1, digest_size=DIGEST_SIZE), encoding="utf-8")


def read_folder_record(folder: Path, parse: Callable[[dict[str, Any]], T], remedy: str, version: int) -> T:
    """Return ``parse`` of ``embedserve.json``; the errors are those of `embedserve.disk_records.read_record`."""
    return read_record(folder / RECORD, parse, remedy, version=version, digest_size=DIGEST_SIZE)


def give_usual_modes(folder: Path) -> None:
    """Give the weights in ``folder`` its permissions: safetensors creates files that only their owner can read."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` atomically if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        yield new
        give_usual_modes(new)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(aside, ignore_errors=True)
