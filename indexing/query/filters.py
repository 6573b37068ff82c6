"""Filters: JSON conditions on documents, compiled to SQL with bound parameters.

    {"and": [filter, …]}    {"or": [filter, …]}    {"not": filter}
    {"field": "a.b", "eq": value}           the value, or an element of the list, is equal
    {"field": "a.b", "in": [value, …]}      the value, or an element of the list, equals one of these
    {"field": "a.b", "gte": value}          the number or text is greater or equal; "lte": less or equal
    {"field": "a.b", "exists": true}        there is a value other than null and an empty list
    {"field": "tags", "contains": value}    an element of the list is equal

Numbers are compared with numbers, text with text (by code points), booleans with booleans; values of different kinds
never match. ``id`` is the document's id; all other fields are paths into its metadata.
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
MAX_DEPTH = 32
MAX_VALUES = 10_000  # in one list
ID = "id"
ROWS_BY_PATH = "SELECT row FROM meta WHERE path = (SELECT number FROM paths WHERE path = ?)"


@dataclass(frozen=True)
class Condition:
    """A compiled comparison: ``sql`` selects rows of `document_table.SCHEMA`; ``values`` are its bound parameters."""

    sql: str
    values: tuple[int | float | str, ...]


@dataclass(frozen=True)
class Group:
    """A combination of filters by ``and``, ``or`` or ``not``."""

    kind: Literal["and", "or", "not"]
    parts: tuple[Filter, ...]


Filter = Condition | Group


def compile_filter(values: Any, path: str = "filter", depth: int = 0) -> Filter:
    """Check and compile a filter.

    Args:
        values: The filter as parsed JSON.
        path: Path of the filter in errors.
        depth: Number of enclosing groups.

    Raises:
        InputError: Not a valid filter; ``field`` is the path of the problem, such as ``filter.and[1].gte``.
    """
    if depth > MAX_DEPTH:
        raise InputError(f"{path} is nested more than {MAX_DEPTH} levels deep", field=path)
    if not isinstance(values, Mapping) or not values:
        known = 'one of "and", "or", "not", or a "field" with one comparison'
        raise InputError(f"{path} must be an object with {known}, got {_shown(values)}", field=path)
    if "field" in values:
        return _condition(values, path)
    if len(values) != 1 or (kind := next(iter(values))) not in GROUPS:
        names = ", ".join(map(repr, values))
        raise InputError(f'{path} needs one of "and", "or", "not", or "field", got {names}', field=path)
    inner, path = values[kind], f"{path}.{kind}"
    if kind == "not":
        return Group("not", (compile_filter(inner, path, depth + 1),))
    if not isinstance(inner, list | tuple) or not inner:
        raise InputError(f"{path} must be a list of at least one filter, got {_shown(inner)}", field=path)
    return Group(kind, tuple(compile_filter(part, f"{path}[{n}]", depth + 1) for n, part in enumerate(inner)))


def evaluate(condition: Filter, matches: Callable[[Condition], np.ndarray]) -> np.ndarray:
    """Return the rows (n,) bool that match a filter; ``matches`` returns those (n,) bool of one comparison."""
    if isinstance(condition, Condition):
        return matches(condition)
    masks = [evaluate(part, matches) for part in condition.parts]
    if condition.kind == "not":
        return ~masks[0]
    combined: np.ndarray = (np.logical_and if condition.kind == "and" else np.logical_or).reduce(masks)
    return combined


def _condition(values: Mapping[str, Any], path: str) -> Filter:
    name = values["field"]
    if not isinstance(name, str) or not name or not is_unicode(name):
        raise InputError(f"{path}.field must be the name of a field, got {_shown(name)}", field=f"{path}.field")
    operators = [key for key in values if key != "field"]
    if len(operators) != 1 or operators[0] not in OPERATORS:
        got = ", ".join(map(repr, operators)) or "none"
        message = f'{path} needs one of {", ".join(OPERATORS)} beside "field", got {got}; combine several with "and"'
        raise InputError(message, field=f"{path}.{operators[0]}" if operators else path)
    operator, path = operators[0], f"{path}.{operators[0]}"
    value = values[operator]
    if operator == "exists":
        if not isinstance(value, bool):
            raise InputError(f"{path} must be true or false, got {_shown(value)}", field=path)
        there = Condition("SELECT row FROM documents", ()) if name == ID else Condition(ROWS_BY_PATH, (name,))
        return there if value else Group("not", (there,))
    return (_compare_id if name == ID else _compare)(name, operator, value, path)


def _compare_id(name: str, operator: str, value: Any, path: str) -> Condition:
    if operator == "contains":
        raise InputError(f"{path}: an id is not a list; use eq or in", field=path)
    targets = _scalars(value, path) if operator == "in" else [_scalar(value, path)]
    if any(kind != TEXT for kind, _ in targets):
        raise InputError(f"{path}: an id is compared with text, got {_shown(value)}", field=path)
    sql = f"SELECT row FROM documents WHERE id {_test(operator, len(targets))}"  # noqa: S608
    return Condition(sql, tuple(value for _, value in targets))


def _compare(name: str, operator: str, value: Any, path: str) -> Condition:
    targets = _scalars(value, path) if operator == "in" else [_scalar(value, path)]
    if operator in ("gte", "lte") and targets[0][0] == BOOLEAN:
        raise InputError(f"{path} must be a number or text, got {_shown(value)}", field=path)
    tests, values = [], []
    for kind in (BOOLEAN, NUMBER, TEXT):
        of_kind = [target for target_kind, target in targets if target_kind == kind]
        if of_kind:
            tests.append(f"kind = {kind} AND value {_test(operator, len(of_kind))}")
            values += of_kind
    listed = " AND listed" if operator == "contains" else ""
    return Condition(f"{ROWS_BY_PATH} AND ({' OR '.join(tests)}){listed}", (name, *values))


def _test(operator: str, count: int) -> str:
    if operator == "in":
        return f"IN ({', '.join('?' * count)})"
    return {"eq": "= ?", "contains": "= ?", "gte": ">= ?", "lte": "<= ?"}[operator]


def _scalars(value: Any, path: str) -> list[tuple[int, int | float | str]]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_VALUES:
        raise InputError(f"{path} must be a list of 1 to {MAX_VALUES:,} values, got {_shown(value)}", field=path)
    return [_scalar(element, f"{path}[{n}]") for n, element in enumerate(value)]


def _scalar(value: Any, path: str) -> tuple[int, int | float | str]:
    scalar = typed(value)
    usable = math.isfinite(value) if isinstance(value, float) else not isinstance(value, str) or is_unicode(value)
    if scalar is None or not usable:
        raise InputError(f"{path} must be text, a number or a boolean, got {_shown(value)}", field=path)
    return scalar


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
