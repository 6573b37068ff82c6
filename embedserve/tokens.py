"""Tokenisation of texts: prompts, templates, and truncation that shortens the text but not the cue after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from embedserve.errors import InputError, SpecError
from embedserve.types import TokenRows

# Before tokenisation a text is cut to this many characters per token, so that a very long text costs little more than
# the part that the model can read. If the first cut leaves room, the second is used; only runs of blanks or dashes give
# such long tokens.
USUAL_CHARS_PER_TOKEN, MAX_CHARS_PER_TOKEN = 8, 64


@dataclass(frozen=True)
class Template:
    """The text around each input, and which tokens are pooled.

    Attributes:
        before: Text before the input.
        after: Text after the input; it must come last, so special tokens at the end are omitted.
        repeat: For echo embeddings: text between the input and its second copy, which the end token follows. Only the
            second copy and the end token are pooled. The pieces are tokenised separately, without special tokens.
        skip_begin: Do not pool a special token at the beginning.
        pool_prompt: Also pool what precedes the text: begin token, prompt and ``before``.
        begin: Keep the special token that the tokenizer adds at the beginning.
        end: Append the end token, also to a truncated text.
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
        """Parse a template that contains ``{text}`` once, or twice for echo embeddings.

        Raises:
            SpecError: It contains none or more than two, or text after the second.
        """
        pieces = template.split("{text}") if isinstance(template, str) else []
        if len(pieces) == 2:
            return cls(before=pieces[0], after=pieces[1])
        if len(pieces) == 3 and not pieces[2]:
            return cls(before=pieces[0], repeat=pieces[1])
        expected = "a string that contains {text} once, or twice with nothing after the second"
        raise SpecError(f"template must be {expected}; got {template!r}", field=field)


@dataclass(frozen=True)
class TextTokenizer:
    """A private copy of a tokenizer, unaffected by truncation or padding set elsewhere."""

    backend: Tokenizer
    begin: int | None
    end: int | None
    special: frozenset[int]
    num_added_after: int  # special tokens that the tokenizer appends to every text

    @classmethod
    def copy_of(cls, tokenizer: Any) -> TextTokenizer:
        """Copy a fast Hugging Face tokenizer."""
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        added = backend.encode("a").special_tokens_mask[::-1]
        num_after = added.index(0) if 0 in added else 0
        return cls(
            backend, tokenizer.bos_token_id, tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids), num_after
        )


def check_input(texts: Sequence[str], task: str) -> None:
    """Raise `InputError` unless ``texts`` can be encoded for ``task``."""
    check_texts(texts)
    if task not in ("query", "document"):
        raise InputError(f"task must be query or document, got {task!r}", field="task")


def check_texts(texts: Sequence[str], field: str = "texts") -> None:
    """Raise `InputError` unless every text is a non-blank string of valid Unicode."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise InputError(f"{field} must be a list of strings, got {type(texts).__name__}", field=field)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{field}[{index}] must be a string, got {type(text).__name__}", field=f"{field}[{index}]")
        if not text.strip():
            raise InputError(f"{field}[{index}] is empty; omit empty texts", field=f"{field}[{index}]")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{field}[{index}] has a lone surrogate at character {error.start}; send valid Unicode"
            raise InputError(message, field=f"{field}[{index}]") from None


def tokenize(
    tokenizer: TextTokenizer, texts: Sequence[str], template: Template, prompt: str, max_tokens: int, first: int = 0
) -> TokenRows:
    """Return the token ids of ``texts`` with prompt and template, at most ``max_tokens`` per row.

    Args:
        tokenizer: The tokenizer of the model.
        texts: Checked by `check_texts`.
        template: The text around each input.
        prompt: Text before the template.
        max_tokens: The text of longer rows is cut at its end.
        first: Index of the first text in the caller's list, for error messages.
    """
    cut_and_tokenize = _tokenize_joined if template.repeat is None else _tokenize_echo
    usual, longest = max_tokens * USUAL_CHARS_PER_TOKEN, max_tokens * MAX_CHARS_PER_TOKEN
    rows = cut_and_tokenize(tokenizer, [text[:usual] for text in texts], template, prompt, max_tokens)
    retried = [index for index, text in enumerate(texts) if len(text) > usual and not rows.truncated[index]]
    if retried:
        again = cut_and_tokenize(tokenizer, [texts[index][:longest] for index in retried], template, prompt, max_tokens)
        rows.pooled_from[retried], rows.truncated[retried] = again.pooled_from, again.truncated
        for index, ids in zip(retried, again.ids, strict=True):
            rows.ids[index] = ids
    for index, ids in enumerate(rows.ids):
        if len(ids) <= rows.pooled_from[index]:
            field = f"texts[{first + index}]"
            raise InputError(f"{field} has no tokens for this model; omit it", field=field)
    rows.truncated[[index for index, text in enumerate(texts) if len(text) > longest]] = True
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
    """Return the ids that the model reads, without or with special tokens as the template says.

    After a cue, special tokens that the tokenizer appends are removed.
    """
    added = 0 if template.after else tokenizer.num_added_after
    row = ids[_begins(tokenizer, ids, template) : len(ids) - (tokenizer.num_added_after - added)]
    if template.end and tokenizer.end is not None and row and not (added and row[-1] == tokenizer.end):
        row = [*row, tokenizer.end]
    return np.array(row, dtype=np.int64)


def _begins(tokenizer: TextTokenizer, ids: list[int], template: Template) -> int:
    """Return how many special tokens to remove at the beginning."""
    return int(not template.begin and len(ids) > 1 and ids[0] in tokenizer.special)


def _first_of_text(encoding: Encoding, before: int) -> int:
    """Return the index of the first token with a character after the first ``before`` characters."""
    indices = (index for index, (_, stop) in enumerate(encoding.offsets) if stop > before)
    return next(indices, len(encoding.ids))


def _cut(tokenizer: TextTokenizer, before: str, text: str, template: Template, max_tokens: int) -> np.ndarray:
    """Return ids of before + the longest prefix of ``text`` that fits + after."""
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
            message = (
                f"max_tokens={max_tokens} leaves no room for text after the prompt; raise it or shorten the prompt"
            )
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
        message = (
            f"max_tokens={max_tokens} leaves no room for text in the echo template; raise it or shorten the prompt"
        )
        raise SpecError(message, field="max_tokens")
    rows, starts, truncated = [], [], []
    for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False):
        text_ids = encoding.ids[:room]
        head = [begin, *first, *text_ids, *second]
        rows.append(np.array([*head, *text_ids, end] if text_ids else [], dtype=np.int64))
        starts.append(len(head))
        truncated.append(len(text_ids) < len(encoding.ids))
    return TokenRows(rows, np.array(starts, dtype=np.int64), np.array(truncated, dtype=bool))


def bare_ids(tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, *, special: bool) -> list[np.ndarray]:
    """Return ids (int64) of ``texts`` without prompt or template, truncated to ``max_tokens``; at least one each.

    ``special`` adds the tokenizer's special tokens; truncation keeps those at the end.
    """
    longest = max_tokens * USUAL_CHARS_PER_TOKEN
    encodings = tokenizer.backend.encode_batch_fast([text[:longest] for text in texts], add_special_tokens=special)
    num_after = tokenizer.num_added_after if special else 0
    rows = []
    for encoding in encodings:
        ids = encoding.ids or [tokenizer.end or 0]
        if len(ids) > max_tokens:
            ids = ids[: max_tokens - num_after] + ids[len(ids) - num_after :]
        rows.append(np.array(ids, dtype=np.int64))
    return rows
