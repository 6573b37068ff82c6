"""Saved encoders: a sentence-transformers folder with ``embedserve.json`` beside it, loaded under guard.

``embedserve.json`` holds the spec, the fingerprint, the digest of every file, and its own. A folder is loaded only if
every class in its ``modules.json`` is the library's or ours, no configuration asks for foreign code, and the weights
are safetensors; a pickle is never opened. The library's switch for remote code stays off: we import the classes
ourselves.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import nn

from embedserve.backbone import check_no_foreign_code, loading, prepare, quiet_loading, read_json
from embedserve.compat import Normalize, Transformer, token_normalize
from embedserve.disk_records import file_digest
from embedserve.errors import CorruptFileError, LoadError
from embedserve.folders import RECORD, read_folder_record, replacing, write_record
from embedserve.loading.colbert_folders import PYLATE_DENSE, is_colbert, load_colbert
from embedserve.loading.reference import write_reference
from embedserve.spec import EncoderSpec
from embedserve.types import Task

FORMAT = 1
REFERENCE = "reference.json"  # what the encoder made of a few texts when it was saved
AS_SAVED = "as_saved"  # the strategy of a sentence-transformers folder that we did not write
# Class paths are part of the file format. Only what a module file of ours or of the library defines is ever built.
OWN = ("embedserve.compat.", "embedserve.decoder.", "embedserve.strategies.")
LIBRARY = "sentence_transformers."
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5"}
REMEDY = "save the encoder again or restore the folder"


def is_saved(folder: Path) -> bool:
    """Say whether ``folder`` is a sentence-transformers folder, ours or any other.

    One of ours that has lost a file is damaged, not a plain decoder.
    """
    return (folder / "modules.json").is_file() or (folder / RECORD).is_file()


def _files(folder: Path) -> list[str]:
    """Return every file but the record, the readme and hidden ones, relative to ``folder``."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in (RECORD, "README.md") and not name.startswith("."))


def check_folder(folder: Path) -> None:
    """Raise `LoadError` if ``folder`` exists and holds something else than a saved encoder."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_saved(folder)):
        raise LoadError(f"{folder} exists and is no saved encoder; give an empty or a new folder", field="folder")


def save(
    model: Any, spec: EncoderSpec, fingerprint: str | None, folder: Path, reference: Mapping[Task, np.ndarray]
) -> None:
    """Write ``model`` to a new folder beside ``folder``, then put it in place: never half a folder.

    The trained weights go with it: where they came from (``spec.head``) is not recorded. Without a fingerprint, one is
    made of the spec and of what was written. ``reference`` is what `embedserve.loading.reference.reference_vectors`
    gives.

    Raises:
        LoadError: ``folder`` exists and holds something else than a saved encoder.
    """
    folder = folder.expanduser().absolute()
    check_folder(folder)
    spec = replace(spec, head=None)
    with replacing(folder) as new, quiet_loading():
        model.save_pretrained(str(new), create_model_card=False, safe_serialization=True)
        digests = {name: file_digest(new / name) for name in _files(new)}
        fingerprint = fingerprint or _fingerprint(spec, digests)
        write_reference(new / REFERENCE, fingerprint, reference)
        digests[REFERENCE] = file_digest(new / REFERENCE)
        record = {"format": FORMAT, "fingerprint": fingerprint, "spec": spec.to_dict(), "files": digests}
        write_record(new, record)


def load(folder: Path) -> tuple[list[nn.Module], EncoderSpec, str]:
    """Return the modules, the spec and the fingerprint of a saved encoder.

    A sentence-transformers folder without ``embedserve.json`` is taken as it is, in float32 and normalised at the end;
    its spec says strategy ``as_saved``.

    Raises:
        LoadError: The folder would run foreign code or open a pickle, or cannot be read.
        CorruptFileError: A file differs from its digest.
    """
    if not (folder / "modules.json").is_file():
        raise CorruptFileError(f"{folder / 'modules.json'} is missing; {REMEDY}")
    entries = check_modules(folder)
    record = _read_record(folder)
    if record is None and is_colbert(folder):
        return load_foreign_colbert(folder)
    with loading(folder):
        modules = [_load_module(folder, entry["type"], entry["path"]) for entry in entries]
        first: Any = modules[0]
        if not isinstance(first, Transformer):
            raise LoadError(f"{folder} begins with {type(first).__name__}, not with a Transformer", field="model")
        prepare(first)
    if record is not None:
        return modules, EncoderSpec.from_dict(record["spec"]), str(record["fingerprint"])
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    spec = EncoderSpec(strategy=AS_SAVED, backbone=str(folder), prompts=_prompts(folder))
    return modules, spec, _fingerprint(spec, {name: file_digest(folder / name) for name in _files(folder)})


def load_foreign_colbert(folder: Path) -> tuple[list[nn.Module], EncoderSpec, str]:
    """Return the modules, the spec and the fingerprint of a ColBERT model of others, already checked."""
    modules, prompts = load_colbert(folder)
    modules.append(token_normalize())
    spec = EncoderSpec(strategy=AS_SAVED, backbone=str(folder), prompts=prompts)
    return modules, spec, _fingerprint(spec, {name: file_digest(folder / name) for name in _files(folder)})


def _fingerprint(spec: EncoderSpec, digests: dict[str, str]) -> str:
    """Return the fingerprint of a folder whose files have ``digests``."""
    return spec.fingerprint(hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest())


def _load_module(folder: Path, name: str, path: str) -> nn.Module:
    """Load one module whose class `check_modules` has allowed."""
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library has moved modules that many folders name
        warnings.simplefilter("ignore", FutureWarning)
        kind: Any = getattr(import_module(module), attribute)
    arguments: dict[str, Any] = {"subfolder": path, "local_files_only": True}
    if issubclass(kind, Transformer):
        arguments |= {"trust_remote_code": False}
        if not (folder / RECORD).exists():
            arguments["model_kwargs"] = {"dtype": torch.float32}
    if not issubclass(kind, nn.Module):
        raise LoadError(f"{name} in {folder / 'modules.json'} is no module", field="model")
    return kind.load(str(folder), **arguments)


def _prompts(folder: Path) -> dict[str, str]:
    """Return the prompts for queries and documents that a sentence-transformers folder declares."""
    path = folder / "config_sentence_transformers.json"
    found = read_json(path).get("prompts", {}) if path.is_file() else {}
    return {task: found[task] for task in ("query", "document") if found.get(task)}


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return ``embedserve.json`` after checking every file against it; None where there is none."""
    path = folder / RECORD
    if not path.exists():
        return None
    record, files = read_folder_record(folder, _checked, REMEDY, FORMAT)
    present = set(_files(folder))
    for name, digest in files.items():
        if name not in present:
            raise CorruptFileError(f"{folder / name} is missing; {REMEDY}")
        if file_digest(folder / name) != digest:
            raise CorruptFileError(f"{folder / name} differs from what was saved; {REMEDY}")
    if extra := sorted(present - set(files)):
        raise CorruptFileError(f"{folder / extra[0]} was not there when the encoder was saved; {REMEDY}")
    return record


def check_modules(folder: Path) -> list[dict[str, str]]:
    """Return the entries of ``modules.json``; raise `LoadError` if loading them could run foreign code."""
    check_no_foreign_code(folder)
    for path in folder.rglob("*"):
        if path.suffix in PICKLES:
            raise LoadError(f"{path} is a pickle, which could run code; convert it to safetensors", field="model")
        if path.name == "router_config.json":
            raise LoadError(f"{path}: routed models are not loaded; save the part you need by itself", field="model")
    path = folder / "modules.json"
    entries = read_json(path)
    whole = isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    if not whole or not all(isinstance(entry.get(key), str) for entry in entries for key in ("type", "path")):
        raise LoadError(f"{path} must list modules with type and path; copy the model folder anew", field="model")
    for entry in entries:
        name, place = entry["type"], PurePosixPath(entry["path"])
        if not name.startswith((LIBRARY, *OWN)) and name != PYLATE_DENSE:
            message = f"{path} asks for the class {name}, which is neither sentence-transformers' nor ours"
            raise LoadError(f"{message}; such code is never run", field="model")
        if place.is_absolute() or ".." in place.parts:
            raise LoadError(f"{path} leads out of the folder: {entry['path']}", field="model")
        if name.endswith("Dense"):
            _check_activation(folder / place / "config.json")
    return entries


def _check_activation(path: Path) -> None:
    """Raise `LoadError` if a configuration names a function that is none of torch's: 5.3 calls what it names."""
    found = read_json(path) if path.is_file() else None
    name = found.get("activation_function") if isinstance(found, dict) else None
    if name is not None and not str(name).startswith("torch.nn."):
        raise LoadError(
            f"{path} asks for the activation function {name}; only those of torch.nn are run", field="model"
        )


def _checked(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a record and the digests of its files; raise if a key is missing or of another type."""
    EncoderSpec.from_dict(dict(record["spec"]))
    str(record["fingerprint"])
    return record, dict(record["files"])
