"""What saved encoders and trained heads share: a record with digests, and a folder that is replaced whole or not."""

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
    """Write ``embedserve.json`` with its own digest in it."""
    (folder / RECORD).write_text(record_text(record, indent=1, digest_size=DIGEST_SIZE), encoding="utf-8")


def read_folder_record(folder: Path, parse: Callable[[dict[str, Any]], T], remedy: str, version: int) -> T:
    """Return ``parse`` of ``embedserve.json``; the errors are those of `embedserve.disk_records.read_record`."""
    return read_record(folder / RECORD, parse, remedy, version=version, digest_size=DIGEST_SIZE)


def give_usual_modes(folder: Path) -> None:
    """Let whoever may read ``folder`` read the weights in it: safetensors writes them for their owner alone."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder to write to, and put it in the place of ``folder`` at the end: never half a folder."""
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
