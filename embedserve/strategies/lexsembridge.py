"""LexSemBridge (arXiv 2508.17858): a query's vector is re-weighted by which vocabulary entries the query holds.

    w (V,) >= 0: SLR  w_v = s where v is in the text            (statistical; s is learned)
                 LLR  w_v = max over v's places of ReLU(u·h + c)  (learned)
                 CLR  w = log(1 + ReLU(h_last U^T))               (contextual; U the unembedding)
    a = softmax(W w + b)          query = e * a          document = e

Use it where queries are keywords or pieces of a passage. Costs a query one gather (SLR, LLR) or one product with the
unembedding (CLR); documents cost nothing. The gate starts as no gate at all (W = 0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder, load_unembedding
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, last_positions
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import pooling

OPTIONS: dict[str, Any] = {
    "weights": "slr",
    "gate": "low_rank",
    "rank": 64,
    "pooling": "mean",
    "mode": "query",
    "ignore_special": True,
}
TRAINED = True
WEIGHTS = ("slr", "llr", "clr")
GATES = ("full", "low_rank", "unembedding")
MODES = ("query", "training")


class LexicalGate(HeadModule):
    """Multiplies ``sentence_embedding`` (B, D) of queries by their gate.

    Args:
        width: D.
        vocabulary: V, rows of the unembedding.
        weights: ``slr``, ``llr`` or ``clr``.
        gate: ``full``: W (D, V). ``low_rank``: W = A E with A (D, r) and E (r, V). ``unembedding``: W = P U^T with P
            (D, D).
        rank: r.
        mode: ``query``: the gate acts on every query, as the paper has it. ``training``: only while training, as the
            released code does, so that the backbone alone is served.
        specials: Entries that SLR and LLR leave out.
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
        """Gate the queries' rows; those of documents stay."""
        if (self.mode == "training" and not self.training) or not bool(features["is_query"].any()):
            return features
        vectors = features["sentence_embedding"]
        gate = self.gate_of(*self.lexical_weights(features)) * self.width  # 1 where there is no preference
        gate = torch.where(features["is_query"][:, None], gate, 1.0)
        features["sentence_embedding"] = (vectors.float() * gate).to(vectors.dtype)
        return features

    def lexical_weights(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return w: values (B, T) with their entries (B, T), of a text's own ones, or (B, V) and None for CLR."""
        mask, states = features["attention_mask"], features["token_embeddings"]
        if self.weights == "clr":
            rows = torch.arange(len(states), device=states.device)
            return torch.log1p(torch.relu(states[rows, last_positions(mask)].float() @ self.unembedding.T)), None
        ids = features["input_ids"]
        kept = mask.bool() & ~torch.isin(ids, torch.tensor(self.specials, device=ids.device, dtype=ids.dtype))
        each = self.scale.expand(ids.shape) if self.weights == "slr" else torch.relu(self.score(states.float())[..., 0])
        return largest_of_each(ids, each * kept)

    def gate_of(self, values: Tensor, entries: Tensor | None) -> Tensor:
        """Return a (B, D), each row of sum 1."""
        rows = self.unembedding if self.gate == "unembedding" else self.rows
        summed = values @ rows if entries is None else (values[:, None] @ rows[entries])[:, 0]
        logits = summed if self.gate == "full" else self.out(summed)
        return (logits + self.bias).softmax(dim=-1)


def largest_of_each(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of ``values`` (B, T) >= 0 of each id in a row of ``ids`` (B, T), and those ids.

    Both (B, T): an id stands once, and places that are left over hold the value 0.
    """
    ids, order = ids.sort(dim=1)
    changed = (ids[:, 1:] != ids[:, :-1]).long()
    group = torch.cat([changed.new_zeros(len(ids), 1), changed.cumsum(dim=1)], dim=1)
    largest = torch.zeros_like(values).scatter_reduce(1, group, values.gather(1, order), "amax")
    return largest, torch.zeros_like(ids).scatter(1, group, ids)


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder, a pooling, and the gate."""
    for name, known in (("weights", WEIGHTS), ("gate", GATES), ("mode", MODES), ("ignore_special", (True, False))):
        right_kind = isinstance(options[name], bool if name == "ignore_special" else str)
        if not right_kind or options[name] not in known:
            message = f"options.{name} must be one of {', '.join(map(str, known))}; got {options[name]!r}"
            raise SpecError(message, field=f"options.{name}")
    if type(options["rank"]) is not int or options["rank"] < 1:
        message = f"options.rank must be a whole number of at least 1, got {options['rank']!r}"
        raise SpecError(message, field="options.rank")
    decoder = load_decoder(spec, folder, Decoder)
    width = hidden_size(decoder)
    pooled = pooling(options["pooling"], width)
    needs = options["weights"] == "clr" or options["gate"] == "unembedding"
    unembedding = load_unembedding(folder) if needs else None
    entries = len(unembedding) if unembedding is not None else decoder_of(decoder).get_input_embeddings().num_embeddings
    specials = sorted(decoder.tokenizer.all_special_ids) if options["ignore_special"] else []
    gate = LexicalGate(
        width, entries, options["weights"], options["gate"], options["rank"], options["mode"], specials
    )  # fmt: skip
    if unembedding is not None:
        gate.unembedding.copy_(unembedding)
    return [decoder, pooled, gate]
