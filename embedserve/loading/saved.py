"""Saved encoders: sentence-transformers folders with ``embedserve.json``, loaded without running foreign code.

``embedserve.json`` has the spec, the fingerprint, the digest of every file, and its own digest. A folder is loaded only
if every class in its ``modules.json`` is from sentence-transformers or embedserve, no configuration refers to remote
code, and the weights are safetensors; pickles are never opened. ``trust_remote_code`` stays off: embedserve imports the
classes itself.
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

from embedserve.backbone import loading, prepare, quiet_loading
from embedserve.compat import Normalize, Transformer, token_normalize
from embedserve.disk_records import file_digest
from embedserve.errors import CorruptFileError, LoadError
from embedserve.folders import RECORD, read_folder_record, replacing, write_record
from embedserve.loading.colbert_folders import PYLATE_DENSE, is_colbert, load_colbert
from embedserve.loading.reference import write_reference
from embedserve.model_folders import check_no_foreign_code, read_json
from embedserve.spec import EncoderSpec
from embedserve.types import Task

FORMAT = 1
REFERENCE = "reference.json"  # the reference vectors at the time of saving
AS_SAVED = "as_saved"  # the strategy of a sentence-transformers folder without embedserve.json
# Class paths are part of the file format. Only classes of these packages are loaded.
OWN = ("embedserve.compat.", "embedserve.decoder.", "embedserve.strategies.")
LIBRARY = "sentence_transformers."
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5"}
REMEDY = "save the encoder again or restore the folder"


def is_saved(folder: Path) -> bool:
    """Return whether ``folder`` is a sentence-transformers folder, with or without ``embedserve.json``.

    A folder with ``embedserve.json`` alone is a damaged encoder, not a plain decoder.
    """
    return (folder / "modules.json").is_file() or (folder / RECORD).is_file()


def _files(folder: Path) -> list[str]:
    """Return all files except the record, the readme and hidden ones, relative to ``folder``."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in (RECORD, "README.md") and not name.startswith("."))


def check_folder(folder: Path) -> None:
    """Raise `LoadError` if ``folder`` exists, is not empty and is not a saved encoder."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_saved(folder)):
        raise LoadError(f"{folder} exists and is not a saved encoder; use an empty or a new folder", field="folder")


def save(
    model: Any, spec: EncoderSpec, fingerprint: str | None, folder: Path, reference: Mapping[Task, np.ndarray]
) -> None:
    """Write ``model`` to ``folder``, replacing it atomically.

    Args:
        model: The library's model, trained weights included; ``spec.head`` is therefore not recorded.
        spec: The encoder's spec.
        fingerprint: Default: computed from the spec and the written files.
        folder: A new or empty folder, or a saved encoder.
        reference: The result of `embedserve.loading.reference.reference_vectors`.

    Raises:
        LoadError: ``folder`` exists and contains something else.
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

    A sentence-transformers folder without ``embedserve.json`` is loaded in float32 and normalised at the end; the
    strategy of its spec is ``as_saved``.

    Raises:
        LoadError: The folder needs foreign code or a pickle, or cannot be read.
        CorruptFileError: A file differs from its digest.
    """
    if not is_saved(folder):  # a folder of Stanford's ColBERT
        return _load_foreign_colbert(folder)
    if not (folder / "modules.json").is_file():
        raise CorruptFileError(f"{folder / 'modules.json'} is missing; {REMEDY}")
    entries = check_modules(folder)
    record = _read_record(folder)
    if record is None and is_colbert(folder):
        return _load_foreign_colbert(folder)
    with loading(folder):
        modules = [_load_module(folder, entry["type"], entry["path"]) for entry in entries]
        first: Any = modules[0]
        if not isinstance(first, Transformer):
            raise LoadError(
                f"the first module in {folder} must be a Transformer, not {type(first).__name__}", field="model"
            )
        prepare(first)
    if record is not None:
        return modules, EncoderSpec.from_dict(record["spec"]), str(record["fingerprint"])
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    spec = EncoderSpec(strategy=AS_SAVED, backbone=str(folder), prompts=_prompts(folder))
    return modules, spec, _fingerprint(spec, {name: file_digest(folder / name) for name in _files(folder)})


def _load_foreign_colbert(folder: Path) -> tuple[list[nn.Module], EncoderSpec, str]:
    """Return the modules, the spec and the fingerprint of a ColBERT model of another library, already checked."""
    modules, prompts = load_colbert(folder)
    modules.append(token_normalize())
    spec = EncoderSpec(strategy=AS_SAVED, backbone=str(folder), prompts=prompts)
    return modules, spec, _fingerprint(spec, {name: file_digest(folder / name) for name in _files(folder)})


def _fingerprint(spec: EncoderSpec, digests: dict[str, str]) -> str:
    """Return the fingerprint of a spec and the ``digests`` of its files."""
    return spec.fingerprint(hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest())


def _load_module(folder: Path, name: str, path: str) -> nn.Module:
    """Load a module whose class `check_modules` has accepted."""
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for class paths before the library moved them
        warnings.simplefilter("ignore", FutureWarning)
        module_class: Any = getattr(import_module(module), attribute)
    arguments: dict[str, Any] = {"subfolder": path, "local_files_only": True}
    if issubclass(module_class, Transformer):
        arguments |= {"trust_remote_code": False}
        if not (folder / RECORD).exists():
            arguments["model_kwargs"] = {"dtype": torch.float32}
    if not issubclass(module_class, nn.Module):
        raise LoadError(f"{name} in {folder / 'modules.json'} is not a module", field="model")
    return module_class.load(str(folder), **arguments)


def _prompts(folder: Path) -> dict[str, str]:
    """Return the prompts of queries and documents in a sentence-transformers folder."""
    path = folder / "config_sentence_transformers.json"
    prompts = read_json(path).get("prompts", {}) if path.is_file() else {}
    return {task: prompts[task] for task in ("query", "document") if prompts.get(task)}


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return ``embedserve.json`` after verifying all digests in it; None if the file is missing."""
    path = folder / RECORD
    if not path.exists():
        return None
    record, files = read_folder_record(folder, _checked, REMEDY, FORMAT)
    present = set(_files(folder))
    for name, digest in files.items():
        if name not in present:
            raise CorruptFileError(f"{folder / name} is missing; {REMEDY}")
        if file_digest(folder / name) != digest:
            raise CorruptFileError(f"{folder / name} is damaged: its digest does not match; {REMEDY}")
    if extra := sorted(present - set(files)):
        raise CorruptFileError(f"{folder / extra[0]} is not part of the saved encoder; {REMEDY}")
    return record


def check_modules(folder: Path) -> list[dict[str, str]]:
    """Return the entries of ``modules.json``.

    Raises:
        LoadError: Loading them could run foreign code.
    """
    check_no_foreign_code(folder)
    for path in folder.rglob("*"):
        if path.suffix in PICKLES:
            raise LoadError(f"{path} is a pickle, which could run code; convert it to safetensors", field="model")
        if path.name == "router_config.json":
            raise LoadError(f"{path}: routed models are not supported; save one of the models alone", field="model")
    path = folder / "modules.json"
    entries = read_json(path)
    is_list = isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    if not is_list or not all(isinstance(entry.get(key), str) for entry in entries for key in ("type", "path")):
        raise LoadError(f"{path} must list modules with type and path; copy the model folder again", field="model")
    for entry in entries:
        name, module_path = entry["type"], PurePosixPath(entry["path"])
        if not name.startswith((LIBRARY, *OWN)) and name != PYLATE_DENSE:
            message = f"{path} names the class {name}; only classes of sentence-transformers and embedserve are loaded"
            raise LoadError(message, field="model")
        if module_path.is_absolute() or ".." in module_path.parts:
            raise LoadError(f"{path} leads out of the folder: {entry['path']}", field="model")
        if name.endswith("Dense"):
            _check_activation(folder / module_path / "config.json")
    return entries


def _check_activation(path: Path) -> None:
    """Raise `LoadError` for an activation function outside torch.nn: sentence-transformers 5.3 imports and calls it."""
    config = read_json(path) if path.is_file() else None
    name = config.get("activation_function") if isinstance(config, dict) else None
    if name is not None and not str(name).startswith("torch.nn."):
        raise LoadError(
            f"{path} names the activation function {name}; only those of torch.nn are loaded", field="model"
        )


def _checked(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a record and the digests of its files; raise if a key is missing or of another type."""
    EncoderSpec.from_dict(dict(record["spec"]))
    str(record["fingerprint"])
    return record, dict(record["files"])
