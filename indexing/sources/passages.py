"""Long documents as passages: cut by the encoder's tokens, at sentence ends where possible, and folded back in hits."""

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
# A sentence begins behind a full stop and a blank, behind a full stop of Chinese or Japanese, and in a new paragraph.
SENTENCE = re.compile(r"""[.!?…]["'”’)\]]*\s+|[。！？]["'”’」』）]*\s*|\n\s*\n\s*""")

TokenSpans = Callable[[Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class PassageSize:
    """How long passages are.

    Attributes:
        tokens: Tokens of a passage with its title, at most, without prompt and special tokens.
        overlap: Tokens at the end of a passage, at most, with which the next one begins again.

    Raises:
        InputError: Fewer than 8 tokens, or an overlap of half of them or more.
    """

    tokens: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 8:
            raise InputError(f"passage_tokens must be at least 8, got {self.tokens}", field="passage_tokens")
        if not 0 <= self.overlap < self.tokens // 2:
            message = f"overlap must lie from 0 to below half of {self.tokens} tokens, got {self.overlap}"
            raise InputError(message, field="overlap")


class Found(Protocol):
    """What is asked of a hit."""

    @property
    def id(self) -> str:
        """Of the passage."""
        ...

    @property
    def score(self) -> float:
        """Higher is better."""
        ...

    @property
    def metadata(self) -> Any:
        """With what `split_documents` put into it."""
        ...


H = TypeVar("H", bound=Found)


@dataclass(frozen=True)
class FoldedHit(Generic[H]):
    """A document that was found by its passages: ``score`` is that of the best, which stands first."""

    id: str
    score: float
    passages: list[H]


def fold_hits(hits: Iterable[H], k: int | None = None) -> list[FoldedHit[H]]:
    """Return the documents that ``hits`` are passages of, best first, ``k`` at most.

    A hit that is no passage stands for itself. Ask for more hits than documents are wanted: several may fold into one.
    """
    found: dict[str, list[H]] = {}
    for hit in hits:
        found.setdefault(str(hit.metadata.get(PARENT, hit.id)), []).append(hit)
    folded = []
    for parent, passages in found.items():
        passages.sort(key=lambda hit: -hit.score)
        folded.append(FoldedHit(parent, passages[0].score, passages))
    folded.sort(key=lambda document: -document.score)
    return folded[:k]


def split_documents(documents: Sequence[Document], size: PassageSize, token_spans: TokenSpans) -> list[list[Document]]:
    """Return the passages of each document, in order.

    A passage has the document's title and metadata, the id ``ID#NUMBER`` from 0, and in its metadata ``passage_of``,
    the document's id, and ``passage_start`` and ``passage_end``, the characters of the document's text that it is.

    Raises:
        InputError: The metadata of a document has such a field already; ``field`` is ``texts[i]``.
    """
    spans = split_texts([(document.title, document.text) for document in documents], size, token_spans)
    return [passages_of(document, spans[place], place) for place, document in enumerate(documents)]


def passages_of(document: Document, spans: Sequence[tuple[int, int]], place: int) -> list[Document]:
    """Return the parts of a document that ``spans`` name."""
    if taken := {PARENT, START, STOP} & document.metadata.keys():
        field = f"texts[{place}]"
        raise InputError(f"{field} has metadata {sorted(taken)[0]!r}, which passages need; rename it", field=field)
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
    """Return for each title and text the characters of its passages: first, and behind the last."""
    places = token_spans([text for _, text in texts])
    titles = dict.fromkeys(title for title, _ in texts)
    behind = {title: len(spans) for title, spans in zip(titles, token_spans([f"{t} a" for t in titles]), strict=True)}
    titled = [behind[title] if title else 0 for title, _ in texts]
    most = [max(size.tokens, length + size.tokens // 2) for length in titled]  # a long title leaves half for the text
    windows = [length - title for length, title in zip(most, titled, strict=True)]
    found: list[list[tuple[int, int]]] = [[] for _ in texts]
    left = list(range(len(texts)))
    while left:
        for place in left:
            overlap = min(size.overlap, (windows[place] - 1) // 2)
            found[place] = cut_text(texts[place][1], places[place], windows[place], overlap)
        # Cut out of its text, a passage may have other tokens at its edges; where it has too many, all are cut shorter.
        parts = [
            (place, f"{texts[place][0]} {texts[place][1][start:stop]}")
            for place in left
            for start, stop in found[place]
        ]
        over = dict.fromkeys(left, 0)
        for (place, _), spans in zip(parts, token_spans([part.strip() for _, part in parts]), strict=True):
            over[place] = max(over[place], len(spans) - most[place])
        left = [place for place in left if over[place] > 0 and windows[place] > 1]
        for place in left:
            windows[place] = max(1, windows[place] - over[place])
    return found


def cut_text(text: str, spans: np.ndarray, window: int, overlap: int) -> list[tuple[int, int]]:
    """Return the characters of passages of at most ``window`` tokens that cover ``text``.

    Args:
        text: May be blank: then it is one passage.
        spans: (n, 2) int64, where its tokens stand.
        window: Tokens of a passage.
        overlap: Tokens at most of the passage before; less than half of ``window``.
    """
    firsts = spans[:, 0]
    sentences = sorted({int(np.searchsorted(firsts, found.end())) for found in SENTENCE.finditer(text)})
    begin, cuts = 0, []
    while begin + window < len(spans):
        stop = last_end(text, spans, sentences, begin + max(1, window // 2), begin + window)
        cuts.append((begin, stop))
        begin = first_begin(text, spans, sentences, max(begin + 1, stop - overlap), stop)
    cuts.append((begin, len(spans)))
    parts = [stripped(text, spans, *cut) for cut in cuts]
    return [(start, stop) for start, stop in parts if start < stop] or parts[:1]


def last_end(text: str, spans: np.ndarray, sentences: list[int], low: int, high: int) -> int:
    """Return the token from ``low`` to ``high`` to cut before: of a sentence, or else of a word, the last there is."""
    place = bisect_right(sentences, high) - 1
    if place >= 0 and sentences[place] >= low:
        return sentences[place]
    back = range(high, low - 1, -1)
    word = next((token for token in back if begins_word(text, spans, token)), None)
    return word or next((token for token in back if spans[token, 0] >= spans[token - 1, 1]), high)


def first_begin(text: str, spans: np.ndarray, sentences: list[int], low: int, high: int) -> int:
    """Return the first token from ``low`` to ``high`` that begins a sentence, or else a word; or else ``high``."""
    place = bisect_left(sentences, low)
    if place < len(sentences) and sentences[place] < high:
        return sentences[place]
    return next((token for token in range(low, high) if begins_word(text, spans, token)), high)


def begins_word(text: str, spans: np.ndarray, token: int) -> bool:
    """Return whether a blank stands before or at the beginning of a token."""
    start = int(spans[token, 0])
    return start > int(spans[token - 1, 0]) and (text[start - 1].isspace() or text[start].isspace())


def stripped(text: str, spans: np.ndarray, begin: int, stop: int) -> tuple[int, int]:
    """Return the characters of tokens ``begin`` to ``stop`` without blanks around them; all where there are none."""
    if begin == stop:
        return 0, len(text)
    first, last = int(spans[begin, 0]), int(spans[stop - 1, 1])
    part = text[first:last]
    return first + len(part) - len(part.lstrip()), last - (len(part) - len(part.rstrip()))
