"""The fields of a collection: which vectors or words are stored for each document, and their encoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
VOCABULARY = 2**18  # default vocabulary size of a sparse field


@dataclass(frozen=True)
class Field:
    """One kind of vector stored for every document, or its words.

    Attributes:
        output: ``dense``, ``multi`` (a vector per token), ``sparse``, or ``words`` for BM25.
        dim: Dimension of a vector or token vector; vocabulary size for ``sparse``; 0 for ``words``.
        index: For ``dense`` ``auto``, ``exact`` or a faiss kind; for ``multi`` ``auto``, ``exact`` or ``muvera``;
            ``auto`` for the others.
        metric: Of ``dense``: ``cosine`` or ``inner_product``.
        encoder: Name of the encoder; informational.
        fingerprint: Fingerprint of the encoder; empty if the caller supplies the vectors.
        spec: The encoder's spec as plain values.
    """

    output: Output
    dim: int = 0
    index: str = "auto"
    metric: Metric = "cosine"
    encoder: str = ""
    fingerprint: str = ""
    spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
    """Return the field for an output of ``encoder``.

    Default ``dim``: the encoder's dimension, or `VOCABULARY` for ``sparse``.
    """
    width = dim or (VOCABULARY if output == "sparse" else encoder.dim)
    return Field(output, width, index, metric, encoder.name, encoder.fingerprint, plain_spec(encoder))


def default_fields(encoder: TextEncoder, *, index: str = "auto", metric: Metric = "cosine") -> dict[str, Field]:
    """Return a dense field and a field of words for BM25."""
    return {DENSE: field_of(encoder, index=index, metric=metric), BM25: WORDS}


def check_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return ``fields`` if their names are valid, else raise `InputError`."""
    if not fields:
        raise InputError("a collection needs at least one field", field="fields")
    for name in fields:
        if not NAME.fullmatch(name) or name in TAKEN:
            message = f"{name!r} is not a valid field name; use a-z and 0-9, beginning with a letter"
            raise InputError(f"{message}, and none of {', '.join(TAKEN)}", field="fields")
    return dict(fields)


def vector_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return the fields that have vectors: all but words."""
    return {name: field for name, field in fields.items() if field.output != "words"}


def fields_by_encoder(fields: Mapping[str, Field]) -> dict[str, dict[str, Field]]:
    """Group the fields with vectors by the fingerprint of their encoder; a group needs one pass over the texts."""
    groups: dict[str, dict[str, Field]] = {}
    for name, field in vector_fields(fields).items():
        groups.setdefault(field.fingerprint, {})[name] = field
    return groups


def check_vectors(name: str, field: Field, vectors: Vectors, count: int) -> Vectors:
    """Return the vectors of ``count`` documents in the form in which the field stores them.

    Raises:
        InputError: The type, dimension or number is wrong, or a value is not finite.
    """
    kind = {"dense": np.ndarray, "multi": TokenEmbeddings, "sparse": SparseEmbeddings}[field.output]
    param = f"vectors.{name}"
    if not isinstance(vectors, kind):
        message = f"{param} must be of type {kind.__name__}, got {type(vectors).__name__}"
        raise InputError(message, field=param)
    if len(vectors) != count:
        raise InputError(f"{param}: {len(vectors)} vectors for {count} documents", field=param)
    if isinstance(vectors, np.ndarray):
        return as_vectors(vectors, field.dim, field=param)
    if isinstance(vectors, TokenEmbeddings):
        from indexing.late_interaction.ragged_checks import check_tokens  # late: engines over tokens import torch

        values, offsets = check_tokens(vectors, field.dim, param)
        return dataclasses.replace(vectors, vectors=values, offsets=offsets)
    from indexing.engines.sparse_index import SparseIndex

    SparseIndex(field.dim).add(np.arange(count), vectors)
    return vectors


def check_all_vectors(fields: Mapping[str, Field], vectors: Mapping[str, Vectors], count: int) -> dict[str, Vectors]:
    """Return the vectors of every field but words, each checked by `check_vectors`.

    Raises:
        InputError: A field is missing or unknown, or its vectors do not fit.
    """
    expected = vector_fields(fields)
    for name in expected.keys() ^ vectors.keys():
        what = "is missing" if name in expected else f"is not a field; fields: {', '.join(expected) or 'none'}"
        raise InputError(f"vectors.{name} {what}", field=f"vectors.{name}")
    return {name: check_vectors(name, field, vectors[name], count) for name, field in expected.items()}


def encode_documents(
    fields: Mapping[str, Field], encoders: Mapping[str, TextEncoder], documents: Sequence[Document]
) -> tuple[dict[str, Vectors], int]:
    """Return the vectors of ``documents`` for every field but words, and the number of truncated texts.

    Runs one pass per encoder. If an encoder rejects a text, the error names its file and line.

    Args:
        fields: By name.
        encoders: By fingerprint.
        documents: At least one.

    Raises:
        InputError: The encoder of a field is not available; pass its vectors.
        EmbedserveError: An encoder returned a wrong number of vectors.
    """
    vectors: dict[str, Vectors] = {}
    truncated = np.zeros(len(documents), dtype=bool)
    texts = [document.content for document in documents]
    for fingerprint, group in fields_by_encoder(fields).items():
        if fingerprint not in encoders:
            message = f"no encoder for {', '.join(group)}; open the collection with it, or pass vectors"
            raise InputError(message, field="vectors")
        encoder = encoders[fingerprint]
        try:
            outputs, cut = run_encoder(encoder, texts, {f.output for f in group.values()}, "document")
        except InputError as error:
            raise name_texts(error, lambda n: f"{documents[n].prefix}document {documents[n].id!r}") from error
        for name, field in group.items():
            vectors[name] = outputs[field.output]
            if len(vectors[name]) != len(texts):
                message = f"encoder {encoder.name!r} returned {len(vectors[name])} vectors for {len(texts)} documents"
                raise EmbedserveError(message)
        truncated |= cut
    return vectors, int(truncated.sum())


def encode_queries(
    fields: Mapping[str, Field], encoders: Mapping[str, TextEncoder], queries: Sequence[str]
) -> dict[str, Any]:
    """Return the query vectors of every field, and the texts themselves for words; one pass per encoder.

    Raises:
        EmbedserveError: The encoder of a field is not available.
    """
    inputs: dict[str, Any] = {name: list(queries) for name, field in fields.items() if field.output == "words"}
    for fingerprint, group in fields_by_encoder(fields).items():
        if fingerprint not in encoders:
            names = ", ".join(sorted(group))
            raise EmbedserveError(f"the collection was opened without an encoder for {names}; use search_vectors")
        outputs = {field.output for field in group.values()}
        vectors, _ = run_encoder(encoders[fingerprint], list(queries), outputs, "query")
        inputs |= {name: vectors[field.output] for name, field in group.items()}
    return inputs


def run_encoder(
    encoder: TextEncoder, texts: Sequence[str], outputs: set[Output], task: Literal["query", "document"]
) -> tuple[dict[str, Vectors], np.ndarray]:
    """Encode ``texts`` in one pass; return the vectors by output, and which texts (N,) bool were truncated."""
    if outputs == {"dense"}:
        embeddings: Embeddings = encoder.embed(texts, task=task)
        return {"dense": embeddings.vectors}, embeddings.truncated
    encoded = encoder.encode(texts, task=task)
    dense = encoded.dense.vectors if encoded.dense is not None else None
    values = {"dense": dense, "multi": encoded.multi, "sparse": encoded.sparse}
    vectors: dict[str, Vectors] = {}
    for output in sorted(outputs):
        if (value := values[output]) is None:
            raise SpecError(f"encoder {encoder.name!r} has no {output} vectors", field="encoder")
        vectors[output] = value
    return vectors, encoded.truncated
