"""``embedserve search``: queries to documents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from api.actions.search import field_named
from api.cli.collection_encoders import encoders_of
from api.cli.console import arguments_or_lines, out, out_bytes
from api.cli.shared_options import CollectionModel, DataDir, Device, Filter, Json, filter_of
from api.service import stages_ms
from api.settings import load_settings
from embedserve.errors import InputError
from indexing.collections.search_plan import HYBRID, fields_of_mode
from indexing.query.filters import compile_filter
from indexing.query.search_options import MAX_K

if TYPE_CHECKING:
    from indexing import Hit

SNIPPET_LINES = 2


def search(
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY", help="Queries, each quoted. Default, or -: one query per line of stdin."),
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            metavar="NAME",
            help="Collection to search. Default: EMBEDSERVE_COLLECTION, or python-docs.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=MAX_K, metavar="K", help="Hits per query.")] = 5,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="dense, multi, sparse, bm25, or hybrid (all fields). Default: the first vector field.",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Search one field by name, instead of --mode.", show_default=False),
    ] = None,
    filter: Filter = None,
    json: Json = False,
    model: CollectionModel = None,
    device: Device = None,
    data_dir: DataDir = None,
) -> None:
    """Search a collection.

    Queries are embedded with the encoder that built the collection. Use --model if that encoder has moved;
    EMBEDSERVE_MODEL is ignored.

    Examples:
      embedserve search "join arrays along a new axis"
      embedserve search --collection notes --top-k 3 "when did we last water the plants?"
      embedserve search --mode hybrid --filter '{"field": "kind", "eq": "function"}' "copy a file"
      embedserve search --json < queries.txt
    """
    from indexing import Collection, Options
    from indexing.collections.aliases import resolve

    settings = load_settings(model=model, device=device, data_dir=data_dir, collection=collection)
    texts = list(arguments_or_lines(queries or [], "query"))
    directory = resolve(settings.data_dir, settings.collection)
    condition = filter_of(filter)
    if mode is not None and field is not None:
        raise InputError("--mode and --field are mutually exclusive; use one of them", field="field")
    with Collection.open(directory) as plain:
        manifest = plain.manifest
        kind = mode if mode in (None, HYBRID) else field_named(manifest.fields, str(mode), "mode")
        names = fields_of_mode(manifest, field or kind)
        encoders = encoders_of(manifest, settings, chosen=model is not None, names=names)
        opened = Collection.open(directory, encoders, previous=plain)
    with opened:
        started = time.perf_counter()
        plan = opened.plan(Options(top_k, condition and compile_filter(condition)), names)
        vectors = opened.query_vectors(texts, plan.required)
        embedded = time.perf_counter()
        timings_s: dict[str, float] = {}
        hits = opened.find(plan, vectors, timings_s)
        done = time.perf_counter()
    timing = stages_ms(started, embedded, done, timings_s)
    if json:
        from api.responses.search import search_response

        out_bytes(search_response(hits, settings.collection, manifest.fingerprint, timing) + b"\n")
        return
    for number, (query, query_hits) in enumerate(zip(texts, hits, strict=True)):
        if number:
            out("")
        _show(query, query_hits, settings.collection, timing["total"] / len(texts))


def _show(query: str, hits: Sequence[Hit], collection: str, duration_ms: float) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    out(f"{query}   [{collection}, {duration_ms:.1f} ms]")
    for rank, hit in enumerate(hits, start=1):
        out(f"{rank:3d}  {hit.score:.3f}  {headline(hit, width - 12)}")
        text = hit.text if hit.text.strip() else hit.title
        for line in snippet(text, width - 12):
            out(" " * 12 + line)


def headline(hit: Hit, width: int) -> str:
    """Return the title of a hit in one line, with the parameters if its metadata has a signature."""
    title = hit.title or hit.id
    signature = hit.metadata.get("signature")
    if not (isinstance(signature, str) and signature.startswith(title)):
        return title
    line = " ".join(signature.split())
    return line if len(line) <= width else f"{line[: max(width - 2, len(title))]} …"


def snippet(text: str, width: int, lines: int = SNIPPET_LINES) -> list[str]:
    """Return the first lines of a text, wrapped."""
    import textwrap

    return textwrap.wrap(" ".join(text[:2000].split()), width, max_lines=lines, placeholder=" …")
