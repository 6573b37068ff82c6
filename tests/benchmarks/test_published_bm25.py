"""The BM25 numbers of README and docs are those of the recorded runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.local_sets import LABELS
from benchmarks.harness.systems import load_system, revision_of

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "benchmarks" / "results" / "bm25.json").read_text())
BM25, HYBRID, DIAGNOSTICS = (run["tasks"] for run in RECORDED["runs"])
BY_LABEL = {LABELS[task]: values["score"] for task, values in BM25.items()}


def percent(score):
    return f"{100 * score:.1f}"


def table_rows(path, first_cell):
    """Cells of the table rows of a page that begin with ``first_cell``, without bold."""
    lines = (ROOT / path).read_text(encoding="utf-8").replace("**", "").splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {first_cell}")]


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        (
            "README.md",
            {"SciFact (": "SciFact", "SQuAD-dev (": "SQuAD-dev", "Cranfield (": "Cranfield", "MedQuAD (": "MedQuAD"},
        ),
        (
            "embedserve/nano/README.md",
            {
                "SciFact |": "SciFact", "SQuAD-dev (": "SQuAD-dev", "Cranfield |": "Cranfield", "MedQuAD |": "MedQuAD",
                "docstring to Python function |": "pydoc-code",
            },
        ),
    ],
)  # fmt: skip
def test_the_columns_of_the_model_card(path, rows):
    for first_cell, label in rows.items():
        (row,) = table_rows(path, first_cell)
        assert row[-1] == percent(BY_LABEL[label]), label


def test_the_matrix():
    means, scores, against, diagnostics, effects = table_rows("docs/results.md", "bm25 |")
    retrieval = [values["score"] for task, values in BM25.items() if not task.endswith("Reranking")]
    assert means[5:7] == [percent(np.mean(retrieval)), percent(BY_LABEL["TrecQA"])]
    labels = next(row[1:] for row in table_rows("docs/results.md", "system |") if "Cranfield" in row)
    assert scores[1:] == [percent(BY_LABEL[label]) for label in labels]
    (mean,) = (row for row in table_rows("docs/results.md", "mean |") if len(row) == len(scores))
    gaps = [100 * BY_LABEL[label] - float(score) for label, score in zip(labels, mean[1:], strict=True)]
    assert against[2] == f"+{np.mean(gaps):.1f}"
    assert against[3:5] == [str(sum(gap > 0 for gap in gaps)), str(sum(gap < 0 for gap in gaps))]
    names = next(row[1:] for row in table_rows("docs/results.md", "system |") if "Keywords" in row)
    expected = [percent(DIAGNOSTICS[f"LocalDiagnostic{name}Retrieval"]["score"]) for name in names]
    assert [cell.split(" ")[0] for cell in diagnostics[1:]] == expected
    longer = 100 * (
        DIAGNOSTICS["LocalDiagnosticLengthLongRetrieval"]["score"]
        - DIAGNOSTICS["LocalDiagnosticLengthShortRetrieval"]["score"]
    )
    assert effects[2].startswith(f"−{-longer:.1f} ")
    (validation,) = table_rows("docs/results.md", "BM25 on SciFact")
    assert validation[-1] == f"{100 * BY_LABEL['SciFact']:.2f}"


@pytest.mark.parametrize(("first_cell", "tasks"), [("BM25 |", BM25), ("mean and BM25", HYBRID)])
def test_indexes_as_search_engines(first_cell, tasks):
    (row,) = table_rows("docs/results.md", first_cell)
    sets = [tasks[name] for name in ("LocalHumanEvalCodeRetrieval", "LocalCranfieldRetrieval")]
    size = sum(values["index_bytes"] for values in sets) / sum(values["documents"] for values in sets)
    assert row[1:] == [*(percent(values["score"]) for values in sets), f"{size:,.0f}"]


def test_the_recorded_scores_are_of_the_present_settings():
    bm25, hybrid, diagnostics = (run["revision"] for run in RECORDED["runs"])
    assert bm25 == diagnostics == revision_of(load_system("bm25", "cpu"))
    assert hybrid == revision_of(load_system("mean#hybrid-bm25", "cpu"))
