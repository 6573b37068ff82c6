"""8-wide float32 SIMD operations for numba kernels; LLVM does not auto-vectorise loops this short.

Bit-identical to eight scalar operations.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled(typing: Any, target: Any, i: Any, source: Any, j: Any, scale: Any) -> Any:
    """``target[i : i + 8] += scale * source[j : j + 8]`` of flat float32 arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        addend = builder.load(_pointer(context, builder, signature.args[2], args[2], args[3]), align=4)
        scaled = builder.fmul(_broadcast(builder, args[4]), addend)
        builder.store(builder.fadd(builder.load(pointer, align=4), scaled), pointer, align=4)
        return context.get_dummy_value()

    return types.void(target, i, source, j, scale), generate


@intrinsic  # type: ignore[untyped-decorator]
def divide(typing: Any, target: Any, i: Any, divisor: Any) -> Any:
    """``target[i : i + 8] /= divisor`` of a flat float32 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        quotient = builder.fdiv(builder.load(pointer, align=4), _broadcast(builder, args[2]))
        builder.store(quotient, pointer, align=4)
        return context.get_dummy_value()

    return types.void(target, i, divisor), generate


@intrinsic  # type: ignore[untyped-decorator]
def maximum_of_rows(typing: Any, target: Any, i: Any, source: Any, j: Any, stride: Any) -> Any:
    """``target[i : i + 8]`` becomes the maximum of itself and eight rows of ``source``, ``stride`` apart from ``j``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        vectors, offset = [builder.load(pointer, align=4)], args[3]
        for _ in range(LANES):
            vectors.append(builder.load(_pointer(context, builder, signature.args[2], args[2], offset), align=4))
            offset = builder.add(offset, args[4])
        while len(vectors) > 1:
            a, b = vectors.pop(0), vectors.pop(0)
            vectors.append(builder.select(builder.fcmp_ordered(">", a, b), a, b))
        builder.store(vectors[0], pointer, align=4)
        return context.get_dummy_value()

    return types.void(target, i, source, j, stride), generate


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer())


def _broadcast(builder: Any, value: Any) -> Any:
    vector = ir.Constant(_VECTOR, ir.Undefined)
    for lane in range(LANES):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
    return vector
