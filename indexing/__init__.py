"""Vectors into collections, queries into hits. faiss is imported by `indexing.faiss_index` alone, on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from indexing.base import Hits, Metric, TextEncoder, VectorIndex
from indexing.bm25 import Bm25Index
from indexing.build import BuildProgress, build_collection
from indexing.catalog import check_name, collection_path, list_collections, verify
from indexing.collection import MAX_K, Collection, Hit
from indexing.corpus import Document, count_documents, read_documents
from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex, build_index, load_index
from indexing.fusion import fuse, rerank
from indexing.manifest import FileCheck, Manifest, read_manifest
from indexing.pydocs import python_documents
from indexing.sparse_index import SparseIndex

if TYPE_CHECKING:
    from indexing.exact_multi import ExactMultiIndex
    from indexing.fde_config import FdeConfig
    from indexing.lemur import LemurIndex
    from indexing.lemur_features import LemurConfig
    from indexing.multi import Feedback
    from indexing.muvera import MuveraIndex
    from indexing.plaid import PlaidIndex

__all__ = [
    "MAX_K",
    "Bm25Index",
    "BuildProgress",
    "Collection",
    "Document",
    "ExactIndex",
    "ExactMultiIndex",
    "FaissIndex",
    "FdeConfig",
    "Feedback",
    "FileCheck",
    "Hit",
    "Hits",
    "LemurConfig",
    "LemurIndex",
    "Manifest",
    "Metric",
    "MuveraIndex",
    "PlaidIndex",
    "SparseIndex",
    "TextEncoder",
    "VectorIndex",
    "build_collection",
    "build_index",
    "check_name",
    "collection_path",
    "count_documents",
    "fuse",
    "list_collections",
    "load_index",
    "python_documents",
    "read_documents",
    "read_manifest",
    "rerank",
    "verify",
]

_OVER_TOKENS = {
    "ExactMultiIndex": "exact_multi",
    "FdeConfig": "fde_config",
    "Feedback": "multi",
    "LemurConfig": "lemur_features",
    "LemurIndex": "lemur",
    "MuveraIndex": "muvera",
    "PlaidIndex": "plaid",
}


def __getattr__(name: str) -> object:
    """Import the engines over token vectors, and with them torch, only when they are asked for."""
    if name in _OVER_TOKENS:
        return getattr(import_module(f"indexing.{_OVER_TOKENS[name]}"), name)
    raise AttributeError(f"module 'indexing' has no attribute {name!r}")
