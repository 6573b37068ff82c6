"""Search results as JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from api.responses.json_response import OPTIONS
from api.schemas.search import INCLUDED

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Hit
    from indexing.query.explanations import TokenMatch


def hit_values(
    hit: Hit,
    include: Collection[str] = INCLUDED,
    *,
    grouped: bool = False,
    encoders: Mapping[str, Encoder] | None = None,
) -> dict[str, Any]:
    """Return a hit as plain values; its title is part of the metadata.

    Args:
        hit: The hit.
        include: Parts of the hit.
        grouped: Whether hits are grouped.
        encoders: Encoder by field, to decode the tokens of an explanation.
    """
    values: dict[str, Any] = {"id": hit.id, "score": float(hit.score)}
    if "text" in include:
        values["text"] = hit.text
    if "metadata" in include:
        values["metadata"] = {**({"title": hit.title} if hit.title else {}), **hit.metadata}
    if grouped:
        values["group"] = hit.group
    if "vectors" in include:
        values["vectors"] = {name: _vector(vector) for name, vector in (hit.vectors or {}).items()}
    if hit.explanation is not None:
        retrievers = hit.explanation.retrievers.items()
        values["explain"] = {
            "retrievers": {name: {"score": entry.score, "rank": entry.rank} for name, entry in retrievers}
        }
        if hit.explanation.tokens:
            values["explain"]["tokens"] = {
                name: _tokens(matches, (encoders or {}).get(name)) for name, matches in hit.explanation.tokens.items()
            }
    return values


def _vector(vector: Any) -> Any:
    if isinstance(vector, dict):
        return {"indices": list(vector), "values": list(vector.values())}
    return vector


def _tokens(matches: Sequence[TokenMatch], encoder: Encoder | None) -> list[dict[str, Any]]:
    names: dict[int, str | None] = {}
    if encoder is not None and (tokenizer := encoder.text_tokenizer) is not None:
        ids = {match.query_token for match in matches} | {match.document_token for match in matches}
        names = {number: tokenizer.backend.decode([number], skip_special_tokens=False) for number in ids if number >= 0}
    return [
        {
            "query": match.query,
            "query_token": names.get(match.query_token),
            "document": match.document,
            "document_token": names.get(match.document_token),
            "similarity": match.similarity,
        }
        for match in matches
    ]


def search_response(
    results: Sequence[Sequence[Hit]],
    collection: str,
    fingerprint: str,
    timing_ms: Mapping[str, float],
    *,
    include: Collection[str] = INCLUDED,
    grouped: bool = False,
    encoders: Mapping[str, Encoder] | None = None,
    result_fields: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the JSON of a response.

    Args:
        results: The hits of each query.
        collection: The collection's name in the request.
        fingerprint: Fingerprint of its main encoder.
        timing_ms: Milliseconds by stage.
        include: Parts of a hit.
        grouped: Whether hits are grouped.
        encoders: Encoder by field, to decode the tokens of explanations.
        result_fields: Further fields of every result.
    """

    def result(index: int, hits: Sequence[Hit]) -> dict[str, Any]:
        values = [hit_values(hit, include, grouped=grouped, encoders=encoders) for hit in hits]
        return {"query_index": index, "hits": values, **(result_fields or {})}

    return orjson.dumps(
        {
            "results": [result(index, hits) for index, hits in enumerate(results)],
            "collection": collection,
            "fingerprint": fingerprint,
            "timing_ms": {stage: round(duration, 3) for stage, duration in timing_ms.items()},
        },
        option=OPTIONS,
    )
