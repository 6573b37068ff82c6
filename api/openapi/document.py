"""The OpenAPI document, generated from operations and pydantic models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, TypeAdapter

from api.http.routing import Operation
from api.schemas.common import MAX_ID, ErrorResponse, Limits
from api.schemas.embed import Output
from embedserve import __version__

if TYPE_CHECKING:
    from embedserve import Encoder

DESCRIPTION = """Embed texts, and search documents by meaning.

Every error has one shape: `{"error": {"message", "type", "code", "param", "request_id"}}`.
Send `X-Request-ID` to find a request in the log. Default: the server generates an id. Every response has it."""

ERRORS = {
    400: "The body is not JSON.",
    401: "The API key is missing or unknown.",
    403: "The scope of the API key does not include this route.",
    404: "There is no such model, collection or document.",
    409: "The request conflicts with the state of the collection: another encoder, a missing field, or a writer.",
    413: "The body exceeds the size limit.",
    415: "The body is not declared as JSON.",
    422: "A field is wrong; `param` names it.",
    429: "The queue is full; retry after `Retry-After` seconds.",
    500: "Internal error; the server's log has the details under the request id.",
    503: "The model is loading or failed to load.",
}
BODY_ERRORS = (400, 413, 415)
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "x-api-key: KEY"},
}
REFERENCE = "#/components/schemas/{model}"
JSON = "application/json"
SCALARS = ("string", "integer", "number", "boolean")


def openapi_document(
    operations: Sequence[Operation], limits: Limits, encoder: Encoder | None = None, *, secured: bool = False
) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        operations: The operations; those without an id are not documented.
        limits: Limits of the service, which bound the request schemas.
        encoder: The default model's encoder, once it is loaded: it bounds dimensions, tokens and outputs.
        secured: Whether the service has API keys.
    """
    documented = [operation for operation in operations if operation.operation_id]
    responses = _Responses(documented)
    bounds = bounds_of(limits, encoder)
    paths: dict[str, dict[str, Any]] = {}
    for operation in documented:
        values = _described(operation, responses, secured=secured)
        if operation.bodies or operation.body_types:
            values["requestBody"] = {"required": True, "content": _bounded(_body(operation), bounds)}
        paths.setdefault(operation.path.replace(":path}", "}"), {})[operation.method.lower()] = values
    components: dict[str, Any] = {"schemas": responses.components}
    if secured:
        components["securitySchemes"] = SCHEMES
    info = {"title": "embedserve", "version": __version__, "description": DESCRIPTION}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def bounds_of(limits: Limits, encoder: Encoder | None) -> dict[str, Any]:
    """Return the values of the bounds that models name as ``limit:NAME``; None for one that is not known yet."""
    bounds: dict[str, Any] = {"dim": None, "max_tokens": None, "outputs": get_args(Output), "last_id": MAX_ID}
    bounds |= vars(limits)
    if encoder is not None:
        from embedserve.token_ids import reads_ids, vocabulary_size

        bounds |= {"dim": encoder.dim, "max_tokens": encoder.max_tokens, "outputs": list(encoder.outputs)}
        bounds |= {"last_id": vocabulary_size(encoder) - 1, "ids": reads_ids(encoder)}
    return bounds


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a body without references; bounds are still named."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            definition = definitions[value["$ref"].rsplit("/", 1)[1]]
            return inlined({**definition, **_without(value, "$ref")})
        return _nullable({key: inlined(item) for key, item in value.items()})

    result: dict[str, Any] = inlined(schema)
    return result


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a scalar or null as one schema with two types."""
    branches = schema.get("anyOf", ())
    if len(branches) != 2 or branches[1] != {"type": "null"} or branches[0].get("type") not in SCALARS:
        return schema
    merged = {**branches[0], **_without(schema, "anyOf"), "type": [branches[0]["type"], "null"]}
    if "enum" in merged:
        merged["enum"] = [*merged["enum"], None]
    return merged


def _without(schema: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keys}


def _bounded(value: Any, bounds: Mapping[str, Any]) -> Any:
    """Return a schema with the bounds of the running service; a bound that is not known is dropped."""
    if isinstance(value, list):
        needed = [item for item in value if not isinstance(item, dict) or bounds.get(item.get("x-needs", ""), True)]
        return [_bounded(item, bounds) for item in needed]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        if key == "x-needs":
            continue
        if isinstance(item, str) and item.startswith("limit:"):
            item = bounds[item.removeprefix("limit:")]
            if item is None:
                continue
        result[key] = _bounded(item, bounds)
    return result


def _body(operation: Operation) -> dict[str, Any]:
    """Return the media types of a request body."""
    if not operation.bodies:
        return dict(operation.body_types)
    return {JSON: request_body(*operation.bodies), **operation.body_types}


def request_body(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the schema and the examples of a JSON body that is one of ``models``; bounds are still named."""
    schemas = [request_schema(model) for model in models]
    examples = {
        re.sub(r"\W+", "-", summary.lower()): {"summary": summary, "value": value}
        for model in models
        for summary, value in getattr(model, "examples", {}).items()
    }
    return {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}, "examples": examples}


class _Responses:
    """Schemas of responses: components, and references to them."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        types: list[Any] = [ErrorResponse]
        for operation in operations:
            types += [kind for kind in (operation.response, operation.error_response) if kind is not None]
        adapters = {repr(kind): TypeAdapter(kind) for kind in types}
        schemas, definitions = TypeAdapter.json_schemas(
            [(key, "serialization", adapter) for key, adapter in adapters.items()], ref_template=REFERENCE
        )
        self._schemas = {key: schema for (key, _), schema in schemas.items()}
        self.components: dict[str, Any] = definitions.get("$defs", {})

    def content(self, kind: Any) -> dict[str, Any]:
        """Return the JSON content of a response type."""
        return {JSON: {"schema": self._schemas[repr(kind)]}}


def _described(operation: Operation, responses: _Responses, *, secured: bool) -> dict[str, Any]:
    """Return the description of an operation, without its body."""
    values: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "operationId": operation.operation_id,
    }
    statuses = {*operation.errors, *(BODY_ERRORS if operation.bodies else ())}
    if secured and operation.needs != "open":
        statuses |= {401, 403}
        values |= {"security": [{name: []} for name in SCHEMES], "x-embedserve-scope": operation.needs}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": operation.parameters.get(name, {"type": "string"})}
        for name in re.findall(r"\{(\w+)", operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": schema["description"], "schema": _without(schema, "description")}
        for name, schema in operation.query.items()
    ]
    if parameters:
        values["parameters"] = parameters
    content = {} if operation.response is None else responses.content(operation.response)
    success: dict[str, Any] = {"description": operation.response_description}
    if content or operation.response_types:
        success["content"] = {**content, **operation.response_types}
    errors = {
        str(status): {
            "description": ERRORS[status],
            "content": responses.content(operation.error_response or ErrorResponse),
        }
        for status in sorted(statuses)
    }
    values["responses"] = {str(operation.status): success, **errors}
    return values
