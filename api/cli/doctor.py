"""``embedserve doctor``: check the installation and suggest remedies."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from api.cli.console import FAILURE, flush_out, load_encoder, out, out_json, stop
from api.cli.shared_options import DataDir, Device, Json, Model
from api.settings import Settings, load_settings, unknown_variables
from embedserve import __version__
from embedserve.errors import EmbedserveError

if TYPE_CHECKING:
    from embedserve import Encoder

logger = logging.getLogger(__name__)

GIB = 1024**3
PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy", "starlette", "uvicorn", "orjson", "pydantic")


@dataclass(frozen=True)
class Check:
    """The result of one check; ``remedy`` is what to do if the verdict is not ``ok``."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    message: str
    remedy: str = ""


def doctor(model: Model = None, device: Device = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Check the installation: Python, packages, settings, data folder, disk, model, collections.

    Each line is ok, warn or fail, with a remedy. Exits with code 1 if a check fails.

    Examples:
      embedserve doctor
      embedserve doctor --model ./my-decoder --json
    """
    settings = load_settings(model=model, device=device, data_dir=data_dir)
    results = []
    for check in checks(settings):
        results.append(check)
        if not json:
            out(f"{check.verdict:4}  {check.name:22} {check.message}")
            if check.remedy:
                out(f"{'':29}→ {check.remedy}")
            flush_out()
    failed = any(check.verdict == "fail" for check in results)
    if json:
        out_json({"ok": not failed, "checks": [asdict(check) for check in results]})
    if failed:
        stop(FAILURE)


def checks(settings: Settings) -> Iterator[Check]:
    """Run all checks, fast ones first."""
    yield check_python()
    yield from check_packages()
    yield from check_settings()
    yield from check_data_dir(settings.data_dir)
    encoder = None
    for check, loaded in check_model(settings):
        encoder = loaded or encoder
        yield check
    yield from check_collections(settings, encoder)


def check_python() -> Check:
    """Check the Python version."""
    message = f"{platform.python_version()} on {platform.system()} {platform.machine()}, embedserve {__version__}"
    return Check("python", "ok", message)


def check_packages() -> Iterator[Check]:
    """Check that the required packages are installed and faiss loads."""
    for name in PACKAGES:
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", "pip install -e '.[cpu]'")
    both = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if len(both) == 2:
        yield Check("faiss", "fail", "faiss-cpu and faiss-gpu are both installed", "uninstall one of them with pip")
        return
    try:
        from indexing.engines.faiss_index import import_faiss

        import_faiss()
        yield Check("faiss", "ok" if both else "warn", ", ".join(f"{name} {metadata.version(name)}" for name in both))
    except EmbedserveError as error:
        yield Check("faiss", "fail", str(error), "pip install -e '.[cpu]', or '.[gpu]' with an NVIDIA GPU")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_settings() -> Iterator[Check]:
    """Check for unknown environment variables."""
    unknown = unknown_variables()
    for sentence in unknown:
        yield Check("settings", "warn", sentence, "correct or unset it")
    if not unknown:
        yield Check("settings", "ok", "all EMBEDSERVE_ variables are known")


def check_data_dir(folder: Path) -> Iterator[Check]:
    """Check that the data folder is writable and its disk has free space."""
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remedy = "choose another with --data-dir or EMBEDSERVE_DATA_DIR, or change its permissions"
        yield Check("data folder", "fail", f"{folder} is not writable: {error.strerror}", remedy)
        return
    suffix = "" if folder.exists() else " (created by the first build)"
    yield Check("data folder", "ok", f"{folder}{suffix}")
    free = shutil.disk_usage(existing).free
    verdict: Literal["ok", "warn", "fail"] = "ok" if free > GIB else "warn" if free > GIB // 10 else "fail"
    remedy = "" if verdict == "ok" else "free disk space; a build needs about twice the size of the collection"
    yield Check("disk", verdict, f"{free / GIB:.1f} GiB free", remedy)


def check_model(settings: Settings) -> Iterator[tuple[Check, Encoder | None]]:
    """Check that the model loads, and that a text's vector does not depend on the batch."""
    import numpy as np

    started = time.monotonic()
    try:
        encoder = load_encoder(settings.model, settings.device)
        loaded = time.monotonic()
        texts = ["one short text", "another text, which is somewhat longer than the first one", "third"]
        together = encoder.embed(texts).vectors
        alone = np.concatenate([encoder.embed([text]).vectors for text in texts])
    except EmbedserveError as error:
        yield Check("model", "fail", error.message, "choose another model with --model or EMBEDSERVE_MODEL"), None
        return
    except Exception as error:  # a failed check; the others still run
        logger.info("checking the model failed", exc_info=True)
        yield (
            Check(
                "model", "fail", f"{type(error).__name__}: {error}", "run embedserve doctor --debug for the traceback"
            ),
            None,
        )
        return
    message = (
        f"{encoder.name}: {encoder.dim} dimensions, {encoder.max_tokens} tokens, loaded in {loaded - started:.1f} s"
    )
    yield Check("model", "ok", message), encoder
    lean = f"not used: {encoder.lean_reason}" if encoder.lean_reason else "used"
    yield Check("lean forward pass", "ok", lean), encoder
    worst = float(np.abs(together - alone).max())
    norms = np.abs(np.linalg.norm(together, axis=1) - 1).max()
    if not np.isfinite(together).all() or norms > 1e-3:
        yield Check("embedding", "fail", "vectors do not have unit length", "copy the model folder again"), encoder
    elif worst > 1e-2:
        message = f"a text's vector changes by {worst:.1e} with the batch"
        yield Check("embedding", "warn", message, "use dtype float32 and right padding"), encoder
    else:
        yield (
            Check("embedding", "ok", f"vectors alone and in a batch agree to {worst:.0e}, on {encoder.device}"),
            encoder,
        )


def check_collections(settings: Settings, encoder: Encoder | None) -> Iterator[Check]:
    """Verify every file of every collection, and that the model can search it."""
    from indexing import list_collections, verify
    from indexing.collections.catalog import collection_path
    from indexing.collections.manifest import read_manifest

    names = list_collections(settings.data_dir)
    if not names:
        yield Check("collections", "warn", "none yet", "embedserve index build python-docs")
    for name in names:
        directory = collection_path(settings.data_dir, name)
        damaged = [f"{check.name} {check.problem}" for check in verify(directory) if not check.ok]
        if damaged:
            remedy = f"rebuild it: embedserve index build SOURCE --collection {name}"
            yield Check(f"  {name}", "fail", "; ".join(damaged), remedy)
            continue
        manifest = read_manifest(directory)
        if encoder is not None and manifest.fingerprint != encoder.fingerprint:
            command = f"embedserve index build SOURCE --collection {name}"
            remedy = f"use that model and strategy, or rebuild the collection: {command}"
            yield Check(f"  {name}", "warn", f"built by {manifest.encoder}, not by {encoder.name}", remedy)
        else:
            yield Check(f"  {name}", "ok", f"{manifest.count:,} documents, index {manifest.index}")
