"""The directory of a saved engine: its files, and engine.json with their sizes and digests, which is written last."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.disk_records import read_record, record_digest, record_text
from embedserve.errors import CorruptFileError, IndexMismatchError, NotFoundError
from indexing.storage.checksums import FileRecord, check_file, record_of
from indexing.storage.files import make_directory, replace_file, sync

ENGINE = "engine.json"
FORMAT = 1
TAGGED = re.compile(r"[0-9a-f]{16}\.[a-z]+\.[a-z]+")
ENGINE_REMEDY = "rebuild the index, or restore it from a backup"


@dataclass(frozen=True)
class SavedEngine:
    """The result of `open_engine`; all digests were verified.

    Attributes:
        fields: The ``fields`` of `save_engine`.
        files: The path of each file by the name it was saved under.
    """

    fields: Mapping[str, Any]
    files: Mapping[str, Path]

    def arrays(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the arrays of the files ``NAME.npy``."""
        return {name: read_array(self.files[f"{name}.npy"]) for name in names}


def save_engine(
    directory: Path,
    engine: str,
    fields: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], object]],
    fingerprint: str = "",
) -> None:
    """Write an engine's files to ``directory`` and publish them atomically, replacing an earlier save.

    A process killed at any moment leaves the old engine or the new one, complete. File names derive from the content,
    so the same engine saved twice has the same bytes under the same names.

    Args:
        directory: Created if missing.
        engine: The kind of engine.
        fields: Plain values that the engine needs besides the files.
        files: By name (``letters.letters``), the function that writes the file to a path.
        fingerprint: Of the encoder of the vectors. Default: none.

    Raises:
        OSError: The disk cannot be written.
    """
    make_directory(directory)
    draft = secrets.token_hex(8)
    try:
        records = {}
        for name, write in files.items():
            path = directory / f"{draft}.{name}"
            write(path)
            sync(path)
            records[name] = asdict(record_of(path))
        values = {
            "format": FORMAT,
            "engine": engine,
            "fingerprint": fingerprint,
            "fields": dict(fields),
            "files": records,
        }
        values["tag"] = tag = record_digest(values)[:16]
        for name in files:
            os.replace(directory / f"{draft}.{name}", directory / f"{tag}.{name}")
        sync(directory)
        replace_file(directory / ENGINE, record_text(values).encode())
    finally:
        _remove_unpublished(directory)


def open_engine(directory: Path, engine: str, fingerprint: str | None = None) -> SavedEngine:
    """Return what `save_engine` wrote to ``directory``, after verifying sizes and digests.

    Args:
        directory: Where it was saved.
        engine: The expected kind of engine.
        fingerprint: Of the encoder of the queries. Default: not checked.

    Raises:
        NotFoundError: Nothing was saved there.
        CorruptFileError: A file is missing, truncated, damaged, or of another format or kind of engine.
        IndexMismatchError: The vectors come from another encoder.
    """
    path = directory / ENGINE
    values = _read(path)
    if values["engine"] != engine:
        raise CorruptFileError(f"{path} is of engine {values['engine']!r}, not {engine!r}; open it with that engine")
    if fingerprint is not None and values["fingerprint"] != fingerprint:
        raise IndexMismatchError(
            f"{directory} holds vectors of encoder {values['fingerprint'] or '(none)'}, not of {fingerprint}; "
            "rebuild the index, or load the encoder it was built with",
            field="fingerprint",
        )
    files = {name: directory / f"{values['tag']}.{name}" for name in values["files"]}
    for name, record in values["files"].items():
        check = check_file(files[name], FileRecord(**record))
        if not check.ok:
            raise CorruptFileError(f"{files[name]} {check.problem}; {ENGINE_REMEDY}")
    return SavedEngine(values["fields"], files)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_record(path, _check_names, ENGINE_REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no index in {path.parent}", field="index") from None


def _check_names(values: dict[str, Any]) -> dict[str, Any]:
    if not all(TAGGED.fullmatch(f"{values['tag']}.{name}") for name in values["files"]):
        raise ValueError("naming files outside of its folder")
    return values


def _remove_unpublished(directory: Path) -> None:
    """Remove saved files that engine.json does not name; remove nothing if it cannot be read."""
    try:
        published = str(_read(directory / ENGINE)["tag"])
    except NotFoundError:
        published = ""
    except CorruptFileError:
        return
    for path in directory.iterdir():
        if TAGGED.fullmatch(path.name) and not path.name.startswith(f"{published}."):
            with suppress(OSError):
                path.unlink()


def array_writer(values: np.ndarray) -> Callable[[Path], object]:
    """Return the function that writes ``values`` as a ``.npy`` file."""

    def write(path: Path) -> None:
        with path.open("xb") as file:
            np.save(file, values, allow_pickle=False)

    return write


def read_array(path: Path, *, memory_map: bool = False) -> np.ndarray:
    """Return the array of a ``.npy`` file; raise `CorruptFileError` if it is not one."""
    try:
        values: np.ndarray = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFileError(f"{path} is not readable: {error}; {ENGINE_REMEDY}") from None
    return values
