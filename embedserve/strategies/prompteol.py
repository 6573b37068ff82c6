"""PromptEOL (Jiang et al. 2023, section 3.1): ask for the text in one word, read the state that would answer.

The vector is the last token's last hidden state. A text that is too long is cut; the cue behind it never is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Pooling
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template

OPTIONS: dict[str, Any] = {"template": 'This sentence : "{text}" means in one word:"'}


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder behind ``options["template"]`` and last-token pooling."""
    template = Template.parse(options["template"], "options.template")
    if template.repeat is not None:
        raise SpecError("options.template must hold {text} once; echo is for two", field="options.template")
    transformer = load_decoder(spec, folder, Decoder, template)
    return [transformer, Pooling(hidden_size(transformer), pooling_mode="lasttoken")]
