"""``embedserve embed``: texts to vectors."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
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
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts. Default, or -: one text per line of stdin.")
    ] = None,
    model: Model = None,
    strategy: Strategy = None,
    task: Annotated[
        Literal["document", "query"], typer.Option("--task", "-t", help="Embed as documents or as queries.")
    ] = "document",
    dimensions: Annotated[
        int | None,
        typer.Option(
            "--dimensions", "-d", metavar="N", help="Truncate vectors to N dimensions (Matryoshka).", show_default=False
        ),
    ] = None,
    json: Json = False,
    fmt: Annotated[
        Literal["jsonl", "npy"], typer.Option("--format", "-f", help="One JSON object per line, or one NumPy array.")
    ] = "jsonl",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file. Default: stdout.", show_default=False),
    ] = None,
    device: Device = None,
) -> None:
    """Embed texts as vectors.

    Compare vectors of the same model by dot product. Texts longer than the model's maximum are truncated at the end.

    Examples:
      embedserve embed "join arrays along a new axis"
      embedserve embed --json "first text" "second text"
      embedserve embed --task query --dimensions 128 < queries.txt
      embedserve embed --format npy --output vectors.npy < texts.txt
    """
    if json and fmt == "npy":
        raise InputError("--json and --format npy are mutually exclusive; use one of them", field="format")
    if fmt == "npy" and output is None and is_terminal(sys.stdout):
        raise InputError("a NumPy array is not written to a terminal; add --output FILE", field="output")
    settings = load_settings(model=model, device=device)
    count = stdin_lines()
    lines = arguments_or_lines(texts or [], "text")
    first = next(lines)  # report missing input before the model is loaded
    encoder = load_encoder(settings.model, settings.device, strategy)
    if fmt == "npy" and encoder.outputs != ("dense",):
        outputs = " and ".join(encoder.outputs)
        message = f"{encoder.name} outputs {outputs} vectors, which do not fit in one array; use --format jsonl"
        raise InputError(message, field="format")
    total = len(texts) if texts and texts != ["-"] else count
    chunks = _encode_chunks(encoder, chain([first], lines), task, dimensions, total)
    if json or fmt == "npy":
        encoded = Encoded.concatenate(list(chunks))
        _write([_array(encoded) if fmt == "npy" else _document(encoded, encoder)], output)
        return
    _write(_json_lines(chunks), output)


def _encode_chunks(
    encoder: Encoder,
    texts: Iterator[str],
    task: Literal["document", "query"],
    dimensions: int | None,
    total: int | None,
) -> Iterator[Encoded]:
    """Yield the vectors in chunks; report progress and the number of truncated texts on stderr."""
    meter, done, truncated = Meter("embedding", patience_s=2.0), 0, 0
    try:
        while chunk := list(islice(texts, CHUNK)):
            encoded = encoder.encode(chunk, task=task, dimensions=dimensions)
            done += len(chunk)
            truncated += int(encoded.truncated.sum())
            meter.update("embedding", done, total)
            yield encoded
    finally:
        meter.close()
    if truncated:
        note(f"note: {truncated:,} of {done:,} texts were truncated to {encoder.max_tokens:,} tokens")


def _json_lines(chunks: Iterator[Encoded]) -> Iterator[bytes]:
    from api.responses.embed import embed_items

    start = 0
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    for encoded in chunks:
        yield b"".join(orjson.dumps(item, option=option) for item in embed_items(encoded, start))
        start += len(encoded)


def _document(encoded: Encoded, encoder: Encoder) -> bytes:
    from api.responses.embed import embed_response

    return embed_response(encoded, encoder.name, encoder.fingerprint) + b"\n"


def _array(encoded: Encoded) -> bytes:
    buffer = io.BytesIO()
    if encoded.dense is not None:
        np.save(buffer, encoded.dense.vectors, allow_pickle=False)
    return buffer.getvalue()


def _write(payloads: Iterable[bytes], output: Path | None) -> None:
    """Write to stdout, or replace a file atomically.

    A pipe or a device is written directly. A symbolic link is kept, and its target is replaced.
    """
    from indexing.storage.files import replacing

    if output is None:
        for payload in payloads:
            out_bytes(payload)
        return
    try:
        path = output.resolve()
        with path.open("wb") if path.exists() and not path.is_file() else replacing(path) as stream:
            for payload in payloads:
                stream.write(payload)
    except OSError as error:
        raise EmbedserveError(f"cannot write {output}: {error.strerror}", field="output") from None
