"""Filters: JSON that says which documents may be found, compiled to SQL with bound parameters.

    {"and": [filter, …]}    {"or": [filter, …]}    {"not": filter}
    {"field": "a.b", "eq": value}           a value equals this one; of a list, any element does
    {"field": "a.b", "in": [value, …]}      a value equals one of these
    {"field": "a.b", "gte": value}          a number or text that is not below; "lte": not above
    {"field": "a.b", "exists": true}        there is a value that is neither null nor an empty list
    {"field": "tags", "contains": value}    there is a list with an element that equals this one

Numbers are compared with numbers, text with text (by code points), booleans with booleans; what is of another kind does
not match. ``id`` is the document's id, all other fields are paths into its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from embedserve.errors import InputError
from embedserve.spec import is_unicode
from indexing.query.metadata import BOOLEAN, NUMBER, TEXT, typed

OPERATORS = ("eq", "in", "gte", "lte", "exists", "contains")
GROUPS = ("and", "or", "not")
DEEPEST = 32
MOST = 10_000  # values in one list
ID = "id"
ROWS_BY_PATH = "SELECT row FROM meta WHERE path = (SELECT number FROM paths WHERE path = ?)"


@dataclass(frozen=True)
class Condition:
    """A compiled comparison: ``sql`` selects rows of `document_table.SCHEMA`; ``values`` are its bound parameters."""

    sql: str
    values: tuple[int | float | str, ...]


@dataclass(frozen=True)
class Group:
    """What ``and``, ``or`` and ``not`` join."""

    kind: Literal["and", "or", "not"]
    parts: tuple[Filter, ...]


Filter = Condition | Group


def compile_filter(values: Any, place: str = "filter", depth: int = 0) -> Filter:
    """Return a filter, checked and compiled.

    Args:
        values: The filter as JSON gives it.
        place: What an error calls it.
        depth: Groups around it.

    Raises:
        InputError: Not of the form above; ``field`` says where, as in ``filter.and[1].gte``.
    """
    if depth > DEEPEST:
        raise InputError(f"{place} is nested more than {DEEPEST} levels deep", field=place)
    if not isinstance(values, Mapping) or not values:
        known = 'one of "and", "or", "not", or a "field" with one comparison'
        raise InputError(f"{place} must be an object with {known}, got {_shown(values)}", field=place)
    if "field" in values:
        return _condition(values, place)
    if len(values) != 1 or (kind := next(iter(values))) not in GROUPS:
        names = ", ".join(map(repr, values))
        raise InputError(f'{place} needs one of "and", "or", "not", or "field", got {names}', field=place)
    inner, place = values[kind], f"{place}.{kind}"
    if kind == "not":
        return Group("not", (compile_filter(inner, place, depth + 1),))
    if not isinstance(inner, list | tuple) or not inner:
        raise InputError(f"{place} must be a list of at least one filter, got {_shown(inner)}", field=place)
    return Group(kind, tuple(compile_filter(part, f"{place}[{n}]", depth + 1) for n, part in enumerate(inner)))


def evaluate(found: Filter, matches: Callable[[Condition], np.ndarray]) -> np.ndarray:
    """Return which rows (n,) bool pass, from ``matches``, which says so (n,) bool for one comparison."""
    if isinstance(found, Condition):
        return matches(found)
    masks = [evaluate(part, matches) for part in found.parts]
    if found.kind == "not":
        return ~masks[0]
    joined: np.ndarray = (np.logical_and if found.kind == "and" else np.logical_or).reduce(masks)
    return joined


def _condition(values: Mapping[str, Any], place: str) -> Filter:
    name = values["field"]
    if not isinstance(name, str) or not name or not is_unicode(name):
        raise InputError(f"{place}.field must be the name of a field, got {_shown(name)}", field=f"{place}.field")
    operators = [key for key in values if key != "field"]
    if len(operators) != 1 or operators[0] not in OPERATORS:
        got = ", ".join(map(repr, operators)) or "none"
        message = f'{place} needs one of {", ".join(OPERATORS)} beside "field", got {got}; join several by "and"'
        raise InputError(message, field=f"{place}.{operators[0]}" if operators else place)
    operator, place = operators[0], f"{place}.{operators[0]}"
    value = values[operator]
    if operator == "exists":
        if not isinstance(value, bool):
            raise InputError(f"{place} must be true or false, got {_shown(value)}", field=place)
        there = Condition("SELECT row FROM documents", ()) if name == ID else Condition(ROWS_BY_PATH, (name,))
        return there if value else Group("not", (there,))
    return (_compare_id if name == ID else _compare)(name, operator, value, place)


def _compare_id(name: str, operator: str, value: Any, place: str) -> Condition:
    if operator == "contains":
        raise InputError(f"{place}: an id is no list; use eq or in", field=place)
    wanted = _scalars(value, place) if operator == "in" else [_scalar(value, place)]
    if any(kind != TEXT for kind, _ in wanted):
        raise InputError(f"{place}: an id is compared with text, got {_shown(value)}", field=place)
    sql = f"SELECT row FROM documents WHERE id {_test(operator, len(wanted))}"  # noqa: S608
    return Condition(sql, tuple(value for _, value in wanted))


def _compare(name: str, operator: str, value: Any, place: str) -> Condition:
    wanted = _scalars(value, place) if operator == "in" else [_scalar(value, place)]
    if operator in ("gte", "lte") and wanted[0][0] == BOOLEAN:
        raise InputError(f"{place} must be a number or text, got {_shown(value)}", field=place)
    tests, values = [], []
    for kind in (BOOLEAN, NUMBER, TEXT):
        of_kind = [value for found, value in wanted if found == kind]
        if of_kind:
            tests.append(f"kind = {kind} AND value {_test(operator, len(of_kind))}")
            values += of_kind
    listed = " AND listed" if operator == "contains" else ""
    return Condition(f"{ROWS_BY_PATH} AND ({' OR '.join(tests)}){listed}", (name, *values))


def _test(operator: str, count: int) -> str:
    if operator == "in":
        return f"IN ({', '.join('?' * count)})"
    return {"eq": "= ?", "contains": "= ?", "gte": ">= ?", "lte": "<= ?"}[operator]


def _scalars(value: Any, place: str) -> list[tuple[int, int | float | str]]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST:
        raise InputError(f"{place} must be a list of 1 to {MOST:,} values, got {_shown(value)}", field=place)
    return [_scalar(element, f"{place}[{n}]") for n, element in enumerate(value)]


def _scalar(value: Any, place: str) -> tuple[int, int | float | str]:
    found = typed(value)
    usable = math.isfinite(value) if isinstance(value, float) else not isinstance(value, str) or is_unicode(value)
    if found is None or not usable:
        raise InputError(f"{place} must be text, a number or a boolean, got {_shown(value)}", field=place)
    return found


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
