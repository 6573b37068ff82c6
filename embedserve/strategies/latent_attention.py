"""Latent attention of NV-Embed (Lee et al. 2024, arXiv 2405.17428, section 3.1): tokens attend over trained latents.

Each token's last hidden state attends over r trained latents through a Perceiver block; the text's vector is the mean
over tokens, that is, mean pooling with a trained function of each token before it. The paper uses bidirectional
attention (the spec's ``attention``) and excludes the instruction from the mean (``pool_prompt: false``).

Use it to train on many pairs where mean pooling is the baseline to beat: the head starts near mean pooling. Costs one
forward pass and the block once per token, about one decoder layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.perceiver import PerceiverBlock, PerceiverStrategy, new_latents
from embedserve.strategies.strategy import option


class LatentAttention(HeadModule):
    """``token_embeddings`` (B, T, D) -> ``sentence_embedding`` (B, D): tokens attend over the latents, then the mean.

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
        with torch.no_grad():  # both are added to the token's state; small weights start near mean pooling
            for layer in (self.block.to_out, self.block.down):
                layer.weight.mul_(0.1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, in the decoder's dtype, from tokens where ``attention_mask`` is not 0."""
        tokens, mask = features["token_embeddings"], features["attention_mask"]
        vectors = self.block(tokens.float(), self.latents[None], query_mask=mask)
        features["sentence_embedding"] = vectors.to(tokens.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.width


@dataclass(frozen=True)
class LatentAttentionStrategy(PerceiverStrategy):
    """Mean pooling after attention over trained latents."""

    latents: int = option(512, "trained vectors r; published: 512", minimum=1)

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder and the latent attention."""
        decoder = load_decoder(spec, folder, Decoder)
        width = hidden_size(decoder)
        return [decoder, LatentAttention(width, self.latents, self.block_sizes(width))]
