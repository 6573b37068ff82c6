"""Parity of EmbedFilter and echo embeddings with their published code."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedserve import Encoder, EncoderSpec
from embedserve.strategies.embedfilter import directions_of, filter_matrix
from tests.embedserve.golden_files import GOLDEN, TEXTS, arrays, backbone, unit

RUNS = json.loads((GOLDEN / "embfilter" / "index.json").read_text())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_embedfilter_equals_the_published_code(run):
    drop = run["filter_type"].split()[0]
    post = (f"embedfilter:{run['filter_ratio']}:{drop}",)
    if run["kind"] == "prompteol":
        spec = EncoderSpec("prompteol", backbone(run["name"]), {"template": run["template"]}, post=post)
    else:
        spec = EncoderSpec("echo", backbone(run["name"]), post=post)
    expected = unit(arrays(f"embfilter/{run['name']}.npz")["raw"])
    found = Encoder.load(spec, device="cpu").embed(TEXTS).vectors
    assert found.shape == expected.shape
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize("run", [run for run in RUNS if run["filter_ratio"] > 1], ids=lambda run: run["name"])
def test_filter_rows_are_the_published_ones_up_to_sign(run):
    expected = arrays(f"embfilter/{run['name']}.npz")["filter_weight"]
    weight = filter_matrix(
        directions_of(Path(backbone(run["name"]))), run["filter_ratio"], run["filter_type"].split()[0]
    ).numpy()
    np.testing.assert_allclose(np.abs((weight * expected).sum(axis=1)), 1.0, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "before", "repeat", "prompt"),
    [
        ("qwen2_document", "Document:", "\nDocument again:", ""),
        ("llama_query", "\nQuery:", "\nQuery again:", "Instruct:Retrieve similar text,"),
    ],
)
def test_echo_equals_the_published_code(run, before, repeat, prompt):
    task, options = run.split("_")[1], {"before": before, "repeat": repeat}
    spec = EncoderSpec("echo", backbone(run), options, max_tokens=256, prompts={task: prompt})
    expected = arrays(f"echo/{run}.npz")
    rows = Encoder.load(spec, device="cpu").tokenize(TEXTS, task)
    for ids, start, golden_ids, golden_mask in zip(
        rows.ids, rows.pooled_from, expected["input_ids"], expected["embed_mask"], strict=True
    ):
        assert ids.tolist() == golden_ids[: len(ids)].tolist()
        assert start == golden_mask.argmax()
    found = Encoder.load(spec, device="cpu").embed(TEXTS, task).vectors
    np.testing.assert_allclose(found, unit(expected["mean"]), atol=1e-5)
    last = Encoder.load(replace(spec, options={**options, "pooling": "last_token"}), device="cpu")
    np.testing.assert_allclose(last.embed(TEXTS, task).vectors, unit(expected["last"]), atol=1e-5)
