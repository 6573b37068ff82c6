"""Token ids that callers bring themselves, and those that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedserve.decoder import Decoder
from embedserve.errors import InputError
from embedserve.tokens import Template
from embedserve.types import Task, TokenRows

if TYPE_CHECKING:
    from embedserve.encoder import Encoder

OWN_READING = ("rows", "clean", "lexical_ids", "context_ids")  # methods of `Decoder` that need the text itself


class Token(NamedTuple):
    """One token of a text; ``start`` and ``stop`` count its characters, and are None for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def reads_ids(encoder: Encoder) -> bool:
    """Say whether ids can stand for a text: not where the strategy puts words around it or reads it in its own way."""
    reader: Any = encoder.model[0]
    if any(not getattr(module, "include_prompt", True) for module in encoder.model):
        return False
    if not isinstance(reader, Decoder):
        return True
    template = Template(**reader.template)
    own = any(getattr(type(reader), name) is not getattr(Decoder, name) for name in OWN_READING)
    return not (own or template.before or template.after or template.repeat is not None) and template.pool_prompt


def vocabulary_size(encoder: Encoder) -> int:
    """Return the number of token ids, which begin at 0."""
    return encoder.text_tokenizer.backend.get_vocab_size(with_added_tokens=True)


def rows_of_ids(
    encoder: Encoder,
    ids: Sequence[Sequence[int]],
    task: Task = "document",
    max_tokens: int | None = None,
    *,
    keep_end: bool = False,
) -> TokenRows:
    """Return token ids as rows that the encoder reads as they are, special tokens and prompt included.

    Args:
        encoder: Whose vocabulary the ids are of.
        ids: At least one id in each row.
        task: What the texts are; no prompt is added.
        max_tokens: Ids to keep of one row; left out, as many as the model reads. Special tokens at both ends stay.
        keep_end: Cut a row that is too long at its start, not at its end.

    Raises:
        InputError: An id is not in the vocabulary, or this encoder needs the text itself; places are ``texts[i]``.
    """
    if not reads_ids(encoder):
        message = f"texts[0] is a list of token ids, and {encoder.name} reads texts alone; send the text"
        raise InputError(message, field="texts[0]")
    _check_ids(encoder, ids)
    special, limit = encoder.text_tokenizer.special, max_tokens or encoder.max_tokens
    rows = [_cut(np.array(row, dtype=np.int64), limit, special, keep_end=keep_end) for row in ids]
    skips = _template(encoder).skip_begin
    starts = [int(skips and len(row) > 1 and int(row[0]) in special) for row in rows]
    truncated = np.array([len(row) > limit for row in ids])
    return TokenRows(rows, np.array(starts, dtype=np.int64), truncated, task)


def _cut(row: np.ndarray, limit: int, special: frozenset[int], *, keep_end: bool) -> np.ndarray:
    """Return ``row`` (t,) with at most ``limit`` of its ids, a special token at either end among them."""
    if len(row) <= limit:
        return row
    first, last = int(int(row[0]) in special), int(int(row[-1]) in special)
    text, room = row[first : len(row) - last], limit - first - last
    kept = text[len(text) - room :] if keep_end else text[:room]
    return np.concatenate([row[:first], kept, row[len(row) - last :]])


def _check_ids(encoder: Encoder, ids: Sequence[Sequence[int]]) -> None:
    """Raise `InputError` unless every id is in the vocabulary."""
    size = vocabulary_size(encoder)
    for place, row in enumerate(ids):
        wrong = next((number for number in row if not 0 <= number < size), None)
        if wrong is not None or not len(row):
            found = "is empty" if wrong is None else f"has the id {wrong}"
            message = f"texts[{place}] {found}; the ids of {encoder.name} are 0 to {size - 1}"
            raise InputError(message, field=f"texts[{place}]")


def tokens_of(encoder: Encoder, texts: Sequence[str], *, prompt: str = "", special: bool = True) -> list[list[Token]]:
    """Return the tokens of texts, however many, with ``prompt`` in front.

    With ``special`` they are those that the model reads where `reads_ids`: without a template, but with its begin and
    end tokens.
    """
    tokenizer, template = encoder.text_tokenizer, _template(encoder)
    whole = [prompt + text for text in texts]
    found = []
    for text, encoding in zip(whole, tokenizer.backend.encode_batch(whole, add_special_tokens=special), strict=True):
        offsets, marks = encoding.offsets, encoding.special_tokens_mask
        tokens = [
            Token(id, token, True, None, None) if mark else Token(id, text[start:stop], False, start, stop)
            for id, token, mark, (start, stop) in zip(encoding.ids, encoding.tokens, marks, offsets, strict=True)
        ]
        if special and not template.begin and len(tokens) > 1 and tokens[0].id in tokenizer.special:
            tokens = tokens[1:]
        if special and template.end and tokenizer.end is not None:
            added = tokens and tokens[-1].special and tokens[-1].id == tokenizer.end
            if not added:
                tokens.append(
                    Token(tokenizer.end, tokenizer.backend.id_to_token(tokenizer.end) or "", True, None, None)
                )
        found.append(tokens)
    return found


def texts_of_ids(encoder: Encoder, ids: Sequence[Sequence[int]], *, skip_special: bool = True) -> list[str]:
    """Return the texts that rows of token ids stand for.

    Raises:
        InputError: An id is not in the vocabulary; places are ``texts[i]``.
    """
    _check_ids(encoder, ids)
    backend = encoder.text_tokenizer.backend
    return backend.decode_batch([list(row) for row in ids], skip_special_tokens=skip_special)


def _template(encoder: Encoder) -> Template:
    reader: Any = encoder.model[0]
    return Template(**reader.template) if isinstance(reader, Decoder) else Template()
