"""embedserve search: queries to documents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_console import given_or_lines, load_encoder, out, out_bytes
from api.cli_options import DataDir, Device, Json, Model
from api.service import stages_ms
from api.settings import Settings, load_settings
from embedserve.errors import IndexMismatchError, LoadError, NotFoundError
from indexing import MAX_K

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Hit, Manifest

SNIPPET_LINES = 2


def search(
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY", help="Queries, each in quotes; - or nothing reads stdin, one on a line."),
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Which collection; python-docs unless set.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=MAX_K, help="Hits for each query.")] = 5,
    json: Json = False,
    model: Model = None,
    device: Device = None,
    data_dir: DataDir = None,
) -> None:
    """Find documents by meaning.

    The encoder is the one that the collection was built by, unless --model names another copy of it;
    EMBEDSERVE_MODEL has no effect here.

    Examples:
      embedserve search "join arrays along a new axis"
      embedserve search --collection notes --top-k 3 "when did we last water the plants?"
      embedserve search --json < queries.txt
    """
    from indexing import Collection, resolve

    settings = load_settings(model=model, device=device, data_dir=data_dir, collection=collection)
    texts = list(given_or_lines(queries or [], "query"))
    directory = resolve(settings.data_dir, settings.collection)
    with Collection.open(directory) as found:
        encoder = _encoder_of(found.manifest, settings, chosen=model is not None)
        started = time.perf_counter()
        vectors = encoder.embed(texts, task="query").vectors
        embedded = time.perf_counter()
        hits = found.search_vectors(vectors, top_k)
        done = time.perf_counter()
    timing = stages_ms(started, embedded, done)
    if json:
        from api.search_answers import search_answer

        out_bytes(search_answer(hits, settings.collection, encoder.fingerprint, timing) + b"\n")
        return
    for place, (query, found_hits) in enumerate(zip(texts, hits, strict=True)):
        if place:
            out("")
        _show(query, found_hits, settings.collection, timing["total"] / len(texts))


def _encoder_of(manifest: Manifest, settings: Settings, *, chosen: bool) -> Encoder:
    """Return the encoder that was chosen, or the one that the collection's manifest describes, once it is found fit."""
    from embedserve import Encoder, EncoderSpec
    from indexing.collection import check_encoder

    if chosen:
        encoder = load_encoder(settings.model, settings.device)
        check_encoder(manifest.name, manifest, encoder)
        return encoder
    spec = EncoderSpec.from_dict(manifest.spec)
    try:
        encoder = Encoder.load(spec, device=settings.device)
        check_encoder(manifest.name, manifest, encoder)
    except (LoadError, NotFoundError, IndexMismatchError) as error:
        message = f"{error.message} (collection {manifest.name!r} was built by {spec.backbone!r}; "
        raise type(error)(message + "if that encoder is elsewhere now, give its folder by --model)") from None
    return encoder


def _show(query: str, hits: Sequence[Hit], collection: str, spent: float) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    out(f"{query}   [{collection}, {spent:.1f} ms]")
    for rank, hit in enumerate(hits, start=1):
        out(f"{rank:3d}  {hit.score:.3f}  {headline(hit, width - 12)}")
        text = hit.text if hit.text.strip() else hit.title
        for line in snippet(text, width - 12):
            out(" " * 12 + line)


def headline(hit: Hit, width: int) -> str:
    """Return the title of a hit, with the parameters where its metadata has a signature, in one line."""
    title = hit.title or hit.id
    signature = hit.metadata.get("signature")
    if not (isinstance(signature, str) and signature.startswith(title)):
        return title
    line = " ".join(signature.split())
    return line if len(line) <= width else f"{line[: max(width - 2, len(title))]} …"


def snippet(text: str, width: int, lines: int = SNIPPET_LINES) -> list[str]:
    """Return the beginning of a text, as lines of words."""
    import textwrap

    return textwrap.wrap(" ".join(text[:2000].split()), width, max_lines=lines, placeholder=" …")
