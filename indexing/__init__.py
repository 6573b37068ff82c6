"""Vectors into collections, queries into hits. faiss is imported by `indexing.faiss_index` alone, on first use."""

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

__all__ = [
    "MAX_K",
    "Bm25Index",
    "BuildProgress",
    "Collection",
    "Document",
    "ExactIndex",
    "FaissIndex",
    "FileCheck",
    "Hit",
    "Hits",
    "Manifest",
    "Metric",
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
