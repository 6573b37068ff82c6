"""Token ids as input, and the tokens of texts as output."""

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

TEXT_METHODS = ("rows", "clean", "lexical_ids", "context_ids")  # methods of `Decoder` that need the text itself


class Token(NamedTuple):
    """One token of a text; ``start`` and ``stop`` are character offsets, None for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def reads_ids(encoder: Encoder) -> bool:
    """Return whether the encoder accepts token ids: not if its strategy adds text or reads the text itself."""
    reader: Any = encoder.model[0]
    if any(not getattr(module, "include_prompt", True) for module in encoder.model):
        return False
    if not isinstance(reader, Decoder):
        return True
    template = Template(**reader.template)
    needs_text = any(getattr(type(reader), name) is not getattr(Decoder, name) for name in TEXT_METHODS)
    return not (needs_text or template.before or template.after or template.repeat is not None) and template.pool_prompt


def vocabulary_size(encoder: Encoder) -> int:
    """Return the size of the vocabulary; ids start at 0."""
    return encoder.text_tokenizer.backend.get_vocab_size(with_added_tokens=True)


def rows_of_ids(
    encoder: Encoder,
    ids: Sequence[Sequence[int]],
    task: Task = "document",
    max_tokens: int | None = None,
    *,
    keep_end: bool = False,
) -> TokenRows:
    """Return token ids as rows for the encoder; special tokens and prompt must be included.

    Args:
        encoder: The encoder whose vocabulary the ids belong to.
        ids: Rows of at least one id.
        task: Whether the rows are queries or documents; no prompt is added.
        max_tokens: Maximum ids per row; special tokens at both ends are kept. Default: the encoder's limit.
        keep_end: Truncate long rows at the start instead of the end.

    Raises:
        InputError: An id is not in the vocabulary, or this encoder needs the text itself; fields are ``texts[i]``.
    """
    if not reads_ids(encoder):
        message = f"texts[0] is a list of token ids, but {encoder.name} reads only text; send the text"
        raise InputError(message, field="texts[0]")
    _check_ids(encoder, ids)
    special, limit = encoder.text_tokenizer.special, max_tokens or encoder.max_tokens
    rows = [_cut(np.array(row, dtype=np.int64), limit, special, keep_end=keep_end) for row in ids]
    skips = _template(encoder).skip_begin
    starts = [int(skips and len(row) > 1 and int(row[0]) in special) for row in rows]
    truncated = np.array([len(row) > limit for row in ids])
    return TokenRows(rows, np.array(starts, dtype=np.int64), truncated, task)


def _cut(row: np.ndarray, limit: int, special: frozenset[int], *, keep_end: bool) -> np.ndarray:
    """Truncate ``row`` (t,) to ``limit`` ids; keep a special token at either end."""
    if len(row) <= limit:
        return row
    first, last = int(int(row[0]) in special), int(int(row[-1]) in special)
    text, room = row[first : len(row) - last], limit - first - last
    text = text[len(text) - room :] if keep_end else text[:room]
    return np.concatenate([row[:first], text, row[len(row) - last :]])


def _check_ids(encoder: Encoder, ids: Sequence[Sequence[int]]) -> None:
    """Raise `InputError` unless every id is in the vocabulary."""
    size = vocabulary_size(encoder)
    for index, row in enumerate(ids):
        wrong = next((number for number in row if not 0 <= number < size), None)
        if wrong is not None or not len(row):
            problem = "is empty" if wrong is None else f"has the id {wrong}"
            message = f"texts[{index}] {problem}; the ids of {encoder.name} are 0 to {size - 1}"
            raise InputError(message, field=f"texts[{index}]")


def tokens_of(encoder: Encoder, texts: Sequence[str], *, prompt: str = "", special: bool = True) -> list[list[Token]]:
    """Return the tokens of each text after ``prompt``, without truncation.

    With ``special`` the begin and end tokens of the model are included; the template is not.
    """
    tokenizer, template = encoder.text_tokenizer, _template(encoder)
    whole = [prompt + text for text in texts]
    rows = []
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
        rows.append(tokens)
    return rows


def texts_of_ids(encoder: Encoder, ids: Sequence[Sequence[int]], *, skip_special: bool = True) -> list[str]:
    """Decode rows of token ids.

    Raises:
        InputError: An id is not in the vocabulary; fields are ``texts[i]``.
    """
    _check_ids(encoder, ids)
    backend = encoder.text_tokenizer.backend
    return backend.decode_batch([list(row) for row in ids], skip_special_tokens=skip_special)


def _template(encoder: Encoder) -> Template:
    reader: Any = encoder.model[0]
    return Template(**reader.template) if isinstance(reader, Decoder) else Template()
