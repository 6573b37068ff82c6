"""The words of many texts: runs that are merged, and the same bytes however they were cut."""

import random

import numpy as np
import pytest

from indexing.engines import bm25_runs as word_runs
from indexing.engines.bm25_postings import GrowingWords, SavedWords, words_of
from indexing.engines.bm25_runs import WordRuns


def texts_of(count, seed=0):
    rng = random.Random(seed)
    rare = [f"word{number}" for number in range(400)]
    return [" ".join(["the", *rng.choices(rare, k=rng.randint(0, 12)), "the"]) for _ in range(count)] + ["", "…"]


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("run", "block"), [(1, 1), (50, 7), (700, 100_000), (100_000, 10)])
def test_runs_give_the_bytes_that_one_pass_gives(tmp_path, monkeypatch, run, block):
    monkeypatch.setattr(word_runs, "RUN_POSTINGS", run)
    monkeypatch.setattr(word_runs, "BLOCK_POSTINGS", block)
    texts = texts_of(300)
    runs, whole = WordRuns(tmp_path), GrowingWords()
    for start in range(0, len(texts), 30):
        runs.append(texts[start : start + 30])
    whole.append(texts)
    runs.save(tmp_path / "runs")
    runs.close()
    whole.save(tmp_path / "whole")
    assert bytes_in(tmp_path / "runs") == bytes_in(tmp_path / "whole")
    saved = SavedWords(tmp_path / "runs")
    for word in ("the", "word7", "word399", "nowhere"):
        rows, counts = saved.postings(word, len(texts))
        having = [(row, words_of(text).count(word)) for row, text in enumerate(texts) if word in words_of(text)]
        assert list(zip(rows.tolist(), counts.tolist(), strict=True)) == having
    np.testing.assert_array_equal(saved.lengths(len(texts)), [len(words_of(text)) for text in texts])


def test_no_words_at_all_are_written_and_read(tmp_path):
    runs = WordRuns(tmp_path)
    runs.append(["", "!"])
    runs.save(tmp_path / "words")
    runs.close()
    assert len(SavedWords(tmp_path / "words")) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "words"]
