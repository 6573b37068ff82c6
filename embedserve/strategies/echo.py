"""Echo embeddings (Springer et al. 2024, arXiv 2402.15449, section 3): the text twice, pooled over the second copy.

A causal model reads the second copy with the whole text in its context. Costs twice the tokens. The pieces are
tokenised separately: begin token, ``before``, text, ``repeat``, text, end token. The end token is pooled too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import pooling
from embedserve.strategies.strategy import Strategy, option
from embedserve.tokens import Template


@dataclass(frozen=True)
class EchoStrategy(Strategy):
    """The text twice, pooled over the second copy."""

    before: str = option("Rewrite the following paragraph: ", "text before the first copy")
    repeat: str = option(". The rewritten paragraph: ", "text between the copies")
    pooling: Literal["mean", "last_token"] = option("mean", "pooling over the second copy")

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder with the echo template, and the pooling."""
        decoder = load_decoder(spec, folder, Decoder, Template(before=self.before, repeat=self.repeat))
        return [decoder, pooling(self.pooling, hidden_size(decoder))]
