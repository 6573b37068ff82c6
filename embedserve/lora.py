"""Low-rank adapters of a decoder (LoRA, Hu et al. 2022, arXiv 2106.09685, section 4.1, eq. 3): W + B A beside W.

Kept apart from the decoder as ``lora.NAME.a`` (r, in) and ``lora.NAME.b`` (out, r) for each linear layer NAME, the
scale within B; added to its weights when an encoder is built, so that they cost nothing when it runs.
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
    """Return the decoder with adapters of rank ``rank`` to train beside every linear layer; alpha is 2 · rank."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it is about to rename
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # it finds out by itself, and does right
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def trained_adapters(model: Any) -> dict[str, Tensor]:
    """Return what `with_adapters` made trainable, as float32 tensors on the CPU by name."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            name = name.removeprefix("base_model.model.")
            (key,) = module.lora_A
            found[f"{PREFIX}{name}.a"] = module.lora_A[key].weight.detach().float().cpu()
            found[f"{PREFIX}{name}.b"] = module.lora_B[key].weight.detach().float().cpu() * module.scaling[key]
    return found


def join(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return adapters that add what both add: their ranks side by side."""
    found = {**first, **second}
    for name in first.keys() & second.keys():
        found[name] = torch.cat([first[name], second[name]], dim=0 if name.endswith(".a") else 1)
    return found


@torch.no_grad()
def add_adapters(decoder: nn.Module, adapters: Mapping[str, Tensor]) -> None:
    """Add adapters to the weights of ``decoder``."""
    for name in (name.removesuffix(".a") for name in adapters if name.endswith(".a")):
        layer: Any = decoder.get_submodule(name.removeprefix(PREFIX))
        change = adapters[f"{name}.b"].float() @ adapters[f"{name}.a"].float()
        change = (change.T if isinstance(layer, Conv1D) else change).to(layer.weight.device)
        layer.weight.copy_(layer.weight.float() + change)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str | None:
    """Return 32 hex digits over weights by name; None where there are none."""
    if not tensors:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().double().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
