"""LexSemBridge (arXiv 2508.17858): a gate re-weighs a query's vector by the vocabulary entries the query contains.

    w (V,) >= 0: SLR  w_v = s if v is in the text                       (statistical; s is learned)
                 LLR  w_v = max over positions of v of ReLU(u·h + c)    (learned)
                 CLR  w = log(1 + ReLU(h_last U^T))                     (contextual; U the unembedding)
    a = softmax(W w + b)          query = e * a          document = e

Use it where queries are keywords or parts of a passage. Costs a query one gather (SLR, LLR) or one product with the
unembedding (CLR); documents cost nothing. The gate starts as the identity (W = 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder, load_unembedding
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, last_positions
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import PoolingName, pooling
from embedserve.strategies.strategy import Strategy, option

Weights = Literal["slr", "llr", "clr"]
Gate = Literal["full", "low_rank", "unembedding"]
WEIGHTS: tuple[str, ...] = get_args(Weights)
GATES: tuple[str, ...] = get_args(Gate)


class LexicalGate(HeadModule):
    """Multiplies the ``sentence_embedding`` (B, D) of queries by their gate.

    Args:
        width: D.
        vocabulary: V, rows of the unembedding.
        weights: ``slr``, ``llr`` or ``clr``.
        gate: ``full``: W (D, V). ``low_rank``: W = A E with A (D, r) and E (r, V). ``unembedding``: W = P U^T with P
            (D, D).
        rank: r.
        mode: ``query``: the gate acts on every query, as in the paper. ``training``: only while training, as in the
            released code, so that the backbone alone is served.
        specials: Vocabulary entries that SLR and LLR ignore.
    """

    config_keys = ["width", "vocabulary", "weights", "gate", "rank", "mode", "specials"]
    derived = ("unembedding",)

    def __init__(
        self, width: int, vocabulary: int, weights: str, gate: str, rank: int, mode: str, specials: list[int]
    ) -> None:
        super().__init__()
        self.width, self.vocabulary, self.weights, self.gate, self.rank = width, vocabulary, weights, gate, rank
        self.mode, self.specials = mode, specials
        self.bias = nn.Parameter(torch.zeros(width))
        if weights == "slr":
            self.scale = nn.Parameter(torch.ones(()))
        if weights == "llr":
            self.score = nn.Linear(width, 1)
        if gate == "full":
            self.rows = nn.Parameter(torch.zeros(vocabulary, width))
        else:
            inner = rank if gate == "low_rank" else width
            if gate == "low_rank":
                self.rows = nn.Parameter(torch.randn(vocabulary, rank) * rank**-0.5)
            self.out = nn.Linear(inner, width, bias=False)
            nn.init.zeros_(self.out.weight)
        if weights == "clr" or gate == "unembedding":
            self.register_buffer("unembedding", torch.zeros(vocabulary, width))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gate the rows of queries; those of documents are unchanged."""
        if (self.mode == "training" and not self.training) or not bool(features["is_query"].any()):
            return features
        vectors = features["sentence_embedding"]
        gate = self.gate_of(*self.lexical_weights(features)) * self.width  # 1 for a uniform gate
        gate = torch.where(features["is_query"][:, None], gate, 1.0)
        features["sentence_embedding"] = (vectors.float() * gate).to(vectors.dtype)
        return features

    def lexical_weights(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return w: values (B, T) and vocabulary entries (B, T) of a text's tokens; for CLR values (B, V) and None."""
        mask, states = features["attention_mask"], features["token_embeddings"]
        if self.weights == "clr":
            rows = torch.arange(len(states), device=states.device)
            return torch.log1p(torch.relu(states[rows, last_positions(mask)].float() @ self.unembedding.T)), None
        ids = features["input_ids"]
        counted = mask.bool() & ~torch.isin(ids, torch.tensor(self.specials, device=ids.device, dtype=ids.dtype))
        values = (
            self.scale.expand(ids.shape) if self.weights == "slr" else torch.relu(self.score(states.float())[..., 0])
        )
        return largest_of_each(ids, values * counted)

    def gate_of(self, values: Tensor, entries: Tensor | None) -> Tensor:
        """Return the gate a (B, D); each row sums to 1."""
        rows = self.unembedding if self.gate == "unembedding" else self.rows
        summed = values @ rows if entries is None else (values[:, None] @ rows[entries])[:, 0]
        logits = summed if self.gate == "full" else self.out(summed)
        return (logits + self.bias).softmax(dim=-1)


def largest_of_each(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of ``values`` (B, T) >= 0 for each id in a row of ``ids`` (B, T), and those ids.

    Both (B, T): each id occurs once, and the remaining positions have the value 0.
    """
    ids, order = ids.sort(dim=1)
    changed = (ids[:, 1:] != ids[:, :-1]).long()
    group = torch.cat([changed.new_zeros(len(ids), 1), changed.cumsum(dim=1)], dim=1)
    largest = torch.zeros_like(values).scatter_reduce(1, group, values.gather(1, order), "amax")
    return largest, torch.zeros_like(ids).scatter(1, group, ids)


@dataclass(frozen=True)
class LexSemBridgeStrategy(Strategy):
    """A gate of queries computed from their vocabulary entries."""

    weights: Weights = option("slr", "vocabulary weights: statistical, learned or contextual")
    gate: Gate = option(
        "low_rank",
        "form of W: `full` as published (D · V weights), `low_rank`, or `unembedding` (W = P U^T, D² weights)",
    )
    rank: int = option(64, "rank of a low-rank gate", minimum=1)
    pooling: PoolingName = option("mean", "pooling before the gate")
    mode: Literal["query", "training"] = option(
        "query", "`query`: the gate acts on queries, as in the paper; `training`: only while training, as the code does"
    )
    ignore_special: bool = option(True, "give special tokens no weight")

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder, the pooling, and the gate."""
        decoder = load_decoder(spec, folder, Decoder)
        width = hidden_size(decoder)
        needs_unembedding = self.weights == "clr" or self.gate == "unembedding"
        unembedding = load_unembedding(folder) if needs_unembedding else None
        if unembedding is None:
            vocabulary = decoder_of(decoder).get_input_embeddings().num_embeddings
        else:
            vocabulary = len(unembedding)
        specials = sorted(decoder.tokenizer.all_special_ids) if self.ignore_special else []
        gate = LexicalGate(width, vocabulary, self.weights, self.gate, self.rank, self.mode, specials)
        if unembedding is not None:
            gate.unembedding.copy_(unembedding)
        return [decoder, pooling(self.pooling, width), gate]
