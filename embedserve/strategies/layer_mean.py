"""Averages over layers: first and last (BERT-whitening), the last k, any set, or given weights.

    e = sum over l of a_l · mean over t of h_l[t]        a_l = 1/|S|, or the given weights divided by their sum

(WhiteningBERT, Huang et al. 2021, section 3.1.) Hooks add each layer into one (B, T, D) sum as it comes, so the
L+1 hidden states are never held together. ``h_0`` are the token embeddings, ``h_L`` is behind the final norm; the
layers between have very different norms, so each goes through the final norm first unless ``norm`` is ``none``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Pooling, decoder_of
from embedserve.decoder import Decoder, decoder_layers, final_norm, hooked
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec

OPTIONS: dict[str, Any] = {"layers": "all", "weights": None, "norm": "final", "skip_begin": False}


def chosen_layers(layers: str | list[int], num_layers: int) -> list[int]:
    """Return hidden state numbers, 0 (embeddings) to ``num_layers``.

    ``layers`` is ``all`` (but the embeddings), ``first_last``, ``last:k``, or a list of numbers.
    """
    if layers == "all":
        return list(range(1, num_layers + 1))
    if layers == "first_last":
        return [1, num_layers]
    if isinstance(layers, str) and layers.startswith("last:") and layers[5:].isdecimal():
        layers = list(range(num_layers - int(layers[5:]) + 1, num_layers + 1))
    numbers = layers if isinstance(layers, list) else []
    inside = all(type(n) is int and 0 <= n <= num_layers for n in numbers)
    if not numbers or not inside or len(set(numbers)) != len(numbers):
        wanted = f"all, first_last, last:k, or a list of different numbers from 0 to {num_layers}"
        raise SpecError(f"layers must be {wanted}; got {layers!r}", field="options.layers")
    return numbers


class LayerMeanDecoder(Decoder):
    """The decoder with the weighted mean of several layers as its ``token_embeddings`` (B, T, D)."""

    config_keys = [*Decoder.config_keys, "layer_weights", "norm"]

    def __init__(
        self, *args: Any, layer_weights: dict[str, float] | None = None, norm: str = "final", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.layer_weights = layer_weights or {}
        self.norm = norm

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Run the decoder once and add up the layers as they come."""
        model = decoder_of(self)
        scale = final_norm(model) if self.norm == "final" else nn.Identity()
        total: list[Tensor] = []

        def adding(weight: float) -> Callable[[Tensor], None]:
            def add(hidden: Tensor) -> None:
                part = scale(hidden) * weight
                total[:] = [total[0] + part] if total else [part]

            return add

        numbers = {int(name): weight for name, weight in self.layer_weights.items()}
        last = len(decoder_layers(model))
        with hooked(model, {number: adding(weight) for number, weight in numbers.items() if number < last}):
            states = self.run(ids, mask)
        if numbers.get(last):
            total[:] = [sum(total, states * numbers[last])]
        return total[0]


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder that averages layers, and mean pooling."""
    if options["norm"] not in ("final", "none"):
        raise SpecError(f"options.norm must be final or none, got {options['norm']!r}", field="options.norm")
    if not isinstance(options["skip_begin"], bool):
        message = f"options.skip_begin must be true or false, got {options['skip_begin']!r}"
        raise SpecError(message, field="options.skip_begin")
    transformer = load_decoder(spec, folder, LayerMeanDecoder, skip_begin=options["skip_begin"], norm=options["norm"])
    layers = chosen_layers(options["layers"], len(decoder_layers(decoder_of(transformer))))
    weights = options["weights"] if options["weights"] is not None else [1.0] * len(layers)
    numbers = isinstance(weights, list) and all(type(weight) in (int, float) for weight in weights)
    if not numbers or len(weights) != len(layers) or not 0 < sum(weights) < math.inf:
        message = f"options.weights must be {len(layers)} numbers with a positive sum, one for each of {layers}"
        raise SpecError(message, field="options.weights")
    transformer.layer_weights = {str(n): w / sum(weights) for n, w in zip(layers, weights, strict=True)}
    return [transformer, Pooling(hidden_size(transformer), pooling_mode="mean")]
