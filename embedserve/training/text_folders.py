"""Training texts and question-passage pairs, read from a folder of ``*.jsonl.gz`` files.

The folder holds ``pairs/NAME.jsonl.gz`` with ``query`` and ``pos`` and ``text/NAME.jsonl.gz`` with ``title`` and
``text``. Only the files named in `PAIR_SOURCES` and `TEXT_SOURCES` are read: each is free for any use with
attribution or share-alike, and the model card lists them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# name -> (maximum rows, whether the answers are sentences rather than single words)
PAIR_SOURCES = {
    "squad_train": (None, True),
    "wordnet_gloss": (None, True),
    "opentrivia": (None, False),
    "tldr_commands": (None, True),
    "docs_heading_section": (10_000, True),
    "medquad_train": (None, True),
    "factbook_field": (None, True),
    "python_docstring_code": (None, True),
    "peps_heading": (5_000, True),
}
# name -> maximum sentences
TEXT_SOURCES = {"wikipedia_squad_train": 30_000, "classic_books": 45_000, "docs_markdown": 10_000, "peps": 3_000}
HELD_OUT_SOURCES = ("wikipedia_squad_train", "classic_books")  # not quoted in any other source

# name -> maximum rows read as question and whole passage, in runs of neighbouring rows
RETRIEVAL_SOURCES = {
    "squad_train": None,
    "wordnet_gloss": 20_000,
    "tldr_commands": 10_000,
    "docs_heading_section": 6_000,
    "medquad_train": 6_000,
    "factbook_field": 6_000,
    "python_docstring_code": 6_000,
    "peps_heading": 3_000,
}
RUN = 32  # neighbouring rows

MAX_CHARS = 480  # about 110 tokens: longer texts are truncated at a word boundary
PASSAGE_CHARS = 1000  # about 230 tokens
HELD_OUT_SHARE = 0.01
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class TrainingTexts:
    """Unique training texts in random order, and held-out texts."""

    texts: list[str]
    held_out: list[str]


def read_gz(path: Path) -> Iterator[dict[str, str]]:
    """Yield the records of one gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return ``text`` on one line, truncated at a word boundary to ``max_chars``."""
    text = _SPACES.sub(" ", text).strip()
    return text if len(text) <= max_chars else text[:max_chars].rsplit(" ", 1)[0]


def sentences(text: str) -> list[str]:
    """Return the sentences of prose with 25 to 300 characters, mostly letters."""
    matches = []
    for block in re.split(r"\n\s*\n", text):
        if block.lstrip().startswith(("#", "|", "```", "---", "..", ">>>")):
            continue
        for sentence in _SENTENCE_END.split(_SPACES.sub(" ", block).strip()):
            letters = sum(c.isalpha() or c == " " for c in sentence)
            if 25 <= len(sentence) <= 300 and letters > 0.85 * len(sentence):
                matches.append(sentence)
    return matches


def is_held_out(title: str) -> bool:
    """Return whether a whole document is held out, by the digest of its title."""
    digest = hashlib.blake2b(title.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


@dataclass(frozen=True)
class Pair:
    """A question and the passage that answers it."""

    source: str
    query: str
    passage: str


def retrieval_pairs(data_dir: Path, seed: int = 0, scale: float = 1.0) -> list[Pair]:
    """Read whole passages and their questions, in runs of `RUN` neighbouring rows of one file.

    Neighbours come from one article, manual, disease, country or module and are hard negatives of each other's
    questions. ``scale`` multiplies every maximum.
    """
    rng = random.Random(seed)
    pairs: list[Pair] = []
    for name, cap in RETRIEVAL_SOURCES.items():
        rows = [row for row in read_gz(data_dir / "pairs" / f"{name}.jsonl.gz") if not is_held_out(document_of(row))]
        starts = list(range(0, len(rows), RUN))
        selected = starts if cap is None else sorted(rng.sample(starts, min(len(starts), int(cap * scale) // RUN)))
        for row in (row for start in selected for row in rows[start : start + RUN]):
            query = cut(row["query"])
            passage = cut(row["pos"], PASSAGE_CHARS)
            if len(query) > 1 and len(passage) > 1 and query != passage:
                pairs.append(Pair(name, query, passage))
    return pairs


def document_of(row: dict[str, str]) -> str:
    """Return the title of the document a pair comes from; headings are written ``Title: Heading``."""
    return row.get("title") or row["query"].split(": ")[0]


def collect(data_dir: Path, seed: int = 0, scale: float = 1.0) -> TrainingTexts:
    """Read the sources under ``data_dir``; the result is deterministic for the same folder and seed.

    ``scale`` multiplies every maximum: below 1 for a trial, above 1 for longer training on a GPU.
    """
    rng = random.Random(seed)
    texts: dict[str, None] = {}  # an ordered set
    unseen: list[tuple[str, str]] = []
    for name, (cap, answers) in PAIR_SOURCES.items():
        rows = list(read_gz(data_dir / "pairs" / f"{name}.jsonl.gz"))
        cap = int((cap or len(rows)) * scale)
        if cap < len(rows):
            rows = rng.sample(rows, cap)
        for row in rows:
            query, passage = cut(row["query"]), cut(row["pos"])
            if len(query) < 2 or len(passage) < 2 or is_held_out(row.get("title", query)):
                continue
            if not answers:
                texts[query] = None
            elif query != passage:
                texts[query] = texts[passage] = None
    for name, cap in TEXT_SOURCES.items():
        training, others = _split_sentences(data_dir / "text" / f"{name}.jsonl.gz")
        unseen += [(name, text) for text in others]
        texts.update(dict.fromkeys(rng.sample(training, min(int(cap * scale), len(training)))))
    rng.shuffle(unseen)
    held_out = [text for name, text in unseen[:4000] if name in HELD_OUT_SOURCES and text not in texts]
    return TrainingTexts(rng.sample(list(texts), len(texts)), held_out)  # any prefix is a random sample


def _split_sentences(path: Path) -> tuple[list[str], list[str]]:
    """Return the sentences of training documents and of held-out documents."""
    training: list[str] = []
    held_out: list[str] = []
    for row in read_gz(path):
        (held_out if is_held_out(row["title"]) else training).extend(sentences(row["text"]))
    return training, held_out
