"""Multi-layer trainable pooling (Tang and Yang 2024, arXiv 2409.02727): latents attend over the decoder's layers.

Each layer is pooled to one vector (the mean of its tokens, or the last token), r trained latents attend over these
vectors through a Perceiver block, and the text's vector is the mean of the latents. ``over`` selects the context:

    layers      every layer's vector plus a trained layer embedding (the paper's models 3 and 5)
    last_token  the last layer's last token (model 2): attention over a single key, a map of that token
    tokens      every pooled token of the last layer (model 4)

Use it with a labelled set large enough to learn which layers matter; with bidirectional attention and readout mean it
is model 5. Costs one forward pass and r rows of the block per text. The head starts near the mean of the normalised
layers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.perceiver import PerceiverBlock, PerceiverStrategy, new_latents
from embedserve.strategies.strategy import option, option_error
from embedserve.strategies.weighted_layers import LAYERS_HELP, Readout, last_state, load_layer_states


class MultiLayerPooling(HeadModule):
    """The context named by ``over`` -> ``sentence_embedding`` (B, D): the mean of the latents that attend over it.

    Args:
        width: D.
        num_latents: r.
        num_layers: n if the context is ``layer_states`` (B, n, D); 0 if it is ``token_embeddings`` (B, T, D).
        over: ``layers``, ``last_token`` or ``tokens``.
        sizes: ``heads``, ``head_width`` and ``ff_mult`` of `PerceiverBlock`.
    """

    config_keys = ["width", "num_latents", "num_layers", "over", "sizes"]

    def __init__(self, width: int, num_latents: int, num_layers: int, over: str, sizes: dict[str, int]) -> None:
        super().__init__()
        self.width, self.num_latents, self.num_layers = width, num_latents, num_layers
        self.over, self.sizes = over, sizes
        self.latents = new_latents(num_latents, width)
        self.layer_embeddings = nn.Parameter(torch.zeros(num_layers, width)) if num_layers else None
        self.block = PerceiverBlock(width, **sizes)
        self._start_as_average()

    def _start_as_average(self) -> None:
        """Add the identity to the value and output maps: an untrained head nearly averages its context."""
        inner = self.block.to_q.out_features
        with torch.no_grad():
            for weight in (self.block.to_kv.weight[inner:], self.block.to_out.weight):
                weight.mul_(0.1).diagonal().add_(1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the decoder's dtype."""
        tokens, mask = features["token_embeddings"], features["attention_mask"]
        if self.layer_embeddings is not None:
            context = features["layer_states"] + self.layer_embeddings
        elif self.over == "last_token":
            context = last_state(tokens, mask)[:, None]
        else:
            context = tokens.float()
        context_mask = mask if self.over == "tokens" else None
        vectors = self.block(self.latents[None], context, context_mask=context_mask)
        features["sentence_embedding"] = vectors.to(tokens.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


@dataclass(frozen=True)
class MultiLayerStrategy(PerceiverStrategy):
    """Trained latents that attend over the layers, the tokens or the last token."""

    over: Literal["layers", "last_token", "tokens"] = option(
        "layers", "what the latents attend over: `layers` (models 3, 5), `last_token` (2) or `tokens` (4)"
    )
    layers: str | list[int] = option("all", LAYERS_HELP)
    readout: Readout = option(
        "mean", "`last`: each layer's last token (model 3); `mean` with bidirectional attention is model 5"
    )
    skip_begin: bool = option(False, "exclude the begin token from the mean")
    latents: int = option(32, "trained vectors r; published: 768", minimum=1)

    def check(self) -> None:
        """Raise `SpecError` for an option of ``over=layers`` with another context."""
        for field in fields(self):
            value = getattr(self, field.name)
            if self.over != "layers" and field.name in ("layers", "readout", "skip_begin") and value != field.default:
                raise option_error(field.name, f"goes with over=layers; omit it with over={self.over}")

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder, which pools every layer with ``over=layers``, and the trained pooling."""
        num_layers = 0
        decoder: Decoder
        if self.over == "layers":
            decoder = load_layer_states(spec, folder, self.layers, self.readout, "none", self.skip_begin)
            num_layers = len(decoder.layer_numbers)
        else:
            decoder = load_decoder(spec, folder, Decoder)
        width = hidden_size(decoder)
        return [decoder, MultiLayerPooling(width, self.latents, num_layers, self.over, self.block_sizes(width))]
