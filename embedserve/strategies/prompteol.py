"""PromptEOL (Jiang et al. 2023, arXiv 2307.16645, section 3.1): prompt for a one-word summary of the text.

The vector is the last token's last hidden state, the one that predicts that word. Only the text is truncated, never
the prompt after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.decoder import Decoder
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import pooling
from embedserve.strategies.strategy import Strategy, option, option_error
from embedserve.tokens import Template


@dataclass(frozen=True)
class PromptEOLStrategy(Strategy):
    """Prompt for a one-word summary, last-token pooling."""

    template: str = option(
        'This sentence : "{text}" means in one word:"', "the prompt, with `{text}` where the text goes"
    )

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder with the prompt, and last-token pooling."""
        template = Template.parse(self.template, "options.template")
        if template.repeat is not None:
            raise option_error("template", "must hold {text} once; for two copies use the strategy echo")
        decoder = load_decoder(spec, folder, Decoder, template)
        return [decoder, pooling("last_token", hidden_size(decoder))]
