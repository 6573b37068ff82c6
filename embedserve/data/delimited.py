"""Tables: comma- or tab-separated values below a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO

from embedserve.data.records import BadRecord, Record
from embedserve.data.text_files import lines_or_faults
from embedserve.errors import InputError

UNCLOSED = "unexpected end of data"


def read_table(stream: IO[bytes], name: str, delimiter: str) -> Iterator[Record | BadRecord]:
    """Yield one record for each row below the header; a record's place is the line it begins on."""
    csv.field_size_limit(2**31 - 1)  # the module refuses fields above 128 KiB otherwise
    faults: list[BadRecord] = []  # lines of the row at hand that are not UTF-8
    rows = csv.reader(table_lines(stream, name, faults), delimiter=delimiter, strict=True)
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
            faults.clear()
            yield BadRecord(where, problem, None)
            continue
        if row is None:
            return
        if faults:
            if header is None:
                raise faults[0].error
            yield faults[0]
            faults.clear()
        elif header is None:
            header = check_header(row, where) if row else None
        elif len(row) != len(header) and row:
            problem = InputError(
                f"{where}: {len(row)} values for {len(header)} columns; quote values that hold "
                f"{'a comma' if delimiter == ',' else 'a tab'} or a line end",
                field="source",
            )
            yield BadRecord(where, problem, row)
        elif row:
            yield Record(where, line, dict(zip(header, row, strict=True)))


def table_lines(stream: IO[bytes], name: str, faults: list[BadRecord]) -> Iterator[str]:
    """Yield the lines of a table; those that are not UTF-8 go to ``faults`` too."""
    for line in lines_or_faults(stream, name):
        if isinstance(line, BadRecord):
            faults.append(line)
            line = str(line.raw)
        yield line


def check_header(row: list[str], where: str) -> list[str]:
    """Return the names of the columns; raise `InputError` where two are the same."""
    if len(set(row)) < len(row):
        raise InputError(f"{where}: two columns have the same name", field="source")
    return row


def table_problem(error: csv.Error) -> str:
    """Say what is wrong with a table, also where the csv module speaks to programmers."""
    text = str(error)
    if text.startswith("new-line character"):
        return "a carriage return stands alone; end lines with a line feed, for example with `tr '\\r' '\\n'`"
    return "a quotation mark is not closed" if text == UNCLOSED else text
