"""Sources read on past their bad records, compressed with zstd, or saved by Hugging Face datasets."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve.data.records import BadRecord
from embedserve.errors import InputError
from indexing import Document, read_documents
from indexing.sources.corpus import count_documents, read_all

LINES = [b'{"id": "a", "text": "one"}\n', b"{oops\n", b"\n", b'{"text": ""}\n', b'{"text": "caf\xe9"}\n', b"[1]\n"]
LAST = b'{"id": "b", "text": "two", "title": "T", "n": 5}\n'
EXPECTED = [Document("a", "one"), Document("b", "two", "T", {"n": 5})]


def split(found):
    found = list(found)
    bad = [item for item in found if isinstance(item, BadRecord)]
    return [item for item in found if isinstance(item, Document)], bad


def test_bad_lines_are_told_and_reading_goes_on(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"".join(LINES) + LAST)
    documents, bad = split(read_all(path))
    assert documents == EXPECTED
    assert documents[1].where == f"{path}, line 7"
    assert [item.where for item in bad] == [f"{path}, line {number}" for number in (2, 4, 5, 6)]
    assert bad[0].reason.startswith("not valid JSON")
    assert bad[1].reason.startswith("text is empty")
    assert bad[2].reason.startswith("byte 14 of the line is not UTF-8")
    assert [item.raw for item in bad] == ["{oops", {"text": ""}, '{"text": "caf\udce9"}\n', [1]]


def test_bad_rows_of_a_table_are_told_and_reading_goes_on(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(b'id,text\na,one\nb\nc,caf\xe9\nd,"x"y\ne,"two\nlines"\nf,\n')
    documents, bad = split(read_all(path))
    assert documents == [Document("a", "one"), Document("e", "two\nlines")]
    assert [item.where.removeprefix(f"{path}, ") for item in bad] == ["line 3", "line 4", "line 5", "line 8"]
    assert [item.raw for item in bad] == [["b"], "c,caf\udce9\n", None, {"id": "f", "text": ""}]
    path.write_bytes(b'id,text\na,one\nb,"never closed\nc,swallowed\n')
    with pytest.raises(InputError, match="line 3: a quotation mark is never closed"):
        list(read_all(path))


def test_a_file_that_is_not_utf8_is_one_bad_record_of_its_folder(tmp_path):
    for name, data in (("a.txt", b"fine"), ("b.txt", b"\xff"), ("c/d.md", b"fine too"), ("c/e.md", b" ")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    documents, bad = split(read_all(tmp_path))
    assert [document.id for document in documents] == ["a.txt", "c/d.md"]
    assert [item.where for item in bad] == [str(tmp_path / "b.txt"), str(tmp_path / "c" / "e.md")]


def test_rows_of_parquet_without_text(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"text": "fine"}, {"text": None}, {"text": "too"}]), tmp_path / "c.parquet")
    documents, bad = split(read_all(tmp_path / "c.parquet"))
    assert [document.id for document in documents] == ["1", "3"]
    assert bad[0].reason == "text must be a string, got NoneType"


@pytest.mark.parametrize("name", ["c.jsonl.zst", "corpus.jsonl.zst"])
def test_zstd(tmp_path, name):
    data = b'{"id": "a", "text": "one"}\n' * 1 + LAST
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in (data[:10], data[10:])]
    path = tmp_path / name
    path.write_bytes(b"".join(frames))
    source = tmp_path if name.startswith("corpus") else path
    assert list(read_documents(source)) == EXPECTED
    assert count_documents(source) == 2
    for damaged in (path.read_bytes()[:-3], data):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"zst is not a complete zstd file"):
            list(read_documents(source))


def test_a_dataset_that_datasets_saved(tmp_path):
    rows = [{"id": f"d{n}", "text": f"text {n}", "n": n} for n in range(2500)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    expected = [Document(f"d{n}", f"text {n}", "", {"n": n}) for n in range(2500)]
    for source in (tmp_path / "one", f"hf:{tmp_path / 'one'}"):
        assert list(read_documents(source)) == expected
        assert count_documents(source) == 2500
    parts = {"train": datasets.Dataset.from_list(rows[:2]), "test": datasets.Dataset.from_list(rows[2:5])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert list(read_documents(f"hf:{tmp_path / 'two'}:test")) == expected[2:5]
    with pytest.raises(InputError, match=f"has the splits train, test; choose one: hf:{tmp_path / 'two'}:train or hf:"):
        list(read_documents(tmp_path / "two"))
    with pytest.raises(InputError, match="has no splits; remove 'test'"):
        list(read_documents(f"hf:{tmp_path / 'one'}:test"))


def test_datasets_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="hf:nobody/nothing cannot be read"):
        list(read_documents("hf:nobody/nothing"))
    with pytest.raises(InputError, match=r"was not written by save_to_disk"):
        read_documents(tmp_path, fmt="dataset")
    with pytest.raises(InputError, match="is a Hugging Face dataset, not csv"):
        read_documents("hf:x", fmt="csv")


def test_records_keep_the_order_of_good_and_bad(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": "x" if n % 3 else ""}) + "\n" for n in range(9)))
    assert [isinstance(item, BadRecord) for item in read_all(path)] == [n % 3 == 0 for n in range(9)]
