"""embedserve embed: texts to vectors."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import orjson
import typer

from api.cli.console import arguments_or_lines, is_terminal, load_encoder, note, out_bytes, stdin_lines
from api.cli.progress import Meter
from api.cli.shared_options import Device, Json, Model, Strategy
from api.settings import load_settings
from embedserve.errors import EmbedserveError, InputError
from embedserve.types import Encoded

if TYPE_CHECKING:
    from embedserve import Encoder

CHUNK = 1024


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; - or nothing reads stdin, one on a line.")
    ] = None,
    model: Model = None,
    strategy: Strategy = None,
    task: Annotated[
        Literal["document", "query"], typer.Option("--task", "-t", help="Which side the texts are on.")
    ] = "document",
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", "-d", help="Keep only so many leading dimensions.")
    ] = None,
    json: Json = False,
    fmt: Annotated[
        Literal["jsonl", "npy"], typer.Option("--format", "-f", help="One JSON line per text, or one numpy array.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of to stdout.")] = None,
    device: Device = None,
) -> None:
    """Turn texts into vectors.

    Vectors of one model may be compared by dot product. Texts that are too long for the model are cut at their end.

    Examples:
      embedserve embed "join arrays along a new axis"
      embedserve embed --json "first text" "second text"
      embedserve embed --task query --dimensions 128 < queries.txt
      embedserve embed --format npy --output vectors.npy < texts.txt
    """
    if json and fmt == "npy":
        raise InputError("--json and --format npy exclude each other; give one of them", field="format")
    if fmt == "npy" and output is None and is_terminal(sys.stdout):
        raise InputError("a numpy array cannot be shown on a terminal; add --output FILE", field="output")
    settings = load_settings(model=model, device=device)
    count = stdin_lines()
    lines = arguments_or_lines(texts or [], "text")
    first = next(lines)  # complain about missing input before the model is loaded
    encoder = load_encoder(settings.model, settings.device, strategy)
    if fmt == "npy" and encoder.outputs != ("dense",):
        made = " and ".join(encoder.outputs)
        raise InputError(f"{encoder.name} makes {made} vectors, which are no one array; use jsonl", field="format")
    total = len(texts) if texts and texts != ["-"] else count
    chunks = _embedded(encoder, _again(first, lines), task, dimensions, total)
    if json or fmt == "npy":
        found = Encoded.concatenate(list(chunks))
        _write(_array(found) if fmt == "npy" else _document(found, encoder), output)
        return
    if output is None:
        for payload in _json_lines(chunks):
            out_bytes(payload)
    else:
        _write_all(_json_lines(chunks), output)


def _again(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _embedded(
    encoder: Encoder,
    texts: Iterator[str],
    task: Literal["document", "query"],
    dimensions: int | None,
    total: int | None,
) -> Iterator[Encoded]:
    """Yield the vectors chunk by chunk; say on stderr how it goes and how many texts were cut."""
    meter, done, cut = Meter("embedding", patience_s=2.0), 0, 0
    try:
        while chunk := list(islice(texts, CHUNK)):
            found = encoder.encode(chunk, task=task, dimensions=dimensions)
            done += len(chunk)
            cut += int(found.truncated.sum())
            meter.update("embedding", done, total)
            yield found
    finally:
        meter.close()
    if cut:
        note(f"note: {cut:,} of {done:,} texts were cut to {encoder.max_tokens:,} tokens")


def _json_lines(chunks: Iterator[Encoded]) -> Iterator[bytes]:
    from api.responses.embed import embed_items

    place = 0
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    for found in chunks:
        yield b"".join(orjson.dumps(item, option=option) for item in embed_items(found, place))
        place += len(found)


def _document(found: Encoded, encoder: Encoder) -> bytes:
    from api.responses.embed import embed_answer

    return embed_answer(found, encoder.name, encoder.fingerprint) + b"\n"


def _array(found: Encoded) -> bytes:
    buffer = io.BytesIO()
    if found.dense is not None:
        np.save(buffer, found.dense.vectors, allow_pickle=False)
    return buffer.getvalue()


def _write(payload: bytes, output: Path | None) -> None:
    if output is None:
        out_bytes(payload)
    else:
        _write_all([payload], output)


def _write_all(payloads: Iterable[bytes], output: Path) -> None:
    """Write a file that is whole or as it was before; what is no regular file (a pipe, a device) is written straight.

    A link stays a link: the file it leads to is replaced.
    """
    from indexing.storage.files import replacing

    try:
        place = output.resolve()
        with place.open("wb") if place.exists() and not place.is_file() else replacing(place) as stream:
            for payload in payloads:
                stream.write(payload)
    except OSError as error:
        raise EmbedserveError(f"cannot write {output}: {error.strerror}", field="output") from None
