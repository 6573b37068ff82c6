"""PromptReps (Zhuang et al., EMNLP 2024, arXiv 2404.18424): a dense and a sparse vector from one prompted forward pass.

The prompt asks for one word that represents the text. The last token's hidden state is the dense vector; the
next-token scores w = log(1 + ReLU(logits)) over the vocabulary entries of the text's own words are the sparse vector.
Training-free, for instruction-tuned decoders. Costs the prompt's tokens and one product with the unembedding per text.

Search both vectors and fuse the rankings with `indexing.query.fusion.min_max_fusion`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder, load_unembedding
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import pooling
from embedserve.strategies.strategy import Strategy, option, option_error
from embedserve.tokens import MAX_CHARS_PER_TOKEN, Template
from embedserve.types import Task, TokenRows

_CUE = '". Use one word to represent the {} in a retrieval task. Make sure your word is in lowercase. The word is: "'
FALLBACK = 10  # entries of a text without usable words
WORD = re.compile(r"\w+")


class PromptRepsDecoder(Decoder):
    """A decoder with a prompt for each task, which also lists the vocabulary entries of a text's words.

    Args:
        templates: Fields of `Template` for ``query`` and ``document``.
        stop_words: Lower-case words that get no weight.
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
        """Return begin token, prompt, text and cue, tokenised separately; only the text is truncated."""
        tokenizer, template = self.text_tokenizer(), Template(**self.templates[task])
        before = tokenizer.backend.encode(prompt + template.before).ids
        before = before[: len(before) - tokenizer.num_added_after]
        after = tokenizer.backend.encode(template.after, add_special_tokens=False).ids
        room = max_tokens - len(before) - len(after)
        if room < 1:
            message = (
                f"max_tokens={max_tokens} leaves no room for text after the prompt; raise it, or shorten the prompt"
            )
            raise SpecError(message, field="max_tokens")
        longest = MAX_CHARS_PER_TOKEN * room
        encodings = tokenizer.backend.encode_batch_fast([text[:longest] for text in texts], add_special_tokens=False)
        ids = [np.array([*before, *encoding.ids[:room], *after], dtype=np.int64) for encoding in encodings]
        truncated = np.array(
            [len(encoding.ids) > room or len(text) > longest for encoding, text in zip(encodings, texts, strict=True)]
        )
        return TokenRows(ids, np.zeros(len(ids), dtype=np.int64), truncated)

    def lexical_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the vocabulary entries of each text's words, lower-cased, without stop words, tokenised one by one."""
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
        expansion: Number of other entries to add, those of the largest weight.
        max_terms: Maximum number of entries of the text's own words, those of the largest weight.
        expandable: Entries that `expansion` may add.
    """

    config_keys = ["vocabulary", "width", "expansion", "max_terms", "expandable"]

    def __init__(self, vocabulary: int, width: int, expansion: int, max_terms: int, expandable: list[int]) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.expansion, self.max_terms, self.expandable = expansion, max_terms, expandable
        self.register_buffer("unembedding", torch.zeros(vocabulary, width))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sparse_weights``, float32, and write their entries to ``lexical_ids``."""
        weights = torch.log1p(torch.relu(features["sentence_embedding"].float() @ self.unembedding.T))
        features["sparse_weights"], features["lexical_ids"] = self.select(weights, features["lexical_ids"])
        return features

    def select(self, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (B, M') and entries (B, M'), padded with -1, of ``weights`` (B, V) and ``ids`` (B, M)."""
        empty = (ids < 0).all(dim=1, keepdim=True)
        best = weights.topk(min(FALLBACK, weights.shape[1]), dim=1).indices
        width = max(ids.shape[1], best.shape[1])
        ids = nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1)
        best = nn.functional.pad(best, (0, width - best.shape[1]), value=-1)
        entries = torch.where(empty, best, ids)
        values = weights.gather(1, entries.clamp(min=0)).masked_fill(entries < 0, -1)
        if width > self.max_terms:
            values, order = values.topk(self.max_terms, dim=1)
            entries = entries.gather(1, order)
        if self.expansion:
            free = torch.full_like(weights, -1)
            expandable = torch.tensor(self.expandable, device=weights.device)
            free[:, expandable] = weights[:, expandable]
            used = torch.cat([ids, entries], dim=1)
            free.scatter_(1, used.clamp(min=0), torch.where(used < 0, free[:, :1], -1.0))
            more = free.topk(min(self.expansion, free.shape[1]), dim=1)
            values = torch.cat([values, more.values], dim=1)
            entries = torch.cat([entries, more.indices.masked_fill(more.values < 0, -1)], dim=1)
        return values.clamp(min=0), entries

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


def expandable_entries(tokenizer: Any) -> list[int]:
    """Return the vocabulary entries of letters only that start with a to z, ignoring a leading ``▁`` or space."""
    entries = []
    for token, entry in tokenizer.get_vocab().items():
        text = token[1:] if token[:1] in ("▁", " ") else token
        if text.isalpha() and text[0] in string.ascii_lowercase:
            entries.append(entry)
    return sorted(entries)


@dataclass(frozen=True)
class PromptRepsStrategy(Strategy):
    """A dense and a sparse vector from one prompted forward pass."""

    query_template: str = option(
        'Query: "{text}' + _CUE.format("query"), "prompt of queries, `{text}` once; add the chat tags of your model"
    )
    document_template: str = option('Passage: "{text}' + _CUE.format("passage"), "prompt of documents")
    stop_words: str | list[str] = option("english", "`english` (scikit-learn's list), `none`, or a list of words")
    expansion: int = option(0, "entries to add that are not in the text, those of the largest weight", minimum=0)
    max_terms: int = option(128, "maximum number of entries of the text's own words", minimum=1)

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder with its prompts, last-token pooling, and the sparse head."""
        templates = {"query": self._template("query"), "document": self._template("document")}
        stop_words = self._stop_words()
        decoder = load_decoder(spec, folder, PromptRepsDecoder, Template(), templates=templates, stop_words=stop_words)
        unembedding = load_unembedding(folder)
        size, width = unembedding.shape
        entries = expandable_entries(decoder.tokenizer) if self.expansion else []
        entries = [entry for entry in entries if entry < size]
        head = SparseAnswer(size, width, self.expansion, self.max_terms, entries)
        head.unembedding.copy_(unembedding)
        return [decoder, pooling("last_token", hidden_size(decoder)), head]

    def _template(self, task: str) -> dict[str, Any]:
        name = f"{task}_template"
        template = Template.parse(getattr(self, name), f"options.{name}")
        if template.repeat is not None or not template.after:
            raise option_error(name, "must contain {text} once, followed by a prompt for one word")
        return asdict(template)

    def _stop_words(self) -> list[str]:
        if self.stop_words == "english":
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

            return sorted(ENGLISH_STOP_WORDS)
        if isinstance(self.stop_words, list):
            return [word.lower() for word in self.stop_words]
        if self.stop_words != "none":
            raise option_error("stop_words", f"must be english, none or a list of words; got {self.stop_words!r}")
        return []
