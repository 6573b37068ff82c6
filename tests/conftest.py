"""Tiny models and an offline, isolated environment for every test."""

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from tests import tiny

torch.set_num_threads(1)
# The background jobs of a shell ignore SIGINT, and so would the builds that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """A random decoder of each family, in Hugging Face layout."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.save_model(family, root / family) for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def tiny_llama(tiny_models) -> Path:
    return tiny_models["llama"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """No test reads the settings or the data of the person who runs it."""
    for name in list(os.environ):
        if name.startswith("EMBEDSERVE_") and name != "EMBEDSERVE_EVAL_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("EMBEDSERVE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EMBEDSERVE_CACHE_DIR", str(tmp_path / "cache"))
