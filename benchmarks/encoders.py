"""The encoders that a measurement names on its command line."""

from __future__ import annotations

from pathlib import Path

from embedserve import Encoder
from embedserve.spec import parse_spec


def load_encoder(name: str) -> Encoder:
    """Return the encoder of a spec in one line, or of a folder, which may hold a finished encoder or a head."""
    return Encoder.load(name if Path(name).is_dir() else parse_spec(name))
