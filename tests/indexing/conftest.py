"""A small encoder, a data folder and a collection in it."""

import pytest

from indexing import build_collection
from indexing.collections.catalog import collection_path
from tests.indexing.bag import BagEncoder, make_documents


@pytest.fixture
def encoder():
    return BagEncoder()


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def directory(data_dir, encoder):
    """The directory of a finished collection of 40 documents."""
    path = collection_path(data_dir, "docs")
    build_collection(make_documents(40), encoder, path, batch_size=16)
    return path
