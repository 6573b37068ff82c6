"""The random matrices of the published MUVERA code: std::mt19937 with the distributions of GNU's C++ library.

The published code is google/graph-mining, fixed_dimensional_encoding.cc. The C++ standard fixes the generator but not
the distributions, so these follow libstdc++ (bits/random.tcc, bits/uniform_int_dist.h).
"""

import numpy as np

from indexing.late_interaction.fde_config import FdeConfig

WORD = 1 << 32


class Mt19937:
    """std::mt19937: 32-bit words from a 32-bit seed."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed % WORD)  # the generator's own seeding, as in C++

    def word(self) -> int:
        """Return the next 32 bits."""
        return int(self._bits.random_raw())

    def unit(self) -> np.float32:
        """Return std::generate_canonical<float, 24>: one word over 2^32, below 1."""
        value = np.float32(self.word()) / np.float32(WORD)
        return min(value, np.nextafter(np.float32(1), np.float32(0)))

    def below(self, bound: int) -> int:
        """Return std::uniform_int_distribution(0, bound - 1): Lemire's multiplication with rejection."""
        product = self.word() * bound
        if product % WORD < bound:
            while product % WORD < (WORD - bound) % bound:
                product = self.word() * bound
        return product // WORD

    def coin(self) -> bool:
        """Return std::bernoulli_distribution(0.5): two words make a double, the second holds its highest bits."""
        self.word()
        return self.word() < WORD // 2


def normals(seed: int, count: int) -> np.ndarray:
    """Return ``count`` draws of std::normal_distribution<float>, (count,) float32: Marsaglia's polar method."""
    generator, out = Mt19937(seed), np.empty(count + 1, dtype=np.float32)
    one, two = np.float32(1), np.float32(2)
    for i in range(0, count, 2):
        while True:
            x, y = two * generator.unit() - one, two * generator.unit() - one
            square = x * x + y * y
            if 0 < square <= 1:
                break
        factor = np.sqrt(-two * np.log(square) / square)
        out[i], out[i + 1] = y * factor, x * factor
    return out[:count]


def count_sketch(seed: int, size: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the column (size,) int64 and the sign (size,) float32 of each coordinate, drawn in turn."""
    generator = Mt19937(seed)
    drawn = [(generator.below(columns), 1.0 if generator.coin() else -1.0) for _ in range(size)]
    return np.array([column for column, _ in drawn], np.int64), np.array([sign for _, sign in drawn], np.float32)


def published_config(dim, *, repetitions, bits, inner_dim=None, final_dim=None, seed=1) -> FdeConfig:
    """Return the config of the published code; ``inner_dim`` None is its identity projection."""
    projection = "identity" if inner_dim is None else "sketch"
    return FdeConfig(dim, repetitions, bits, inner_dim or dim, projection, final_dim, fill=True, seed=seed)


def published_matrices(config: FdeConfig) -> dict[str, np.ndarray]:
    """Draw the matrices as the C++ code does: each use of a seed restarts its stream, repetition r from seed + r."""
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
    return {name: np.ascontiguousarray(matrix) for name, matrix in matrices.items()}
