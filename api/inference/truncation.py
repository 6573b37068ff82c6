"""Tokenising with a choice of what to drop from long texts: their end, their start, or nothing (an error)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from api.http.error_responses import ApiError
from api.inference.encode_options import EncodeOptions
from embedserve.errors import InputError, name_texts
from embedserve.tokens import MAX_CHARS_PER_TOKEN
from embedserve.types import TokenRows

if TYPE_CHECKING:
    from embedserve import Encoder

Texts = Sequence[str] | Sequence[list[int]]  # or rows of token ids instead of texts
MIN_MAX_TOKENS = 8
NO_LIMIT = 1 << 40


def token_rows(encoder: Encoder, texts: Texts, options: EncodeOptions) -> TokenRows:
    """Return the token rows of ``texts``, truncated as ``options`` say.

    Args:
        encoder: Its tokenizer is used.
        texts: Strings that are not blank, or rows of token ids.
        options: ``task``, ``prompt``, ``max_tokens``, ``truncate``, and ``field`` for errors.

    Raises:
        InputError: The tokenizer keeps nothing of a text.
        ApiError: 422, a text is too long and ``truncate`` is ``none``; it names the length and the limit.
    """

    def name(index: int) -> str:
        return options.name_of(index, len(texts))

    try:
        if isinstance(texts[0], str):
            return _text_rows(encoder, cast("Sequence[str]", texts), options)
        return _id_rows(encoder, cast("Sequence[list[int]]", texts), options)
    except InputError as error:
        raise name_texts(error, name) from error


def _text_rows(encoder: Encoder, texts: Sequence[str], options: EncodeOptions) -> TokenRows:
    task, prompt, max_tokens = options.task, options.prompt, options.max_tokens
    rows = encoder.tokenize(texts, task, prompt=prompt, max_tokens=max_tokens)
    long = np.flatnonzero(rows.truncated).tolist() if options.truncate != "end" else []
    if not long:
        return rows
    if options.truncate == "none":
        index, limit = long[0], max_tokens or encoder.max_tokens
        full = encoder.tokenize([texts[index]], task, prompt=prompt, max_tokens=NO_LIMIT)
        name = options.name_of(index, len(texts))
        message = (
            f"{name} has {int(full.lengths[0]):,} tokens, the limit is {limit:,}; "
            "cut it into pieces, or send 'truncate': 'end'"
        )
        raise ApiError(422, "input_too_long", message, param=name)
    ends = list(texts)
    for index in long:
        ends[index] = _end_of(encoder, texts[index], options)
    rows = encoder.tokenize(ends, task, prompt=prompt, max_tokens=max_tokens)
    rows.truncated[long] = True
    return rows


def _id_rows(encoder: Encoder, ids: Sequence[list[int]], options: EncodeOptions) -> TokenRows:
    """Return rows of token ids sent by the caller; they are used unchanged, without a prompt."""
    from embedserve.token_ids import rows_of_ids

    limit = options.max_tokens or encoder.max_tokens
    long = next((index for index, row in enumerate(ids) if len(row) > limit), None)
    if options.truncate == "none" and long is not None:
        name = options.name_of(long, len(ids))
        message = f"{name} has {len(ids[long]):,} tokens, the limit is {limit:,}; cut it, or allow truncation"
        raise ApiError(422, "input_too_long", message, param=name)
    return rows_of_ids(encoder, ids, options.task, options.max_tokens, keep_end=options.truncate == "start")


def _end_of(encoder: Encoder, text: str, options: EncodeOptions) -> str:
    """Return the longest end of ``text`` that fits and starts at a token, by bisection."""
    text = text[-(options.max_tokens or encoder.max_tokens) * MAX_CHARS_PER_TOKEN :]
    starts = encoder.token_spans([text])[0][:, 0]
    fits, too_long = len(starts) - 1, 0
    while fits - too_long > 1:
        middle = (fits + too_long) // 2
        end = text[starts[middle] :]
        rows = encoder.tokenize([end], options.task, prompt=options.prompt, max_tokens=options.max_tokens)
        fits, too_long = (fits, middle) if rows.truncated[0] else (middle, too_long)
    return text[starts[fits] :]
