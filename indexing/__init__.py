"""Vectors into collections, queries into hits. faiss is imported by `indexing.engines.faiss_index` alone, on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from indexing.base import Hits, Metric, TextEncoder, VectorIndex
from indexing.collections.aliases import list_aliases, remove_alias, resolve, set_alias
from indexing.collections.catalog import check_name, collection_path, list_collections, verify
from indexing.collections.collection import Collection, Page
from indexing.collections.collection_build import BuildProgress, build_collection
from indexing.collections.manifest import Manifest, read_manifest
from indexing.collections.publication import create_collection, publish
from indexing.collections.reembed import reembed
from indexing.collections.removal import drop_collection
from indexing.collections.snapshots import list_snapshots, restore, verify_snapshot
from indexing.engines.bm25_fts5 import Bm25Index
from indexing.engines.exact import ExactIndex
from indexing.engines.faiss_index import FaissIndex, build_index, load_index
from indexing.engines.sparse_index import SparseIndex
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.query.fusion import fuse, rerank
from indexing.query.search_options import MAX_K, Hit, Options
from indexing.segments.fields import BM25, DENSE, WORDS, Field, default_fields, field_of
from indexing.segments.segment import SegmentWriter
from indexing.sources.corpus import Document, count_documents, read_documents
from indexing.sources.passages import FoldedHit, PassageSize, fold_hits
from indexing.sources.python_docs import python_documents
from indexing.storage.checksums import FileCheck

if TYPE_CHECKING:
    from indexing.late_interaction.exact_multi import ExactMultiIndex
    from indexing.late_interaction.fde_config import FdeConfig
    from indexing.late_interaction.lemur import LemurIndex
    from indexing.late_interaction.lemur_features import LemurConfig
    from indexing.late_interaction.multi_index import Feedback
    from indexing.late_interaction.muvera import MuveraIndex
    from indexing.late_interaction.plaid import PlaidIndex

__all__ = [
    "BM25",
    "DENSE",
    "MAX_K",
    "WORDS",
    "Bm25Index",
    "BuildProgress",
    "Collection",
    "Document",
    "ExactIndex",
    "ExactMultiIndex",
    "FaissIndex",
    "FdeConfig",
    "Feedback",
    "Field",
    "FileCheck",
    "FoldedHit",
    "Hit",
    "Hits",
    "JobOptions",
    "JobProgress",
    "JobReport",
    "LemurConfig",
    "LemurIndex",
    "Manifest",
    "Metric",
    "MuveraIndex",
    "Options",
    "Page",
    "PassageSize",
    "PlaidIndex",
    "SegmentWriter",
    "SparseIndex",
    "TextEncoder",
    "VectorIndex",
    "build_collection",
    "build_index",
    "check_name",
    "collection_path",
    "count_documents",
    "create_collection",
    "default_fields",
    "drop_collection",
    "field_of",
    "fold_hits",
    "fuse",
    "job_path",
    "list_aliases",
    "list_collections",
    "list_snapshots",
    "load_index",
    "publish",
    "python_documents",
    "read_documents",
    "read_manifest",
    "reembed",
    "remove_alias",
    "rerank",
    "resolve",
    "restore",
    "run_job",
    "set_alias",
    "verify",
    "verify_snapshot",
]

_OVER_TOKENS = {
    "ExactMultiIndex": "late_interaction.exact_multi",
    "FdeConfig": "late_interaction.fde_config",
    "Feedback": "late_interaction.multi_index",
    "LemurConfig": "late_interaction.lemur_features",
    "LemurIndex": "late_interaction.lemur",
    "MuveraIndex": "late_interaction.muvera",
    "PlaidIndex": "late_interaction.plaid",
}


def __getattr__(name: str) -> object:
    """Import the engines over token vectors, and with them torch, only when they are asked for."""
    if name in _OVER_TOKENS:
        return getattr(import_module(f"indexing.{_OVER_TOKENS[name]}"), name)
    raise AttributeError(f"module 'indexing' has no attribute {name!r}")
