"""Multi-layer trainable pooling (Tang and Yang 2024, arXiv 2409.02727): latents attend over the layers of the decoder.

Each layer is read out as one vector (the last token's, or the mean), r trained latents ask them through a Perceiver
block, and the mean of the latents is the text's vector. ``over`` changes what they read:

    layers      every layer's vector, a trained embedding added to each (the paper's models 3 and 5)
    last_token  the last layer's last token (model 2): attention over one key, a map of that token
    tokens      every pooled token of the last layer (model 4)

Use it where a labelled set can tell which layers matter; with attention bidirectional and readout mean it is model 5.
Costs one forward pass and r rows of the block a text. The head starts near the plain mean of the normalised layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.perceiver import BLOCK_OPTIONS, PerceiverBlock, block_sizes, check_count, new_latents
from embedserve.spec import EncoderSpec
from embedserve.strategies.weighted_layers import last_state, load_layer_states

OF_LAYERS: dict[str, Any] = {"layers": "all", "readout": "mean", "skip_begin": False}
OPTIONS: dict[str, Any] = {"over": "layers", **OF_LAYERS, "latents": 32, **BLOCK_OPTIONS}
OVER = ("layers", "last_token", "tokens")
TRAINED = True


class MultiLayerPooling(HeadModule):
    """What ``over`` names -> ``sentence_embedding`` (B, D): the mean of the latents that have read it.

    Args:
        width: D.
        num_latents: r.
        num_layers: n where it reads ``layer_states`` (B, n, D); 0 where it reads ``token_embeddings`` (B, T, D).
        over: ``layers``, ``last_token`` or ``tokens``.
        sizes: ``heads``, ``head_width`` and ``ff_mult`` of `PerceiverBlock`.
    """

    config_keys = ["width", "num_latents", "num_layers", "over", "sizes"]

    def __init__(self, width: int, num_latents: int, num_layers: int, over: str, sizes: dict[str, int]) -> None:
        super().__init__()
        self.width, self.num_latents, self.num_layers, self.over, self.sizes = (
            width,
            num_latents,
            num_layers,
            over,
            sizes,
        )
        self.latents = new_latents(num_latents, width)
        self.layer_embeddings = nn.Parameter(torch.zeros(num_layers, width)) if num_layers else None
        self.block = PerceiverBlock(width, **sizes)
        self._start_as_average()

    def _start_as_average(self) -> None:
        """Let values pass: an untrained head then gives nearly the mean of what it reads, not a random map of it."""
        inner = self.block.to_q.out_features
        with torch.no_grad():
            for weight in (self.block.to_kv.weight[inner:], self.block.to_out.weight):
                weight.mul_(0.1).diagonal().add_(1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the dtype of the decoder."""
        tokens, mask = features["token_embeddings"], features["attention_mask"]
        if self.layer_embeddings is not None:
            context = features["layer_states"] + self.layer_embeddings
        elif self.over == "last_token":
            context = last_state(tokens, mask)[:, None]
        else:
            context = tokens.float()
        read = mask if self.over == "tokens" else None
        vectors = self.block(self.latents[None], context, context_mask=read)
        features["sentence_embedding"] = vectors.to(tokens.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder, which pools every layer where that is asked for, and the trained pooling."""
    if options["over"] not in OVER:
        message = f"options.over must be one of {', '.join(OVER)}, got {options['over']!r}"
        raise SpecError(message, field="options.over")
    check_count(options["latents"], "latents")
    over_layers = options["over"] == "layers"
    for name, default in OF_LAYERS.items():
        if not over_layers and options[name] != default:
            message = f"options.{name} goes with over=layers; over={options['over']} reads the last layer: leave it out"
            raise SpecError(message, field=f"options.{name}")
    decoder: Decoder
    if over_layers:
        decoder = load_layer_states(spec, options, folder, norm="none")
    else:
        decoder = load_decoder(spec, folder, Decoder)
    width = hidden_size(decoder)
    num_layers = len(getattr(decoder, "layer_numbers", ()))
    sizes = block_sizes(options, width)
    return [decoder, MultiLayerPooling(width, options["latents"], num_layers, options["over"], sizes)]
