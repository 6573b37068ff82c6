"""The encoders that a measurement names on its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from embedserve import Encoder
from embedserve.spec import parse_model


def load_encoder(name: str) -> Encoder:
    """Return the encoder of a spec in one line, of a model's name, or of a folder."""
    return Encoder.load(parse_model(name))


def random_decoder(size: str, folder: Path) -> str:
    """Write a random Llama of LAYERSxWIDTH with nano's tokenizer to ``folder``, and return its path."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from embedserve.backbone import quiet_loading
    from embedserve.model_folders import NANO

    layers, _, width = size.partition("x")
    tokenizer = AutoTokenizer.from_pretrained(NANO, local_files_only=True)
    config: Any = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=int(width),
        intermediate_size=int(width) * 4,
        num_hidden_layers=int(layers),
        num_attention_heads=int(width) // 64,
        num_key_value_heads=max(1, int(width) // 256),
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with quiet_loading(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    with quiet_loading():
        model.save_pretrained(folder)
        tokenizer.model_max_length = 2048
        tokenizer.save_pretrained(folder)
    return str(folder)
