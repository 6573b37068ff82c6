"""GLOT (arXiv 2603.03389): a small graph network over the tokens of a text, behind a frozen decoder.

Tokens whose last states have a cosine above ``tau`` are neighbours. K graph layers, each followed by ReLU, pass vectors
between neighbours; the input and what every layer gave stand side by side (jumping knowledge), and a learnt score
weighs the tokens of the sum:

    A_ij = 1[cos(x_i, x_j) > tau]          h_k = ReLU(conv_k(h_{k-1}, A)), h_0 = x
    u_i = [h_0; …; h_K]_i                  z = sum over i of softmax(s(u))_i u_i

Use it where few tokens of a long text matter, and how they relate: its head trains in minutes over cached states. The
vector is D + K·hidden wide. Costs O(T²·D) for the graph and O(T·D·hidden) for each layer; nothing of T²·D is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.perceiver import check_count
from embedserve.spec import EncoderSpec

OPTIONS: dict[str, Any] = {
    "conv": "gat",
    "hidden": 256,
    "layers": 4,
    "tau": 0.3,
    "jumping_knowledge": "cat",
    "readout_hidden": None,
    "skip_begin": False,
}
JUMPING_KNOWLEDGE = ("cat", "max", "mean")
TRAINED = True

PAIRS_AT_A_TIME = 1 << 24  # entries of the (B, T, T) arrays that are held at a time: 64 MiB each


def adjacency(states: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Return the graph (B, T, T) bool of tokens: cosine above ``tau``, the diagonal as it comes out.

    Args:
        states: (B, T, D) float32.
        mask: (B, T), 0 at positions that are no nodes.
        tau: Below -1 every token is every other's neighbour; from 1 on none is.
    """
    unit = functional.normalize(states.detach(), dim=-1, eps=1e-8)
    node = mask.bool()
    return (unit @ unit.transpose(1, 2) > tau) & node[:, :, None] & node[:, None, :]


class GATLayer(nn.Module):
    """Graph attention with one head (Veličković et al. 2018, eq. 1-4); a token always is its own neighbour.

    Every edge has the attribute 1, which adds one number to all logits of real edges. On the self loop it is the mean
    of the token's other edges: 1, and without any it does not matter.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, hidden, bias=False)
        self.lin_edge = nn.Linear(1, hidden, bias=False)
        self.att_src, self.att_dst, self.att_edge = (nn.Parameter(torch.empty(hidden)) for _ in range(3))
        self.bias = nn.Parameter(torch.zeros(hidden))
        for vector in (self.att_src, self.att_dst, self.att_edge):
            nn.init.normal_(vector, std=hidden**-0.5)

    def forward(self, states: Tensor, graph: Tensor, mask: Tensor) -> Tensor:
        """Return what each token (B, T, hidden) has from its neighbours."""
        projected = self.lin(states)
        edge = self.lin_edge.weight[:, 0] @ self.att_edge
        logits = (projected @ self.att_dst)[:, :, None] + (projected @ self.att_src)[:, None, :] + edge
        logits = functional.leaky_relu(logits, 0.2)
        own = torch.eye(graph.shape[1], dtype=torch.bool, device=graph.device)
        logits = logits.masked_fill(~(graph | own), -torch.inf)
        return logits.softmax(dim=-1) @ projected + self.bias


class GCNLayer(nn.Module):
    """Graph convolution, D^-1/2 A D^-1/2 X W + b with ones on the diagonal of A (Kipf and Welling 2017, eq. 2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, states: Tensor, graph: Tensor, mask: Tensor) -> Tensor:
        """Return what each token (B, T, hidden) has from its neighbours."""
        own = torch.eye(graph.shape[1], dtype=torch.bool, device=graph.device)
        edges = (graph | own).to(states.dtype)
        scale = edges.sum(dim=-1, keepdim=True).rsqrt()
        return scale * (edges @ (scale * self.lin(states))) + self.bias


class GINLayer(nn.Module):
    """Graph isomorphism, MLP((1 + eps) x_i + sum over neighbours), eps 0 (Xu et al. 2019, eq. 4.1).

    The diagonal is in the sum: a token counts twice, as in the published code. Batch norm reads real tokens only.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor, graph: Tensor, mask: Tensor) -> Tensor:
        """Return what each token (B, T, hidden) has from its neighbours."""
        mixed = self.first(states + graph.to(states.dtype) @ states)
        node = mask.bool()
        out = mixed.new_zeros(mixed.shape)
        out[node] = self.second(self.norm(mixed[node]).relu())
        return out


CONVOLUTIONS: dict[str, type[nn.Module]] = {"gat": GATLayer, "gcn": GCNLayer, "gin": GINLayer}


class TokenGraphPooling(HeadModule):
    """``token_embeddings`` (B, T, D) -> ``sentence_embedding`` (B, D + K·hidden), or (B, hidden) without ``cat``.

    Args:
        width: D.
        conv: ``gat``, ``gcn`` or ``gin``.
        hidden: Width g of the graph layers.
        layers: K.
        tau: Cosine above which two tokens are neighbours.
        jumping_knowledge: ``cat`` puts the input and every layer side by side; ``max`` and ``mean`` are over the
            layers alone.
        readout_hidden: Width of the scorer; None for the larger of 128 and half the vector's width.
    """

    config_keys = ["width", "conv", "hidden", "layers", "tau", "jumping_knowledge", "readout_hidden"]

    def __init__(
        self,
        width: int,
        conv: str = "gat",
        hidden: int = 256,
        layers: int = 4,
        tau: float = 0.3,
        jumping_knowledge: str = "cat",
        readout_hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.width, self.conv, self.hidden, self.layers = width, conv, hidden, layers
        self.tau, self.jumping_knowledge, self.readout_hidden = tau, jumping_knowledge, readout_hidden
        kind = CONVOLUTIONS[conv]
        self.convs = nn.ModuleList(kind(hidden if number else width, hidden) for number in range(layers))
        out = self.get_embedding_dimension()
        inner = readout_hidden or max(128, out // 2)
        self.score = nn.Sequential(nn.Linear(out, inner), nn.Tanh(), nn.Linear(inner, 1))

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self.width + self.layers * self.hidden if self.jumping_knowledge == "cat" else self.hidden

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the states' dtype; everything between is float32."""
        states, mask = features["token_embeddings"], features["attention_mask"]
        size = max(1, PAIRS_AT_A_TIME // states.shape[1] ** 2)
        if self.training:  # batch norm is over the batch
            size = len(states)
        parts = [self.pool(*part) for part in zip(states.float().split(size), mask.split(size), strict=True)]
        features["sentence_embedding"] = torch.cat(parts).to(states.dtype)
        return features

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors (B, d) of ``states`` (B, T, D), float32, whose nodes ``mask`` (B, T) names."""
        node = mask.bool()
        node = node | ~node.any(dim=1, keepdim=True)  # a text without a token to pool is pooled over all it has
        states = states * node[:, :, None]
        graph = adjacency(states, node, self.tau)
        layers = [states]
        for conv in self.convs:
            layers.append(conv(layers[-1], graph, node).relu())
        joined = self._joined(layers)
        scores = self.score(joined)[:, :, 0].masked_fill(~node, -torch.inf)
        return (scores.softmax(dim=1)[:, None] @ joined)[:, 0]

    def _joined(self, layers: list[Tensor]) -> Tensor:
        if self.jumping_knowledge == "cat":
            return torch.cat(layers, dim=-1)
        stacked = torch.stack(layers[1:])
        return stacked.amax(dim=0) if self.jumping_knowledge == "max" else stacked.mean(dim=0)


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder and the token-graph pooling."""
    if options["conv"] not in list(CONVOLUTIONS):
        message = f"options.conv must be one of {', '.join(CONVOLUTIONS)}, got {options['conv']!r}"
        raise SpecError(message, field="options.conv")
    if options["jumping_knowledge"] not in JUMPING_KNOWLEDGE:
        message = f"options.jumping_knowledge must be one of {', '.join(JUMPING_KNOWLEDGE)}"
        raise SpecError(f"{message}; got {options['jumping_knowledge']!r}", field="options.jumping_knowledge")
    for name in ("hidden", "layers", "readout_hidden"):
        if name != "readout_hidden" or options[name] is not None:
            check_count(options[name], name)
    if type(options["tau"]) not in (int, float):
        raise SpecError(f"options.tau must be a number, got {options['tau']!r}", field="options.tau")
    skip_begin = options.pop("skip_begin")
    if not isinstance(skip_begin, bool):
        message = f"options.skip_begin must be true or false, got {skip_begin!r}"
        raise SpecError(message, field="options.skip_begin")
    decoder = load_decoder(spec, folder, Decoder, skip_begin=skip_begin)
    return [decoder, TokenGraphPooling(hidden_size(decoder), **options)]
