"""Reads Parquet files and Hugging Face datasets through Arrow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from embedserve.data.records import Record
from embedserve.errors import InputError

ROWS = 1024  # rows converted to Python values at a time
HUB = "hf:"


def open_parquet(path: Path) -> Any:
    """Return the `pyarrow.parquet.ParquetFile` at ``path``, or raise `InputError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} is not a regular file; Parquet needs random access", field="source")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a complete Parquet file: {error}", field="source") from None


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file, with one row group in memory at a time."""
    import pyarrow as pa

    file = open_parquet(path)
    number = 0
    try:
        for batch in file.iter_batches(batch_size=ROWS):
            for record in records_of(batch, str(path), number):
                number = record.number
                yield record
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}, after row {number}: {error}", field="source") from None


def read_dataset(source: str) -> Iterator[Record]:
    """Yield the rows of the Hugging Face dataset of `open_dataset`, with ``ROWS`` in memory at a time."""
    number = 0
    for batch in open_dataset(source).with_format("arrow").iter(batch_size=ROWS):
        for record in records_of(batch, source, number):
            number = record.number
            yield record


def count_dataset(source: str) -> int | None:
    """Return the number of rows of a Hugging Face dataset; None if it is unknown without reading it."""
    rows = open_dataset(source)
    return len(rows) if hasattr(rows, "__len__") else None


def open_dataset(source: str) -> Any:
    """Return a Hugging Face dataset: a folder of ``save_to_disk``, or ``hf:NAME[:SPLIT]``, streamed from the Hub.

    Raises:
        InputError: ``datasets`` is not installed, the dataset does not exist, or it has several splits and none is
            named.
    """
    try:
        import datasets
    except ImportError:
        message = f"{source} is a Hugging Face dataset; to read it, run: pip install 'embedserve[datasets]'"
        raise InputError(message, field="source") from None
    name, _, split = source.removeprefix(HUB).partition(":")
    try:
        is_folder = Path(name).is_dir()
        dataset = datasets.load_from_disk(name) if is_folder else datasets.load_dataset(name, streaming=True)
    except Exception as error:  # the library and the Hub raise many types of errors
        raise InputError(f"{source} cannot be read: {type(error).__name__}: {error}", field="source") from None
    if not isinstance(dataset, dict):
        if split:
            raise InputError(f"{name} has no splits; remove {split!r}", field="source")
        return dataset
    if not split and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        known = " or ".join(f"{HUB}{name}:{each}" for each in dataset)
        raise InputError(f"{name} has the splits {', '.join(map(str, dataset))}; choose one: {known}", field="source")
    return dataset[split]


def is_dataset(folder: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk`` of ``datasets``."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def records_of(batch: Any, name: str, offset: int) -> Iterator[Record]:
    """Yield the rows of an Arrow table as records; ``offset`` rows come before it."""
    for number, values in enumerate(batch.to_pylist(), start=offset + 1):
        yield Record(f"{name}, row {number}", number, {key: to_json_value(value) for key, value in values.items()})


def to_json_value(value: Any) -> Any:
    """Return a JSON value: times in ISO 8601, bytes in hex, NaN as null, other types as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(name): to_json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)
