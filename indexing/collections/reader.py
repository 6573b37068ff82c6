"""Read one snapshot of a collection: documents, facets and searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from embedserve.errors import InputError
from indexing.base import TextEncoder
from indexing.collections import view as views
from indexing.collections.manifest import Manifest
from indexing.collections.search_pipeline import run_search
from indexing.collections.search_plan import HYBRID, SearchPlan, fields_of_mode, plan_search
from indexing.collections.state import State
from indexing.query.filters import Filter, compile_filter
from indexing.query.search_options import Hit, OptionKeywords, Options, check_k, check_texts
from indexing.segments.fields import Field, Vectors, encode_queries
from indexing.sources.corpus import Document

SCROLL_ROWS = 500


@dataclass(frozen=True)
class Page:
    """Documents of a `Collection.scroll`, and the cursor of the next page; None at the end."""

    documents: list[Document]
    cursor: str | None


class CollectionReader(ABC):
    """The methods of a collection that read; each call reads one consistent snapshot.

    Args:
        encoders: Encode the queries of `search`.
    """

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        self._encoders = {encoder.fingerprint: encoder for encoder in encoders}

    @property
    @abstractmethod
    def state(self) -> State:
        """The current snapshot."""

    @property
    def manifest(self) -> Manifest:
        """The manifest on disk; it does not cover the log."""
        return self.state.manifest

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields by name."""
        return self.manifest.fields

    def __len__(self) -> int:
        return views.size(self.state.view)

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the document of each id; None for unknown ids."""
        check_ids(ids)
        documents = views.documents_by_id(self.state.view, ids)
        return [documents.get(name) for name in ids]

    def scroll(self, cursor: str | None = None, limit: int = 100, *, filter: Mapping[str, Any] | None = None) -> Page:
        """Return the next page of documents in write order.

        A document that is not rewritten between pages is returned exactly once, regardless of other writes.

        Args:
            cursor: `Page.cursor` of the previous page. Default: the first page.
            limit: Documents per page, 1 to 1000.
            filter: See `indexing.query.filters`.

        Raises:
            InputError: ``field`` is ``cursor``, ``limit`` or a part of ``filter``.
        """
        check_k(limit, "limit")
        after = -1 if cursor is None else _position(cursor)
        rows = views.scroll(self.state.view, after, limit, compiled(filter))
        return Page([document for _, document in rows], str(rows[-1][0]) if len(rows) == limit else None)

    def documents(self) -> Iterator[Document]:
        """Yield all documents of the current snapshot in write order."""
        return self._documents(self.state.view)

    @staticmethod
    def _documents(view: views.View) -> Iterator[Document]:
        after = -1
        while rows := views.scroll(view, after, SCROLL_ROWS, None):
            yield from (document for _, document in rows)
            after = rows[-1][0]

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Return the number of documents that match a filter. Default: all documents."""
        return views.count(self.state.view, compiled(filter))

    def facet(self, field: str, *, filter: Mapping[str, Any] | None = None, limit: int = 100) -> list[tuple[Any, int]]:
        """Return the values of a metadata field and their document counts, most frequent first.

        Args:
            field: Path of the metadata field, as in a filter.
            filter: Documents to count.
            limit: Maximum number of values, 1 to 1000.
        """
        return views.facet(self.state.view, field, check_k(limit, "limit"), compiled(filter))

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        mode: str | None = None,
        filter: Mapping[str, Any] | None = None,
        **options: Unpack[OptionKeywords],
    ) -> list[list[Hit]]:
        """Return the best documents for each query, best first.

        Args:
            queries: Texts; blank texts are rejected.
            k: Hits per query, 1 to 1000.
            mode: The field to search, or ``hybrid`` for all fields. Default: the first field with vectors.
            filter: Only return documents that match, see `indexing.query.filters`.
            options: Further options of `indexing.Options`: ``fusion``, ``weights``, ``rerank``, ``candidates``, ...

        Raises:
            InputError: ``field`` is ``query``, ``top_k``, ``mode``, a part of ``filter`` or the name of an option.
        """
        check_texts(queries)
        plan = self.plan(Options(k, compiled(filter), **options), mode)
        return self.find(plan, self.query_vectors(queries, plan.required))

    def search_vectors(
        self,
        vectors: Vectors | Mapping[str, Any],
        k: int = 10,
        *,
        mode: str | None = None,
        filter: Mapping[str, Any] | None = None,
        **options: Unpack[OptionKeywords],
    ) -> list[list[Hit]]:
        """Return the best documents for each query vector, best first; see `search`.

        Args:
            vectors: Q query vectors of one field; or by field name, whose rankings are fused (texts for words).
            k: Hits per query, 1 to 1000.
            mode: As `search`. Default: every field in ``vectors`` except the one that reranks.
            filter: As `search`.
            options: As `search`.
        """
        queries = dict(vectors) if isinstance(vectors, Mapping) else {fields_of_mode(self.manifest, mode)[0]: vectors}
        first_stage = [name for name in queries if name != options.get("rerank")] or list(queries)
        names = first_stage if mode in (None, HYBRID) else fields_of_mode(self.manifest, mode)
        return self.find(self.plan(Options(k, compiled(filter), **options), names), queries)

    def plan(self, options: Options, mode: str | Sequence[str] | None = None) -> SearchPlan:
        """Check a search of the current snapshot against the fields, once for any number of `find` calls.

        Args:
            options: The options of the search.
            mode: The field to search, ``hybrid`` for all fields, or a list of fields whose rankings are fused.
                Default: the first field with vectors.

        Raises:
            InputError: ``field`` is ``top_k``, ``mode`` or the name of an option.
        """
        return plan_search(self.state, options, mode)

    def find(
        self, plan: SearchPlan, queries: Mapping[str, Any], timings_s: dict[str, float] | None = None
    ) -> list[list[Hit]]:
        """Run a planned search: return the best documents for each query, best first.

        Args:
            plan: From `plan`; the snapshot is the plan's.
            queries: Q query vectors, or Q texts for words, of each field in ``plan.required``.
            timings_s: Receives the seconds of each stage that ran: ``retrieve``, ``fuse``, ``rerank``, ``fetch``.

        Raises:
            InputError: The queries of a required field are missing.
        """
        _ = self.state  # closed collections are not searched
        return run_search(plan, queries, timings_s)

    def query_vectors(self, queries: Sequence[str], names: Iterable[str]) -> dict[str, Any]:
        """Return what the fields ``names`` are searched by: vectors, one encoder pass each, or the texts for words."""
        fields = {name: self.fields[name] for name in names}
        return encode_queries(fields, self._encoders, queries)


def compiled(values: Mapping[str, Any] | None) -> Filter | None:
    """Return the compiled filter; None for None."""
    return None if values is None else compile_filter(values)


def _position(cursor: str) -> int:
    if isinstance(cursor, str) and cursor.isascii() and cursor.isdigit() and len(cursor) < 20:
        return int(cursor)
    raise InputError(f"cursor must be the cursor of an earlier page, got {cursor!r}", field="cursor")


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return ``ids`` as a list if they are non-empty strings, else raise `InputError`."""
    if isinstance(ids, str) or not all(isinstance(name, str) and name for name in ids):
        raise InputError("ids must be a list of non-empty strings", field="ids")
    for name in ids:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"id {name!a} is not valid Unicode", field="ids") from None
    return list(ids)
