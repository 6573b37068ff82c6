"""Texts -> token ids: prompts, templates, and truncation that cuts the text and never the cue after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedserve.errors import InputError, SpecError
from embedserve.types import TokenRows

# A text is cut to this many characters per token before it is tokenised, so that a very long text costs no more
# than the part the model can read; no vocabulary has ordinary tokens this long.
MAX_CHARS_PER_TOKEN = 64


@dataclass(frozen=True)
class Template:
    """How a text is put before the model.

    Attributes:
        before: Put in front of the text.
        after: Put behind it.
        repeat: For echo embeddings: put behind the text, then the text again, then the end token; only the second
            copy and the end token are pooled. The pieces are then tokenised one by one, without special tokens.
    """

    before: str = ""
    after: str = ""
    repeat: str | None = None

    @classmethod
    def parse(cls, template: str) -> Template:
        """Read a template with one ``{text}`` in it."""
        before, slot, after = template.partition("{text}")
        if not slot or "{text}" in after:
            raise SpecError(f"template must hold {{text}} once, got {template!r}", field="options.template")
        return cls(before=before, after=after)


def check_texts(texts: Sequence[str], field: str = "texts") -> None:
    """Raise `InputError` unless every text is a string with something to read in it."""
    if isinstance(texts, (str, bytes)):
        raise InputError(f"{field} must be a list of strings, got one {type(texts).__name__}", field=field)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{field}[{place}] must be a string, got {type(text).__name__}", field=f"{field}[{place}]")
        if not text.strip():
            raise InputError(f"{field}[{place}] is empty; leave empty texts out", field=f"{field}[{place}]")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{field}[{place}] has half a surrogate pair at character {error.start}; send valid Unicode"
            raise InputError(message, field=f"{field}[{place}]") from None


def tokenize(tokenizer: Any, texts: Sequence[str], template: Template, prompt: str, max_tokens: int) -> TokenRows:
    """Return the token ids of ``texts``, prompt and template around each, at most ``max_tokens`` a row.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        texts: Checked by `check_texts`.
        template: What stands around each text.
        prompt: Put in front of everything.
        max_tokens: Rows that would be longer have their text cut at its end.
    """
    if template.repeat is not None:
        return _tokenize_echo(tokenizer, texts, template, prompt, max_tokens)
    before = prompt + template.before
    backend = tokenizer.backend_tokenizer
    longest = max_tokens * MAX_CHARS_PER_TOKEN
    shown = [text[:longest] for text in texts]
    encodings = _encode_batch(backend, [before + text + template.after for text in shown], special=True)
    ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
    truncated = np.array([len(text) > longest for text in texts], dtype=bool)
    for row, tokens in enumerate(ids):
        if len(tokens) > max_tokens:
            ids[row] = _cut(backend, before, shown[row], template.after, max_tokens)
            truncated[row] = True
        elif len(tokens) == 0:
            raise InputError(f"texts[{row}] has no tokens: the tokenizer drops all of {texts[row]!r}", field="texts")
    return TokenRows(ids=ids, pooled_from=np.zeros(len(ids), dtype=np.int64), truncated=truncated)


def _encode_batch(backend: Any, texts: list[str], *, special: bool) -> list[Any]:
    """Tokenise without the truncation and padding that the tokenizer's file may ask for."""
    backend.no_truncation()
    backend.no_padding()
    found: list[Any] = backend.encode_batch_fast(texts, add_special_tokens=special)
    return found


def _cut(backend: Any, before: str, text: str, after: str, max_tokens: int) -> np.ndarray:
    """Return ids of before + the longest start of ``text`` found that fits + after."""
    end = len(text)
    while True:
        encoding = backend.encode(before + text[:end] + after)
        over = len(encoding.ids) - max_tokens
        if over <= 0:
            return np.array(encoding.ids, dtype=np.int64)
        inside = [
            start for start, stop in encoding.offsets if len(before) <= start < len(before) + end and stop > start
        ]
        if len(inside) <= over:
            message = (
                f"max_tokens={max_tokens} leaves no room for text beside the prompt; raise it or shorten the prompt"
            )
            raise SpecError(message, field="max_tokens")
        end = min(end - 1, inside[-over] - len(before))


def _tokenize_echo(tokenizer: Any, texts: Sequence[str], template: Template, prompt: str, max_tokens: int) -> TokenRows:
    """Tokenise ``[bos] before x repeat x [eos]`` piece by piece (Springer et al. 2024, section 3)."""
    backend = tokenizer.backend_tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        raise SpecError("echo needs a tokenizer with an end token (eos_token); this one has none", field="strategy")
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    pieces = _encode_batch(backend, [prompt + template.before, template.repeat or ""], special=False)
    first, second = (piece.ids for piece in pieces)
    room = (max_tokens - len(first) - len(second) - 2) // 2
    if room < 1:
        message = (
            f"max_tokens={max_tokens} leaves no room for text in the echo template; raise it or shorten the prompt"
        )
        raise SpecError(message, field="max_tokens")
    longest = max_tokens * MAX_CHARS_PER_TOKEN
    encodings = _encode_batch(backend, [text[:longest] for text in texts], special=False)
    rows, starts, truncated = [], [], []
    for text, encoding in zip(texts, encodings, strict=True):
        kept = encoding.ids[:room]
        head = [begin, *first, *kept, *second]
        rows.append(np.array([*head, *kept, end], dtype=np.int64))
        starts.append(len(head))
        truncated.append(len(kept) < len(encoding.ids) or len(text) > longest)
    return TokenRows(rows, np.array(starts, dtype=np.int64), np.array(truncated, dtype=bool))
