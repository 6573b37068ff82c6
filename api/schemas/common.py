"""Field types of request bodies, and the response models that several routes share.

Constraints are those of pydantic, so that texts are validated in compiled code and the OpenAPI document follows from
the models. A bound that only the running service knows is ``limit:NAME`` in a JSON Schema; `api.openapi.document`
puts the number in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, core_schema

from api.http.validation_errors import LABELS
from api.inference.truncation import MIN_MAX_TOKENS
from indexing.query.search_options import MAX_K

# At least one character that Python's str.strip keeps; the same in the regular expressions of Rust and JavaScript.
VISIBLE = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
MAX_ID = 2**31 - 1

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits of one request; the settings of the service have them."""

    max_inputs: int = 4096
    max_text_chars: int = 100_000
    max_top_k: int = MAX_K
    max_hits: int = 10_000


def limits_of(info: ValidationInfo) -> Limits:
    """Return the limits of the service that validates. Default: those of `Limits`."""
    return info.context if isinstance(info.context, Limits) else Limits()


def problem(code: str, message: str, param: str = "") -> PydanticCustomError:
    """Return a validation error with a code of its own.

    Args:
        code: The stable code.
        message: What is wrong and what to do; ``{param}`` stands for the location of the value.
        param: The location, if it is not that of the validated value.
    """
    return PydanticCustomError("embedserve", message, {"code": code, **({"param": param} if param else {})})


class Branches:
    """Tries the branches of a union in order; error messages call them by their labels."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels
        LABELS.update(labels)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        schema: Any = handler(source)
        branches: list[Any] = list(zip(schema["choices"], self.labels, strict=True))
        return core_schema.union_schema(branches, mode="left_to_right")


class AtLeastOne:
    """A list with at least one item; its validation stops at the first item that is wrong.

    Args:
        limit: Name of the bound on the number of items.
    """

    def __init__(self, limit: str = "max_inputs") -> None:
        self.limit = limit

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        schema: Any = handler(source)
        return {**schema, "min_length": 1, "fail_fast": True}

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "maxItems": f"limit:{self.limit}"}


class NullMeans:
    """Accepts null in place of a value that has a default."""

    def __init__(self, default: Any) -> None:
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        nullable = core_schema.nullable_schema(handler(source))
        return core_schema.no_info_after_validator_function(self._replace, nullable)

    def _replace(self, value: Any) -> Any:
        return self.default if value is None else value


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integral_items(value: object) -> object:
    return [_integral(item) for item in value] if isinstance(value, list) and float in set(map(type, value)) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _distinct(values: list[T]) -> list[T]:
    return list(dict.fromkeys(values))


def check_limits(value: T, info: ValidationInfo) -> T:
    """Return texts or rows of token ids that are within the limits of the service."""
    limits = limits_of(info)
    several = isinstance(value, list) and not isinstance(value[0], int)
    rows: Sequence[Any] = value if several and isinstance(value, list) else [value]
    if len(rows) > limits.max_inputs:
        message = f"{{param}} has {len(rows):,} entries, the limit is {limits.max_inputs:,}; send several requests"
        raise problem("too_many_inputs", message)
    longest = max(map(len, rows))
    if longest > limits.max_text_chars:
        index = next(index for index, row in enumerate(rows) if len(row) > limits.max_text_chars)
        param = f"{info.field_name}[{index}]" if several else str(info.field_name)
        unit = "token ids" if isinstance(rows[index], list) else "characters"
        message = f"{param} has {len(rows[index]):,} {unit}, the limit is {limits.max_text_chars:,}; split it"
        raise problem("text_too_long", message, param)
    return value


IsIntegral = BeforeValidator(_integral)  # JSON has one type of numbers: 8.0 is an integer, "8" and true are not
WithinLimits = AfterValidator(check_limits)
Text = Annotated[str, Field(pattern=VISIBLE, json_schema_extra={"minLength": 1, "maxLength": "limit:max_text_chars"})]
Texts = Annotated[list[Text], AtLeastOne()]
_Ids = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_ID, json_schema_extra={"maximum": "limit:last_id"})]],
    AtLeastOne("max_text_chars"),
    BeforeValidator(_integral_items),
]
_Rows = Annotated[list[_Ids], AtLeastOne()]
_READS_IDS = Field(json_schema_extra={"x-needs": "ids"})  # only in the document of a model that reads token ids
OneText = Annotated[Text, WithinLimits]
TextList = Annotated[Texts, WithinLimits]
TextOrTexts = Annotated[Text | Texts, Branches("a string", "a list of strings"), WithinLimits]
TextsOrIds = Annotated[
    Text | Texts | Annotated[_Ids, _READS_IDS] | Annotated[_Rows, _READS_IDS],
    Branches("a string", "a list of strings", "a list of token ids", "a list of lists of token ids"),
    WithinLimits,
]
Ids = Annotated[_Ids | _Rows, Branches("a list of token ids", "a list of lists of token ids"), WithinLimits]


def text_list(value: str | list[str]) -> list[str]:
    """Return one text or a list of texts as a list."""
    return [value] if isinstance(value, str) else value


def text_or_id_rows(value: Any) -> list[str] | list[list[int]]:
    """Return a text, texts, a row of token ids or such rows as a list of texts or of rows."""
    rows: list[str] | list[list[int]] = [value] if isinstance(value, str) or isinstance(value[0], int) else value
    return rows


SomeOf = BeforeValidator(_as_list), AfterValidator(_distinct)  # of a list of choices: one choice, each choice once
ModelName = Annotated[str | None, Field(description="Name of a model. Default: the default model.")]
Dimensions = Annotated[
    Annotated[int, Field(ge=1, json_schema_extra={"maximum": "limit:dim"}), IsIntegral] | None,
    Field(description="Number of leading dimensions to keep; the vectors are normalised again."),
]
MaxTokens = Annotated[
    int,
    Field(ge=1, json_schema_extra={"minimum": MIN_MAX_TOKENS, "maximum": "limit:max_tokens"}),
    IsIntegral,
]
InputType = Annotated[
    Literal["query", "document"],
    NullMeans("document"),
    Field(description="Whether the texts are queries or documents; models with prompts treat them differently."),
]
PromptName = Annotated[
    Annotated[str, Field(json_schema_extra={"enum": ["query", "document"]})] | None,
    Field(description="query or document: whose prompt precedes the texts. Default: that of input_type, or document."),
]
ONE_PROMPT: dict[str, Any] = {
    "anyOf": [{"properties": {name: {"type": "null"}}} for name in ("prompt_name", "instruction")]
}


class Request(BaseModel):
    """Base of request bodies: unknown fields are rejected, numbers are not read from strings.

    Attributes:
        examples: Bodies by summary, for the OpenAPI document; each must work.
        hints: By field, what to do about a value of a wrong type.
        field_codes: Whether error codes of wrong values are named after their field.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    examples: ClassVar[dict[str, Any]] = {}
    hints: ClassVar[dict[str, str]] = {}
    field_codes: ClassVar[bool] = False
    blank_pattern: ClassVar[str] = VISIBLE


# Response models document the shapes; responses are serialised from arrays without them.

Count = Annotated[int, Field(ge=0)]
Metadata = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": True})]


class Usage(BaseModel):
    """Number of tokens read."""

    prompt_tokens: Count
    total_tokens: Count


class ErrorDetail(BaseModel):
    """One error."""

    message: Annotated[str, Field(description="What is wrong and what to do.")]
    type: Annotated[str, Field(description="Kind of error, by status.")]
    code: Annotated[str, Field(description="Stable code for programs.")]
    param: Annotated[str | None, Field(description="The field with the wrong value, such as input[3].")]
    request_id: Annotated[str, Field(description="Id of the request, also in X-Request-ID and in the server's log.")]


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorDetail
