"""embedserve collection: what each command does, what it prints, and what it says of bad input."""

import json

import pytest

from indexing import Collection
from indexing.collections.catalog import collection_path

ROWS = [
    {"id": "rain", "text": "It rained all night.", "year": 2024},
    {"id": "bread", "text": "Knead the dough.", "title": "Bread", "year": 2025},
    {"id": "dog", "text": "a small dog", "year": 2025},
]


@pytest.fixture(autouse=True)
def place(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_MODEL", str(tiny_llama))
    monkeypatch.setenv("EMBEDSERVE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def notes(shell, place):
    assert shell("collection", "create", "notes", "--index", "exact").code == 0
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    result = shell("collection", "upsert", "notes", "-", "--json", stdin=lines)
    assert result.code == 0, result.err
    assert result.json == {"collection": "notes", "upserted": 3, "failed": [], "count": 3}
    return collection_path(place, "notes")


def test_documents_are_written_read_counted_and_deleted(shell, notes, tmp_path):
    lines = shell("collection", "get", "notes").out.splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert [json.loads(line)["id"] for line in shell("collection", "get", "notes", "--limit", 2).out.splitlines()] == [
        "rain", "bread",
    ]  # fmt: skip
    recent = '{"field": "year", "gte": 2025}'
    assert len(shell("collection", "get", "notes", "--filter", recent).out.splitlines()) == 2
    assert json.loads(shell("collection", "get", "notes", "dog").out) == ROWS[2]
    assert shell("collection", "count", "notes").out == "3\n"
    assert shell("collection", "count", "notes", "--filter", recent, "--json").json["count"] == 2
    assert shell("collection", "facet", "notes", "year").out.split() == ["2", "2025", "1", "2024"]
    assert shell("collection", "delete", "notes", "rain", "none", "--json").json["deleted"] == 1
    assert shell("collection", "delete", "notes", "--filter", recent).out == "deleted 2 documents of notes\n"
    assert shell("collection", "count", "notes").out == "0\n"


def test_what_was_written_is_found_by_meaning_words_and_both(shell, notes):
    for mode in (["--mode", "bm25"], ["--field", "bm25"], ["--mode", "hybrid"], ["--mode", "dense"], []):
        result = shell("search", "-c", "notes", "-k", 3, "--json", *mode, "dough")
        assert result.code == 0, result.err
        hits = [hit["id"] for hit in result.json["results"][0]["hits"]]
        assert "bread" in hits
        assert len(hits) == (1 if "bm25" in mode else 3)
    only = shell("search", "-c", "notes", "--json", "--filter", '{"field": "year", "lte": 2024}', "dough")
    assert [hit["id"] for hit in only.json["results"][0]["hits"]] == ["rain"]


def test_bad_records_end_the_command_or_are_left_out(shell, notes):
    lines = b'{"id": "a", "text": "one"}\n{"id": "b"}\n{"id": "c", "text": "two"}\n'
    stopped = shell("collection", "upsert", "notes", "-", stdin=lines)
    assert stopped.code == 2
    assert "line 2" in stopped.err
    skipped = shell("collection", "upsert", "notes", "-", "--on-error", "skip", "--json", stdin=lines)
    assert (skipped.code, skipped.json["upserted"], len(skipped.json["failed"])) == (0, 2, 1)
    assert "skipped: " in skipped.err


def test_snapshots_aliases_and_other_encoders(shell, notes, place, tiny_llama):
    assert shell("collection", "snapshot", "notes", "--name", "first").code == 0
    assert shell("collection", "snapshots", "notes").out == "first\n"
    shell("collection", "delete", "notes", "rain")
    assert shell("collection", "restore", "notes", "first", "--to", "before", "--json").json["count"] == 3
    assert shell("collection", "count", "notes").out == "2\n"
    assert shell("collection", "alias", "current", "notes", "--json").json == {"aliases": {"current": "notes"}}
    assert shell("collection", "count", "current").out == "2\n"
    made = shell("collection", "reembed", "current", "--model", tiny_llama, "--strategy", "last_token", "--json")
    assert (made.json["collection"], made.json["count"]) == ("notes-2", 2)
    assert shell("collection", "alias").out.split() == ["current", "notes-2"]
    assert shell("collection", "compact", "current", "--full").out == "notes-2 has 1 segment\n"
    assert shell("collection", "alias", "current", "--remove").out == ""
    assert shell("collection", "drop", "notes").code == 2
    assert shell("collection", "drop", "notes", "--yes").out == "deleted notes\n"
    assert shell("collection", "count", "notes").code == 3
    assert shell("collection", "restore", "notes", "first").code == 0
    with Collection.open(collection_path(place, "notes")) as collection:
        assert len(collection) == 3


def test_fields_are_named_one_by_one(shell, place):
    result = shell("collection", "create", "many", "--field", "main=dense:hnsw", "--field", "words=words", "--json")
    assert result.json["fields"] == {"main": "dense", "words": "words"}
    for bad in ("x", "x=none", "a=sparse"):
        refused = shell("collection", "create", "other", "--field", bad)
        assert (refused.code, refused.out) == (2, "")
    assert shell("collection", "create", "many").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("count", "none"), 3, "does not exist"),
        (("get", "notes", "missing"), 3, "missing"),
        (("count", "notes", "--filter", "{"), 2, "--filter is not valid JSON"),
        (("count", "notes", "--filter", '{"field": "a"}'), 2, "filter needs one of"),
        (("delete", "notes"), 2, "ids or filter"),
        (("get", "notes", "rain", "--filter", '{"field": "a", "eq": 1}'), 2, "one of them"),
        (("restore", "notes", "none"), 3, "does not exist"),
        (("alias", "current"), 2, "--remove"),
        (("alias", "--remove"), 2, "only the alias"),
        (("upsert", "notes", "none.jsonl"), 2, "does not exist"),
    ],
)
def test_errors_say_what_to_do(shell, notes, arguments, code, says):
    result = shell("collection", *arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert says in result.err


def test_a_writer_elsewhere_is_told(shell, notes):
    with Collection.open(notes, writable=True):
        result = shell("collection", "delete", "notes", "rain", "--json")
    assert result.code == 1
    assert result.error["code"] == "busy"
