"""The sample collection."""

import json
import sys
import warnings

import pytest

from indexing.sources.python_docs import MAX_DESCRIPTION, description, module_members, python_documents


@pytest.fixture(scope="module")
def sample():
    return list(python_documents())


def test_it_has_what_everyone_looks_for(sample):
    by_id = {document.id: document for document in sample}
    assert len(by_id) == len(sample)
    assert 4000 <= len(sample) <= 8000
    for name in (
        "numpy.stack", "json.loads", "functools.lru_cache", "torch.nn.Linear", "itertools.chain", "os.path.join",
        "len", "str.split", "pathlib.Path.glob", "torch.stack", "fastapi.FastAPI", "pydantic.BaseModel",
    ):  # fmt: skip
        assert by_id[name].title == name
    stack = by_id["numpy.stack"]
    assert stack.text.startswith("Join a sequence of arrays along a new axis.")
    signature = stack.metadata["signature"]
    assert signature.startswith("numpy.stack(arrays, axis=0, out=None")
    assert stack.metadata == {"package": "numpy", "module": "numpy", "kind": "function", "signature": signature}
    assert by_id["torch.nn.Linear"].metadata["kind"] == "class"
    assert by_id["str.split"].metadata == {
        "package": "builtins", "module": "builtins", "kind": "method",
        "signature": "str.split(self, /, sep=None, maxsplit=-1)",
    }  # fmt: skip


def test_a_signature_that_python_does_not_know_is_taken_from_the_docstring_or_empty(sample):
    signatures = {document.id: document.metadata["signature"] for document in sample}
    assert signatures["torch.stack"] == "torch.stack(tensors, dim=0, *, out=None)"
    assert signatures["range"] == "range(stop)"
    assert signatures["datetime.date.today"] == ""
    assert sum(not signature for signature in signatures.values()) < len(sample) / 10


def test_texts_hold_neither_sections_nor_code(sample):
    for line in ("----", "Args:", "Example::", ">>>", ".. note", ":param", ":func:`", "```"):
        assert not [document.id for document in sample if f"\n{line}" in f"\n{document.text}"], line
    assert sum(len(document.text) > MAX_DESCRIPTION for document in sample) < len(sample) / 10


def test_it_is_the_same_every_time(sample):
    assert list(python_documents()) == sample
    assert [document.id for document in sample] == sorted(document.id for document in sample)


def test_names_are_public_and_metadata_is_json(sample):
    assert not [document.id for document in sample if any(part.startswith("_") for part in document.id.split("."))]
    assert all(json.loads(json.dumps(document.metadata)) == document.metadata for document in sample)


def test_the_callers_warnings_stay_as_they_were():
    before = list(warnings.filters)
    documents = python_documents("json abc", "")
    next(documents)
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)
    assert list(documents)


def test_a_module_that_is_not_there_is_left_out():
    assert "json.loads" in {document.id for document in python_documents("no_such_module json", "")}


PROSE = "Do it well.\nTwo lines of it.\n\nMore of it."


@pytest.mark.parametrize(
    "block",
    [
        "Parameters\n----------\nx : int\n    A number.",
        "Args:\n    x: A number.",
        "Keyword args:\n    x: A number.",
        "Example::\n\n    do(1)",
        ":param x: A number.",
        ":returns: A number.",
        ".. note::\n    Take care.\n\n    Really.",
        ".. deprecated:: 1.2\n    Not any more.",
        ".. math::\n    x + y",
        "!!! warning\n    Take care.",
        "## Example",
        "**Example**",
        "```python\ndo(1)\n```",
        ">>> do(1)",
        "  x\n    A number.",
    ],
)
def test_a_description_ends_at_the_first_block(block):
    assert description(f"{PROSE}\n\n{block}\n\nAnd another thing.") == PROSE
    assert description(f"{block}\n\n{PROSE}") == PROSE  # nothing stands before it: the prose is behind it
    if not block.startswith(" "):
        assert description(f"{PROSE}\n{block}") == PROSE


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("stack(tensors, dim=0, *, out=None) -> Tensor\n\nJoins tensors.", "Joins tensors."),
        ("max(a, *, key=f(x)) -> value\nmax(a, b) -> value\n\nReturn it.", "Return it."),
        ("array(object,\n      ndmin=0)\n\nCreate an array.", "Create an array."),
        ("bool(value=False, /)\n--\n\nBoolean type.", "Boolean type."),
        ("D.pop(k[,d]) -> v, remove the key and return the value.", "v, remove the key and return the value."),
        ("disable(): disable the handler", "disable the handler"),
        ("partial(func) - new function\nof it.", "new function\nof it."),
        ("get_ctx() returns the context.", "get_ctx() returns the context."),
        ("Return (x1 == x2) element-wise.", "Return (x1 == x2) element-wise."),
        ("wait(future) -> object", "wait(future) -> object"),  # there is nothing else
    ],
)
def test_a_description_has_no_signature(doc, expected):
    assert description(doc) == expected


def test_a_description_has_the_text_of_roles():
    assert description("See :class:`~torch.nn.Fold` and\n:func:`torch.add`.") == "See torch.nn.Fold and\ntorch.add."


def test_a_description_is_not_cut_within_a_paragraph():
    long, short = "word " * MAX_DESCRIPTION, "word"
    assert description(f"{long}\n\n{short}") == long.strip()
    assert description(f"{short}\n\n{long}\n\n{short}") == short
    assert description(f"{short}\n\n{short}") == f"{short}\n\n{short}"


def test_a_description_is_empty_for_nothing():
    assert description("") == ""


def test_what_a_program_replaces_is_described_as_it_was(monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    found = {entry.name: entry.value for entry in module_members(["sys"])}
    assert found["sys.excepthook"] is sys.__excepthook__
