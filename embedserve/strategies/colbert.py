"""ColBERT (Khattab and Zaharia 2020, arXiv 2004.12832) on a decoder: one vector per token, compared by MaxSim.

    T = rows of last states · W, each normalised        s(q, d) = sum over i of max over j of q_i · d_j

W (dim, D) is trained; with ``dim: null`` the states themselves are the vectors and nothing is trained. Better than a
single vector where individual words decide, with a much larger index. Costs one forward pass; MaxSim adds cost at
search time.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Module, token_projection
from embedserve.decoder import Decoder
from embedserve.spec import EncoderSpec
from embedserve.strategies.strategy import Strategy, option, option_error
from embedserve.token_pooling import pool_tokens
from embedserve.tokens import Template, tokenize
from embedserve.types import Task, TokenRows

SKIPLISTS = {"none": (), "punctuation": tuple(string.punctuation)}
EXPANSION = -1  # in a row of ids: a position that pads a query


class ColbertDecoder(Decoder):
    """A decoder that marks in ``attention_mask`` which ``token_embeddings`` (B, T, D) MaxSim compares.

    Args:
        query_length: Maximum tokens of a query; with ``expands`` the exact number.
        document_length: Maximum tokens of a document.
        expands: Pad queries to ``query_length``; all their positions are compared.
        attends: Let tokens attend to the padding positions of ``expands``.
        skips: Vocabulary entries of documents that are not compared.
        second: Entries that are moved from the first to the second position: PyLate inserts its prefix after the first
            token, which is the text's own if the tokenizer has no begin token.
    """

    config_keys = [*Decoder.config_keys, "query_length", "document_length", "expands", "attends", "skips", "second"]
    only_reads = False
    multi_vector = True

    def __init__(
        self,
        *args: Any,
        query_length: int | None = None,
        document_length: int | None = None,
        expands: bool = False,
        attends: bool = False,
        skips: list[int] | None = None,
        second: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.query_length, self.document_length = query_length, document_length
        self.expands, self.attends, self.skips, self.second = expands, attends, skips or [], second or []

    def rows(self, texts: Any, prompt: str, max_tokens: int, task: Task, first: int = 0) -> TokenRows:
        """Return the token ids of texts; with ``expands`` queries are padded with `EXPANSION`."""
        limit = (self.query_length if task == "query" else self.document_length) or max_tokens
        template, limit = Template(**self.template), min(limit, max_tokens)
        rows = tokenize(self.text_tokenizer(), texts, template, prompt, limit, first)
        for ids in rows.ids:
            if len(ids) > 1 and ids[0] in self.second:
                ids[:2] = ids[1::-1]
        if task == "query" and self.expands:
            for row, ids in enumerate(rows.ids):
                rows.ids[row] = np.concatenate([ids, np.full(limit - len(ids), EXPANSION)])
        return rows

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the last states (B, T, D)."""
        if not self.expands or not bool(features["is_query"].any()):
            return self.run(ids, mask)
        # Move the padding of each row to the right, whichever side it was on.
        order = (mask == 0).int().argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        visible = mask if self.attends else mask * (ids != EXPANSION)
        states = self.run(ids.masked_fill(ids == EXPANSION, self.expansion_id()), visible, keep_mask=True)
        return states.gather(1, order.argsort(dim=1)[..., None].expand_as(states))

    def expansion_id(self) -> int:
        """Return the entry that pads queries: the first that exists of mask, end and pad token."""
        entries = [self.tokenizer.mask_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        return next(int(entry) for entry in entries if entry is not None)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Exclude the skipped tokens of documents, unless a document has no other tokens."""
        features = super().forward(features, **kwargs)
        if self.skips:
            ids, mask = features["input_ids"], features["attention_mask"]
            skipped = torch.isin(ids, torch.tensor(self.skips, device=ids.device)) & ~features["is_query"][:, None]
            compared = mask * ~skipped
            features["attention_mask"] = torch.where(compared.any(dim=1, keepdim=True), compared, mask)
        return features


class TokenPooling(Module):  # type: ignore[misc]
    """Replaces clusters of similar document tokens by their mean (Clavié et al. 2024, arXiv 2409.14683).

    Ward's clustering of 1 - cosine; the first vector is kept, queries are unchanged. The means are normalised by the
    last module, which the published code omits.

    Args:
        factor: The n vectors after the first become ``max(n // factor, 1)``.
    """

    config_keys = ["factor"]

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace ``token_embeddings`` (B, T, d) and ``attention_mask`` (B, T) of documents with shorter ones."""
        if self.training or bool(features["is_query"].any()):
            return features
        vectors, mask = functional.normalize(features["token_embeddings"].float(), dim=-1), features["attention_mask"]
        pooled = [
            pool_tokens(row[keep].cpu().numpy(), self.factor) for row, keep in zip(vectors, mask.bool(), strict=True)
        ]
        longest = max(map(len, pooled))
        out = np.zeros((len(pooled), longest, vectors.shape[2]), dtype=np.float32)
        out_mask = np.zeros((len(pooled), longest), dtype=np.int64)
        for row, means in enumerate(pooled):
            out[row, : len(means)], out_mask[row, : len(means)] = means, 1
        features["token_embeddings"] = torch.from_numpy(out).to(vectors.device)
        features["attention_mask"] = torch.from_numpy(out_mask).to(mask.device)
        features.pop("input_ids", None)  # a mean has no single entry
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the factor."""
        self.save_config(output_path)


def skipped_entries(tokenizer: Any, words: Iterable[str]) -> list[int]:
    """Return the vocabulary entries of ``words``; words that are not in the vocabulary are ignored."""
    entries = {tokenizer.convert_tokens_to_ids(word) for word in words}
    return sorted(entry for entry in entries if entry is not None and entry != tokenizer.unk_token_id)


@dataclass(frozen=True)
class ColbertStrategy(Strategy):
    """One vector per token, compared by MaxSim."""

    multi_vector: ClassVar[bool] = True

    dim: int | None = option(128, "width of a token's vector; null: the states themselves, without training", minimum=1)
    query_length: int | None = option(None, "maximum tokens of a query; null: the model's limit", minimum=4)
    document_length: int | None = option(None, "maximum tokens of a document; null: the model's limit", minimum=4)
    query_expansion: bool = option(
        False, "pad queries to `query_length` with mask (else end) tokens, all of which are compared"
    )
    attend_to_expansion: bool = option(False, "let tokens attend to the expansion tokens")
    skiplist: Literal["none", "punctuation"] = option(
        "none", "`punctuation` excludes the 32 ASCII marks of documents, if they are vocabulary entries"
    )
    token_pooling: int = option(
        1, "factor n: a document keeps its first vector and 1/n of the others, as means of clusters", minimum=1
    )

    def check(self) -> None:
        """Raise `SpecError` for an expansion option without the one it needs."""
        if self.query_expansion and self.query_length is None:
            raise option_error("query_length", "is the length that query_expansion pads to; set it, for example to 32")
        if self.attend_to_expansion and not self.query_expansion:
            raise option_error("attend_to_expansion", "needs query_expansion; set both or neither")

    def is_trained(self) -> bool:
        """Return whether there is a projection to train."""
        return self.dim is not None

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder, the projection and the token pooling."""
        decoder = load_decoder(
            spec,
            folder,
            ColbertDecoder,
            query_length=self.query_length,
            document_length=self.document_length,
            expands=self.query_expansion,
            attends=self.attend_to_expansion,
        )
        if Template(**decoder.template).repeat is not None and self.query_expansion:
            raise option_error("query_expansion", "does not work with an echo template, which ends in the end token")
        for name in ("query_length", "document_length"):
            limit = decoder.tokenizer.model_max_length
            if (getattr(self, name) or 0) > limit:
                raise option_error(name, f"must be at most {limit}, the model's limit; got {getattr(self, name)}")
        decoder.skips = skipped_entries(decoder.tokenizer, SKIPLISTS[self.skiplist])
        modules: list[nn.Module] = [decoder]
        if self.dim is not None:
            modules.append(token_projection(hidden_size(decoder), self.dim))
        if self.token_pooling > 1:
            modules.append(TokenPooling(self.token_pooling))
        return modules
