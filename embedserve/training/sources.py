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
from dataclasses import dataclass, field
from pathlib import Path

# name -> (most rows taken, whether the query alone can find its passage: if not, only the query is read)
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
# name -> most sentences taken
TEXT_SOURCES = {"wikipedia_squad_train": 30_000, "classic_books": 45_000, "docs_markdown": 10_000, "peps": 3_000}

DOCUMENT_SOURCE = "squad_train"  # several passages of one document, each with its questions

MAX_CHARS = 480  # about 110 tokens: longer passages are cut at a word
HELD_OUT_SHARE = 0.01
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
_SPACES = re.compile(r"\s+")


@dataclass
class TrainingTexts:
    """Unique texts, the pairs among them by position, and texts kept away from training."""

    texts: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int, str]] = field(default_factory=list)  # (query, passage, source)
    held_out: list[str] = field(default_factory=list)


def read_gz(path: Path) -> Iterator[dict[str, str]]:
    """Yield the records of one gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return ``text`` on one line, at most ``max_chars`` long, cut between words."""
    text = _SPACES.sub(" ", text).strip()
    return text if len(text) <= max_chars else text[:max_chars].rsplit(" ", 1)[0]


def sentences(text: str) -> list[str]:
    """Split prose into sentences of 25 to 300 characters that hold mostly letters."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        if block.lstrip().startswith(("#", "|", "```", "---", "..", ">>>")):
            continue
        for sentence in _SENTENCE_END.split(_SPACES.sub(" ", block).strip()):
            letters = sum(c.isalpha() or c == " " for c in sentence)
            if 25 <= len(sentence) <= 300 and letters > 0.85 * len(sentence):
                found.append(sentence)
    return found


def is_held_out(group: str) -> bool:
    """Say whether a whole document is kept away from training, by the digest of its title."""
    digest = hashlib.blake2b(group.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def collect(data_dir: Path, seed: int = 0, scale: float = 1.0) -> TrainingTexts:
    """Read the sources under ``data_dir``; the same folder and seed give the same result.

    ``scale`` multiplies every cap: below 1 for a trial, above 1 where there is a GPU and more time.
    """
    rng = random.Random(seed)
    out = TrainingTexts()
    position: dict[str, int] = {}

    def add(text: str) -> int:
        if text not in position:
            position[text] = len(out.texts)
            out.texts.append(text)
        return position[text]

    for name, (cap, answerable) in PAIR_SOURCES.items():
        rows = list(read_gz(data_dir / "pairs" / f"{name}.jsonl.gz"))
        cap = int((cap or len(rows)) * scale)
        if cap < len(rows):
            rows = rng.sample(rows, cap)
        for row in rows:
            query, passage = cut(row["query"]), cut(row["pos"])
            if len(query) < 2 or len(passage) < 2 or is_held_out(row.get("title", query)):
                continue
            if not answerable:
                add(query)
            elif query != passage:
                out.pairs.append((add(query), add(passage), name))
    for name, cap in TEXT_SOURCES.items():
        kept, apart = _split_sentences(data_dir / "text" / f"{name}.jsonl.gz")
        out.held_out += apart
        for text in rng.sample(kept, min(int(cap * scale), len(kept))):
            add(text)
    rng.shuffle(out.held_out)
    del out.held_out[4000:]
    out.held_out = [text for text in out.held_out if text not in position]
    order = rng.sample(range(len(out.texts)), len(out.texts))  # so that any prefix is a fair sample
    place = {old: new for new, old in enumerate(order)}
    out.texts = [out.texts[old] for old in order]
    out.pairs = [(place[query], place[passage], name) for query, passage, name in out.pairs]
    return out


def _split_sentences(path: Path) -> tuple[list[str], list[str]]:
    """Return the sentences of the documents to train on, and of those held out."""
    kept: list[str] = []
    apart: list[str] = []
    for row in read_gz(path):
        (apart if is_held_out(row["title"]) else kept).extend(sentences(row["text"]))
    return kept, apart
