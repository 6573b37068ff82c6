"""Saved encoders: a sentence-transformers folder with ``embedserve.json`` beside it, loaded under guard.

``embedserve.json`` holds the spec, the fingerprint and the digest of every file. A folder is loaded only if every
class in its ``modules.json`` is the library's or ours, no configuration asks for foreign code, and the weights are
safetensors; a pickle is never opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn

from embedserve.backbone import check_model_folder, prepare, quiet_loading, weights_digest
from embedserve.compat import Normalize
from embedserve.errors import CorruptFileError, LoadError
from embedserve.spec import EncoderSpec

RECORD = "embedserve.json"
FORMAT = 1
# Class paths are part of the file format: a class that moves keeps an entry here.
OWN_CLASSES = {
    "embedserve.backbone.FormattedTransformer",
    "embedserve.strategies.layer_mean.LayerMeanTransformer",
}
LIBRARY = "sentence_transformers."
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5"}


def normalize_module() -> nn.Module:
    """Return the library's own L2 normalisation."""
    return Normalize()


def is_saved(folder: Path) -> bool:
    """Say whether ``folder`` is a sentence-transformers folder, ours or any other."""
    return (folder / "modules.json").is_file()


def file_digest(path: Path) -> str:
    """Return 64 hex digits over the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def save(model: SentenceTransformer, spec: EncoderSpec, fingerprint: str, folder: Path) -> None:
    """Write ``model`` to a new folder beside ``folder``, then put it in place: never half a folder.

    Raises:
        LoadError: ``folder`` exists and holds something else than a saved encoder.
    """
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not is_saved(folder):
        raise LoadError(f"{folder} exists and is no saved encoder; give an empty or a new folder", field="folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet_loading():
            model.save_pretrained(str(aside), create_model_card=False, safe_serialization=True)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        record = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "spec": spec.to_dict(),
            "files": {str(path.relative_to(aside)): file_digest(path) for path in files},
        }
        (aside / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        aside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path) -> tuple[list[nn.Module], EncoderSpec, str]:
    """Return the modules, the spec and the fingerprint of a saved encoder.

    A sentence-transformers folder without ``embedserve.json`` is taken as it is, normalised at the end; its spec
    says strategy ``as_saved``.

    Raises:
        LoadError: The folder would run foreign code or open a pickle.
        CorruptFileError: A file differs from its digest.
    """
    check_modules(folder)
    record = _read_record(folder)
    with quiet_loading():
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=True)
    modules: list[Any] = list(model)
    prepare(modules[0])
    if record is not None:
        return modules, EncoderSpec.from_dict(record["spec"]), str(record["fingerprint"])
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    spec = EncoderSpec(strategy="as_saved", backbone=str(folder), prompts=_known_prompts(model.prompts))
    parts = "".join(f"{path.name}{file_digest(path)}" for path in sorted(folder.glob("*_*/*")) if path.is_file())
    return modules, spec, spec.fingerprint(weights_digest(folder) + parts)


def _known_prompts(prompts: dict[str, str]) -> dict[str, str]:
    return {task: prompts[task] for task in ("query", "document") if prompts.get(task)}


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return ``embedserve.json`` after checking every file against it; None where there is none."""
    path = folder / RECORD
    if not path.exists():
        return None
    remedy = "save the encoder again or restore the folder"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, files = record["format"], record["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not readable ({error}); {remedy}") from None
    if version != FORMAT:
        message = f"{path} has format {version!r}, this version reads {FORMAT}; update embedserve or {remedy}"
        raise CorruptFileError(message)
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            raise CorruptFileError(f"{file} is missing; {remedy}")
        if file_digest(file) != digest:
            raise CorruptFileError(f"{file} differs from what was saved; {remedy}")
    values: dict[str, Any] = record
    return values


def check_modules(folder: Path) -> None:
    """Raise `LoadError` if loading ``folder`` would import a foreign class or open a pickle."""
    check_model_folder(folder if (folder / "config.json").is_file() else folder / "0_Transformer")
    for path in folder.rglob("*"):
        if path.suffix in PICKLES:
            raise LoadError(f"{path} is a pickle, which could run code; convert it to safetensors", field="model")
        if path.name in ("modules.json", "router_config.json"):
            for name in _class_names(path):
                if not name.startswith(LIBRARY) and name not in OWN_CLASSES:
                    message = f"{path} asks for the class {name}, which is neither sentence-transformers' nor ours"
                    raise LoadError(f"{message}; such code is never run", field="model")


def _class_names(path: Path) -> list[str]:
    """Return every class path that a modules.json or router_config.json names."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path} is not JSON ({error}); copy the model folder anew", field="model") from None
    if path.name == "modules.json":
        return [str(module.get("type", "")) for module in values]
    return [str(name) for name in values.get("types", {}).values()]
