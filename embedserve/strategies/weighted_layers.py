"""A trained weighted average of layers (ELMo, Peters et al. 2018, eq. 1).

    e = sum over l of softmax(a)_l · mean over t of h_l[t]

The smallest trained head, one number per layer: it learns which layers to read, where `layer_mean` must be told.
Untrained it is the plain average. Costs one forward pass; hooks pool each layer as it is computed, so the states
(B, T, D) of two layers are never in memory together. ELMo's global scale is omitted: normalisation cancels it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, decoder_layers, final_norm, hooked, last_positions, pooled_positions
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.layer_mean import parse_layers
from embedserve.strategies.strategy import Strategy, option

LAYERS_HELP = "as in `layer_mean`: `all`, `first_last`, `last:k`, or numbers; 0 is the embeddings"


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D), float32, of ``states`` (B, T, D) at the positions where ``mask`` (B, T) is not 0."""
    weights = mask.bool().float()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[:, None] @ states.float())[:, 0]


def last_state(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state (B, D), float32, at the last position where ``mask`` (B, T) is not 0."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows, last_positions(mask)].float()


Readout = Literal["mean", "last"]
READOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_state, "last": last_state}


class LayerStatesDecoder(Decoder):
    """A decoder that also returns one vector for each of several layers.

    Args:
        layer_numbers: n hidden state numbers: 0 the embeddings, L the output of the final norm, the others the
            residual stream.
        readout: ``mean`` over the pooled positions, or the ``last`` of them.
        norm: ``final`` applies the final norm to the layers before the last; ``none`` does not.
    """

    config_keys = [*Decoder.config_keys, "layer_numbers", "readout", "norm"]
    reads_tokens = False

    def __init__(
        self,
        *args: Any,
        layer_numbers: list[int] | None = None,
        readout: str = "mean",
        norm: str = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.layer_numbers = layer_numbers or []
        self.readout, self.norm = readout, norm

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Run the decoder once; add ``layer_states`` (B, n, D), float32, in the order of ``layer_numbers``."""
        model = decoder_of(self)
        scale = final_norm(model) if self.norm == "final" else nn.Identity()
        pooled = pooled_positions(mask, features["pooled_from"]) if "pooled_from" in features else mask
        read = READOUTS[self.readout]
        vectors: dict[int, Tensor] = {}

        def store(number: int, states: Tensor) -> None:
            vectors[number] = read(scale(states), pooled)

        last = len(decoder_layers(model))
        with hooked(model, {number: partial(store, number) for number in self.layer_numbers if number != last}):
            states = self.run(ids, mask)
        if last in self.layer_numbers:
            vectors[last] = read(states, pooled)
        features["layer_states"] = torch.stack([vectors[number] for number in self.layer_numbers], dim=1)
        return states


class WeightedLayers(HeadModule):
    """``layer_states`` (B, n, D) -> ``sentence_embedding`` (B, D): their average with trained weights softmax(a)."""

    config_keys = ["num_layers", "width"]

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.num_layers, self.width = num_layers, width
        self.logits = nn.Parameter(torch.zeros(num_layers))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the decoder's dtype."""
        vectors = self.logits.softmax(dim=0) @ features["layer_states"]
        features["sentence_embedding"] = vectors.to(features["token_embeddings"].dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


def load_layer_states(
    spec: EncoderSpec, folder: Path, layers: str | list[int], readout: Readout, norm: str, skip_begin: bool
) -> LayerStatesDecoder:
    """Load a decoder that pools ``layers``, written as the option of `layer_mean`."""
    decoder = load_decoder(spec, folder, LayerStatesDecoder, readout=readout, norm=norm, skip_begin=skip_begin)
    decoder.layer_numbers = parse_layers(layers, len(decoder_layers(decoder_of(decoder))))
    return decoder


@dataclass(frozen=True)
class WeightedLayersStrategy(Strategy):
    """The average of layers with trained weights."""

    layers: str | list[int] = option("all", LAYERS_HELP)
    readout: Readout = option("mean", "vector of a layer: the mean of its tokens, or the `last` token")
    norm: Literal["final", "none"] = option(
        "final", "`none` adds the residual stream without the final norm; later layers then outweigh earlier ones"
    )
    skip_begin: bool = option(False, "exclude the begin token from the mean")

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder that pools every layer, and the average."""
        decoder = load_layer_states(spec, folder, self.layers, self.readout, self.norm, self.skip_begin)
        return [decoder, WeightedLayers(len(decoder.layer_numbers), hidden_size(decoder))]
