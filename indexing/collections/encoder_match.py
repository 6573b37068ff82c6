"""Match encoders to the fields of a collection by fingerprint."""

from __future__ import annotations

from collections.abc import Sequence

from embedserve.errors import IndexMismatchError
from embedserve.spec import spec_difference
from indexing.base import TextEncoder, plain_spec
from indexing.collections.manifest import Manifest

Encoders = TextEncoder | Sequence[TextEncoder] | None


def as_encoders(encoder: Encoders) -> list[TextEncoder]:
    """Return no, one or several encoders as a list."""
    if encoder is None:
        return []
    return list(encoder) if isinstance(encoder, Sequence) else [encoder]


def check_encoder(name: str, manifest: Manifest, encoder: TextEncoder) -> None:
    """Raise `IndexMismatchError` if no field of collection ``name`` has vectors of this encoder."""
    if encoder.fingerprint in {field.fingerprint for field in manifest.fields.values()}:
        return
    differing = spec_difference(manifest.spec, plain_spec(encoder))
    what = ", ".join(differing) or "the weights of the backbone"
    raise IndexMismatchError(
        f"collection {name!r} was built by encoder {manifest.encoder!r}, "
        f"which differs from {encoder.name!r} in {what}; "
        "rebuild it with `embedserve index build`, or load the encoder it was built by",
        field="collection",
    )
