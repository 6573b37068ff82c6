"""The device that an encoder runs on."""

from __future__ import annotations

import torch

from embedserve.batching import BATCH_TOKENS
from embedserve.errors import SpecError


def find_device(device: str) -> str:
    """Return ``device``, or the best available one for ``auto``; raise `SpecError` if it cannot be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = str(device).partition(":")
    if kind not in BATCH_TOKENS or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise SpecError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {device!r}", field="device")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise SpecError(
            f"device is {device}, but torch sees {torch.cuda.device_count()} GPUs; use cpu or auto", field="device"
        )
    return str(device)
