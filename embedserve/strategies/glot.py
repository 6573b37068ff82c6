"""GLOT (arXiv 2603.03389): token-graph pooling, a small graph neural network over a frozen decoder's token states.

Tokens whose last hidden states have a cosine above ``tau`` are neighbours. K graph layers, each followed by ReLU, pass
messages between neighbours; jumping knowledge concatenates the input and the output of every layer; a learned score
weighs the tokens in the sum:

    A_ij = 1[cos(x_i, x_j) > tau]          h_k = ReLU(conv_k(h_{k-1}, A)), h_0 = x
    u_i = [h_0; …; h_K]_i                  z = sum over i of softmax(s(u))_i u_i

Use it where few tokens of a long text matter, and their relations: the head trains in minutes over cached states. The
vector has D + K·hidden dimensions. Costs O(T²·D) for the graph and O(T·D·hidden) for each layer; no array of size
T²·D is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.strategy import Strategy, option

PAIRS_AT_A_TIME = 1 << 24  # entries of the (B, T, T) arrays in memory at a time: 64 MiB each


def adjacency(states: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Return the adjacency matrix (B, T, T) bool: cosine above ``tau``, the diagonal by the same rule.

    Args:
        states: (B, T, D) float32.
        mask: (B, T), 0 at positions that are not nodes.
        tau: Below -1 the graph is complete; from 1 on it has no edge.
    """
    unit = functional.normalize(states.detach(), dim=-1, eps=1e-8)
    node = mask.bool()
    return (unit @ unit.transpose(1, 2) > tau) & node[:, :, None] & node[:, None, :]


class GATLayer(nn.Module):
    """Graph attention with one head (Veličković et al. 2018, eq. 1-4), with self loops.

    Every edge has the attribute 1, which adds the same number to all logits. On a self loop the attribute is the mean
    of the token's other edges: 1, and irrelevant if there are none.
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
        """Return the messages (B, T, hidden) that the tokens receive."""
        projected = self.lin(states)
        edge = self.lin_edge.weight[:, 0] @ self.att_edge
        logits = (projected @ self.att_dst)[:, :, None] + (projected @ self.att_src)[:, None, :] + edge
        logits = functional.leaky_relu(logits, 0.2)
        self_loop = torch.eye(graph.shape[1], dtype=torch.bool, device=graph.device)
        logits = logits.masked_fill(~(graph | self_loop), -torch.inf)
        return logits.softmax(dim=-1) @ projected + self.bias


class GCNLayer(nn.Module):
    """Graph convolution, D^-1/2 A D^-1/2 X W + b with ones on the diagonal of A (Kipf and Welling 2017, eq. 2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, states: Tensor, graph: Tensor, mask: Tensor) -> Tensor:
        """Return the messages (B, T, hidden) that the tokens receive."""
        self_loop = torch.eye(graph.shape[1], dtype=torch.bool, device=graph.device)
        edges = (graph | self_loop).to(states.dtype)
        scale = edges.sum(dim=-1, keepdim=True).rsqrt()
        return scale * (edges @ (scale * self.lin(states))) + self.bias


class GINLayer(nn.Module):
    """Graph isomorphism, MLP((1 + eps) x_i + sum over neighbours), eps 0 (Xu et al. 2019, eq. 4.1).

    The sum includes the diagonal: a token counts twice, as in the published code. Batch norm reads real tokens only.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor, graph: Tensor, mask: Tensor) -> Tensor:
        """Return the messages (B, T, hidden) that the tokens receive."""
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
        jumping_knowledge: ``cat`` concatenates the input and every layer; ``max`` and ``mean`` are over the layers.
        readout_hidden: Width of the scorer. Default: the larger of 128 and half the vector's width.
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
        layer_class = CONVOLUTIONS[conv]
        self.convs = nn.ModuleList(layer_class(hidden if layer else width, hidden) for layer in range(layers))
        out = self.get_embedding_dimension()
        inner = readout_hidden or max(128, out // 2)
        self.score = nn.Sequential(nn.Linear(out, inner), nn.Tanh(), nn.Linear(inner, 1))

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self.width + self.layers * self.hidden if self.jumping_knowledge == "cat" else self.hidden

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, computed in float32, in the states' dtype."""
        states, mask = features["token_embeddings"], features["attention_mask"]
        size = max(1, PAIRS_AT_A_TIME // states.shape[1] ** 2)
        if self.training:  # batch norm needs the whole batch
            size = len(states)
        vectors = [self.pool(*chunk) for chunk in zip(states.float().split(size), mask.split(size), strict=True)]
        features["sentence_embedding"] = torch.cat(vectors).to(states.dtype)
        return features

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors (B, d) of ``states`` (B, T, D), float32; ``mask`` (B, T) is not 0 at nodes."""
        node = mask.bool()
        node = node | ~node.any(dim=1, keepdim=True)  # a text without nodes is pooled over all positions
        states = states * node[:, :, None]
        graph = adjacency(states, node, self.tau)
        layers = [states]
        for conv in self.convs:
            layers.append(conv(layers[-1], graph, node).relu())
        tokens = self._jump(layers)
        scores = self.score(tokens)[:, :, 0].masked_fill(~node, -torch.inf)
        return (scores.softmax(dim=1)[:, None] @ tokens)[:, 0]

    def _jump(self, layers: list[Tensor]) -> Tensor:
        if self.jumping_knowledge == "cat":
            return torch.cat(layers, dim=-1)
        stacked = torch.stack(layers[1:])
        return stacked.amax(dim=0) if self.jumping_knowledge == "max" else stacked.mean(dim=0)


@dataclass(frozen=True)
class GlotStrategy(Strategy):
    """A graph neural network over the tokens, and a learned weighted sum."""

    conv: Literal["gat", "gcn", "gin"] = option("gat", "graph layer: attention, convolution or isomorphism")
    hidden: int = option(256, "width of the graph layers", minimum=1)
    layers: int = option(4, "number of graph layers", minimum=1)
    tau: float = option(
        0.3, "cosine above which tokens are neighbours; anisotropic decoders give nearly complete graphs"
    )
    jumping_knowledge: Literal["cat", "max", "mean"] = option(
        "cat", "concatenate the input and all layers, or the `max` or `mean` over the layers"
    )
    readout_hidden: int | None = option(
        None, "width of the scorer; null: the larger of 128 and half the vector's width", minimum=1
    )
    skip_begin: bool = option(False, "exclude the begin token, whose state is often far larger than all others")

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder and the token-graph pooling."""
        decoder = load_decoder(spec, folder, Decoder, skip_begin=self.skip_begin)
        arguments = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "skip_begin"}
        return [decoder, TokenGraphPooling(hidden_size(decoder), **arguments)]
