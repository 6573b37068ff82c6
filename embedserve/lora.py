"""Low-rank adapters of a decoder (LoRA, Hu et al. 2022, arXiv 2106.09685, section 4.1, eq. 3): W + B A instead of W.

Adapters are saved apart from the decoder as ``lora.NAME.a`` (r, in) and ``lora.NAME.b`` (out, r) for each linear layer
NAME; B includes the scale. They are merged into the weights when an encoder is built, so inference costs no more.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

PREFIX = "lora."


def with_adapters(model: nn.Module, rank: int) -> Any:
    """Return the decoder with trainable adapters of rank ``rank`` in every linear layer; alpha is 2 · rank."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a transformers name that is deprecated
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # peft corrects it by itself
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def trained_adapters(model: Any) -> dict[str, Tensor]:
    """Return the adapters of `with_adapters` by name, as float32 tensors on the CPU."""
    adapters = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            name = name.removeprefix("base_model.model.")
            (key,) = module.lora_A
            adapters[f"{PREFIX}{name}.a"] = module.lora_A[key].weight.detach().float().cpu()
            adapters[f"{PREFIX}{name}.b"] = module.lora_B[key].weight.detach().float().cpu() * module.scaling[key]
    return adapters


def join(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the ranks of two sets of adapters: the result adds the sum of both."""
    adapters = {**first, **second}
    for name in first.keys() & second.keys():
        adapters[name] = torch.cat([first[name], second[name]], dim=0 if name.endswith(".a") else 1)
    return adapters


@torch.no_grad()
def add_adapters(decoder: nn.Module, adapters: Mapping[str, Tensor]) -> None:
    """Merge adapters into the weights of ``decoder``."""
    for name in (name.removesuffix(".a") for name in adapters if name.endswith(".a")):
        layer: Any = decoder.get_submodule(name.removeprefix(PREFIX))
        change = adapters[f"{name}.b"].float() @ adapters[f"{name}.a"].float()
        change = (change.T if isinstance(layer, Conv1D) else change).to(layer.weight.device)
        layer.weight.copy_(layer.weight.float() + change)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a digest of named tensors as 32 hex digits; None if there are none."""
    if not tensors:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().double().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
