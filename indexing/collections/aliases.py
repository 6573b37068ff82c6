"""Aliases: other names for collections, in one file that is replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from embedserve.errors import NotFoundError, did_you_mean
from indexing.collections.catalog import check_name, collection_path, unknown_collection
from indexing.collections.manifest import MANIFEST
from indexing.storage.checksums import digest_of, read_text
from indexing.storage.files import make_directory, replace_file, wait_for_lock, writing

FORMAT = 1
ALIASES = "aliases.json"


def list_aliases(data_dir: Path | str) -> dict[str, str]:
    """Return the collection behind each alias.

    Raises:
        CorruptFileError: The file of aliases is damaged or of another format.
    """
    try:
        return read_text(Path(data_dir) / ALIASES, _parsed, "set the aliases anew after removing it")
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _parsed(text: str) -> dict[str, str]:
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"not of format {FORMAT}, which this release reads")
    if values.pop("digest", None) != digest_of(values):
        raise ValueError("damaged: its digest does not match")
    return {check_name(alias): check_name(name) for alias, name in values["aliases"].items()}


def set_alias(data_dir: Path | str, alias: str, name: str) -> None:
    """Let ``alias`` stand for the collection ``name`` from now on; whatever it stood for before, in one step.

    An alias with the name of a collection hides that collection until it is removed.

    Raises:
        NotFoundError: There is no such collection.
        EmbedserveError: The disk cannot be written; the alias is as it was.
    """
    directory = collection_path(data_dir, name)
    check_name(alias)
    if not (directory / MANIFEST).exists():
        raise unknown_collection(directory)
    with _changing(data_dir) as aliases:
        aliases[alias] = name


def remove_alias(data_dir: Path | str, alias: str) -> None:
    """Take an alias away; the collection stays.

    Raises:
        NotFoundError: There is no such alias.
    """
    with _changing(data_dir) as aliases:
        if alias not in aliases:
            raise NotFoundError(
                f"there is no alias {alias!r}; {did_you_mean(alias, aliases)}".rstrip("; "), field="alias"
            )
        del aliases[alias]


def resolve(data_dir: Path | str, name: str) -> Path:
    """Return the directory of the collection that is called ``name`` or has that alias; it need not exist."""
    return collection_path(data_dir, list_aliases(data_dir).get(check_name(name), name))


@contextmanager
def _changing(data_dir: Path | str) -> Iterator[dict[str, str]]:
    """Give the aliases to be changed, which nobody else changes meanwhile, and write them."""
    data_dir = Path(data_dir)
    with writing(data_dir):
        make_directory(data_dir)
        with wait_for_lock(data_dir / f".{ALIASES}.lock"):
            aliases = list_aliases(data_dir)
            yield aliases
            values: Mapping[str, object] = {"format": FORMAT, "aliases": aliases}
            text = json.dumps({**values, "digest": digest_of(values)}, indent=2) + "\n"
            replace_file(data_dir / ALIASES, text.encode())
