"""What was asked of models over HTTP and holds beyond a restart: their aliases, and which of them are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedserve.disk_records import read_record, record_text
from indexing.storage.files import make_directory, replace_file, writing

FILE, FORMAT = "models.json", 1
REMEDY = "remove the file and set the aliases of models again"


@dataclass(frozen=True)
class KeptModels:
    """What the file holds.

    Attributes:
        aliases: The model's name by alias; None for an alias of the settings that was taken away.
        loaded: Names of the models that the next start loads.
    """

    aliases: Mapping[str, str | None] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()


def read_kept(data_dir: Path) -> KeptModels:
    """Return what is kept; nothing where there is no file.

    Raises:
        CorruptFileError: The file is damaged or of another format.
    """
    try:
        return read_record(data_dir / FILE, _models_of, REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        return KeptModels()


def _models_of(values: Mapping[str, Any]) -> KeptModels:
    return KeptModels(dict(values["aliases"]), tuple(values["loaded"]))


def write_kept(data_dir: Path, kept: KeptModels) -> None:
    """Return once ``kept`` is on the disk.

    Raises:
        EmbedserveError: The disk cannot be written; the file is as it was.
    """
    values: dict[str, Any] = {"format": FORMAT, "aliases": dict(kept.aliases), "loaded": list(kept.loaded)}
    with writing(data_dir):
        make_directory(data_dir)
        replace_file(data_dir / FILE, record_text(values).encode())
