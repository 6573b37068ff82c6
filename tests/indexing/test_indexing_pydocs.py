"""The sample collection."""

import json
import warnings

import pytest

from indexing import python_documents


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
    assert stack.text.startswith("numpy.stack(arrays, axis=0, out=None")
    assert "Join a sequence of arrays along a new axis." in stack.text
    assert stack.metadata == {"package": "numpy", "module": "numpy", "kind": "function"}
    assert by_id["torch.nn.Linear"].metadata["kind"] == "class"
    assert by_id["str.split"].metadata == {"package": "builtins", "module": "builtins", "kind": "method"}


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
