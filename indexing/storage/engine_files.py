"""An engine's directory: its files and engine.json, which names them with size and digest and is replaced last."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
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
ENGINE_REMEDY = "build the index again, or restore it from a backup"


@dataclass(frozen=True)
class Opened:
    """What `open_engine` found, every digest checked.

    Attributes:
        fields: What `save_engine` was given.
        files: The path of each file by the name it was saved under.
    """

    fields: Mapping[str, Any]
    files: Mapping[str, Path]


def save_engine(
    directory: Path,
    engine: str,
    fields: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], object]],
    fingerprint: str = "",
) -> None:
    """Write an engine's files to ``directory`` and publish them in one step; an older save there is replaced.

    Killed at any moment it leaves the old engine or the new one, whole. Files are named by what is in them, so that
    the same engine saved twice has the same bytes under the same names.

    Args:
        directory: Made where it is missing.
        engine: What kind of engine reads this again.
        fields: Plain values that it needs besides the files.
        files: By name (``letters.letters``) the function that writes the file to the path it is given.
        fingerprint: Of the encoder whose vectors these are; empty for vectors of no encoder.

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
            records[name] = record_of(path)
        values = {
            "format": FORMAT,
            "engine": engine,
            "fingerprint": fingerprint,
            "fields": dict(fields),
            "files": {name: asdict(record) for name, record in records.items()},
        }
        values["tag"] = tag = record_digest(values)[:16]
        for name in files:
            os.replace(directory / f"{draft}.{name}", directory / f"{tag}.{name}")
        sync(directory)
        replace_file(directory / ENGINE, record_text(values).encode())
    finally:
        _remove_unpublished(directory)


def open_engine(directory: Path, engine: str, fingerprint: str | None = None) -> Opened:
    """Return what `save_engine` wrote to ``directory``, after its size and digest were compared.

    Args:
        directory: Where it was saved.
        engine: The kind of engine that is wanted.
        fingerprint: Of the encoder that will ask; None asks nobody.

    Raises:
        NotFoundError: Nothing was saved there.
        CorruptFileError: A file is missing, cut short, damaged, or of another format or engine.
        IndexMismatchError: The vectors are another encoder's.
    """
    path = directory / ENGINE
    values = _read(path)
    if values["engine"] != engine:
        raise CorruptFileError(f"{path} is of engine {values['engine']!r}, not {engine!r}; open it as what it is")
    if fingerprint is not None and values["fingerprint"] != fingerprint:
        raise IndexMismatchError(
            f"{directory} holds vectors of encoder {values['fingerprint'] or '(none)'}, not of {fingerprint}; "
            "build the index again, or load the encoder it was built by",
            field="fingerprint",
        )
    files = {name: directory / f"{values['tag']}.{name}" for name in values["files"]}
    for name, record in values["files"].items():
        check = check_file(files[name], FileRecord(**record))
        if not check.ok:
            raise CorruptFileError(f"{files[name]} {check.problem}; {ENGINE_REMEDY}")
    return Opened(values["fields"], files)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_record(path, _checked, ENGINE_REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no index in {path.parent}", field="index") from None


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    if not all(TAGGED.fullmatch(f"{values['tag']}.{name}") for name in values["files"]):
        raise ValueError("naming files outside of its folder")
    return values


def _remove_unpublished(directory: Path) -> None:
    """Remove the files of a save that engine.json does not name; where it cannot be read nothing is removed."""
    try:
        keep = str(_read(directory / ENGINE)["tag"])
    except NotFoundError:
        keep = ""
    except CorruptFileError:
        return
    for path in directory.iterdir():
        if TAGGED.fullmatch(path.name) and not path.name.startswith(f"{keep}."):
            with suppress(OSError):
                path.unlink()


def array_writer(values: np.ndarray) -> Callable[[Path], None]:
    """Return the function that writes ``values`` as a ``.npy`` file."""

    def write(path: Path) -> None:
        with path.open("xb") as file:
            np.save(file, values, allow_pickle=False)

    return write


def read_array(path: Path, *, memory_map: bool = False) -> np.ndarray:
    """Return the array of a ``.npy`` file; raise `CorruptFileError` where it is none."""
    try:
        values: np.ndarray = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFileError(f"{path} is not readable: {error}; {ENGINE_REMEDY}") from None
    return values
