"""EmbedFilter (arXiv 2606.07502): project onto the middle of the unembedding's singular spectrum.

The right singular vectors of the unembedding W (V, D) order the hidden space by how strongly each direction moves the
logits. The largest mostly carry token frequency, the smallest are noise. The map keeps ``k = D // ratio`` directions
between them: no training, no data.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_plain, load_unembedding
from embedserve.compat import Dense, token_projection
from embedserve.disk_records import atomic_path
from embedserve.errors import SpecError
from embedserve.model_folders import weights_digest
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import PoolingName, pooling
from embedserve.strategies.strategy import Strategy, option

Drop = Literal["edge", "head", "tail", "mid", "rand"]
DROPS: tuple[str, ...] = get_args(Drop)


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
    """Return the indices of the ``size // ratio`` singular directions to keep, of ``size``.

    Args:
        size: D.
        ratio: The inverse of the share to keep; 1 keeps all.
        drop: Which to drop: ``edge`` both ends, ``head`` the largest, ``tail`` the smallest, ``mid`` the middle,
            ``rand`` a fixed random choice (a control).
        start: The first row to keep with ``edge``. Default: as many are dropped at either end.

    Raises:
        SpecError: A value is out of range.
    """
    if not 1 <= ratio <= size:
        raise SpecError(f"ratio must be a whole number from 1 to {size}, got {ratio!r}", field="options.ratio")
    if drop not in DROPS:
        raise SpecError(f"drop must be one of {', '.join(DROPS)}, got {drop!r}", field="options.drop")
    count = size // ratio
    if start is not None and (drop != "edge" or not 0 <= start <= size - count):
        message = f"start needs drop=edge and a number from 0 to {size - count}, got {start!r}"
        raise SpecError(message, field="options.start")
    if drop == "head":
        return list(range(size - count, size))
    if drop == "tail":
        return list(range(count))
    if drop == "mid":  # an odd count keeps one more of the largest: the published code returns one row fewer
        return [*range(count - count // 2), *range(size - 1, size - 1 - count // 2, -1)]
    if drop == "rand":
        return sorted(torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count].tolist())
    first = (size - count) // 2 if start is None else start
    return list(range(first, first + count))


def directions_of(folder: Path) -> Tensor:
    """Return the `singular_directions` (D, D), float64, of the backbone in ``folder``, cached by weights digest.

    The cache is the folder ``spectra`` in EMBEDSERVE_CACHE_DIR. Default: ``embedserve`` in XDG_CACHE_HOME or ~/.cache.
    A damaged file there is computed again; if the folder is not writable, nothing is cached on disk.
    """
    digest = weights_digest(folder)
    with _LOCK:
        if digest not in _directions:
            path = _cache_folder() / "spectra" / f"{digest}.safetensors"
            directions = _read_directions(path)
            if directions is None:
                directions = singular_directions(load_unembedding(folder))
                _write_directions(path, directions)
            _directions[digest] = directions
        return _directions[digest]


_directions: dict[str, Tensor] = {}
_LOCK = threading.Lock()


def _cache_folder() -> Path:
    if folder := os.environ.get("EMBEDSERVE_CACHE_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "embedserve"


def _read_directions(path: Path) -> Tensor | None:
    """Return the tensor in a file of `_write_directions`; None if the file is missing or damaged."""
    try:
        tensors = load_file(path)
        directions, digest = tensors["directions"], bytes(tensors["digest"].tolist())
        intact = hashlib.blake2b(directions.numpy().tobytes(), digest_size=16).digest() == digest
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    return directions if intact else None


def _write_directions(path: Path, directions: Tensor) -> None:
    """Write the file atomically; other processes may write it at the same time."""
    directions = directions.contiguous()
    digest = hashlib.blake2b(directions.numpy().tobytes(), digest_size=16).digest()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as new:
            save_file({"directions": directions, "digest": torch.tensor(list(digest), dtype=torch.uint8)}, new)


def filter_matrix(directions: Tensor, ratio: int, drop: str = "edge", start: int | None = None) -> Tensor:
    """Return the map (k, D), float32, with orthonormal rows, of `singular_directions` (D, D); ratio 1 is the identity.

    Arguments and errors are those of `kept_rows`.
    """
    size = len(directions)
    rows = kept_rows(size, ratio, drop, start)
    return torch.eye(size) if ratio == 1 else directions[rows].float().contiguous()


def filter_module(weight: Tensor, reads: str = "sentence_embedding") -> nn.Module:
    """Return the map as sentence-transformers' own Dense layer, so that a saved model loads without embedserve.

    ``reads`` is ``sentence_embedding``, or ``token_embeddings`` for late interaction.
    """
    dim, width = weight.shape
    if reads == "token_embeddings":
        return token_projection(width, dim, weight)
    return Dense(width, dim, bias=False, activation_function=nn.Identity(), init_weight=weight)


@dataclass(frozen=True)
class EmbedFilterStrategy(Strategy):
    """A projection onto the middle of the unembedding's singular spectrum."""

    ratio: int = option(2, "inverse of the share of directions to keep", minimum=1)
    drop: Drop = option("edge", "directions to drop: both ends, the largest, the smallest, the middle, or at random")
    start: int | None = option(
        None, "first direction to keep with `edge`; null: as many dropped at either end", minimum=0
    )
    pooling: PoolingName = option("mean", "pooling before the filter")

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder, the pooling, and the filter."""
        decoder = load_plain(spec, folder)
        weight = filter_matrix(directions_of(folder), self.ratio, self.drop, self.start)
        return [decoder, pooling(self.pooling, hidden_size(decoder)), filter_module(weight)]
