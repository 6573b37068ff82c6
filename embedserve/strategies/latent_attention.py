"""NV-Embed's latent attention (Lee et al. 2024, arXiv 2405.17428, section 3.1): tokens read a trained dictionary.

Every token's last state asks r trained latents through a Perceiver block, and the mean of the tokens is the text's
vector: a mean pooling with a trained function of each token before it. Published with bidirectional attention and
the instruction left out of the mean; the first is the spec's ``attention``, the second its ``pool_prompt``.

Use it where training has many pairs and mean pooling is the measure to beat: the head starts near mean pooling.
Costs one forward pass and the block once a token: about one layer more, of a decoder of common shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.heads import HeadModule
from embedserve.perceiver import BLOCK_OPTIONS, PerceiverBlock, block_sizes, check_count, new_latents
from embedserve.spec import EncoderSpec

OPTIONS: dict[str, Any] = {"latents": 512, **BLOCK_OPTIONS}
TRAINED = True


class LatentAttention(HeadModule):
    """``token_embeddings`` (B, T, D) -> ``sentence_embedding`` (B, D): each token reads the latents, then the mean.

    Args:
        width: D.
        num_latents: r.
        sizes: ``heads``, ``head_width`` and ``ff_mult`` of `PerceiverBlock`.
    """

    config_keys = ["width", "num_latents", "sizes"]

    def __init__(self, width: int, num_latents: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.width, self.num_latents, self.sizes = width, num_latents, sizes
        self.latents = new_latents(num_latents, width)
        self.block = PerceiverBlock(width, **sizes)
        with torch.no_grad():  # both are added to the token's own state: small, they leave it nearly as it is
            for layer in (self.block.to_out, self.block.down):
                layer.weight.mul_(0.1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the dtype of the decoder; ``attention_mask`` says which tokens it reads."""
        tokens, mask = features["token_embeddings"], features["attention_mask"]
        vectors = self.block(tokens.float(), self.latents[None], query_mask=mask)
        features["sentence_embedding"] = vectors.to(tokens.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder and the latent attention."""
    check_count(options["latents"], "latents")
    decoder = load_decoder(spec, folder, Decoder)
    width = hidden_size(decoder)
    return [decoder, LatentAttention(width, options["latents"], block_sizes(options, width))]
