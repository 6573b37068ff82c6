"""What saved encoders and trained heads share: a record with digests, and a folder that is replaced whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECORD = "embedserve.json"


def file_digest(path: Path) -> str:
    """Return 64 hex digits over the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def record_digest(record: dict[str, Any]) -> str:
    """Return 32 hex digits over everything else in a record: the spec in it changes vectors too."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``embedserve.json`` with its own digest in it."""
    text = json.dumps(record | {"digest": record_digest(record)}, indent=1)
    (folder / RECORD).write_text(text, encoding="utf-8")


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
