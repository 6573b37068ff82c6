"""float16 rows widened to float32: by the processor's own instruction where it has one, else by their bits."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from indexing.kernels.jit import compiled


@intrinsic  # type: ignore[untyped-decorator]
def _widened(_: Any, half: Any) -> Any:
    """Return a float16, given as uint16, as float32: one instruction, eight numbers at a time (F16C, AVX-512, NEON)."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@compiled
def widen_by_instruction(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Do what `widen_rows` does; a processor without the instruction would end the process."""
    place = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target = bits[row], out[place]
            for i in range(len(source)):
                target[i] = _widened(source[i])
            place += 1


@compiled
def widen_by_bits(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Do what `widen_rows` does on any processor.

    Sign, exponent and mantissa go to their places; the factor 2^112 mends the exponent's bias, subnormals included.
    """
    raw, scale = out.view(np.uint32), np.float32(2.0**112)
    place = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target, value = bits[row], raw[place], out[place]
            for i in range(len(source)):
                half = np.uint32(source[i])
                sign = (half & np.uint32(0x8000)) << np.uint32(16)
                target[i] = sign | ((half & np.uint32(0x7FFF)) << np.uint32(13))
            for i in range(len(source)):
                value[i] *= scale
            place += 1


def has_instruction() -> bool:
    """Return whether this processor widens float16 by itself."""
    return platform.machine() in ("aarch64", "arm64") or bool(binding.get_host_cpu_features().get("f16c"))


HAS_INSTRUCTION = has_instruction()


def widen_rows(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Copy rows ``starts[i]`` to ``stops[i]`` of ``bits``, (T, d) uint16 of finite float16, to ``out`` (n, d)."""
    (widen_by_instruction if HAS_INSTRUCTION else widen_by_bits)(bits, starts, stops, out)
