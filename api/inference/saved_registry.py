"""What was asked of models over HTTP and holds beyond a restart: their aliases, and which of them are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexing.storage.checksums import digest_of, read_text
from indexing.storage.files import make_directory, replace_file, writing

FILE, FORMAT = "models.json", 1


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
        return read_text(data_dir / FILE, _parsed, "remove it, and set the aliases of models anew")
    except (FileNotFoundError, NotADirectoryError):
        return KeptModels()


def _parsed(text: str) -> KeptModels:
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"not of format {FORMAT}, which this release reads")
    if values.pop("digest", None) != digest_of(values):
        raise ValueError("damaged: its digest does not match")
    return KeptModels(dict(values["aliases"]), tuple(values["loaded"]))


def write_kept(data_dir: Path, kept: KeptModels) -> None:
    """Return once ``kept`` is on the disk.

    Raises:
        EmbedserveError: The disk cannot be written; the file is as it was.
    """
    values: dict[str, Any] = {"format": FORMAT, "aliases": dict(kept.aliases), "loaded": list(kept.loaded)}
    text = json.dumps({**values, "digest": digest_of(values)}, indent=2) + "\n"
    with writing(data_dir):
        make_directory(data_dir)
        replace_file(data_dir / FILE, text.encode())
