"""A collection: documents, their vectors and indexes over them, to be searched and changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, cast

from embedserve.errors import EmbedserveError, IndexMismatchError, InputError
from embedserve.spec import spec_difference
from indexing.base import TextEncoder, plain_spec
from indexing.collections import view as views
from indexing.collections.catalog import check_name, published
from indexing.collections.manifest import Manifest
from indexing.collections.search_pipeline import HYBRID, check_mmr, check_queries, check_reranking, find_hits, searched
from indexing.collections.state import State, advance, open_state
from indexing.collections.writer import Writer
from indexing.query.filters import Filter, compile_filter
from indexing.query.fusion import Method
from indexing.query.search_options import CANDIDATES, Hit, Options, check_k
from indexing.segments.fields import Field, Vectors, run_encoder
from indexing.sources.corpus import Document

DOCUMENTS_AT_ONCE = 500
Encoders = TextEncoder | Sequence[TextEncoder] | None


@dataclass(frozen=True)
class Page:
    """Documents of a `Collection.scroll`, and what to go on with; None at the end."""

    documents: list[Document]
    cursor: str | None


class Collection:
    """An opened collection. Safe to use from many threads, as far as the encoder is.

    Every call sees one whole snapshot, and none waits for a writer. Opened for reading it stays what it was when it was
    opened, until `refresh`; opened for writing it has what this program wrote.
    """

    def __init__(self, directory: Path, state: State, encoders: Sequence[TextEncoder], writer: Writer | None) -> None:
        self.directory, self.name = directory, directory.name
        self._state, self._writer = state, writer
        self._encoders = {encoder.fingerprint: encoder for encoder in encoders}
        self._refreshing = Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Path | str,
        encoder: Encoders = None,
        *,
        writable: bool = False,
        previous: Collection | None = None,
    ) -> Collection:
        """Check every file against the manifest, load, and follow the log.

        Args:
            directory: `catalog.resolve(data_dir, name)`.
            encoder: The encoder, or those of all fields; what takes vectors works without.
            writable: Whether to hold the right to write, which one program has at a time.
            previous: The same collection as it was opened before: what is not new is not read again. One that is closed
                counts as None.

        Raises:
            NotFoundError: There is no such collection.
            CorruptFileError: A file is missing, damaged, or of another format.
            IndexMismatchError: The collection was built by another encoder.
            EmbedserveError: Another program writes to it.
        """
        directory = Path(directory)
        check_name(directory.name)
        encoders = as_encoders(encoder)
        previous = None if previous is None or previous._closed else previous
        manifest = published(directory)
        for one in encoders:
            check_encoder(directory.name, manifest, one)
        if writable:
            writer = Writer(directory, previous._now.segments if previous is not None else None)
            try:
                for one in encoders:  # again: another writer may have been here before the lock was taken
                    check_encoder(directory.name, writer.state.manifest, one)
            except IndexMismatchError:
                writer.close()
                raise
            return cls(directory, writer.state, encoders, writer)
        if previous is None:
            return cls(directory, open_state(directory), encoders, None)
        with previous._refreshing:
            return cls(directory, advance(directory, previous._state), encoders, None)

    # -------------------------------------------------------------- what it is

    @property
    def _now(self) -> State:
        if self._closed:
            raise EmbedserveError(f"collection {self.name!r} is closed")
        writer = self._writer
        return self._state if writer is None else writer.state

    @property
    def manifest(self) -> Manifest:
        """What is on the disk beside the log."""
        return self._now.manifest

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields by name."""
        return self._now.manifest.fields

    def __len__(self) -> int:
        return views.size(self._now.view)

    def refresh(self) -> bool:
        """Go on to what is on the disk now, and return whether that is more; only what is new is read.

        Raises:
            CorruptFileError, NotFoundError, IndexMismatchError: As `open`; the collection stays as it was.
        """
        if self._writer is not None:
            return False
        with self._refreshing:
            before = self._now
            for encoder in self._encoders.values():
                check_encoder(self.name, published(self.directory), encoder)
            self._state = advance(self.directory, before)
            return (self._state.manifest.version, self._state.sequence) != (before.manifest.version, before.sequence)

    # -------------------------------------------------------------- reading

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the document of each id, None where there is none."""
        check_ids(ids)
        view = self._now.view
        found = views.find(view, list(dict.fromkeys(ids)))
        rows: dict[int, list[tuple[str, int]]] = {}
        for name, (part, row) in found.items():
            rows.setdefault(part, []).append((name, row))
        documents: dict[str, Document] = {}
        for part, pairs in rows.items():
            got = view[part].segment.get([row for _, row in pairs])
            documents.update(zip((name for name, _ in pairs), got, strict=True))
        return [documents.get(name) for name in ids]

    def scroll(self, cursor: str | None = None, limit: int = 100, *, filter: Mapping[str, Any] | None = None) -> Page:
        """Return the next documents in the order of writing.

        A document that is not written meanwhile comes exactly once, whatever else is written.

        Args:
            cursor: Of the page before; None begins.
            limit: Documents of a page, 1 to 1000.
            filter: See `indexing.query.filters`.

        Raises:
            InputError: ``field`` is ``cursor``, ``limit`` or a part of ``filter``.
        """
        check_k(limit, "limit")
        after = -1 if cursor is None else _as_cursor(cursor)
        found = views.scroll(self._now.view, after, limit, _compiled(filter))
        return Page([document for _, document in found], str(found[-1][0]) if len(found) == limit else None)

    def documents(self) -> Iterator[Document]:
        """Yield all documents of the present snapshot in the order of writing."""
        view, after = self._now.view, -1
        while found := views.scroll(view, after, DOCUMENTS_AT_ONCE, None):
            yield from (document for _, document in found)
            after = found[-1][0]

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Return how many documents there are, or pass a filter."""
        return views.count(self._now.view, _compiled(filter))

    def facet(self, field: str, *, filter: Mapping[str, Any] | None = None, limit: int = 100) -> list[tuple[Any, int]]:
        """Return the values of a metadata field and how many documents have each, most frequent first.

        Args:
            field: Its path, as in a filter.
            filter: Which documents are counted.
            limit: Values at most, 1 to 1000.
        """
        return views.facet(self._now.view, field, check_k(limit, "limit"), _compiled(filter))

    # -------------------------------------------------------------- searching

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        mode: str | None = None,
        filter: Mapping[str, Any] | None = None,
        fusion: Method = "rrf",
        weights: Mapping[str, float] | None = None,
        rerank: str | None = None,
        candidates: int = CANDIDATES,
    ) -> list[list[Hit]]:
        """Return the best documents for each query, best first.

        Args:
            queries: Texts, none of them blank.
            k: Hits for each query, 1 to 1000; fewer where the collection is smaller.
            mode: The field that is searched, or ``hybrid`` for all of them; the first with vectors unless given.
            filter: What documents must pass, see `indexing.query.filters`.
            fusion: How the rankings of fields are joined, see `indexing.query.fusion`.
            weights: Of the fields in the fusion, 1 unless given.
            rerank: A field of token vectors by whose exact MaxSim the candidates are ranked in the end.
            candidates: Documents of each field that are joined or ranked again, at least ``k`` of them.

        Raises:
            InputError: ``field`` is ``query``, ``top_k``, ``mode``, a part of ``filter`` or an option's name.
        """
        check_k(k)
        check_queries(queries)
        state = self._now
        names = searched(state.manifest, mode)
        wanted = {*names, *([check_reranking(state.manifest, rerank)] if rerank is not None else [])}
        made = self.query_vectors(queries, wanted)
        options = Options(k, _compiled(filter), fusion, weights, rerank, candidates)
        return find_hits(state, names, made, options)

    def search_vectors(
        self,
        vectors: Vectors | Mapping[str, Any],
        k: int = 10,
        *,
        mode: str | None = None,
        filter: Mapping[str, Any] | None = None,
        fusion: Method = "rrf",
        weights: Mapping[str, float] | None = None,
        rerank: str | None = None,
        candidates: int = CANDIDATES,
    ) -> list[list[Hit]]:
        """Return the best documents for each query vector, best first; else as `search`.

        Args:
            vectors: Q of them for one field; or by name for several, whose rankings are joined, texts for words.
        """
        check_k(k)
        state = self._now
        given = dict(vectors) if isinstance(vectors, Mapping) else {searched(state.manifest, mode)[0]: vectors}
        for name in given:
            searched(state.manifest, name)
        names = [name for name in given if mode in (None, HYBRID, name) and (name != rerank or len(given) == 1)]
        if not names:
            raise InputError(f"there are no vectors for {mode!r}", field="vectors")
        if rerank is not None:
            check_reranking(state.manifest, rerank)
        return find_hits(state, names, given, Options(k, _compiled(filter), fusion, weights, rerank, candidates))

    def find(
        self,
        queries: Mapping[str, Any],
        options: Options,
        fields: Sequence[str] | None = None,
        spent: dict[str, float] | None = None,
    ) -> list[list[Hit]]:
        """Return the best documents for each query, best first, with everything that `Options` knows.

        Args:
            queries: By field, Q vectors, or Q texts for words; also those of the field that ranks again and of that of
                ``options.mmr``.
            options: What is asked.
            fields: Whose rankings are joined; all of ``queries`` but those of the field that ranks again unless given.
            spent: Takes the seconds of each stage that there was: ``retrieve``, ``fuse``, ``rerank``, ``fetch``.

        Raises:
            InputError: ``field`` is what is wrong.
        """
        check_k(options.k)
        state = self._now
        names = (
            list(fields) if fields is not None else [name for name in queries if name != options.rerank] or [*queries]
        )
        for name in [*names, *queries]:
            searched(state.manifest, name)
        if options.rerank is not None:
            check_reranking(state.manifest, options.rerank)
        if options.mmr is not None:
            check_mmr(state.manifest, options.mmr.field)
        if missing := [name for name in names if name not in queries]:
            raise InputError(f"there are no query vectors for {missing[0]!r}", field="vectors")
        return find_hits(state, names, queries, options, spent)

    def query_vectors(self, queries: Sequence[str], names: Iterable[str]) -> dict[str, Any]:
        """Return what the fields ``names`` are searched by: one pass of each encoder over the queries."""
        manifest, wanted = self._now.manifest, set(names)
        made: dict[str, Any] = {name: list(queries) for name in wanted if manifest.fields[name].output == "words"}
        fields = {name: manifest.fields[name] for name in wanted - made.keys()}
        for fingerprint in {field.fingerprint for field in fields.values()}:
            of_encoder = {name: field for name, field in fields.items() if field.fingerprint == fingerprint}
            if fingerprint not in self._encoders:
                names_of = ", ".join(sorted(of_encoder))
                message = f"collection {self.name!r} was opened without an encoder for {names_of}; use search_vectors"
                raise EmbedserveError(message)
            outputs = {field.output for field in of_encoder.values()}
            found, _ = run_encoder(self._encoders[fingerprint], list(queries), outputs, "query")
            made |= {name: found[field.output] for name, field in of_encoder.items()}
        return made

    # -------------------------------------------------------------- writing

    @property
    def is_writable(self) -> bool:
        """Whether this holds the right to write and can use it; after some errors it must be opened again."""
        return not self._closed and self._writer is not None and self._writer.is_usable

    @property
    def _writing(self) -> Writer:
        if self._closed or self._writer is None:
            message = f"collection {self.name!r} is open for reading only; open it with writable=True"
            raise EmbedserveError(message, field="collection")
        return self._writer

    def upsert(self, documents: Sequence[Document], vectors: Mapping[str, Vectors] | None = None) -> int:
        """Write documents, each in place of the one with its id; return how many, once they are on the disk.

        All of them are written or, with an error, none. Their order in the collection is that of the list.

        Args:
            documents: With ids that are unique in the list.
            vectors: By field, where the encoder is not to make them.

        Raises:
            InputError: An id twice, metadata that is not JSON, vectors that do not fit.
            EmbedserveError: The disk is full or failing; nothing was written.
        """
        return self._writing.upsert(documents, vectors, self._encoders)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id or by filter; return how many there were, once that is on the disk.

        Raises:
            InputError: Both are given or none.
            EmbedserveError: The disk is full or failing; nothing was deleted.
        """
        if (ids is None) == (filter is None):
            raise InputError("give ids or a filter", field="ids")
        if ids is not None:
            return self._writing.delete_ids(check_ids(ids))
        return self._writing.delete_matching(cast("Filter", _compiled(filter)))

    def flush(self) -> None:
        """Move what is in the log into a segment; nothing is safer by it, but opening becomes faster."""
        self._writing.flush()

    def compact(self, *, full: bool = False) -> None:
        """Write segments anew that hold many deleted documents or are many and small; all as one if ``full``."""
        self._writing.compact(full=full)

    def snapshot(self, name: str | None = None) -> str:
        """Keep the collection as it is now, in files it shares with it, and return the snapshot's name.

        The snapshot is `indexing.collections.snapshots.snapshots_path(data_dir, collection) / name`; `restore` brings
        it back.

        Raises:
            InputError: There is a snapshot of that name.
            EmbedserveError: The disk is full; there is no snapshot then.
        """
        return self._writing.snapshot(name).name

    def stop_writing(self) -> None:
        """Give the right to write back and stay open for reading, with what was written; nobody may write meanwhile."""
        if self._writer is not None:
            writer, self._state = self._writer, self._writer.state
            self._writer = None
            writer.close()

    def close(self) -> None:
        """Give the lock back, and the files once nobody reads them; reading afterwards is an error."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _compiled(wanted: Mapping[str, Any] | None) -> Filter | None:
    return None if wanted is None else compile_filter(wanted)


def _as_cursor(cursor: str) -> int:
    if isinstance(cursor, str) and cursor.isascii() and cursor.isdigit() and len(cursor) < 20:
        return int(cursor)
    raise InputError(f"cursor must be what an earlier page gave, got {cursor!r}", field="cursor")


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return ``ids`` as a list if they are strings, else raise `InputError`."""
    if isinstance(ids, str) or not all(isinstance(name, str) and name for name in ids):
        raise InputError("ids must be a list of strings, none of them empty", field="ids")
    for name in ids:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"id {name!a} is not valid Unicode", field="ids") from None
    return list(ids)


def as_encoders(encoder: Encoders) -> list[TextEncoder]:
    """Return no, one or several encoders as a list."""
    if encoder is None:
        return []
    return list(encoder) if isinstance(encoder, Sequence) else [encoder]


def check_encoder(name: str, manifest: Manifest, encoder: TextEncoder) -> None:
    """Raise `IndexMismatchError` unless the encoder's vectors may be compared with those of some field."""
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
