"""The document database: order, ids, threads, and what it refuses."""

import datetime
import functools
import json
import math
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import CorruptFileError, InputError, NotFoundError
from indexing import Document, read_documents
from indexing.segments import document_table as documents_module
from indexing.segments.document_table import DocumentStore, DocumentWriter
from indexing.segments.metadata_json import encode_metadata, metadata_problem
from tests.indexing.bag import make_documents


def write(path, *batches):
    writer = DocumentWriter(path)
    try:
        for batch in batches:
            writer.add(batch)
        writer.finish()
    finally:
        writer.close()
    return path


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(min_size=1).filter(str.strip)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(TEXT, TEXT, st.text(), st.dictionaries(st.text(), JSON, max_size=3)), unique_by=lambda t: t[0])
)
def test_what_goes_in_comes_out(tmp_path_factory, values):
    documents = [Document(*value) for value in values]
    store = DocumentStore(write(tmp_path_factory.mktemp("store") / "d.sqlite", documents))
    assert list(store) == documents
    assert len(store) == len(documents)
    store.close()


def test_rows_come_in_the_order_asked_for(tmp_path):
    documents = make_documents(1200)
    store = DocumentStore(write(tmp_path / "a folder?#%.sqlite", documents[:700], documents[700:]))
    rows = [1199, 0, 7, 7, *range(1100, 0, -1)]
    assert store.get(rows) == [documents[row] for row in rows]
    assert store.get([]) == []
    with pytest.raises(NotFoundError, match="row 1200 does not exist; there are 1200"):
        store.get([0, 1200])
    store.close()


def test_many_threads_may_read(tmp_path):
    documents = make_documents(300)
    store = DocumentStore(write(tmp_path / "d.sqlite", documents))
    with ThreadPoolExecutor(8) as pool:
        for start, found in zip(range(200), pool.map(lambda n: store.get(range(n, n + 50)), range(200)), strict=True):
            assert found == documents[start : start + 50]
    store.close()


def test_an_open_store_reads_on_when_its_file_is_taken_away(tmp_path):
    documents = make_documents(2000)
    store = DocumentStore(write(tmp_path / "d.sqlite", documents))
    (tmp_path / "d.sqlite").unlink()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: list(store), range(2))) == [documents, documents]
    store.close()


@pytest.mark.parametrize("split", [0, 3, 5])
def test_an_id_twice_is_named_with_both_places(tmp_path, split):
    documents = make_documents(9)
    documents[6] = Document("old-2", "other text")
    with pytest.raises(InputError, match=r"documents 3 and 7 have the same id 'old-2'.*--id-field") as raised:
        write(tmp_path / "d.sqlite", documents[:split], documents[split:])
    assert raised.value.field == "id"


@pytest.mark.parametrize("value", [{1, 2}, object(), "\ud800", b"bytes"])
def test_metadata_that_is_not_json_is_named(tmp_path, value):
    with pytest.raises(InputError, match="metadata of document 'a' is not JSON"):
        write(tmp_path / "d.sqlite", [Document("a", "text", metadata={"field": value})])


@pytest.mark.parametrize("split", [0, 3, 5])
def test_an_id_twice_is_named_with_file_and_line(tmp_path, split):
    lines = [json.dumps({"id": document.id, "text": document.text}) for document in make_documents(9)]
    lines[6] = lines[2]
    source = tmp_path / "c.jsonl"
    source.write_text("\n\n".join(lines))
    documents = list(read_documents(source))
    words = rf"^{source}, line 5 and {source}, line 13 have the same id 'old-2'"
    with pytest.raises(InputError, match=words):
        write(tmp_path / "d.sqlite", documents[:split], documents[split:])


def test_only_the_database_is_left(tmp_path):
    write(tmp_path / "d.sqlite", make_documents(9))
    assert [path.name for path in tmp_path.iterdir()] == ["d.sqlite"]


def test_a_database_that_cannot_be_begun_is_closed(tmp_path, monkeypatch):
    opened = []

    class Failing(sqlite3.Connection):
        def execute(self, *arguments):
            opened.append(self)
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(documents_module.sqlite3, "connect", partial(sqlite3.connect, factory=Failing))
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        DocumentWriter(tmp_path / "d.sqlite")
    (tmp_path / "e.sqlite").touch()
    with pytest.raises(CorruptFileError, match="disk I/O error"):
        DocumentStore(tmp_path / "e.sqlite")
    assert len(opened) == 2
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.cursor()


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, float("nan"), float("-inf"), "a\ud800", {"\udfff": 1}, nested(250), nested(100_000)]
)
def test_metadata_that_no_answer_could_hold_is_refused_where_it_is_read(tmp_path, value):
    document = Document("a", "text", metadata={"fine": 1, "bad": {"inner": [value]}}, where="c.jsonl, line 7")
    with pytest.raises(
        InputError, match=r"^c\.jsonl, line 7: metadata of document 'a' is not JSON: field 'bad': "
    ) as e:
        write(tmp_path / "d.sqlite", [document])
    assert e.value.field == "metadata"


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), 1e308, nested(200), "\0"])
def test_metadata_at_the_limits_can_be_answered(tmp_path, value):
    store = DocumentStore(write(tmp_path / "d.sqlite", [Document("a", "text", metadata={"field": value})]))
    metadata = store.get([0])[0].metadata
    assert metadata == {"field": value}
    assert orjson.loads(orjson.dumps({"results": [{"hits": [{"metadata": metadata}]}]}))
    store.close()


@pytest.mark.parametrize("content", [b"", b"not a database at all, not at all" * 100])
def test_what_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "d.sqlite"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"d\.sqlite"):
        DocumentStore(path)
    with pytest.raises(CorruptFileError, match=r"none\.sqlite"):
        DocumentStore(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("", "text"), "id is empty"),
        ((1, "text"), "id must be a string, got int"),
        (("a", None), "text must be a string, got NoneType"),
        (("a", " \n"), "text is empty"),
        (("a", "text", 3), "title must be a string, got int"),
        (("a", "te\udfffxt"), "text is not valid Unicode at character 2"),
    ],
)
def test_unusable_documents_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        Document(*values)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"text": 'quote " and ü and \n', "n": 1, "x": -0.0, "big": 2**63 - 1, "none": None, "yes": True},
        {"list": [1, "a", {"deep": [[]]}], "tuple": (1, 2)},
        {"small": 1e-300, "float": 0.1, "zero": 0},
    ],
)
def test_metadata_is_encoded_as_json_that_reads_back_equal(metadata):
    encoded = encode_metadata(Document("a", "text", metadata=metadata))
    assert json.loads(encoded) == json.loads(json.dumps(metadata))
    assert orjson.loads(encoded) == json.loads(encoded)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        2**64,
        -(2**63) - 1,
        {1: "a"},
        datetime.date(2026, 1, 1),
        uuid.UUID(int=1),
        {"set"},
        "\ud800",
        b"bytes",
        [math.nan],
    ],
    ids=repr,
)
def test_metadata_that_is_not_json_is_rejected_by_field(value):
    with pytest.raises(InputError, match="document 'a' is not JSON: field 'bad'") as rejected:
        encode_metadata(Document("a", "text", metadata={"good": 1, "bad": value}))
    assert rejected.value.field == "metadata"


def test_metadata_may_be_nested_as_deep_as_a_response_allows():
    def nested(depth):
        return {"value": functools.reduce(lambda inner, _: [inner], range(depth), "x")}

    limit = next(depth for depth in range(300) if metadata_problem(nested(depth)))
    assert limit > 200
    encode_metadata(Document("a", "text", metadata=nested(limit - 1)))
    with pytest.raises(InputError):
        encode_metadata(Document("a", "text", metadata=nested(limit)))
