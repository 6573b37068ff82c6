"""The answer of a search as bytes."""

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
    """Return a hit as plain values; its title stands in the metadata.

    Args:
        hit: The hit.
        include: What of it.
        grouped: Whether it has a group.
        encoders: By field, to say what tokens are called in an explanation.
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
        told = hit.explanation
        values["explain"] = {
            "retrievers": {name: {"score": one.score, "rank": one.rank} for name, one in told.retrievers.items()}
        }
        if told.tokens:
            values["explain"]["tokens"] = {
                name: _tokens(pairs, (encoders or {}).get(name)) for name, pairs in told.tokens.items()
            }
    return values


def _vector(vector: Any) -> Any:
    if isinstance(vector, dict):
        return {"indices": list(vector), "values": list(vector.values())}
    return vector


def _tokens(pairs: Sequence[TokenMatch], encoder: Encoder | None) -> list[dict[str, Any]]:
    names: dict[int, str | None] = {}
    if encoder is not None and (tokenizer := getattr(encoder, "text_tokenizer", None)) is not None:
        ids = {pair.query_token for pair in pairs} | {pair.document_token for pair in pairs}
        names = {number: tokenizer.backend.decode([number], skip_special_tokens=False) for number in ids if number >= 0}
    return [
        {
            "query": pair.query,
            "query_token": names.get(pair.query_token),
            "document": pair.document,
            "document_token": names.get(pair.document_token),
            "similarity": pair.similarity,
        }
        for pair in pairs
    ]


def search_answer(
    found: Sequence[Sequence[Hit]],
    collection: str,
    fingerprint: str,
    timing: Mapping[str, float],
    *,
    more: Mapping[str, Any] | None = None,
    **how: Any,
) -> bytes:
    """Return the JSON of an answer.

    Args:
        found: The hits of each query.
        collection: What the request called it.
        fingerprint: Of its main encoder.
        timing: Milliseconds by stage.
        more: Added to every result.
        how: As `hit_values` takes it.
    """
    return orjson.dumps(
        {
            "results": [
                {"query_index": place, "hits": [hit_values(hit, **how) for hit in hits], **(more or {})}
                for place, hits in enumerate(found)
            ],
            "collection": collection,
            "fingerprint": fingerprint,
            "timing_ms": {stage: round(spent, 3) for stage, spent in timing.items()},
        },
        option=OPTIONS,
    )
