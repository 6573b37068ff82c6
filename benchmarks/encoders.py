"""The encoders that a measurement names on its command line."""

from __future__ import annotations

from embedserve import Encoder
from embedserve.spec import parse_model


def load_encoder(name: str) -> Encoder:
    """Return the encoder of a spec in one line, of a model's name, or of a folder."""
    return Encoder.load(parse_model(name))
