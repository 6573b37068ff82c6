"""Pydantic's validation errors as error responses: one code, the exact field, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from api.http.error_responses import ApiError
from embedserve.errors import did_you_mean

MAX_SHOWN = 40
KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "a list",
    "bool_type": "true or false",
    "dict_type": "an object",
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
}
SHAPES = ("missing", "extra_forbidden")  # an object is not of the shape of a branch
BOUNDS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}

# A branch of a union has a label such as "a list of strings", which pydantic puts into the location of its errors.
# The labels are English and tell both a location's branches from its fields and the reader what was expected.
LABELS: set[str] = set()

Problem = dict[str, Any]
Path = tuple[str | int, ...]


def rejection_of(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """Return the error response of a body that ``model`` rejects: its first problem, and how many more there are.

    ``model`` may have ``hints``, a remedy for a wrong type by field, and ``field_codes``: whether the code of a value
    that is not allowed is named after its field (``invalid_truncate``, ``dimensions_out_of_range``).
    """
    errors: list[Any] = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        reason = errors[0]["msg"].removeprefix("Invalid JSON: ")
        hint = " (half a surrogate pair; send valid Unicode)" if "hex escape" in reason else ""
        return ApiError(400, "invalid_json", f"the body is not JSON: {reason}{hint}")
    problems: dict[Path, list[Problem]] = {}
    for problem in sorted(errors, key=lambda problem: problem["type"] != "extra_forbidden"):
        problems.setdefault(field_path(problem), []).append(problem)
    first, *others = problems.values()
    code, param, message = explain(first, model)
    if others:
        message += f" (and {len(others)} more {'problem' if len(others) == 1 else 'problems'})"
    return ApiError(422, code, message, param=param or None)


def field_path(problem: Problem) -> Path:
    """Return the path of the field whose value is wrong: a union counts as one field."""
    loc: Path = problem["loc"]
    return loc[: next((index for index, part in enumerate(loc) if part in LABELS), len(loc))]


def explain(problems: Sequence[Problem], model: type[BaseModel]) -> tuple[str, str, str]:
    """Return code, parameter and message of the problems of one field; of a union's branches the furthest counts."""
    prefix = len(field_path(problems[0]))
    problem = max(problems, key=lambda problem: _progress(problem, prefix))
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    path = tuple(part for part in problem["loc"] if part not in LABELS)
    param = str(context.get("param") or location(path))
    if "code" in context:
        return context["code"], param, problem["msg"].replace("{param}", param)
    branches = dict.fromkeys(problem["loc"][prefix] for problem in problems if len(problem["loc"]) > prefix)
    if branches and (kind in TYPES or kind in SHAPES) and (len(path) == prefix or kind in SHAPES):
        param = location(path[:prefix])
        return "invalid_type", param, f"{param} must be {' or '.join(map(str, branches))}, got {_kind_and_value(value)}"
    if kind in TYPES:
        hint = getattr(model, "hints", {}).get(param)
        message = f"{param or 'the body'} must be {TYPES[kind]}, got {_kind_and_value(value)}"
        return "invalid_type", param, f"{message}; {hint}" if hint else message
    if kind == "extra_forbidden":
        return "unknown_field", param, _unknown_field(path, param, model)
    if kind == "missing":
        return "missing_field", param, f"{param} is missing; send {describe(model, param)}"
    if kind == "string_pattern_mismatch" and context.get("pattern") == getattr(model, "blank_pattern", None):
        return "empty_text", param, f"{param} is empty; send text or remove the entry"
    if kind == "too_short" and context.get("field_type") == "List":
        code = "empty_text" if isinstance(path[-1], int) else "empty_list"
        return code, param, f"{param} is an empty list; send at least one entry"
    if kind == "literal_error" or kind in BOUNDS:
        return _wrong_value(problem, path, param, field_codes=getattr(model, "field_codes", False))
    reason = problem["msg"]
    return "invalid_value", param, f"{param}: {reason[0].lower()}{reason[1:]}; got {shown(value)}"


def _wrong_value(problem: Problem, path: Path, param: str, *, field_codes: bool) -> tuple[str, str, str]:
    """Return code, parameter and message of a value outside of the allowed ones or of its bounds."""
    kind, value, context = problem["type"], problem["input"], problem["ctx"]
    if kind == "literal_error":
        code = f"invalid_{path[0]}" if isinstance(value, str) else "invalid_type"
        message = f"{param} must be {context['expected']}, got {shown(value)}"
        return code if field_codes else "invalid_value", param, message
    if isinstance(path[-1], int):
        message = f"{param} is {shown(value)}; token ids start at 0 and are below the size of the vocabulary"
        return "unknown_token", param, message
    bound, words = BOUNDS[kind]
    code = f"{path[-1]}_out_of_range" if field_codes else "invalid_value"
    return code, param, f"{param} is {shown(value)}; it must be {words} {context[bound]}"


def _kind_and_value(value: object) -> str:
    return kind_of(value) + (f" ({shown(value)})" if isinstance(value, (str, int, float)) else "")


def _progress(problem: Problem, prefix: int) -> tuple[list[int], bool]:
    """Return how far validation came in a branch: the indices of the wrong item, then whether its type was right."""
    inside = [part for part in problem["loc"][prefix:] if part not in LABELS]
    return [part if isinstance(part, int) else 0 for part in inside], problem["type"] not in TYPES


def _unknown_field(path: Path, param: str, model: type[BaseModel]) -> str:
    if len(path) > 1:
        return f"unknown field {param}; remove it"
    fields = list(model.model_fields)
    return f"unknown field {shown(param)}; {did_you_mean(param, fields)}the fields are {', '.join(fields)}"


def location(path: Path) -> str:
    """Return the location of a value in a body.

    >>> location(("documents", 3, "text"))
    'documents[3].text'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def describe(model: type[BaseModel], name: str) -> str:
    """Return the description of a field, as the continuation of a sentence."""
    field = model.model_fields.get(name)
    text = (field.description or "a value") if field is not None else "a value"
    return text[0].lower() + text[1:].rstrip(".")


def kind_of(value: object) -> str:
    """Return the JSON type of a value, in words."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """Return a value, shortened for a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
