"""Which end of a long text is cut: tokenising with a choice, and an error in place of a cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from api.http.error_responses import ApiError
from embedserve.errors import InputError, name_texts
from embedserve.tokens import MAX_CHARS_PER_TOKEN
from embedserve.types import Task, TokenRows

if TYPE_CHECKING:
    from embedserve import Encoder

Texts = Sequence[str] | Sequence[list[int]]  # or rows of token ids, in place of the texts
Truncate = Literal["end", "start", "none"]
TRUNCATE: tuple[Truncate, ...] = get_args(Truncate)
MIN_MAX_TOKENS = 8
NO_LIMIT = 1 << 40


def token_rows(
    encoder: Encoder,
    texts: Texts,
    task: Task,
    *,
    prompt: str | None = None,
    max_tokens: int | None = None,
    truncate: str = "end",
    name: Callable[[int], str],
) -> TokenRows:
    """Return the token ids of ``texts``.

    Args:
        encoder: Whose tokenizer reads them.
        texts: Strings with something to read in them, or rows of token ids.
        task: Which prompt to use.
        prompt: In place of the task's.
        max_tokens: Tokens to keep of one text; left out, as many as the model reads.
        truncate: Where a longer text is cut: ``end`` loses its end, ``start`` its start, ``none`` is an error.
        name: What the caller calls the text of a place.

    Raises:
        InputError: A text has nothing that the tokenizer keeps.
        ApiError: 422 for a text that is too long under ``none``; it says its length and the limit.
    """
    if not isinstance(texts[0], str):
        return _id_rows(encoder, cast("Sequence[list[int]]", texts), task, max_tokens, truncate, name)
    texts = cast("Sequence[str]", texts)
    try:
        rows = encoder.tokenize(texts, task, prompt=prompt, max_tokens=max_tokens)
        cut = np.flatnonzero(rows.truncated).tolist() if truncate != "end" else []
        if truncate == "none" and cut:
            place, limit = cut[0], max_tokens or encoder.max_tokens
            whole = encoder.tokenize([texts[place]], task, prompt=prompt, max_tokens=NO_LIMIT)
            message = (
                f"{name(place)} has {int(whole.lengths[0]):,} tokens, the limit is {limit:,}; "
                "cut it into pieces, or send 'truncate': 'end'"
            )
            raise ApiError(422, "input_too_long", message, param=name(place))
        if not cut:
            return rows
        ends = list(texts)
        for place in cut:
            ends[place] = _end_of(encoder, texts[place], task, prompt, max_tokens)
        rows = encoder.tokenize(ends, task, prompt=prompt, max_tokens=max_tokens)
        rows.truncated[cut] = True
        return rows
    except InputError as error:
        raise name_texts(error, name) from error


def _id_rows(
    encoder: Encoder,
    ids: Sequence[list[int]],
    task: Task,
    max_tokens: int | None,
    truncate: str,
    name: Callable[[int], str],
) -> TokenRows:
    """Return the rows of token ids that callers brought themselves; they are read as they are, without a prompt."""
    from embedserve.token_ids import rows_of_ids

    limit = max_tokens or encoder.max_tokens
    longer = next((place for place, row in enumerate(ids) if len(row) > limit), None)
    if truncate == "none" and longer is not None:
        message = f"{name(longer)} has {len(ids[longer]):,} tokens, the limit is {limit:,}; cut it, or allow truncation"
        raise ApiError(422, "input_too_long", message, param=name(longer))
    try:
        return rows_of_ids(encoder, ids, task, max_tokens, keep_end=truncate == "start")
    except InputError as error:
        raise name_texts(error, name) from error


def _end_of(encoder: Encoder, text: str, task: Task, prompt: str | None, max_tokens: int | None) -> str:
    """Return the longest end of ``text`` that fits, from the beginning of a token on."""
    text = text[-(max_tokens or encoder.max_tokens) * MAX_CHARS_PER_TOKEN :]
    starts = encoder.token_spans([text])[0][:, 0]
    fits, cut = len(starts) - 1, 0
    while fits - cut > 1:
        middle = (fits + cut) // 2
        rows = encoder.tokenize([text[starts[middle] :]], task, prompt=prompt, max_tokens=max_tokens)
        fits, cut = (fits, middle) if rows.truncated[0] else (middle, cut)
    return text[starts[fits] :]
