"""Steps of eight float32 at a time for compiled loops, which compilers do not find in rows as short as a partition's.

Each is what eight plain steps would give, rounding included.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled(typing: Any, into: Any, place: Any, source: Any, start: Any, scale: Any) -> Any:
    """``into[place : place + 8] += scale * source[start : start + 8]`` of flat float32 arrays."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        target = _pointer(context, builder, signature.args[0], given[0], given[1])
        read = builder.load(_pointer(context, builder, signature.args[2], given[2], given[3]), align=4)
        scaled = builder.fmul(_repeated(builder, given[4]), read)
        builder.store(builder.fadd(builder.load(target, align=4), scaled), target, align=4)
        return context.get_dummy_value()

    return types.void(into, place, source, start, scale), generate


@intrinsic  # type: ignore[untyped-decorator]
def divide(typing: Any, into: Any, place: Any, divisor: Any) -> Any:
    """``into[place : place + 8] /= divisor`` of a flat float32 array."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], given[0], given[1])
        found = builder.fdiv(builder.load(pointer, align=4), _repeated(builder, given[2]))
        builder.store(found, pointer, align=4)
        return context.get_dummy_value()

    return types.void(into, place, divisor), generate


@intrinsic  # type: ignore[untyped-decorator]
def keep_larger(typing: Any, into: Any, place: Any, source: Any, start: Any, width: Any) -> Any:
    """``into[place : place + 8]`` become the largest of themselves and eight rows, ``width`` apart from ``start``."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        target = _pointer(context, builder, signature.args[0], given[0], given[1])
        found, at = [builder.load(target, align=4)], given[3]
        for _ in range(LANES):
            found.append(builder.load(_pointer(context, builder, signature.args[2], given[2], at), align=4))
            at = builder.add(at, given[4])
        while len(found) > 1:
            one, other = found.pop(0), found.pop(0)
            found.append(builder.select(builder.fcmp_ordered(">", one, other), one, other))
        builder.store(found[0], target, align=4)
        return context.get_dummy_value()

    return types.void(into, place, source, start, width), generate


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _VECTOR.as_pointer())


def _repeated(builder: Any, value: Any) -> Any:
    vector = ir.Constant(_VECTOR, ir.Undefined)
    for lane in range(LANES):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
    return vector
