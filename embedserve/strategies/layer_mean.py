"""Averages over layers: first and last (BERT-whitening), the last k, any set, or with given weights.

    e = sum over l of a_l · mean over t of h_l[t]        a_l = 1/|S|, or the given weights divided by their sum

(WhiteningBERT, Huang et al. 2021, section 3.1.) Hooks add each layer to one (B, T, D) sum as it is computed, so the
L+1 hidden states are never in memory together. ``h_0`` are the token embeddings, ``h_L`` is the output of the final
norm. The layers between have very different norms, so the final norm is applied to each unless ``norm`` is ``none``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, decoder_layers, final_norm, hooked
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import pooling
from embedserve.strategies.strategy import Strategy, option, option_error


def parse_layers(layers: str | list[int], num_layers: int) -> list[int]:
    """Return hidden state numbers from 0 (the embeddings) to ``num_layers``.

    ``layers`` is ``all`` (without the embeddings), ``first_last``, ``last:k``, or a list of numbers.
    """
    if layers == "all":
        return list(range(1, num_layers + 1))
    if layers == "first_last":
        return [1, num_layers]
    if isinstance(layers, str) and layers.startswith("last:") and layers[5:].isdecimal():
        layers = list(range(num_layers - int(layers[5:]) + 1, num_layers + 1))
    numbers = layers if isinstance(layers, list) else []
    if not numbers or not all(0 <= n <= num_layers for n in numbers) or len(set(numbers)) != len(numbers):
        allowed = f"all, first_last, last:k, or a list of different numbers from 0 to {num_layers}"
        raise option_error("layers", f"must be {allowed}; got {layers!r}")
    return numbers


class LayerMeanDecoder(Decoder):
    """A decoder whose ``token_embeddings`` (B, T, D) are the weighted mean of several layers."""

    config_keys = [*Decoder.config_keys, "layer_weights", "norm"]

    def __init__(
        self, *args: Any, layer_weights: dict[str, float] | None = None, norm: str = "final", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.layer_weights = layer_weights or {}
        self.norm = norm

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Run the decoder once and sum the layers as they are computed."""
        model = decoder_of(self)
        scale = final_norm(model) if self.norm == "final" else nn.Identity()
        total: list[Tensor] = []

        def adder(weight: float) -> Callable[[Tensor], None]:
            def add(hidden: Tensor) -> None:
                term = scale(hidden) * weight
                total[:] = [total[0] + term] if total else [term]

            return add

        weights = {int(name): weight for name, weight in self.layer_weights.items()}
        last = len(decoder_layers(model))
        with hooked(model, {number: adder(weight) for number, weight in weights.items() if number < last}):
            states = self.run(ids, mask)
        if weights.get(last):
            total[:] = [sum(total, states * weights[last])]
        return total[0]


@dataclass(frozen=True)
class LayerMeanStrategy(Strategy):
    """The mean of several layers, with equal or given weights."""

    layers: str | list[int] = option("all", "`all`, `first_last`, `last:k`, or numbers; 0 is the embeddings")
    weights: list[float] | None = option(None, "one number per layer with a positive sum; null: equal weights")
    norm: Literal["final", "none"] = option("final", "`final` applies the final norm to each layer")
    skip_begin: bool = option(False, "exclude the begin token from the mean")

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder that averages layers, and mean pooling."""
        decoder = load_decoder(spec, folder, LayerMeanDecoder, skip_begin=self.skip_begin, norm=self.norm)
        layers = parse_layers(self.layers, len(decoder_layers(decoder_of(decoder))))
        weights = self.weights if self.weights is not None else [1.0] * len(layers)
        if len(weights) != len(layers) or not 0 < sum(weights) < math.inf:
            raise option_error(
                "weights", f"must be {len(layers)} numbers with a positive sum, one for each of {layers}"
            )
        decoder.layer_weights = {str(n): weight / sum(weights) for n, weight in zip(layers, weights, strict=True)}
        return [decoder, pooling("mean", hidden_size(decoder))]
