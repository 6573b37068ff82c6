"""State of the models that was set over HTTP and survives restarts: aliases and loaded models."""

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
    """The content of the file.

    Attributes:
        aliases: The model's name by alias; None for an alias of the settings that was deleted.
        loaded: Names of the models that the next start loads.
    """

    aliases: Mapping[str, str | None] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()


def read_kept(data_dir: Path) -> KeptModels:
    """Return the saved state; an empty one if there is no file.

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
    """Write ``kept`` durably.

    Raises:
        EmbedserveError: The disk cannot be written; the file is unchanged.
    """
    values: dict[str, Any] = {"format": FORMAT, "aliases": dict(kept.aliases), "loaded": list(kept.loaded)}
    with writing(data_dir):
        make_directory(data_dir)
        replace_file(data_dir / FILE, record_text(values).encode())
