"""The fields of a collection: what is kept of each text besides the text, and who made it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from embedserve.errors import EmbedserveError, InputError, SpecError, name_texts
from embedserve.types import Embeddings, SparseEmbeddings, TokenEmbeddings
from indexing.base import Metric, TextEncoder, as_metric, as_vectors, plain_spec
from indexing.sources.corpus import Document

Output = Literal["dense", "multi", "sparse", "words"]
Vectors = np.ndarray | TokenEmbeddings | SparseEmbeddings
NAME = re.compile(r"[a-z][a-z0-9]{0,31}")
TAKEN = ("documents", "sequence", "segment", "hybrid")
DENSE, BM25 = "dense", "bm25"
MULTI_KINDS = ("auto", "exact", "muvera")
VOCABULARY = 2**18  # entries a sparse vector may weigh, unless a field says otherwise


@dataclass(frozen=True)
class Field:
    """One kind of vector kept for every document, or its words.

    Attributes:
        output: ``dense``, ``multi`` (a vector for each token), ``sparse``, or ``words`` for BM25.
        dim: Numbers in a vector or in a token's; entries of the vocabulary for ``sparse``; 0 for ``words``.
        index: For ``dense`` ``auto``, ``exact`` or a faiss kind; for ``multi`` ``auto``, ``exact`` or ``muvera``;
            the others have one kind.
        metric: Of ``dense``: ``cosine`` or ``inner_product``.
        encoder: The encoder's name; for people only.
        fingerprint: The encoder's; empty where vectors are handed over by the caller.
        spec: The encoder's spec as plain values.
    """

    output: Output
    dim: int = 0
    index: str = "auto"
    metric: Metric = "cosine"
    encoder: str = ""
    fingerprint: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.output not in get_args(Output):
            known = ", ".join(get_args(Output))
            raise InputError(f"output must be one of {known}, got {self.output!r}", field="output")
        if self.output != "words" and (type(self.dim) is not int or self.dim < 1):
            raise InputError(f"dim must be a whole number of at least 1, got {self.dim!r}", field="dim")
        if self.output == "multi" and self.index not in MULTI_KINDS:
            message = f"index over token vectors must be one of {', '.join(MULTI_KINDS)}, got {self.index!r}"
            raise InputError(message, field="index")
        as_metric(self.metric)

    def plain(self) -> dict[str, Any]:
        """Return the field as JSON values."""
        return {**dataclasses.asdict(self), "spec": dict(self.spec)}


WORDS = Field("words")


def field_of(
    encoder: TextEncoder, output: Output = "dense", *, index: str = "auto", metric: Metric = "cosine", dim: int = 0
) -> Field:
    """Return the field for what ``encoder`` makes; ``dim`` is its width unless given, `VOCABULARY` for ``sparse``."""
    width = dim or (VOCABULARY if output == "sparse" else encoder.dim)
    return Field(output, width, index, metric, encoder.name, encoder.fingerprint, plain_spec(encoder))


def default_fields(encoder: TextEncoder, *, index: str = "auto", metric: Metric = "cosine") -> dict[str, Field]:
    """Return one dense field, and the words for BM25."""
    return {DENSE: field_of(encoder, index=index, metric=metric), BM25: WORDS}


def check_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return ``fields`` if a collection can have them, else raise `InputError`."""
    if not fields:
        raise InputError("a collection needs at least one field", field="fields")
    for name in fields:
        if not NAME.fullmatch(name) or name in TAKEN:
            message = f"{name!r} is no name for a field; use a-z and 0-9, beginning with a letter"
            raise InputError(f"{message}, and none of {', '.join(TAKEN)}", field="fields")
    return dict(fields)


def check_vectors(name: str, wanted: Field, vectors: Vectors, count: int) -> Vectors:
    """Return the vectors of ``count`` documents as a field keeps them.

    Raises:
        InputError: Of another kind, width or number, or not finite.
    """
    kind = {"dense": np.ndarray, "multi": TokenEmbeddings, "sparse": SparseEmbeddings}[wanted.output]
    place = f"vectors.{name}"
    if not isinstance(vectors, kind):
        message = f"{place} must be of type {kind.__name__}, got {type(vectors).__name__}"
        raise InputError(message, field=place)
    if len(vectors) != count:
        raise InputError(f"{place}: {len(vectors)} vectors for {count} documents", field=place)
    if isinstance(vectors, np.ndarray):
        return as_vectors(vectors, wanted.dim, field=place)
    if isinstance(vectors, TokenEmbeddings):
        from indexing.late_interaction.ragged_checks import check_tokens  # late: engines over tokens import torch

        values, offsets = check_tokens(vectors, wanted.dim, place)
        return dataclasses.replace(vectors, vectors=values, offsets=offsets)
    from indexing.engines.sparse_index import SparseIndex

    SparseIndex(wanted.dim).add(np.arange(count), vectors)
    return vectors


def encode(
    fields: Mapping[str, Field], encoders: Mapping[str, TextEncoder], documents: Sequence[Document]
) -> tuple[dict[str, Vectors], int]:
    """Return the vectors of ``documents`` for every field but words, and how many texts were cut.

    Fields of one encoder are filled from one pass over the text. A text that the encoder refuses is named by its file
    and line.

    Args:
        fields: By name.
        encoders: By fingerprint.
        documents: At least one.

    Raises:
        InputError: A field's encoder is not there: hand its vectors over.
        EmbedserveError: An encoder returned another number of vectors.
    """
    made: dict[str, Vectors] = {}
    truncated = np.zeros(len(documents), dtype=bool)
    texts = [document.content for document in documents]
    for fingerprint in dict.fromkeys(f.fingerprint for f in fields.values() if f.output != "words"):
        of_encoder = {name: f for name, f in fields.items() if f.output != "words" and f.fingerprint == fingerprint}
        if fingerprint not in encoders:
            names = ", ".join(of_encoder)
            message = f"there is no encoder for {names}; open the collection with it, or give vectors"
            raise InputError(message, field="vectors")
        encoder = encoders[fingerprint]
        try:
            outputs, cut = run_encoder(encoder, texts, {f.output for f in of_encoder.values()}, "document")
        except InputError as error:
            raise name_texts(error, lambda n: f"{documents[n].prefix}document {documents[n].id!r}") from error
        for name, wanted in of_encoder.items():
            vectors = outputs[wanted.output]
            if len(vectors) != len(texts):
                message = f"encoder {encoder.name!r} returned {len(vectors)} vectors for {len(texts)} documents"
                raise EmbedserveError(message)
            made[name] = vectors
        truncated |= cut
    return made, int(truncated.sum())


def run_encoder(
    encoder: TextEncoder, texts: Sequence[str], outputs: set[Output], task: Literal["query", "document"]
) -> tuple[dict[str, Vectors], np.ndarray]:
    """Return what one pass over ``texts`` makes, by output, and which texts (N,) bool were cut."""
    if outputs == {"dense"}:
        found: Embeddings = encoder.embed(texts, task=task)
        return {"dense": found.vectors}, found.truncated
    every: Any = getattr(encoder, "encode", None)
    if every is None:
        raise SpecError(f"encoder {encoder.name!r} makes dense vectors only", field="encoder")
    made = every(texts, task=task)
    values = {"dense": made.dense and made.dense.vectors, "multi": made.multi, "sparse": made.sparse}
    missing = [output for output in sorted(outputs) if values[output] is None]
    if missing:
        raise SpecError(f"encoder {encoder.name!r} makes no {missing[0]} vectors", field="encoder")
    return {output: values[output] for output in outputs}, made.truncated
