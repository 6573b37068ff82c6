"""PromptEOL (Jiang et al. 2023, section 3.1): ask for the text in one word, read the state that would answer.

The vector is the last token's last hidden state. A text that is too long is cut; the cue behind it never is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from embedserve.backbone import FormattedTransformer, hidden_size, load_as
from embedserve.compat import Pooling
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template

OPTIONS: dict[str, Any] = {"template": 'This sentence : "{text}" means in one word:"'}


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder behind ``options["template"]`` and last-token pooling."""
    template = asdict(Template.parse(options["template"]))
    transformer = load_as(FormattedTransformer, spec, folder, template=template)
    return [transformer, Pooling(hidden_size(transformer), pooling_mode="lasttoken")]
