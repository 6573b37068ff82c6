"""What the training steps of nano read: token ids of texts, of pairs and of running text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from embedserve.training import sources

if TYPE_CHECKING:
    from embedserve.training.nano import Recipe


class TokenizedTexts:
    """Token ids of many texts in one flat array: ``texts[i]`` is an int32 view."""

    def __init__(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        self.flat, self.lengths = flat, lengths
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> TokenizedTexts:
        """Tokenise ``texts``, each cut to ``max_tokens``."""
        rows = [np.array(e.ids[:max_tokens] or [1], dtype=np.int32) for e in tokenizer.encode_batch_fast(texts)]
        return cls(np.concatenate(rows), np.array([len(row) for row in rows]))


class Batches:
    """What one training step reads, a function of the seed and the step alone: resuming needs no sampler state."""

    def __init__(
        self, texts: TokenizedTexts, pairs: list[tuple[int, int, str]], running: np.ndarray, recipe: Recipe
    ) -> None:
        self.texts, self.running, self.recipe = texts, running, recipe
        self.queries_of: dict[str, dict[int, list[int]]] = {}
        for query, passage, source in pairs:
            self.queries_of.setdefault(source, {}).setdefault(passage, []).append(query)
        self.sources = sorted(self.queries_of)
        self.passages = {source: np.array(sorted(self.queries_of[source])) for source in self.sources}
        share = np.array([len(self.passages[source]) for source in self.sources], dtype=np.float64) ** 0.7
        self.share = share / share.sum()

    def _until(self, candidates: np.ndarray, cost: np.ndarray, budget: int) -> np.ndarray:
        """Return the first candidates whose tokens fit the budget."""
        return candidates[: max(2, int(np.searchsorted(np.cumsum(cost), budget)))]

    def step(self, step: int) -> tuple[list[int], list[int], list[int], np.ndarray]:
        """Return query rows, passage rows, single rows and windows of running text (lm_rows, lm_window)."""
        recipe, lengths = self.recipe, self.texts.lengths
        rng = np.random.default_rng([recipe.seed, 2, step])
        source = self.sources[rng.choice(len(self.sources), p=self.share)]
        passages = self.passages[source]
        passages = rng.choice(passages, min(len(passages), 512), replace=False)
        queries = np.array([rng.choice(self.queries_of[source][passage]) for passage in passages.tolist()])
        kept = self._until(np.arange(len(passages)), lengths[passages] + lengths[queries], recipe.pair_tokens)
        singles = rng.choice(len(self.texts), min(len(self.texts), 1024), replace=False)
        singles = self._until(singles, lengths[singles], recipe.single_tokens)
        starts = rng.integers(0, len(self.running) - recipe.lm_window, recipe.lm_rows)
        windows = np.stack([self.running[start : start + recipe.lm_window] for start in starts])
        return queries[kept].tolist(), passages[kept].tolist(), singles.tolist(), windows


def also_right(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Return (B, B) bool: off the diagonal, passage j and query i share a text, so j is no negative of i."""
    same = (queries[:, None] == queries[None]) | (passages[:, None] == passages[None])
    same |= queries[:, None] == passages[None]
    np.fill_diagonal(same, False)
    return same


class DocumentPairs:
    """Question-passage pairs by document: the negatives of a question are its document's other passages, uncut.

    A question about an article is easily told from passages of other articles. Which of the article's own passages
    answers it is what retrieval has to learn.
    """

    def __init__(self, data_dir: Path, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.recipe = recipe
        found: dict[str, dict[str, list[str]]] = {}  # title -> passage -> its questions
        for row in sources.read_gz(data_dir / "pairs" / f"{sources.DOCUMENT_SOURCE}.jsonl.gz"):
            if not sources.is_held_out(row["title"]):
                found.setdefault(row["title"], {}).setdefault(row["pos"], []).append(row["query"])
        limit = recipe.document_max_tokens

        def encode(texts: list[str]) -> list[np.ndarray]:
            return [np.array(e.ids[:limit] or [1], dtype=np.int32) for e in tokenizer.encode_batch_fast(texts)]

        self.documents = [
            [(passage, encode(questions)) for passage, questions in zip(encode(list(by)), by.values(), strict=True)]
            for by in found.values()
        ]

    def step(self, step: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Return token ids of questions and of their passages, and which others are right too (none), (B, B)."""
        rng = np.random.default_rng([self.recipe.seed, 3, step])
        questions: list[np.ndarray] = []
        passages: list[np.ndarray] = []
        spent = 0
        for document in rng.permutation(len(self.documents)).tolist():
            for place in rng.permutation(len(self.documents[document])).tolist():
                passage, asked = self.documents[document][place]
                question = asked[rng.integers(len(asked))]
                spent += len(passage) + len(question)
                if spent > self.recipe.document_tokens and len(questions) > 1:
                    return questions, passages, np.zeros((len(questions), len(questions)), dtype=bool)
                questions.append(question)
                passages.append(passage)
        return questions, passages, np.zeros((len(questions), len(questions)), dtype=bool)


def running_text(data_dir: Path, tokenizer: Tokenizer, seed: int, max_chars: int) -> np.ndarray:
    """Return token ids of whole documents one after another, <|endoftext|> between them, int32."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    for name in sources.TEXT_SOURCES:
        documents = [
            row["text"]
            for row in sources.read_gz(data_dir / "text" / f"{name}.jsonl.gz")
            if not sources.is_held_out(row["title"])
        ]
        budget = max_chars
        for place in rng.permutation(len(documents)):
            if budget <= 0:
                break
            text = documents[place][:50_000]
            budget -= len(text)
            parts.append(np.array([*tokenizer.encode(text).ids, 1], dtype=np.int32))
    order = rng.permutation(len(parts))
    return np.concatenate([parts[place] for place in order])
