"""The parameters of a fixed dimensional encoding, and the random matrices drawn from them.

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

Projection = Literal["orthonormal", "sketch", "signs", "identity"]


@dataclass(frozen=True)
class FdeConfig:
    """A fixed dimensional encoding.

    Attributes:
        dim: d.
        repetitions: R.
        bits: k; each repetition divides space into 2^k partitions.
        inner_dim: p, the width that a token is projected to in each partition.
        projection: ``orthonormal`` columns (sqrt(d / p) times p rows of a random rotation), ``sketch`` (each coordinate
            goes to one column with a random sign: the published code), ``signs`` (±1 / sqrt(p): the paper) or
            ``identity``, which requires p = d.
        final_dim: The width that a count sketch reduces the whole encoding to. Default: no reduction.
        centred: Whether the hyperplanes pass through the mean token of the corpus instead of the origin. Partitions are
            then more evenly filled if token vectors share a direction.
        fill: Whether an empty partition of a document takes its token at the smallest Hamming distance.
        seed: Of all random matrices.

    Raises:
        InputError: Values out of range or that contradict each other; the field is named.
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

    def __post_init__(self) -> None:
        for name, low, high in (("dim", 1, 65_536), ("repetitions", 1, 1_024), ("bits", 0, 16), ("seed", 0, 2**31)):
            check_range(name, getattr(self, name), low, high)
        check_range("inner_dim", self.inner_dim, 1, self.dim)
        if self.projection not in get_args(Projection):
            message = f"projection must be one of {', '.join(get_args(Projection))}, got {self.projection!r}"
            raise InputError(message, field="projection")
        if self.projection == "identity" and self.inner_dim != self.dim:
            message = f"projection identity keeps all {self.dim} dimensions, so inner_dim must be {self.dim}"
            raise InputError(f"{message}, got {self.inner_dim}", field="inner_dim")
        if self.full_size >= 1 << 26:
            message = f"an encoding would have {self.full_size:,} dimensions; lower repetitions, bits or inner_dim"
            raise InputError(message, field="bits")
        if self.final_dim is not None:
            check_range("final_dim", self.final_dim, 1, self.full_size)

    @property
    def full_size(self) -> int:
        """Dimensions of an encoding before the final count sketch: R · 2^k · p."""
        return int(self.repetitions * self.inner_dim << self.bits)

    @property
    def size(self) -> int:
        """Dimensions of an encoding, F."""
        return self.full_size if self.final_dim is None else self.final_dim

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> FdeConfig:
        """Return the config of saved plain values; earlier releases also wrote ``streams``, which is ignored."""
        return cls(**{name: value for name, value in values.items() if name != "streams"})


def check_range(name: str, value: object, low: int, high: int) -> None:
    """Raise `InputError` unless ``value`` is an integer from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} must be an integer from {low} to {high}, got {value!r}", field=name)


def draw_matrices(config: FdeConfig, centre: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the matrices of an encoding.

    ``simhash`` (R, d, k); ``inner`` (R, d, p) except for the identity projection; ``columns`` and ``signs`` (R · 2^k ·
    p,) of the final count sketch; ``centre`` (d,). All float32 except ``columns``, int64.

    Raises:
        InputError: A centred encoding without ``centre``, or ``centre`` of another width.
    """
    matrices = _random_matrices(config)
    if config.centred:
        if centre is None or np.shape(centre) != (config.dim,) or not np.isfinite(centre).all():
            raise InputError(f"a centred encoding needs the mean token, ({config.dim},) finite numbers", field="centre")
        matrices["centre"] = np.asarray(centre, dtype=np.float32)
    return {name: np.ascontiguousarray(matrix) for name, matrix in matrices.items()}


def _random_matrices(config: FdeConfig) -> dict[str, np.ndarray]:
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


def describe(config: Any, matrices: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a config dataclass and the SHA-256 digests of its matrices as plain values."""
    digests = {
        name: hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest() for name, matrix in matrices.items()
    }
    return {"config": dataclasses.asdict(config), "sha256": digests}


def check_same(stored: Mapping[str, Any], requested: Mapping[str, Any], what: str) -> None:
    """Raise `IndexMismatchError` unless two configs, or two sets of digests, are equal.

    Args:
        stored: Plain values from the index.
        requested: Plain values to compare with.
        what: What the values define, for the message, such as ``fixed dimensional encoding``.
    """
    differences = [
        f"{name} (index {stored.get(name)!r}, requested {requested.get(name)!r})"
        for name in sorted({*stored, *requested})
        if stored.get(name) != requested.get(name)
    ]
    if differences:
        message = f"the index was built with another {what}: {', '.join(differences)}"
        raise IndexMismatchError(f"{message}; open it without a config, or rebuild it", field="config")
