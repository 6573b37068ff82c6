"""Splits long documents into passages by the encoder's tokens, and groups passage hits by document."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from embedserve.errors import InputError
from indexing.sources.corpus import Document

PARENT, START, STOP = "passage_of", "passage_start", "passage_end"  # metadata of a passage
# End of a sentence: a full stop and a space, a Chinese or Japanese full stop, or an empty line.
SENTENCE = re.compile(r"""[.!?…]["'”’)\]]*\s+|[。！？]["'”’」』）]*\s*|\n\s*\n\s*""")

TokenSpans = Callable[[Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class PassageSize:
    """Length of passages.

    Attributes:
        tokens: Maximum tokens of a passage including its title, excluding prompt and special tokens.
        overlap: Maximum tokens at the end of a passage that the next one repeats.

    Raises:
        InputError: Fewer than 8 tokens, or an overlap of half of them or more.
    """

    tokens: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 8:
            raise InputError(f"passage_tokens must be at least 8, got {self.tokens}", field="passage_tokens")
        if not 0 <= self.overlap < self.tokens // 2:
            message = f"overlap must be at least 0 and less than half of {self.tokens} tokens, got {self.overlap}"
            raise InputError(message, field="overlap")


class PassageHit(Protocol):
    """A hit of a search."""

    @property
    def id(self) -> str:
        """Id of the passage."""
        ...

    @property
    def score(self) -> float:
        """Higher is better."""
        ...

    @property
    def metadata(self) -> Any:
        """Metadata, with the fields of `split_documents`."""
        ...


H = TypeVar("H", bound=PassageHit)


@dataclass(frozen=True)
class FoldedHit(Generic[H]):
    """A document with its passage hits, best first; ``score`` is the best score."""

    id: str
    score: float
    passages: list[H]


def fold_hits(hits: Iterable[H], k: int | None = None) -> list[FoldedHit[H]]:
    """Group passage hits by document; return at most ``k`` documents, best first.

    A hit that is not a passage is its own document. Search for more hits than the number of documents needed, because
    several hits may belong to one document.
    """
    groups: dict[str, list[H]] = {}
    for hit in hits:
        groups.setdefault(str(hit.metadata.get(PARENT, hit.id)), []).append(hit)
    folded = []
    for parent, passages in groups.items():
        passages.sort(key=lambda hit: -hit.score)
        folded.append(FoldedHit(parent, passages[0].score, passages))
    folded.sort(key=lambda document: -document.score)
    return folded[:k]


def split_documents(documents: Sequence[Document], size: PassageSize, token_spans: TokenSpans) -> list[list[Document]]:
    """Return the passages of each document, in order.

    A passage has the document's title and metadata and the id ``ID#NUMBER``, numbered from 0. Its metadata also has
    ``passage_of``, the document's id, and ``passage_start`` and ``passage_end``, its characters in the document's text.

    Raises:
        InputError: The metadata of a document already has such a field; ``field`` is ``texts[i]``.
    """
    spans = split_texts([(document.title, document.text) for document in documents], size, token_spans)
    return [passages_of(document, spans[number], number) for number, document in enumerate(documents)]


def passages_of(document: Document, spans: Sequence[tuple[int, int]], position: int) -> list[Document]:
    """Return the passages of a document at ``spans``, ranges of characters."""
    if reserved := {PARENT, START, STOP} & document.metadata.keys():
        field = f"texts[{position}]"
        message = f"{field} has metadata {sorted(reserved)[0]!r}, which is reserved for passages; rename it"
        raise InputError(message, field=field)
    return [
        Document(
            f"{document.id}#{number}",
            document.text[start:stop],
            document.title,
            {**document.metadata, PARENT: document.id, START: start, STOP: stop},
        )
        for number, (start, stop) in enumerate(spans)
    ]


def split_texts(
    texts: Sequence[tuple[str, str]], size: PassageSize, token_spans: TokenSpans
) -> list[list[tuple[int, int]]]:
    """Return the passages of each title and text, as ranges of characters (start, stop)."""
    text_spans = token_spans([text for _, text in texts])
    titles = dict.fromkeys(title for title, _ in texts)
    lengths = {title: len(spans) for title, spans in zip(titles, token_spans([f"{t} a" for t in titles]), strict=True)}
    title_tokens = [lengths[title] if title else 0 for title, _ in texts]
    limits = [max(size.tokens, length + size.tokens // 2) for length in title_tokens]  # a long title leaves half
    windows = [limit - length for limit, length in zip(limits, title_tokens, strict=True)]
    passages: list[list[tuple[int, int]]] = [[] for _ in texts]
    pending = list(range(len(texts)))
    while pending:
        for number in pending:
            overlap = min(size.overlap, (windows[number] - 1) // 2)
            passages[number] = split_text(texts[number][1], text_spans[number], windows[number], overlap)
        # Tokenised alone, a passage may have other tokens at its edges; if it exceeds the limit, shrink the window.
        parts = [
            (number, f"{texts[number][0]} {texts[number][1][start:stop]}")
            for number in pending
            for start, stop in passages[number]
        ]
        excess = dict.fromkeys(pending, 0)
        for (number, _), spans in zip(parts, token_spans([part.strip() for _, part in parts]), strict=True):
            excess[number] = max(excess[number], len(spans) - limits[number])
        pending = [number for number in pending if excess[number] > 0 and windows[number] > 1]
        for number in pending:
            windows[number] = max(1, windows[number] - excess[number])
    return passages


def split_text(text: str, spans: np.ndarray, window: int, overlap: int) -> list[tuple[int, int]]:
    """Return ranges of characters of passages of at most ``window`` tokens that cover ``text``.

    Args:
        text: The text; a blank one is a single passage.
        spans: Character ranges of its tokens, (n, 2) int64.
        window: Maximum tokens of a passage.
        overlap: Maximum tokens repeated of the previous passage; less than half of ``window``.
    """
    firsts = spans[:, 0]
    sentences = sorted({int(np.searchsorted(firsts, match.end())) for match in SENTENCE.finditer(text)})
    start_token, ranges = 0, []
    while start_token + window < len(spans):
        stop = last_end(text, spans, sentences, start_token + max(1, window // 2), start_token + window)
        ranges.append((start_token, stop))
        start_token = first_start(text, spans, sentences, max(start_token + 1, stop - overlap), stop)
    ranges.append((start_token, len(spans)))
    parts = [stripped(text, spans, *tokens) for tokens in ranges]
    return [(start, stop) for start, stop in parts if start < stop] or parts[:1]


def last_end(text: str, spans: np.ndarray, sentences: list[int], low: int, high: int) -> int:
    """Return the last token in [``low``, ``high``] that starts a sentence, or else a word; a passage ends before it."""
    index = bisect_right(sentences, high) - 1
    if index >= 0 and sentences[index] >= low:
        return sentences[index]
    backwards = range(high, low - 1, -1)
    word = next((token for token in backwards if starts_word(text, spans, token)), None)
    return word or next((token for token in backwards if spans[token, 0] >= spans[token - 1, 1]), high)


def first_start(text: str, spans: np.ndarray, sentences: list[int], low: int, high: int) -> int:
    """Return the first token in [``low``, ``high``) that starts a sentence, or else a word; by default ``high``."""
    index = bisect_left(sentences, low)
    if index < len(sentences) and sentences[index] < high:
        return sentences[index]
    return next((token for token in range(low, high) if starts_word(text, spans, token)), high)


def starts_word(text: str, spans: np.ndarray, token: int) -> bool:
    """Return whether a token is preceded by or starts with whitespace."""
    start = int(spans[token, 0])
    return start > int(spans[token - 1, 0]) and (text[start - 1].isspace() or text[start].isspace())


def stripped(text: str, spans: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Return the characters of tokens ``start`` to ``stop``, stripped; the whole text if there are no tokens."""
    if start == stop:
        return 0, len(text)
    first, last = int(spans[start, 0]), int(spans[stop - 1, 1])
    part = text[first:last]
    return first + len(part) - len(part.lstrip()), last - (len(part) - len(part.rstrip()))
