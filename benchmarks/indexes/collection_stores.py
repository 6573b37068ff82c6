"""Stores that `collection_speed` writes to: collections, other stores, and a plain file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from indexing import Collection, Document, Field, create_collection
from indexing.base import unit
from indexing.collections.catalog import collection_path

DIM = 320


@dataclass(frozen=True)
class Store:
    """An empty store: ``prepare`` builds a batch of documents from their numbers, ``write`` stores it."""

    prepare: Callable[[range], Any]
    write: Callable[[Any], Any]
    close: Callable[[], None]


def directions(number: int, seed: int = 0) -> np.ndarray:
    """Return random unit vectors (number, `DIM`) float32."""
    return unit(np.random.default_rng(seed).standard_normal((number, DIM)).astype(np.float32))


def make_documents(numbers: range, ranks: range | np.ndarray) -> list[Document]:
    """Return documents with ``numbers`` in their ids and ``ranks`` as metadata."""
    pairs = zip(numbers, ranks, strict=True)
    return [Document(f"d{number}", f"document {number}", metadata={"rank": int(rank)}) for number, rank in pairs]


def new_collection(folder: Path, kind: str = "flat") -> Collection:
    """Return an empty collection of one dense field, open for writing."""
    directory = collection_path(folder, "bench")
    create_collection(directory, {"dense": Field("dense", DIM, index=kind)})
    return Collection.open(directory, writable=True)


def filled(folder: Path, kind: str, vectors: np.ndarray, ranks: np.ndarray) -> Collection:
    """Return a collection of all vectors, flushed to segments."""
    collection = new_collection(folder, kind)
    for start in range(0, len(vectors), 1000):
        part = slice(start, start + 1000)
        documents = make_documents(range(start, start + len(ranks[part])), ranks[part])
        collection.upsert(documents, {"dense": vectors[part]})
    collection.flush()
    return collection


def collection_store(folder: Path, vectors: np.ndarray) -> Store:
    """Return a collection as a store."""
    collection = new_collection(folder)

    def prepare(numbers: range) -> Any:
        return make_documents(numbers, numbers), {"dense": vectors[numbers.start : numbers.stop]}

    return Store(prepare, lambda batch: collection.upsert(*batch), collection.close)


def qdrant_store(folder: Path, vectors: np.ndarray) -> Store:
    """Return a collection of qdrant-client's local mode, on disk."""
    qdrant = import_module("qdrant_client")
    models = qdrant.models
    client = qdrant.QdrantClient(path=str(folder))
    client.create_collection("bench", models.VectorParams(size=DIM, distance=models.Distance.COSINE))

    def prepare(numbers: range) -> Any:
        return [
            models.PointStruct(id=n, vector=vectors[n].tolist(), payload={"text": f"document {n}", "rank": n})
            for n in numbers
        ]

    return Store(prepare, lambda points: client.upsert("bench", points), client.close)


def lance_store(folder: Path, vectors: np.ndarray, *, replaces: bool) -> Store:
    """Return a table of LanceDB, written by ``merge_insert`` if ``replaces``, else by ``add``."""
    lancedb, pa = import_module("lancedb"), import_module("pyarrow")

    types = {"id": pa.string(), "text": pa.string(), "rank": pa.int64(), "vector": pa.list_(pa.float32(), DIM)}
    schema = pa.schema(list(types.items()))
    table = lancedb.connect(str(folder)).create_table("bench", schema=schema)

    def prepare(numbers: range) -> Any:
        flat = pa.array(vectors[numbers.start : numbers.stop].ravel())
        ids, texts = [f"d{n}" for n in numbers], [f"document {n}" for n in numbers]
        return pa.table([ids, texts, list(numbers), pa.FixedSizeListArray.from_arrays(flat, DIM)], schema=schema)

    def merge(rows: Any) -> None:
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    return Store(prepare, merge if replaces else table.add, lambda: None)


def bare_file(folder: Path, vectors: np.ndarray) -> Store:
    """Return a file to which the vectors are appended and synced."""
    file = (folder / "bytes").open("ab", buffering=0)

    def write(rows: bytes) -> None:
        file.write(rows)
        os.fsync(file.fileno())

    return Store(lambda numbers: vectors[numbers.start : numbers.stop].tobytes(), write, file.close)


STORES: dict[str, Callable[[Path, np.ndarray], Store]] = {
    "append + fsync": bare_file,
    "embedserve": collection_store,
    "qdrant local": qdrant_store,
    "LanceDB merge_insert": lambda folder, vectors: lance_store(folder, vectors, replaces=True),
    "LanceDB add": lambda folder, vectors: lance_store(folder, vectors, replaces=False),
}
