"""manifest.json: what a collection is made of. It is written last, so what it names is complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.errors import CorruptFileError, NotFoundError
from indexing.base import Metric
from indexing.files import digest, replace_file

FORMAT = 2
MANIFEST = "manifest.json"
VERSION_NAME = re.compile(r"v-[0-9a-f]{16}")
FILE_NAME = re.compile(r"[a-z]+\.[a-z]+")
REMEDY = "rebuild it with `embedserve index build`, or restore it from a backup"


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when the collection was built: its size in bytes and its BLAKE2b digest in hex."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class FileCheck:
    """What became of a file: ``problem`` is empty where it is as it was built."""

    name: str
    bytes: int
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file is as it was built."""
        return not self.problem


@dataclass(frozen=True)
class Manifest:
    """What a collection is made of.

    Attributes:
        name: The collection's name when it was built.
        version: The folder of this build.
        created: UTC time of the build in ISO 8601; for people only.
        encoder: The encoder's name; for people only.
        fingerprint: The encoder's fingerprint: only its queries may be compared with these vectors.
        spec: The encoder's spec as plain values.
        dim: Numbers in a vector.
        metric: What a score is.
        index: ``exact`` or a faiss factory string.
        count: Documents.
        truncated: How many of them were longer than the encoder reads, and cut.
        files: The files of the version folder.
    """

    name: str
    version: str
    created: str
    encoder: str
    fingerprint: str
    spec: Mapping[str, Any]
    dim: int
    metric: Metric
    index: str
    count: int
    truncated: int
    files: Mapping[str, FileRecord]

    def to_json(self) -> str:
        """Return the text of manifest.json, with the format's version and a digest of the rest."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["spec"] = dict(self.spec)
        values["files"] = {name: dataclasses.asdict(record) for name, record in self.files.items()}
        values = {"format": FORMAT, **values}
        return json.dumps({**values, "digest": digest_of(values)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Return the manifest that `to_json` wrote; raise `ValueError` saying what is wrong with the text."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        if values.get("format") != FORMAT:
            raise ValueError(f"of format {values.get('format')!r}, this release reads format {FORMAT}")
        if values.pop("digest", None) != digest_of(values):
            raise ValueError("damaged: its digest does not match")
        fields = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        fields["files"] = {name: FileRecord(**record) for name, record in fields["files"].items()}
        if not VERSION_NAME.fullmatch(fields["version"]) or not all(map(FILE_NAME.fullmatch, fields["files"])):
            raise ValueError("naming files outside of its folder")
        return cls(**fields)


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the BLAKE2b digest of plain values, independent of the order of keys."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=32).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Publish ``manifest``: afterwards, and not before, the collection is what it says."""
    replace_file(directory / MANIFEST, manifest.to_json().encode())


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of the collection in ``directory``; the files it names are not looked at.

    Raises:
        NotFoundError: There is no manifest: no collection was ever finished here.
        CorruptFileError: The manifest is damaged, unreadable or of another format.
    """
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no collection in {directory}", field="collection") from None
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}; {REMEDY}") from None
    try:
        return Manifest.from_json(data.decode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is {reason(error)}; {REMEDY}") from None


def reason(error: Exception) -> str:
    """Say in words why a manifest could not be read."""
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"damaged: {error}"
    if type(error) is ValueError:
        return str(error)
    return f"damaged: {type(error).__name__} {error}"


def check_files(directory: Path, manifest: Manifest) -> list[FileCheck]:
    """Read every file that ``manifest`` names and compare its size and digest."""
    return [check_file(directory / manifest.version / name, record) for name, record in manifest.files.items()]


def check_file(path: Path, record: FileRecord) -> FileCheck:
    """Compare one file with its record."""
    name = f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return FileCheck(name, size, f"has {size} bytes instead of {record.bytes}")
        if digest(path) != record.blake2b:
            return FileCheck(name, size, "is damaged: its digest does not match")
    except FileNotFoundError:
        return FileCheck(name, 0, "is missing")
    except OSError as error:
        return FileCheck(name, 0, f"cannot be read: {error.strerror}")
    return FileCheck(name, size)
