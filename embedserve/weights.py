"""Digests of weights: to detect changes, and to tell which encoders can share a forward pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from embedserve.decoder import Decoder
from embedserve.heads import head_state
from embedserve.lora import tensors_digest
from embedserve.tokens import Template

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def states_digest(first: Any, adapters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """Return a digest of everything that affects the output of the input module ``first``."""
    options = {key: getattr(first, key, None) for key in first.config_keys} | {"class": type(first).__name__}
    return _digest(options, {**adapters, **head_state([first])}, settings)


def passes_digest(first: Any, adapters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """Return a digest of everything that affects the decoder's layers under the input module ``first``."""
    if not getattr(first, "only_reads", not isinstance(first, Decoder)):
        return states_digest(first, adapters, settings)
    template = asdict(Template(**getattr(first, "template", {})))
    options = {
        "template": {name: value for name, value in template.items() if name not in ("skip_begin", "pool_prompt")},
        "bidirectional": getattr(first, "bidirectional", False),
    }
    return _digest(options, dict(adapters), settings)


def _digest(options: Mapping[str, Any], weights: dict[str, Tensor], settings: Mapping[str, Any]) -> str:
    values = {**options, **settings, "weights": tensors_digest(weights)}
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def weights_state(model: nn.Module) -> dict[str, int]:
    """Return a checksum of each weight, computed at memory bandwidth, to detect changes."""
    return {
        name: int(weight.detach().contiguous().view(INTEGERS[weight.element_size()]).sum(dtype=torch.int64))
        for name, weight in model.state_dict().items()
    }
