"""Reads CSV and TSV files with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO

from embedserve.data.records import BadRecord, Record
from embedserve.data.text_files import lines_or_errors
from embedserve.errors import InputError

UNCLOSED = "unexpected end of data"


def read_table(stream: IO[bytes], name: str, delimiter: str) -> Iterator[Record | BadRecord]:
    """Yield one record per row below the header; its position is the first line of the row."""
    csv.field_size_limit(2**31 - 1)  # default: 128 KiB
    errors: list[BadRecord] = []  # lines of the current row that are not UTF-8
    rows = csv.reader(table_lines(stream, name, errors), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        where = f"{name}, line {line}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem = InputError(f"{where}: {table_problem(error)}", field="source")
            if header is None or str(error) == UNCLOSED:
                raise problem from None
            errors.clear()
            yield BadRecord(where, problem, None)
            continue
        if row is None:
            return
        if errors:
            if header is None:
                raise errors[0].error
            yield errors[0]
            errors.clear()
        elif header is None:
            header = check_header(row, where) if row else None
        elif len(row) != len(header) and row:
            problem = InputError(
                f"{where}: {len(row)} values for {len(header)} columns; quote values that hold "
                f"{'a comma' if delimiter == ',' else 'a tab'} or a line break",
                field="source",
            )
            yield BadRecord(where, problem, row)
        elif row:
            yield Record(where, line, dict(zip(header, row, strict=True)))


def table_lines(stream: IO[bytes], name: str, errors: list[BadRecord]) -> Iterator[str]:
    """Yield the lines of a table; append those that are not UTF-8 to ``errors``."""
    for line in lines_or_errors(stream, name):
        if isinstance(line, BadRecord):
            errors.append(line)
            line = str(line.raw)
        yield line


def check_header(row: list[str], where: str) -> list[str]:
    """Return the column names; raise `InputError` if two are equal."""
    if len(set(row)) < len(row):
        raise InputError(f"{where}: two columns have the same name", field="source")
    return row


def table_problem(error: csv.Error) -> str:
    """Return a message for users for an error of the csv module."""
    text = str(error)
    if text.startswith("new-line character"):
        return "lines end with a carriage return alone; convert them to line feeds, for example with `tr '\\r' '\\n'`"
    return "a quotation mark is never closed" if text == UNCLOSED else text
