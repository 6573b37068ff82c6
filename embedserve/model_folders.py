"""Model folders in Hugging Face layout: found, checked before anything is loaded, and digested."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from embedserve.errors import LoadError, NotFoundError

NANO = Path(__file__).parent / "nano"
# The files that the weights digest covers: everything in a backbone's folder that can change a vector.
DIGESTED = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.safetensors"),
)
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")
DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata")


def find_folder(name: str) -> Path:
    """Return the folder of a model: ``nano``, a folder, or a hub id, which is downloaded.

    Raises:
        NotFoundError: ``name`` is neither a folder nor a hub repository that can be downloaded.
        LoadError: ``name`` is a file.
    """
    try:
        folder = NANO if name == "nano" else Path(name).expanduser()
        if folder.is_dir():
            return folder
        is_file = folder.exists()
    except (OSError, RuntimeError):  # the name is too long for a file, or ~USER is unknown
        return _download(name)
    if name == "nano":
        message = f"nano is missing from this installation: no folder {folder}; reinstall embedserve"
        raise NotFoundError(message, field="model")
    if is_file:
        raise LoadError(f"model {name!r} is a file; use the folder that contains config.json", field="model")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        is_valid = not isinstance(error, HFValidationError)
        reason = f"the hub returned none ({first_line(error)})" if is_valid else "the hub does not allow that name"
        message = f"no model {name!r}: the folder does not exist, and {reason}. "
        raise NotFoundError(message + "Use a folder with config.json, or 'nano'.", field="model") from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_json(path: Path) -> Any:
    """Return the values of a JSON file of a model folder; raise `LoadError`, naming the file, if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not JSON ({error}); copy the model folder again", field="model") from None


def check_model_folder(folder: Path) -> None:
    """Raise `LoadError` if ``folder`` is incomplete, or cannot be loaded without running code from it."""
    if not (folder / "config.json").is_file():
        message = f"model folder {folder} has no config.json; use a folder in Hugging Face layout"
        raise LoadError(message, field="model")
    check_no_foreign_code(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.glob("*.bin")]
        contents = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        message = f"model folder {folder} has {contents}; it needs *.safetensors (save_pretrained writes them)"
        raise LoadError(message, field="model")
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):  # transformers would use an empty vocabulary
        message = f"model folder {folder} has no tokenizer; it needs tokenizer.json (save_pretrained writes it)"
        raise LoadError(message, field="model")


def check_no_foreign_code(folder: Path) -> None:
    """Raise `LoadError` if a configuration anywhere in ``folder`` refers to code in the folder or to another model."""
    for path in sorted(folder.rglob("*.json")):
        if path.name == "adapter_config.json":
            message = f"{path}: adapters are not loaded; merge them into the weights (merge_and_unload)"
            raise LoadError(message, field="model")
        if "config" not in path.name:
            continue
        values = read_json(path)
        if path.name == "config.json" and path.parent == folder and not isinstance(values, dict):
            raise LoadError(f"{path} must be a JSON object; copy the model folder again", field="model")
        if isinstance(values, dict) and "auto_map" in values:
            message = f"{path} has auto_map, which would run code from the model folder; use a supported model family"
            raise LoadError(message, field="model")


def weights_digest(folder: Path) -> str:
    """Return the digest of the configuration, the tokenizer and the weights in ``folder``, 32 hex digits."""
    paths = sorted({path for pattern in DIGESTED for path in folder.absolute().glob(pattern)})
    stats = [path.stat() for path in paths]
    return _digest(tuple(paths), tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats))


@lru_cache(maxsize=64)
def _digest(paths: tuple[Path, ...], stats: tuple[tuple[int, ...], ...]) -> str:
    """Return the digest of files; ``stats`` is part of the cache key, so changed files are read again."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
