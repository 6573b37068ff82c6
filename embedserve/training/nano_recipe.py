"""The hyperparameters of nano."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NANO = Path(__file__).parent / "nano.toml"


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one training of nano; `NANO` is the file of their documented values."""

    seed: int
    data_scale: float
    max_texts: int
    running_chars: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    rms_norm_eps: float
    embedding_scale: float
    max_tokens: int
    train_tokens: int
    passage_tokens: int
    neighbours: int
    questions_each: int
    crops_each: int
    crop_tokens: int
    static_steps: int
    static_tokens: int
    static_lr: float
    steps: int
    warmup_steps: int
    pair_tokens: int
    single_tokens: int
    lm_rows: int
    lm_window: int
    lm_weight: float
    contrastive_weight: float
    contrastive_temperature: float
    layer_lr: float
    embedding_lr: float
    unembedding_lr: float
    weight_decay: float


def recipe_values(path: Path, device: str) -> dict[str, Any]:
    """Return the values of a recipe file; on a GPU, those of its table ``cuda`` take precedence."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    gpu_values = values.pop("cuda", {})
    return {**values, **gpu_values} if device.startswith("cuda") else values
