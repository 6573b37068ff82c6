"""Conversion of float16 rows to float32: by a processor instruction if available, otherwise by bit operations."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from indexing.kernels.jit import compiled


@intrinsic  # type: ignore[untyped-decorator]
def _to_float32(_: Any, bits: Any) -> Any:
    """Return a float16, passed as uint16, as float32; LLVM vectorises it (F16C, AVX-512, NEON)."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@compiled
def widen_by_instruction(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Do what `widen_rows` does; crashes the process on a processor without the instruction."""
    position = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target = bits[row], out[position]
            for i in range(len(source)):
                target[i] = _to_float32(source[i])
            position += 1


@compiled
def widen_by_bits(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Do what `widen_rows` does on any processor.

    Sign, exponent and mantissa are shifted; the factor 2^112 corrects the exponent's bias, also for subnormals.
    """
    raw, scale = out.view(np.uint32), np.float32(2.0**112)
    position = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target, value = bits[row], raw[position], out[position]
            for i in range(len(source)):
                number = np.uint32(source[i])
                sign = (number & np.uint32(0x8000)) << np.uint32(16)
                target[i] = sign | ((number & np.uint32(0x7FFF)) << np.uint32(13))
            for i in range(len(source)):
                value[i] *= scale
            position += 1


def has_instruction() -> bool:
    """Return whether this processor can convert float16 to float32."""
    return platform.machine() in ("aarch64", "arm64") or bool(binding.get_host_cpu_features().get("f16c"))


HAS_INSTRUCTION = has_instruction()


def widen_rows(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Copy rows ``starts[i]`` to ``stops[i]`` of ``bits``, (T, d) uint16 of finite float16, to ``out`` (n, d)."""
    (widen_by_instruction if HAS_INSTRUCTION else widen_by_bits)(bits, starts, stops, out)
