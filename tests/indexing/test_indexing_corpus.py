"""Every format that is read, and every complaint with its file and line."""

import gzip
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve.errors import InputError
from indexing import Document, read_documents
from indexing.sources.corpus import count_documents

RECORDS = [
    {"id": "a", "title": "First", "text": "one text", "year": 2001},
    {"id": "b", "title": "", "text": 'zwei Töne, "quoted"\nand a second line', "year": 2002},
]
EXPECTED = [
    Document("a", "one text", "First", {"year": 2001}),
    Document("b", 'zwei Töne, "quoted"\nand a second line', "", {"year": 2002}),
]


def as_strings(documents):
    return [Document(d.id, d.text, d.title, {k: str(v) for k, v in d.metadata.items()}) for d in documents]


def jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def table(records, delimiter):
    import csv

    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def write(tmp_path, name, data):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return path


def refused(source, words, **options):
    """Assert that reading fails with these words; return the error."""
    with pytest.raises(InputError, match=words) as raised:
        list(read_documents(source, **options))
    return raised.value


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("name", ["c.jsonl", "c.ndjson", "C.JSONL", "c.jsonl.gz", "c.ndjson.gz", "C.JSONL.GZ"])
def test_jsonl(tmp_path, name):
    path = write(tmp_path, name, b"\xef\xbb\xbf" + jsonl(RECORDS) + b"  \n")
    assert list(read_documents(path)) == list(read_documents(str(path))) == EXPECTED
    assert count_documents(path) == 2


@pytest.mark.parametrize(("name", "delimiter"), [("c.csv", ","), ("c.tsv", "\t"), ("c.csv.gz", ",")])
def test_tables(tmp_path, name, delimiter):
    path = write(tmp_path, name, b"\xef\xbb\xbf" + table(RECORDS, delimiter) + b"\r\n")
    assert list(read_documents(path)) == as_strings(EXPECTED)
    assert count_documents(path) == 2


def test_tables_hold_long_fields(tmp_path):
    long = "word " * 100_000
    assert next(read_documents(write(tmp_path, "c.csv", table([{"text": long}], ",")))).text == long


def test_parquet_in_several_row_groups(tmp_path):
    records = [{"id": n, "text": f"text {n}", "tags": ["x", str(n)]} for n in range(2500)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet", row_group_size=700)
    documents = list(read_documents(tmp_path / "c.parquet"))
    assert documents == [Document(str(n), f"text {n}", "", {"tags": ["x", str(n)]}) for n in range(2500)]
    assert count_documents(tmp_path / "c.parquet") == 2500


def test_parquet_values_become_json(tmp_path):
    when = datetime(2026, 1, 2, tzinfo=UTC)
    row = {
        "text": "t",
        "when": when,
        "price": Decimal("1.50"),
        "raw": b"\xff",
        "deep": {"day": when.date()},
        "no": None,
        "nan": [float("nan"), float("inf"), 1.5],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    assert next(read_documents(tmp_path / "c.parquet")).metadata == {
        "when": "2026-01-02T00:00:00+00:00", "price": "1.50", "raw": "ff", "deep": {"day": "2026-01-02"}, "no": None,
        "nan": [None, None, 1.5],
    }  # fmt: skip


def test_a_folder_of_texts(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b.TXT", ".hidden/x.txt", "a/.x.md", "picture.png"):
        write(tmp_path, name, b"\xef\xbb\xbftext of " + name.encode())
    documents = list(read_documents(tmp_path))
    assert [document.id for document in documents] == ["a/b.TXT", "a/z.md", "b.txt"]
    assert documents[0] == Document("a/b.TXT", "text of a/b.TXT")
    assert count_documents(tmp_path) == 3


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder(tmp_path, name):
    records = [
        {"_id": "d1", "title": "Title", "text": "text", "metadata": {"url": "u"}},
        {"_id": "d2", "title": "Only a title", "text": "", "metadata": {}},
    ]
    write(tmp_path, name, jsonl(records))
    write(tmp_path, "readme.md", b"not part of it")
    assert list(read_documents(tmp_path)) == [
        Document("d1", "text", "Title", {"url": "u"}),
        Document("d2", "", "Only a title"),
    ]
    assert [document.id for document in read_documents(tmp_path, fmt="folder")] == ["readme.md"]
    assert count_documents(tmp_path) == 2


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(jsonl(RECORDS) + b"{oops\n")))
    documents = read_documents("-")
    assert [next(documents), next(documents)] == EXPECTED
    with pytest.raises(InputError, match="standard input, line 3: not valid JSON"):
        next(documents)
    assert count_documents("-") is None


@pytest.mark.parametrize(("kind", "data"), [("jsonl", jsonl(RECORDS)), ("csv", table(RECORDS, ","))])
def test_a_pipe_is_read_once_and_counting_leaves_it_alone(tmp_path, kind, data):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert count_documents(pipe, fmt=kind) is None
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pipe.write_bytes, data)
        assert as_strings(read_documents(pipe, fmt=kind)) == as_strings(EXPECTED)
        assert written.result() == len(data)


def test_a_pipe_is_no_parquet_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert count_documents(tmp_path / "pipe", fmt="parquet") is None
    refused(tmp_path / "pipe", "is not a regular file", fmt="parquet")


# ------------------------------------------------------------------ fields


def test_fields_may_have_other_names(tmp_path):
    path = write(tmp_path, "c.jsonl", jsonl([{"key": 7, "body": "text", "name": "n", "x": 1, "y": [2]}]))
    options = {"id_field": "key", "text_field": "body", "title_field": "name"}
    assert list(read_documents(path, **options)) == [Document("7", "text", "n", {"x": 1, "y": [2]})]
    assert list(read_documents(path, **options, metadata_fields=["y", "z"])) == [Document("7", "text", "n", {"y": [2]})]
    assert list(read_documents(path, **options, metadata_fields=[])) == [Document("7", "text", "n")]


def test_without_an_id_the_line_number_serves(tmp_path):
    path = write(tmp_path, "c.jsonl", b'{"text": "x"}\n\n{"text": "y"}\n{"_id": "z", "text": "z"}\n')
    assert [document.id for document in read_documents(path)] == ["1", "3", "z"]
    path = write(tmp_path, "c.csv", b'text\n"two\nlines"\nthird\n')
    assert [document.id for document in read_documents(path)] == ["2", "4"]


def test_a_format_may_be_named(tmp_path):
    path = write(tmp_path, "corpus.data", jsonl(RECORDS))
    assert list(read_documents(path, fmt="jsonl")) == EXPECTED


# ------------------------------------------------------------------ complaints


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{oops", r"line 3: not valid JSON: Expecting .*write one object per line"),
        (b"[1]", "line 3: a record must be a JSON object, got list"),
        (b"[" * 100_000, "line 3: not valid JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 3: not valid JSON"),
        (b'{"text": "caf\xe9"}', r"line 3: byte 14 of the line is not UTF-8; convert the file"),
        (b'{"body": "x", "id": "q"}', r"line 3: no field 'text'; the record has 'body', 'id'; use --text-field NAME"),
        (b"{}", "line 3: no field 'text'; the record has no fields"),
        (b'{"text": 5}', "line 3: text must be a string, got int"),
        (b'{"text": null}', "line 3: text must be a string, got NoneType"),
        (b'{"text": ["a"]}', "line 3: text must be a string, got list"),
        (b'{"text": " "}', "line 3: text is empty and there is no title; add text, or remove the record"),
        (b'{"text": "a\\ud800"}', "line 3: text is not valid Unicode at character 1"),
        (b'{"text": "a", "title": 5}', "line 3: title must be a string, got int"),
        (b'{"text": "a", "id": 1.5}', "line 3: id must be a string, got float"),
        (b'{"text": "a", "id": null}', "line 3: id must be a string, got NoneType"),
        (b'{"text": "a", "id": true}', "line 3: id must be a string, got bool"),
        (b'{"text": "a", "id": ""}', "line 3: id is empty"),
        (b'{"text": "a", "_id": []}', "line 3, field '_id': id must be a string, got list"),
    ],
)
def test_jsonl_complaints_name_file_and_line(tmp_path, line, words):
    path = write(tmp_path, "c.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    error = refused(path, words)
    assert str(path) in error.message
    assert error.field in ("source", "text", "title", "id")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"id,text\na,b\nc,d,e\n", "line 3: 3 values for 2 columns; quote values that hold a comma"),
        (b"id,text\na\n", "line 2: 1 values for 2 columns"),
        (b'id,text\na,"two\nlines"\nb,\n', "line 4: text is empty"),
        (b"id,body\na,b\n", "line 2: no field 'text'; the record has 'id', 'body'; use --text-field NAME"),
        (b"text,text\na,b\n", "line 1: two columns have the same name"),
        (b'id,text\na,"open\n', "line 2: a quotation mark is never closed"),
        (b"id,text\ra,b\r", "line 1: lines end with a carriage return alone; convert them to line feeds"),
        (b'id,text\na,"x"y\n', r"line 2: .* expected after"),
        (b"id,text\na,caf\xe9\n", "line 2: byte 6 of the line is not UTF-8"),
        (b"id,text\n", "has no documents"),
        (b"", "has no documents"),
    ],
)
def test_table_complaints_name_file_and_line(tmp_path, data, words):
    path = write(tmp_path, "c.csv", data)
    assert str(path) in refused(path, words).message


def test_parquet_complaints_name_file_and_row(tmp_path):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": "fine"}, {"text": None}]), path)
    assert str(path) in refused(path, "row 2: text must be a string, got NoneType").message
    refused(path, "row 1: no field 'body'; the record has 'text'; use --text-field NAME", text_field="body")
    pq.write_table(pa.Table.from_pylist([{"text": 1}]), path)
    refused(path, "row 1: text must be a string, got int")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    refused(path, "has no documents")
    pq.write_table(pa.Table.from_pylist([{"text": "x" * 1000}] * 50), path, compression="none")
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, r"c\.parquet is not a complete Parquet file")
    path.write_bytes(b"nothing")
    refused(path, r"c\.parquet is not a complete Parquet file")


def test_parquet_pages_that_are_damaged_are_named(tmp_path):
    path = tmp_path / "c.parquet"
    records = [{"text": f"some text {n}"} for n in range(3000)]
    pq.write_table(pa.Table.from_pylist(records), path, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[2000:2040] = bytes(40)
    path.write_bytes(data)
    assert str(path) in refused(path, "after row 0").message


def test_folder_complaints_name_the_file(tmp_path):
    write(tmp_path, "a.txt", b"fine")
    bad = write(tmp_path, "b.txt", b"one\ntwo \xff\n")
    assert str(bad) in refused(tmp_path, "line 2: not UTF-8").message
    bad.write_bytes(b" \n")
    assert str(bad) in refused(tmp_path, "text is empty").message
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no .txt or .md files")
    write(tmp_path, "other/c.jsonl", jsonl(RECORDS))
    refused(tmp_path / "other", "to read one of its .jsonl files, name the file")


def test_options_that_name_absent_fields_are_refused(tmp_path):
    path = write(tmp_path, "c.jsonl", jsonl(RECORDS))
    for option, name in (("id", "key"), ("title", "name")):
        message = refused(path, f"line 1: no field '{name}'", **{f"{option}_field": name}).message
        assert str(path) in message
        assert f"use --{option}-field NAME" in message


@pytest.mark.parametrize(
    "options", [{"id_field": "key"}, {"text_field": "body"}, {"title_field": "name"}, {"metadata_fields": ["x"]}]
)
def test_texts_in_a_folder_have_no_fields_to_name(tmp_path, options):
    write(tmp_path, "a.txt", b"text")
    with pytest.raises(InputError, match="is a folder of text files, which have no fields"):
        read_documents(tmp_path, **options)


def test_damaged_gzip_is_named(tmp_path):
    path = write(tmp_path, "c.jsonl.gz", jsonl(RECORDS * 100))
    whole = path.read_bytes()
    for data in (whole[:-12], b"no gzip at all", whole[:40] + b"\0\0\0\0" + whole[44:]):
        path.write_bytes(data)
        assert str(path) in refused(path, "is not a complete gzip file|not UTF-8|not valid JSON").message


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("none.jsonl", {}, "does not exist"),
        ("c.json", {}, "has an unknown suffix; known are .jsonl"),
        ("noend", {}, "has an unknown suffix"),
        ("x" * 300, {}, "cannot be read: File name too long"),
        ("c.jsonl", {"fmt": "xml"}, "format must be one of folder, jsonl"),
        ("c.jsonl", {"fmt": "beir"}, "is a file; the format beir needs a folder"),
        (".", {"fmt": "beir"}, "has no corpus.jsonl"),
        (".", {"fmt": "csv"}, "is a folder; pass the csv file itself"),
    ],
)
def test_sources_that_cannot_be_there_are_refused_at_once(tmp_path, name, options, words):
    for existing in ("c.json", "c.jsonl", "noend"):
        write(tmp_path, existing, b'{"text": "x"}')
    for call in (read_documents, count_documents):
        with pytest.raises(InputError, match=words):
            call(tmp_path / name, **options)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.jsonl.gz"])
def test_a_source_that_the_system_refuses_is_named(tmp_path, monkeypatch, name):
    path = write(tmp_path, name, jsonl(RECORDS))

    def forbidden(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", forbidden)
    assert refused(path, "cannot be read: Permission denied").field == "source"


def test_standard_input_is_jsonl_only(monkeypatch):
    with pytest.raises(InputError, match="standard input must be JSONL, not csv"):
        read_documents("-", fmt="csv")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        read_documents("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    refused("-", "standard input has no documents")
