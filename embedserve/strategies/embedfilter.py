"""EmbedFilter (arXiv 2606.07502): keep the bulk of the unembedding's spectrum, drop its edges.

The right singular vectors of the unembedding W (V, D) order the hidden space by how strongly a direction moves the
logits. The largest ones mostly carry token frequency, the smallest are noise. The map keeps ``k = D // ratio`` rows
between them and drops the rest: no training, no data.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_plain, load_unembedding, weights_digest
from embedserve.compat import Dense, token_projection
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec
from embedserve.strategies import plain

OPTIONS: dict[str, Any] = {"ratio": 2, "drop": "edge", "start": None, "pooling": "mean"}
DROPS = ("edge", "head", "tail", "mid", "rand")


def singular_directions(unembedding: Tensor) -> Tensor:
    """Return the right singular vectors of ``unembedding`` (V, D) as rows (D, D), largest singular value first.

    Taken from the float64 Gram matrix, which costs O(V D²) and no (V, D) factor. The sign of a singular vector is
    free; here its largest entry is positive, so that two machines agree.
    """
    gram = torch.zeros(unembedding.shape[1], unembedding.shape[1], dtype=torch.float64)
    for block in unembedding.split(1 << 15):
        gram += block.double().T @ block.double()
    directions = torch.linalg.eigh(gram)[1].flip(1).T
    peak = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * peak.sign()


def kept_rows(size: int, ratio: int, drop: str = "edge", start: int | None = None) -> list[int]:
    """Return which of ``size`` singular directions stay, ``size // ratio`` of them.

    Args:
        size: D.
        ratio: The inverse of the kept share; 1 keeps all.
        drop: What is dropped: ``edge`` both ends, ``head`` the largest, ``tail`` the smallest, ``mid`` the middle,
            ``rand`` a fixed random choice (a control).
        start: The first kept row of ``edge``; by default as many are dropped before as behind.
    """
    if type(ratio) is not int or not 1 <= ratio <= size:
        raise SpecError(f"ratio must be a whole number from 1 to {size}, got {ratio!r}", field="options.ratio")
    if drop not in DROPS:
        raise SpecError(f"drop must be one of {', '.join(DROPS)}, got {drop!r}", field="options.drop")
    kept = size // ratio
    if start is not None and (drop != "edge" or type(start) is not int or not 0 <= start <= size - kept):
        message = f"start goes with drop=edge and lies from 0 to {size - kept}, got {start!r}"
        raise SpecError(message, field="options.start")
    if drop == "head":
        return list(range(size - kept, size))
    if drop == "tail":
        return list(range(kept))
    if drop == "mid":  # an odd count keeps one more of the largest: the published code returns one row fewer
        return [*range(kept - kept // 2), *range(size - 1, size - 1 - kept // 2, -1)]
    if drop == "rand":
        return sorted(torch.randperm(size, generator=torch.Generator().manual_seed(0))[:kept].tolist())
    first = (size - kept) // 2 if start is None else start
    return list(range(first, first + kept))


def directions_of(folder: Path) -> Tensor:
    """Return the `singular_directions` (D, D), float64, of the backbone in ``folder``, computed once for its weights.

    They are kept under the digest of the weights in ``spectra`` of the cache folder: EMBEDSERVE_CACHE_DIR, or
    ``embedserve`` in XDG_CACHE_HOME or ~/.cache. A file there that is damaged is made anew; a folder that cannot be
    written to is done without.
    """
    digest = weights_digest(folder)
    with _ONE_AT_A_TIME:
        if digest not in _directions:
            path = _cache_folder() / "spectra" / f"{digest}.safetensors"
            found = _read_directions(path)
            if found is None:
                found = singular_directions(load_unembedding(folder))
                _write_directions(path, found)
            _directions[digest] = found
        return _directions[digest]


_directions: dict[str, Tensor] = {}
_ONE_AT_A_TIME = threading.Lock()


def _cache_folder() -> Path:
    if own := os.environ.get("EMBEDSERVE_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "embedserve"


def _read_directions(path: Path) -> Tensor | None:
    """Return what `_write_directions` wrote; None where there is nothing, or it is damaged."""
    try:
        found = load_file(path)
        directions, wanted = found["directions"], bytes(found["digest"].tolist())
        same = hashlib.blake2b(directions.numpy().tobytes(), digest_size=16).digest() == wanted
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    return directions if same else None


def _write_directions(path: Path, directions: Tensor) -> None:
    """Put the file in place whole or not at all; other processes may do the same at the same time."""
    directions = directions.contiguous()
    digest = hashlib.blake2b(directions.numpy().tobytes(), digest_size=16).digest()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            new = Path(aside) / path.name
            save_file({"directions": directions, "digest": torch.tensor(list(digest), dtype=torch.uint8)}, new)
            new.replace(path)


def filter_matrix(directions: Tensor, ratio: int, drop: str = "edge", start: int | None = None) -> Tensor:
    """Return the map (k, D), float32, with orthonormal rows, of `singular_directions` (D, D); ratio 1 keeps all."""
    size = len(directions)
    rows = kept_rows(size, ratio, drop, start)
    return torch.eye(size) if ratio == 1 else directions[rows].float().contiguous()


def filter_module(weight: Tensor, reads: str = "sentence_embedding") -> nn.Module:
    """Return the map as the library's own Dense layer, so that a saved model loads without embedserve.

    ``reads`` is ``sentence_embedding``, or ``token_embeddings`` for late interaction.
    """
    dim, width = weight.shape
    if reads == "token_embeddings":
        return token_projection(width, dim, weight)
    return Dense(width, dim, bias=False, activation_function=nn.Identity(), init_weight=weight)


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder, a plain pooling, and the filter."""
    transformer = load_plain(spec, folder)
    pooled = plain.pooling(options["pooling"], hidden_size(transformer))
    weight = filter_matrix(directions_of(folder), options["ratio"], options["drop"], options["start"])
    return [transformer, pooled, filter_module(weight)]
