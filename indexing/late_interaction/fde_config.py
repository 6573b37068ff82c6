"""What defines a fixed dimensional encoding, and the random matrices drawn from it.

MUVERA (Dhulipala et al. 2024, arXiv 2405.19504), section 2.1. Letters: d width of a token vector, R repetitions,
k bits, p inner dimension, F = R · 2^k · p.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from embedserve.errors import IndexMismatchError, InputError
from indexing.late_interaction.fde_streams import count_sketch, normals

Projection = Literal["orthonormal", "sketch", "signs", "identity"]
Streams = Literal["numpy", "libstdc++"]


@dataclass(frozen=True)
class FdeConfig:
    """A fixed dimensional encoding.

    Attributes:
        dim: d.
        repetitions: R.
        bits: k; a repetition cuts space into 2^k partitions.
        inner_dim: p, the width that a token is projected to in each partition.
        projection: ``orthonormal`` columns (sqrt(d / p) times p rows of a random rotation), ``sketch`` (each coordinate
            goes to one column with a random sign: the published code), ``signs`` (±1 / sqrt(p): the paper) or
            ``identity``, which needs p = d.
        final_dim: The width that a count sketch brings the whole encoding to; None leaves it.
        centred: Whether partitions are cut around the corpus's mean token instead of the origin; their number of tokens
            is evener where token vectors share a direction.
        fill: Whether a document's empty partition takes its token nearest by Hamming distance.
        seed: Of all random matrices.
        streams: ``numpy``, or ``libstdc++``, which draws what the published C++ code draws.

    Raises:
        InputError: A combination that makes no sense; the field is named.
    """

    dim: int
    repetitions: int = 20
    bits: int = 5
    inner_dim: int = 16
    projection: Projection = "orthonormal"
    final_dim: int | None = None
    centred: bool = False
    fill: bool = True
    seed: int = 42
    streams: Streams = "numpy"

    def __post_init__(self) -> None:
        for name, least, most in (("dim", 1, 65_536), ("repetitions", 1, 1_024), ("bits", 0, 16), ("seed", 0, 2**31)):
            _check_whole(name, getattr(self, name), least, most)
        _check_whole("inner_dim", self.inner_dim, 1, self.dim)
        for name, known in (("projection", get_args(Projection)), ("streams", get_args(Streams))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}", field=name)
        if self.projection == "identity" and self.inner_dim != self.dim:
            message = f"projection identity keeps all {self.dim} dimensions, so inner_dim must be {self.dim}"
            raise InputError(f"{message}, got {self.inner_dim}", field="inner_dim")
        if self.streams == "libstdc++" and (self.projection not in ("sketch", "identity") or self.centred):
            message = "the published code projects by sketch or identity and does not centre"
            raise InputError(f"streams libstdc++: {message}; choose so, or streams numpy", field="streams")
        if self.full_size >= 1 << 26:
            message = f"{self.full_size:,} numbers for a document; lower repetitions, bits or inner_dim"
            raise InputError(f"an encoding of {message}", field="bits")
        if self.final_dim is not None:
            _check_whole("final_dim", self.final_dim, 1, self.full_size)

    @property
    def full_size(self) -> int:
        """Numbers in an encoding before the final projection: R · 2^k · p."""
        return int(self.repetitions * self.inner_dim << self.bits)

    @property
    def size(self) -> int:
        """Numbers in an encoding, F."""
        return self.full_size if self.final_dim is None else self.final_dim


def reference_config(
    dim: int,
    *,
    repetitions: int = 1,
    bits: int = 0,
    inner_dim: int | None = None,
    final_dim: int | None = None,
    seed: int = 1,
) -> FdeConfig:
    """Return the encoding of the published C++ code (google/graph-mining, fixed_dimensional_encoding.cc).

    Documents are averaged with empty partitions filled, queries summed; ``inner_dim`` None is its identity projection.
    """
    projection: Projection = "identity" if inner_dim is None else "sketch"
    return FdeConfig(
        dim, repetitions, bits, inner_dim or dim, projection, final_dim, fill=True, seed=seed, streams="libstdc++"
    )


def draw_matrices(config: FdeConfig, centre: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return what the encoding multiplies by.

    ``simhash`` (R, d, k); ``inner`` (R, d, p) unless the projection is the identity; ``columns`` and ``signs`` (R · 2^k
    · p,) of the final count sketch; ``centre`` (d,). All float32 but ``columns``, int64.

    Raises:
        InputError: A centred encoding without ``centre``, or one of another width.
    """
    matrices = _published(config) if config.streams == "libstdc++" else _drawn(config)
    if config.centred:
        if centre is None or np.shape(centre) != (config.dim,) or not np.isfinite(centre).all():
            raise InputError(f"a centred encoding needs the mean token, ({config.dim},) finite numbers", field="centre")
        matrices["centre"] = np.asarray(centre, dtype=np.float32)
    return {name: np.ascontiguousarray(matrix) for name, matrix in matrices.items()}


def _drawn(config: FdeConfig) -> dict[str, np.ndarray]:
    d, p, repetitions = config.dim, config.inner_dim, config.repetitions
    rng = np.random.default_rng(config.seed)
    matrices: dict[str, np.ndarray] = {"simhash": rng.standard_normal((repetitions, d, config.bits), dtype=np.float32)}
    if config.projection == "signs":
        matrices["inner"] = (rng.integers(0, 2, (repetitions, d, p)) * 2 - 1).astype(np.float32) / np.float32(p**0.5)
    elif config.projection == "sketch":
        matrices["inner"] = np.zeros((repetitions, d, p), dtype=np.float32)
        columns, signs = rng.integers(0, p, (repetitions, d)), rng.integers(0, 2, (repetitions, d)) * 2 - 1
        np.put_along_axis(matrices["inner"], columns[:, :, None], signs[:, :, None].astype(np.float32), axis=2)
    elif config.projection == "orthonormal":
        bases = np.linalg.qr(rng.standard_normal((repetitions, d, p)))[0]  # (R, d, p), orthonormal columns
        matrices["inner"] = (bases * (d / p) ** 0.5).astype(np.float32)
    if config.final_dim is not None:
        matrices["columns"] = rng.integers(0, config.final_dim, config.full_size)
        matrices["signs"] = (rng.integers(0, 2, config.full_size) * 2 - 1).astype(np.float32)
    return matrices


def _published(config: FdeConfig) -> dict[str, np.ndarray]:
    """Draw as the C++ code does: every use of a seed starts its stream anew, repetition r from seed + r."""
    seeds = range(config.seed, config.seed + config.repetitions)
    drawn = [normals(seed, config.dim * config.bits).reshape(config.bits, config.dim).T for seed in seeds]
    matrices: dict[str, np.ndarray] = {"simhash": np.stack(drawn)}
    if config.projection == "sketch":
        matrices["inner"] = np.zeros((config.repetitions, config.dim, config.inner_dim), dtype=np.float32)
        for inner, seed in zip(matrices["inner"], seeds, strict=True):
            columns, signs = count_sketch(seed, config.dim, config.inner_dim)
            inner[np.arange(config.dim), columns] = signs
    if config.final_dim is not None:
        matrices["columns"], matrices["signs"] = count_sketch(config.seed, config.full_size, config.final_dim)
    return matrices


def describe(config: FdeConfig, matrices: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the encoding as plain values: its config and the SHA-256 digest of each matrix."""
    digests = {
        name: hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest() for name, matrix in matrices.items()
    }
    return {"config": dataclasses.asdict(config), "sha256": digests}


def check_same(stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `IndexMismatchError` naming what differs between two results of `describe`."""
    differs = [
        f"{name} (index {theirs.get(name)!r}, encoder {ours.get(name)!r})"
        for part in ("config", "sha256")
        for theirs, ours in [(stored[part], own[part])]
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if differs:
        message = "the index was made by another fixed dimensional encoding: " + ", ".join(differs)
        raise IndexMismatchError(f"{message}; open it without one, or build it again", field="config")


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, got {value!r}", field=name)
