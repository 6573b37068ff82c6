"""Vectors into collections, queries into hits.

The names below are the public ones; everything else is imported from its module. faiss is imported by
`indexing.engines.faiss_index` alone, on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from indexing.base import Hits
from indexing.collections.catalog import list_collections, verify
from indexing.collections.collection import Collection
from indexing.collections.collection_build import build_collection
from indexing.collections.publication import create_collection
from indexing.engines.exact import ExactIndex
from indexing.engines.faiss_index import FaissIndex, build_index, load_index
from indexing.engines.sparse_index import SparseIndex
from indexing.jobs.job import JobOptions, run_job
from indexing.query.search_options import Hit, Options
from indexing.segments.fields import Field
from indexing.sources.corpus import Document, read_documents

if TYPE_CHECKING:
    from indexing.late_interaction.exact_multi import ExactMultiIndex
    from indexing.late_interaction.muvera import MuveraIndex

__all__ = [
    "Collection",
    "Document",
    "ExactIndex",
    "ExactMultiIndex",
    "FaissIndex",
    "Field",
    "Hit",
    "Hits",
    "JobOptions",
    "MuveraIndex",
    "Options",
    "SparseIndex",
    "build_collection",
    "build_index",
    "create_collection",
    "list_collections",
    "load_index",
    "read_documents",
    "run_job",
    "verify",
]

_LATE_INTERACTION = {
    "ExactMultiIndex": "indexing.late_interaction.exact_multi",
    "MuveraIndex": "indexing.late_interaction.muvera",
}


def __getattr__(name: str) -> object:
    """Import the engines over token vectors, and with them torch, only on first use."""
    if name in _LATE_INTERACTION:
        return getattr(import_module(_LATE_INTERACTION[name]), name)
    raise AttributeError(f"module 'indexing' has no attribute {name!r}")
