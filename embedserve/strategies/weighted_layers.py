"""A trained weighted average of layers: e = sum over l of softmax(a)_l · mean over t of h_l[t]  (Peters et al. 2018).

The smallest head there is, one number a layer: it learns which layers to read, where `layer_mean` has to be told. It
starts as the plain average. Costs one forward pass; hooks pool each layer as it comes, so no two layers' states
(B, T, D) are held together. The global scale of ELMo's equation 1 is left out: vectors get unit length, which undoes
it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, decoder_layers, final_norm, hooked, last_positions, pooled_positions
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.layer_mean import chosen_layers

OPTIONS: dict[str, Any] = {"layers": "all", "readout": "mean", "norm": "final", "skip_begin": False}
TRAINED = True


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D), float32, of ``states`` (B, T, D) at the positions where ``mask`` (B, T) is not 0."""
    weights = mask.bool().float()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[:, None] @ states.float())[:, 0]


def last_state(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state (B, D), float32, at the last position where ``mask`` (B, T) is not 0."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows, last_positions(mask)].float()


READOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_state, "last": last_state}


class LayerStatesDecoder(Decoder):
    """The decoder, with one vector for each of several layers beside its last states.

    Args:
        layer_numbers: n hidden state numbers: 0 the embeddings, L behind the final norm, the others as the residual
            stream has them.
        readout: ``mean`` over the pooled positions, or ``last`` of them.
        norm: ``final`` puts the layers between through the final norm, as the last one was; ``none`` does not.
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
        found: dict[int, Tensor] = {}

        def keep(number: int, states: Tensor) -> None:
            found[number] = read(scale(states), pooled)

        last = len(decoder_layers(model))
        with hooked(model, {number: partial(keep, number) for number in self.layer_numbers if number != last}):
            states = self.run(ids, mask)
        if last in self.layer_numbers:
            found[last] = read(states, pooled)
        features["layer_states"] = torch.stack([found[number] for number in self.layer_numbers], dim=1)
        return states


class WeightedLayers(HeadModule):
    """``layer_states`` (B, n, D) -> ``sentence_embedding`` (B, D), their average with trained weights softmax(a)."""

    config_keys = ["num_layers", "width"]

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.num_layers, self.width = num_layers, width
        self.logits = nn.Parameter(torch.zeros(num_layers))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the dtype of the decoder."""
        vectors = self.logits.softmax(dim=0) @ features["layer_states"]
        features["sentence_embedding"] = vectors.to(features["token_embeddings"].dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


def load_layer_states(spec: EncoderSpec, options: dict[str, Any], folder: Path, norm: str) -> LayerStatesDecoder:
    """Load the decoder that reads ``options``: ``layers``, ``readout`` and ``skip_begin``, checked here."""
    if options["readout"] not in list(READOUTS):
        message = f"options.readout must be {' or '.join(READOUTS)}, got {options['readout']!r}"
        raise SpecError(message, field="options.readout")
    if not isinstance(options["skip_begin"], bool):
        message = f"options.skip_begin must be true or false, got {options['skip_begin']!r}"
        raise SpecError(message, field="options.skip_begin")
    names = {"readout": options["readout"], "norm": norm, "skip_begin": options["skip_begin"]}
    decoder = load_decoder(spec, folder, LayerStatesDecoder, **names)
    decoder.layer_numbers = chosen_layers(options["layers"], len(decoder_layers(decoder_of(decoder))))
    return decoder


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder that pools every layer, and their trained average."""
    if options["norm"] not in ("final", "none"):
        raise SpecError(f"options.norm must be final or none, got {options['norm']!r}", field="options.norm")
    decoder = load_layer_states(spec, options, folder, options["norm"])
    return [decoder, WeightedLayers(len(decoder.layer_numbers), hidden_size(decoder))]
