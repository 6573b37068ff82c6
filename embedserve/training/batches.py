"""Training batches of nano: token ids of texts, question-passage pairs and running text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from embedserve.ragged import offsets_of
from embedserve.training import text_folders as sources
from embedserve.training.nano_recipe import Recipe


class TokenizedTexts:
    """Token ids of many texts in one flat array: ``texts[i]`` is an int32 view."""

    def __init__(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        self.flat, self.lengths = flat, lengths
        self.offsets = offsets_of(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> TokenizedTexts:
        """Tokenise ``texts``, each truncated to ``max_tokens``."""
        rows = [np.array(e.ids[:max_tokens] or [1], dtype=np.int32) for e in tokenizer.encode_batch_fast(texts)]
        return cls(np.concatenate(rows), np.array([len(row) for row in rows]))


@dataclass(frozen=True)
class TokenizedPairs:
    """Unique passages and the questions that each answers, in file order."""

    passages: TokenizedTexts
    questions: TokenizedTexts
    questions_of: dict[str, dict[int, list[int]]]  # source -> passage row -> question rows

    @classmethod
    def encode(cls, tokenizer: Tokenizer, pairs: list[sources.Pair], max_tokens: int) -> TokenizedPairs:
        """Tokenise ``pairs``; passage rows follow `unique_passages`."""
        passage_row = {text: row for row, text in enumerate(unique_passages(pairs))}
        question_row = {text: row for row, text in enumerate(dict.fromkeys(pair.query for pair in pairs))}
        questions_of: dict[str, dict[int, list[int]]] = {}
        for pair in pairs:
            by_passage = questions_of.setdefault(pair.source, {})
            by_passage.setdefault(passage_row[pair.passage], []).append(question_row[pair.query])
        return cls(
            TokenizedTexts.encode(tokenizer, list(passage_row), max_tokens),
            TokenizedTexts.encode(tokenizer, list(question_row), max_tokens),
            questions_of,
        )


def unique_passages(pairs: list[sources.Pair]) -> list[str]:
    """Return each passage once, in the order of ``pairs``."""
    return list(dict.fromkeys(pair.passage for pair in pairs))


class Batches:
    """Training batches, each a function of seed and step alone, so that resuming needs no sampler state."""

    def __init__(self, texts: TokenizedTexts, pairs: TokenizedPairs, running: np.ndarray, recipe: Recipe) -> None:
        self.texts, self.pairs, self.running, self.recipe = texts, pairs, running, recipe
        self.sources = sorted(pairs.questions_of)
        self.passages = {source: np.array(list(pairs.questions_of[source])) for source in self.sources}
        tokens = np.array([pairs.passages.lengths[self.passages[source]].sum() for source in self.sources])
        self.share = tokens / tokens.sum()

    def pair_rows(self, rng: np.random.Generator, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Return question rows and their passage rows (B,) of one source, in runs of neighbours, for ``budget`` tokens.

        Neighbouring passages of a file come from one article, manual or module, and are hard negatives of each
        other's questions. Each passage is paired with up to `questions_each` questions and encoded once.
        """
        source = self.sources[rng.choice(len(self.sources), p=self.share)]
        rows, run = self.passages[source], self.recipe.neighbours
        questions: list[int] = []
        passages: list[int] = []
        for start in rng.permutation(np.arange(0, len(rows), run)):
            for passage in rows[start : start + run].tolist():
                answered = self.pairs.questions_of[source][passage]
                answered = rng.permutation(answered)[: self.recipe.questions_each].tolist()
                budget -= int(self.pairs.passages.lengths[passage] + self.pairs.questions.lengths[answered].sum())
                if budget < 0 and len(passages) > 1:
                    return np.array(questions), np.array(passages)
                questions += answered
                passages += [passage] * len(answered)
        return np.array(questions), np.array(passages)

    def crops(self, rng: np.random.Generator, passages: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return `crops_each` random spans of each sufficiently long passage, and the index of each span's passage.

        A span is a query for its own passage (Izacard et al. 2022, section 3.1): it teaches rare words to
        discriminate between passages.

        Args:
            rng: Source of randomness.
            passages: Passage rows (P,); the indices returned are from 0 to P - 1.
        """
        longest = self.recipe.crop_tokens
        spans: list[np.ndarray] = []
        indices: list[int] = []
        for index, row in enumerate(passages.tolist()):
            ids = self.pairs.passages[row]
            for _ in range(self.recipe.crops_each if len(ids) >= 2 * longest else 0):
                length = int(rng.integers(longest // 3, longest + 1))
                start = int(rng.integers(0, len(ids) - length + 1))
                spans.append(ids[start : start + length])
                indices.append(index)
        return spans, np.array(indices, dtype=np.int64)

    def text_rows(self, rng: np.random.Generator, budget: int) -> np.ndarray:
        """Return random rows of the texts (B,) for ``budget`` tokens."""
        mean = len(self.texts.flat) / len(self.texts)
        rows = rng.choice(len(self.texts), min(len(self.texts), int(2 * budget / mean) + 2), replace=False)
        return rows[: max(2, int(np.searchsorted(np.cumsum(self.texts.lengths[rows]), budget)))]

    def windows(self, rng: np.random.Generator) -> np.ndarray:
        """Return windows of running text (lm_rows, lm_window), int32."""
        recipe = self.recipe
        starts = rng.integers(0, len(self.running) - recipe.lm_window, recipe.lm_rows)
        return np.stack([self.running[start : start + recipe.lm_window] for start in starts])


def false_negatives(questions: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Return (B, B) bool: whether passage j also answers question i; the diagonal is False."""
    same: np.ndarray = (questions[:, None] == questions[None]) | (passages[:, None] == passages[None])
    np.fill_diagonal(same, False)
    return same


def running_text(data_dir: Path, tokenizer: Tokenizer, seed: int, max_chars: int) -> np.ndarray:
    """Return the token ids of whole documents, each followed by <|endoftext|>, int32."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    for name in sources.TEXT_SOURCES:
        documents = [
            row["text"]
            for row in sources.read_gz(data_dir / "text" / f"{name}.jsonl.gz")
            if not sources.is_held_out(row["title"])
        ]
        budget = max_chars
        for index in rng.permutation(len(documents)):
            if budget <= 0:
                break
            text = documents[index][:50_000]
            budget -= len(text)
            parts.append(np.array([*tokenizer.encode(text).ids, 1], dtype=np.int32))
    order = rng.permutation(len(parts))
    return np.concatenate([parts[index] for index in order])
