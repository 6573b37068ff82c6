"""Averages over layers: first and last (BERT-whitening), the last k, any set, or given weights.

    e = sum over l of a_l · mean over t of h_l[t]        a_l = 1/|S|, or the given weights divided by their sum

(WhiteningBERT, Huang et al. 2021, section 3.1.) Hooks add each layer into one (B, T, D) sum as it comes, so the
L+1 hidden states are never held together. ``h_0`` are the token embeddings, ``h_L`` is behind the final norm; the
layers between have very different norms, so each goes through the final norm first unless ``norm`` is ``none``.
"""

from __future__ import annotations

import math
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embedserve.backbone import FormattedTransformer, decoder_layers, final_norm, hidden_size, load_as
from embedserve.compat import Pooling, decoder_of
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template

OPTIONS: dict[str, Any] = {"layers": "all", "weights": None, "norm": "final", "skip_begin": False}

_HOOKED = threading.Lock()  # the hooks sit on the module that all threads share


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


class LayerMeanTransformer(FormattedTransformer):
    """The decoder with the weighted mean of several layers as its ``token_embeddings`` (B, T, D)."""

    config_keys = [*FormattedTransformer.config_keys, "layer_weights", "norm"]

    def __init__(
        self, *args: Any, layer_weights: dict[str, float] | None = None, norm: str = "final", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.layer_weights = layer_weights or {}
        self.norm = norm

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Run the decoder once; hooks that add up the layers are removed again whatever happens."""
        with _HOOKED:
            return self._forward(features, **kwargs)

    def _forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        layers, norm = decoder_layers(decoder_of(self)), final_norm(decoder_of(self))
        scale = norm if self.norm == "final" else nn.Identity()
        last = len(layers)
        total: list[Tensor] = []

        def add(hidden: Tensor, weight: float) -> None:
            part = scale(hidden) * weight
            total[:] = [total[0] + part] if total else [part]

        def on_input(weight: float) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
                add(args[0] if args else named["hidden_states"], weight)

            return hook

        def on_output(weight: float) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                add(output if isinstance(output, Tensor) else output[0], weight)

            return hook

        handles = []
        try:
            for name, weight in self.layer_weights.items():
                number = int(name)
                if number == 0:
                    handles.append(layers[0].register_forward_pre_hook(on_input(weight), with_kwargs=True))
                elif number < last:
                    handles.append(layers[number - 1].register_forward_hook(on_output(weight)))
            features = super().forward(features, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        weight = self.layer_weights.get(str(last), 0.0)
        if weight:
            part = features["token_embeddings"] * weight
            total[:] = [total[0] + part] if total else [part]
        features["token_embeddings"] = total[0]
        return features


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder that averages layers, and mean pooling."""
    if options["norm"] not in ("final", "none"):
        raise SpecError(f"options.norm must be final or none, got {options['norm']!r}", field="options.norm")
    if not isinstance(options["skip_begin"], bool):
        message = f"options.skip_begin must be true or false, got {options['skip_begin']!r}"
        raise SpecError(message, field="options.skip_begin")
    template = asdict(Template(skip_begin=options["skip_begin"]))
    transformer = load_as(LayerMeanTransformer, spec, folder, norm=options["norm"], template=template)
    layers = chosen_layers(options["layers"], len(decoder_layers(decoder_of(transformer))))
    weights = options["weights"] if options["weights"] is not None else [1.0] * len(layers)
    numbers = isinstance(weights, list) and all(type(weight) in (int, float) for weight in weights)
    if not numbers or len(weights) != len(layers) or not 0 < sum(weights) < math.inf:
        message = f"options.weights must be {len(layers)} numbers with a positive sum, one for each of {layers}"
        raise SpecError(message, field="options.weights")
    transformer.layer_weights = {str(n): w / sum(weights) for n, w in zip(layers, weights, strict=True)}
    return [transformer, Pooling(hidden_size(transformer), pooling_mode="mean")]
