"""Texts -> token ids: prompts, templates, and truncation that cuts the text and never the cue after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from embedserve.errors import InputError, SpecError
from embedserve.types import TokenRows

# A text is cut to so many characters per token before it is tokenised, so that a very long text costs little more than
# the part the model can read. Where the first cut leaves room, the second is tried; only runs of blanks or dashes make
# tokens as long as that.
USUAL_CHARS_PER_TOKEN, MAX_CHARS_PER_TOKEN = 8, 64


@dataclass(frozen=True)
class Template:
    """How a text is put before the model, and which of its tokens are pooled.

    Attributes:
        before: Put in front of the text.
        after: Put behind it; nothing may follow, so special tokens at the end are left out.
        repeat: For echo embeddings: put behind the text, then the text again, then the end token; only the second
            copy and the end token are pooled. The pieces are then tokenised one by one, without special tokens.
        skip_begin: Leave a special token at the beginning out of the pooling.
        pool_prompt: Pool what stands in front of the text too: begin token, prompt and ``before``.
        begin: Let the model read the special token that its tokenizer puts at the beginning.
        end: Put the end token behind everything, also behind a text that was cut.
    """

    before: str = ""
    after: str = ""
    repeat: str | None = None
    skip_begin: bool = False
    pool_prompt: bool = True
    begin: bool = True
    end: bool = False

    @classmethod
    def parse(cls, template: str, field: str = "template") -> Template:
        """Read a template with ``{text}`` in it once, or twice for echo embeddings.

        Raises:
            SpecError: It has none or more, or something stands behind the second.
        """
        pieces = template.split("{text}") if isinstance(template, str) else []
        if len(pieces) == 2:
            return cls(before=pieces[0], after=pieces[1])
        if len(pieces) == 3 and not pieces[2]:
            return cls(before=pieces[0], repeat=pieces[1])
        wanted = "a string that holds {text} once, or twice with nothing behind the second"
        raise SpecError(f"template must be {wanted}; got {template!r}", field=field)


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of its own, which no one else's truncation or padding can change."""

    backend: Tokenizer
    begin: int | None
    end: int | None
    special: frozenset[int]
    num_added_behind: int  # special tokens that the tokenizer itself puts behind every text

    @classmethod
    def copy_of(cls, tokenizer: Any) -> TextTokenizer:
        """Copy a fast Hugging Face tokenizer."""
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        added = backend.encode("a").special_tokens_mask[::-1]
        behind = added.index(0) if 0 in added else 0
        return cls(
            backend, tokenizer.bos_token_id, tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids), behind
        )


def check_texts(texts: Sequence[str], field: str = "texts") -> None:
    """Raise `InputError` unless every text is a string with something to read in it."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise InputError(f"{field} must be a list of strings, got {type(texts).__name__}", field=field)
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


def tokenize(
    tokenizer: TextTokenizer, texts: Sequence[str], template: Template, prompt: str, max_tokens: int, first: int = 0
) -> TokenRows:
    """Return the token ids of ``texts``, prompt and template around each, at most ``max_tokens`` a row.

    Args:
        tokenizer: The model's.
        texts: Checked by `check_texts`.
        template: What stands around each text.
        prompt: Put in front of everything.
        max_tokens: Rows that would be longer have their text cut at its end.
        first: The place of the first text in the caller's list, for messages.
    """
    cut_and_tokenize = _tokenize_joined if template.repeat is None else _tokenize_echo
    usual, longest = max_tokens * USUAL_CHARS_PER_TOKEN, max_tokens * MAX_CHARS_PER_TOKEN
    rows = cut_and_tokenize(tokenizer, [text[:usual] for text in texts], template, prompt, max_tokens)
    roomy = [place for place, text in enumerate(texts) if len(text) > usual and not rows.truncated[place]]
    if roomy:
        again = cut_and_tokenize(tokenizer, [texts[place][:longest] for place in roomy], template, prompt, max_tokens)
        rows.pooled_from[roomy], rows.truncated[roomy] = again.pooled_from, again.truncated
        for place, ids in zip(roomy, again.ids, strict=True):
            rows.ids[place] = ids
    for place, ids in enumerate(rows.ids):
        if len(ids) <= rows.pooled_from[place]:
            field = f"texts[{first + place}]"
            raise InputError(f"{field} has nothing that this model's tokenizer keeps; leave it out", field=field)
    rows.truncated[[place for place, text in enumerate(texts) if len(text) > longest]] = True
    return rows


def _tokenize_joined(
    tokenizer: TextTokenizer, texts: list[str], template: Template, prompt: str, max_tokens: int
) -> TokenRows:
    """Tokenise prompt, template and text as one string, with the tokenizer's own special tokens."""
    before = prompt + template.before
    encode = tokenizer.backend.encode_batch_fast if template.pool_prompt else tokenizer.backend.encode_batch
    encodings = encode([before + text + template.after for text in texts])
    ids = [_as_row(tokenizer, encoding.ids, template) for encoding in encodings]
    truncated = np.zeros(len(ids), dtype=bool)
    for row, tokens in enumerate(ids):
        if len(tokens) > max_tokens:
            ids[row] = _cut(tokenizer, before, texts[row], template, max_tokens)
            truncated[row] = True
    if template.pool_prompt:
        starts = [int(template.skip_begin and len(row) > 1 and int(row[0]) in tokenizer.special) for row in ids]
    else:
        starts = [
            _first_of_text(encoding, len(before)) - _begins(tokenizer, encoding.ids, template) for encoding in encodings
        ]
    return TokenRows(ids, np.array(starts, dtype=np.int64), truncated)


def _as_row(tokenizer: TextTokenizer, ids: list[int], template: Template) -> np.ndarray:
    """Return the ids that the model reads: special tokens that the tokenizer added may go, an end token may come.

    Behind a cue nothing stays that the tokenizer adds at the end.
    """
    added = 0 if template.after else tokenizer.num_added_behind
    row = ids[_begins(tokenizer, ids, template) : len(ids) - (tokenizer.num_added_behind - added)]
    if template.end and tokenizer.end is not None and row and not (added and row[-1] == tokenizer.end):
        row = [*row, tokenizer.end]
    return np.array(row, dtype=np.int64)


def _begins(tokenizer: TextTokenizer, ids: list[int], template: Template) -> int:
    """Return how many special tokens at the beginning the model is not to read."""
    return int(not template.begin and len(ids) > 1 and ids[0] in tokenizer.special)


def _first_of_text(encoding: Encoding, before: int) -> int:
    """Return the place of the first token that holds a character behind the first ``before`` ones."""
    places = (place for place, (_, stop) in enumerate(encoding.offsets) if stop > before)
    return next(places, len(encoding.ids))


def _cut(tokenizer: TextTokenizer, before: str, text: str, template: Template, max_tokens: int) -> np.ndarray:
    """Return ids of before + the longest start of ``text`` found that fits + after."""
    end = len(text)
    while True:
        encoding = tokenizer.backend.encode(before + text[:end] + template.after)
        ids = _as_row(tokenizer, encoding.ids, template)
        over = len(ids) - max_tokens
        if over <= 0:
            return ids
        text_span = range(len(before), len(before) + end)
        inside = [start for start, stop in encoding.offsets if start in text_span and stop > start]
        if len(inside) <= over:
            message = f"max_tokens={max_tokens} leaves no room for text beside the prompt; raise it or cut the prompt"
            raise SpecError(message, field="max_tokens")
        end = min(end - 1, inside[-over] - len(before))


def _tokenize_echo(
    tokenizer: TextTokenizer, texts: list[str], template: Template, prompt: str, max_tokens: int
) -> TokenRows:
    """Tokenise ``[bos] before x repeat x [eos]`` piece by piece (Springer et al. 2024, section 3)."""
    end = tokenizer.end
    if end is None:
        raise SpecError("echo needs a tokenizer with an end token (eos_token); this one has none", field="strategy")
    begin = tokenizer.begin if tokenizer.begin is not None else end
    pieces = [prompt + template.before, template.repeat or ""]
    first, second = (piece.ids for piece in tokenizer.backend.encode_batch_fast(pieces, add_special_tokens=False))
    room = (max_tokens - len(first) - len(second) - 2) // 2
    if room < 1:
        message = f"max_tokens={max_tokens} leaves no room for text in the echo template; raise it or cut the prompt"
        raise SpecError(message, field="max_tokens")
    rows, starts, truncated = [], [], []
    for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False):
        kept = encoding.ids[:room]
        head = [begin, *first, *kept, *second]
        rows.append(np.array([*head, *kept, end] if kept else [], dtype=np.int64))
        starts.append(len(head))
        truncated.append(len(kept) < len(encoding.ids))
    return TokenRows(rows, np.array(starts, dtype=np.int64), np.array(truncated, dtype=bool))


def bare_ids(tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, *, special: bool) -> list[np.ndarray]:
    """Return ids (int64) of ``texts`` without prompt or template, cut to ``max_tokens``; at least one each.

    ``special`` says whether the tokenizer's own special tokens stand around each text; a cut keeps those behind it.
    """
    longest = max_tokens * USUAL_CHARS_PER_TOKEN
    encodings = tokenizer.backend.encode_batch_fast([text[:longest] for text in texts], add_special_tokens=special)
    behind = tokenizer.num_added_behind if special else 0
    rows = []
    for encoding in encodings:
        ids = encoding.ids or [tokenizer.end or 0]
        if len(ids) > max_tokens:
            ids = ids[: max_tokens - behind] + ids[len(ids) - behind :]
        rows.append(np.array(ids, dtype=np.int64))
    return rows
