"""What the bodies of other services' clients have in common: checks, and the shapes they stand for."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from api.http.body import kind_of, shown
from api.schemas.common import check_text, check_texts, check_whole, limits_of, problem

T = TypeVar("T")
TextsOrIds = list[str] | list[list[int]]
MAX_ID = 2**31 - 1


def check_texts_or_ids(value: object, info: ValidationInfo) -> TextsOrIds:
    """Return the texts, or the rows of token ids, that a string, a list of strings or ids, or of such lists is."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, (int, float, list)) and not isinstance(first, bool):
        return check_ids(value, info)
    return check_texts(value, info)


def check_ids(value: object, info: ValidationInfo) -> list[list[int]]:
    """Return the rows of token ids that a list of ids, or a list of such lists, is."""
    limits, param = limits_of(info), info.field_name or "ids"
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else kind_of(value)
        raise problem("invalid_type", param, f"{param} must be a list of token ids or of such lists, got {kind}")
    rows = value if isinstance(value[0], list) else [value]
    if len(rows) > limits.max_inputs:
        message = f"{param} has {len(rows):,} rows, the limit is {limits.max_inputs:,}; send them in several requests"
        raise problem("too_many_inputs", param, message)
    return [
        _check_row(row, param if row is value else f"{param}[{place}]", limits.max_text_chars)
        for place, row in enumerate(rows)
    ]


def check_one_text(value: object, info: ValidationInfo) -> str:
    """Return one text."""
    return check_text(value, info.field_name or "text", limits_of(info))


def check_text_list(value: object, info: ValidationInfo) -> list[str]:
    """Return a list of texts; one text by itself is refused."""
    if isinstance(value, str):
        field = info.field_name or "texts"
        raise problem("invalid_type", field, f"{field} must be a list of strings, got a string; put it into a list")
    return check_texts(value, info)


def _check_row(row: object, param: str, longest: int) -> list[int]:
    """Return a list of token ids; 8.0 is one, as JSON has it."""
    if not isinstance(row, list):
        message = f"{param} must be a list of token ids as the others are, got {kind_of(row)} ({shown(row)})"
        raise problem("invalid_type", param, message)
    if not row:
        raise problem("empty_text", param, f"{param} is an empty list; send at least one token id")
    if len(row) > longest:
        message = f"{param} has {len(row):,} token ids, the limit is {longest:,}; cut it into pieces"
        raise problem("text_too_long", param, message)
    for place, number in enumerate(row):
        if type(number) is not int and not (isinstance(number, float) and number.is_integer()):
            message = f"{param}[{place}] must be a token id, a whole number, got {kind_of(number)} ({shown(number)})"
            raise problem("invalid_type", f"{param}[{place}]", message)
        if not 0 <= number <= MAX_ID:
            message = f"{param}[{place}] is {shown(number)}; token ids begin at 0 and are below the vocabulary's size"
            raise problem("unknown_token", f"{param}[{place}]", message)
    return [int(number) for number in row]


def check_choice(*allowed: str, default: str | None = None, any_case: bool = False) -> BeforeValidator:
    """Return a check that a field holds one of ``allowed``; null stands for ``default``."""

    def check(value: object, info: ValidationInfo) -> str | None:
        found = value.lower() if any_case and isinstance(value, str) else value
        if value is None or found in allowed:
            return default if value is None else str(found)
        return _refuse_choice(value, info.field_name or "", allowed)

    return BeforeValidator(check)


def check_choices(*allowed: str, default: str) -> BeforeValidator:
    """Return a check that a field holds a list of some of ``allowed``, or one; null stands for ``[default]``."""

    def check(value: object, info: ValidationInfo) -> list[str]:
        field = info.field_name or ""
        if value is None:
            return [default]
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            message = f"{field} must be a list of some of {', '.join(allowed)}, got {kind_of(value)}"
            raise problem("invalid_type", field, message)
        if not values:
            raise problem("empty_list", field, f"{field} is an empty list; send at least one of {', '.join(allowed)}")
        for place, one in enumerate(values):
            if one not in allowed:
                _refuse_choice(one, f"{field}[{place}]", allowed)
        return list(dict.fromkeys(values))

    return BeforeValidator(check)


def _refuse_choice(value: object, param: str, allowed: tuple[str, ...]) -> Any:
    name = param.partition("[")[0]
    message = f"{param} must be {' or '.join(repr(one) for one in allowed)}, got {shown(value)}"
    raise problem("invalid_type" if not isinstance(value, str) else f"invalid_{name}", param, message)


def check_number(least: int, most: int | None = None) -> BeforeValidator:
    """Return a check that a field holds a whole number from ``least`` to ``most``, or null."""

    def check(value: object, info: ValidationInfo) -> int | None:
        field = info.field_name or ""
        if value is None:
            return None
        number = check_whole(value, field)
        if number < least or (most is not None and number > most):
            span = f"at least {least}" if most is None else f"{least} to {most}"
            raise problem(f"{field}_out_of_range", field, f"{field} is {shown(value)}; it must be {span}")
        return number

    return BeforeValidator(check)


def check_flag(*, default: bool) -> BeforeValidator:
    """Return a check that a field holds true or false; null stands for ``default``."""
    return BeforeValidator(lambda value: default if value is None else value)


Model = Annotated[str | None, Field(description="Name of a loaded model; left out, the default one.")]
Dimensions = Annotated[
    int | None, check_number(1), Field(description="Keep only so many leading dimensions, normalised again.")
]
InputOrIds = Annotated[
    TextsOrIds,
    PlainValidator(check_texts_or_ids),
    Field(
        description="One text, a list of texts, one list of token ids, or a list of such lists. Ids are read as they "
        "are, special tokens and prompt included, as POST /tokenize gives them."
    ),
]
