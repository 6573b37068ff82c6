"""PromptReps (Zhuang et al., EMNLP 2024, arXiv 2404.18424): one prompt, one forward pass, a dense and a sparse vector.

A prompt asks for the text in one word. The state that would answer is the dense vector; the scores of that answer,
w = log(1 + ReLU(logits)), over the entries of the text's own words, are the sparse one. Training-free, for decoders
that follow an instruction. Costs the prompt's tokens and one product with the unembedding for each text.

Search both and join the rankings by `indexing.query.fusion.min_max_fusion`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder, load_unembedding
from embedserve.compat import Pooling
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.tokens import MAX_CHARS_PER_TOKEN, Template
from embedserve.types import Task, TokenRows

_CUE = '". Use one word to represent the {} in a retrieval task. Make sure your word is in lowercase. The word is: "'
OPTIONS: dict[str, Any] = {
    "query_template": 'Query: "{text}' + _CUE.format("query"),
    "document_template": 'Passage: "{text}' + _CUE.format("passage"),
    "stop_words": "english",
    "expansion": 0,
    "max_terms": 128,
}
FALLBACK = 10  # entries of a text of which no word stays
WORD = re.compile(r"\w+")


class PromptRepsDecoder(Decoder):
    """The decoder behind a prompt for each task, which also says which vocabulary entries a text may weigh.

    Args:
        templates: Fields of `Template` for ``query`` and ``document``.
        stop_words: Words, in lower case, that get no weight.
    """

    config_keys = [*Decoder.config_keys, "templates", "stop_words"]
    only_reads = False

    def __init__(
        self,
        *args: Any,
        templates: dict[str, dict[str, Any]] | None = None,
        stop_words: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.templates = templates or {}
        self.stop_words = stop_words or []

    def rows(self, texts: Sequence[str], prompt: str, max_tokens: int, task: Task, first: int = 0) -> TokenRows:
        """Return begin token, prompt, text and cue, each tokenised by itself; a text that is too long is cut."""
        tokenizer, template = self.text_tokenizer(), Template(**self.templates[task])
        before = tokenizer.backend.encode(prompt + template.before).ids
        before = before[: len(before) - tokenizer.num_added_behind]
        after = tokenizer.backend.encode(template.after, add_special_tokens=False).ids
        room = max_tokens - len(before) - len(after)
        if room < 1:
            message = f"max_tokens={max_tokens} leaves no room for text beside the prompt; raise it or cut the prompt"
            raise SpecError(message, field="max_tokens")
        longest = MAX_CHARS_PER_TOKEN * room
        encodings = tokenizer.backend.encode_batch_fast([text[:longest] for text in texts], add_special_tokens=False)
        ids = [np.array([*before, *encoding.ids[:room], *after], dtype=np.int64) for encoding in encodings]
        truncated = np.array(
            [len(part.ids) > room or len(text) > longest for part, text in zip(encodings, texts, strict=True)]
        )
        return TokenRows(ids, np.zeros(len(ids), dtype=np.int64), truncated)

    def lexical_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the entries of each text's words: in lower case, without stop words, each tokenised by itself."""
        stop = set(self.stop_words)
        words = [[word for word in WORD.findall(text.lower()) if word not in stop] for text in texts]
        known = sorted({word for row in words for word in row if word.strip("_")})
        encodings = self.text_tokenizer().backend.encode_batch_fast(known, add_special_tokens=False)
        entries = {word: encoding.ids for word, encoding in zip(known, encodings, strict=True)}
        return [
            np.array(sorted({entry for word in row for entry in entries.get(word, ())}), dtype=np.int64)
            for row in words
        ]


class SparseAnswer(HeadModule):
    """``sentence_embedding`` (B, D) -> ``sparse_weights`` (B, M) of the entries in ``lexical_ids`` (B, M).

    Args:
        vocabulary: V.
        width: D.
        expansion: So many of the other entries join, those of the largest weight.
        max_terms: Entries of the text's own words that stay, those of the largest weight.
        expandable: Entries that may join.
    """

    config_keys = ["vocabulary", "width", "expansion", "max_terms", "expandable"]

    def __init__(self, vocabulary: int, width: int, expansion: int, max_terms: int, expandable: list[int]) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.expansion, self.max_terms, self.expandable = expansion, max_terms, expandable
        self.register_buffer("unembedding", torch.zeros(vocabulary, width))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sparse_weights``, float32, and put the entries that they belong to in ``lexical_ids``."""
        weights = torch.log1p(torch.relu(features["sentence_embedding"].float() @ self.unembedding.T))
        features["sparse_weights"], features["lexical_ids"] = self.chosen(weights, features["lexical_ids"])
        return features

    def chosen(self, weights: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (B, M') and entries (B, M'), -1 where none, of ``weights`` (B, V) and ``own`` ids (B, M)."""
        empty = (own < 0).all(dim=1, keepdim=True)
        best = weights.topk(min(FALLBACK, weights.shape[1]), dim=1).indices
        width = max(own.shape[1], best.shape[1])
        own = nn.functional.pad(own, (0, width - own.shape[1]), value=-1)
        best = nn.functional.pad(best, (0, width - best.shape[1]), value=-1)
        entries = torch.where(empty, best, own)
        values = weights.gather(1, entries.clamp(min=0)).masked_fill(entries < 0, -1)
        if width > self.max_terms:
            values, kept = values.topk(self.max_terms, dim=1)
            entries = entries.gather(1, kept)
        if self.expansion:
            free = torch.full_like(weights, -1)
            expandable = torch.tensor(self.expandable, device=weights.device)
            free[:, expandable] = weights[:, expandable]
            taken = torch.cat([own, entries], dim=1)
            free.scatter_(1, taken.clamp(min=0), torch.where(taken < 0, free[:, :1], -1.0))
            more = free.topk(min(self.expansion, free.shape[1]), dim=1)
            values = torch.cat([values, more.values], dim=1)
            entries = torch.cat([entries, more.indices.masked_fill(more.values < 0, -1)], dim=1)
        return values.clamp(min=0), entries

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


def expandable_entries(tokenizer: Any) -> list[int]:
    """Return the vocabulary entries that are pieces of words in small letters, with no mark of a blank in front."""
    found = []
    for token, entry in tokenizer.get_vocab().items():
        text = token[1:] if token[:1] in ("▁", " ") else token
        if text.isalpha() and text[0] in string.ascii_lowercase:
            found.append(entry)
    return sorted(found)


def _stop_words(option: Any) -> list[str]:
    if option == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return sorted(ENGLISH_STOP_WORDS)
    if option == "none":
        return []
    if isinstance(option, list) and all(isinstance(word, str) for word in option):
        return [word.lower() for word in option]
    message = f"options.stop_words must be english, none, or a list of words; got {option!r}"
    raise SpecError(message, field="options.stop_words")


def _template(options: dict[str, Any], task: str) -> dict[str, Any]:
    field = f"options.{task}_template"
    template = Template.parse(options[f"{task}_template"], field)
    if template.repeat is not None or not template.after:
        raise SpecError(f"{field} must hold {{text}} once and ask for a word behind it", field=field)
    return asdict(template)


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder behind its prompts, last-token pooling, and the sparse answer."""
    for name, least in (("expansion", 0), ("max_terms", 1)):
        if type(options[name]) is not int or options[name] < least:
            message = f"options.{name} must be a whole number of at least {least}, got {options[name]!r}"
            raise SpecError(message, field=f"options.{name}")
    templates = {task: _template(options, task) for task in ("query", "document")}
    decoder = load_decoder(
        spec,
        folder,
        PromptRepsDecoder,
        Template(),
        templates=templates,
        stop_words=_stop_words(options["stop_words"]),
    )
    unembedding = load_unembedding(folder)
    entries = expandable_entries(decoder.tokenizer) if options["expansion"] else []
    entries = [entry for entry in entries if entry < len(unembedding)]
    size, width = unembedding.shape
    answer = SparseAnswer(size, width, options["expansion"], options["max_terms"], entries)
    answer.unembedding.copy_(unembedding)
    return [decoder, Pooling(hidden_size(decoder), pooling_mode="lasttoken"), answer]
