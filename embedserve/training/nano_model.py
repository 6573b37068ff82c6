"""The decoder of nano: its first weights, its forward pass in training, its held-out loss."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from embedserve.training.nano_recipe import Recipe


def new_decoder(recipe: Recipe) -> LlamaForCausalLM:
    """Build the decoder. Small output projections keep the initial change of every layer small."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.max_tokens,
        rms_norm_eps=recipe.rms_norm_eps,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.model.layers.named_parameters():
        if weight.ndim == 2:
            small = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=(0.02 if small else 1.0) * weight.shape[1] ** -0.5)
    return model


def set_first_embeddings(
    model: LlamaForCausalLM, embeddings: np.ndarray, frequencies: np.ndarray, scale: float
) -> None:
    """Initialise the token embeddings, whose last dimension is a small constant, and the unembedding.

    The unembedding maps the constant to log p(token), so the language model starts at the unigram distribution.
    ``scale`` is the norm of a rare token's embedding: large enough that one optimiser step of the layers, whose
    outputs are added to it, changes little.
    """
    constant = 0.02 * scale
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight[:, :-1] = torch.from_numpy(embeddings * scale)
        weight[:, -1] = constant
        nn.init.normal_(model.lm_head.weight, std=0.02)
        after_norm = constant / model.config.rms_norm_eps**0.5
        log_p = torch.from_numpy(np.log(frequencies)).float()
        model.lm_head.weight[:, -1] = (log_p - log_p.mean()) / after_norm


def encode(
    model: LlamaForCausalLM, rows: list[np.ndarray], device: str, chunk_tokens: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit mean-pooled vectors (B, D) of token id rows in input order, with states and next tokens.

    The second and third result are the last hidden states (N, D) of all tokens with a successor, in any order, and
    the successors (N,). Rows of similar length share a right-padded chunk; causal attention needs no mask for it.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    chunk_tokens = chunk_tokens if device == "cpu" else 1 << 16
    # One lookup for all rows: its gradient is as large as the vocabulary, and one per chunk would be slow.
    flat = torch.from_numpy(np.concatenate([rows[row] for row in order]).astype(np.int64)).to(device)
    embedded = model.model.embed_tokens(flat)
    pooled: list[Tensor] = []
    states: list[Tensor] = []
    following: list[Tensor] = []
    start = first = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and len(rows[order[end]]) * (end + 1 - start) <= chunk_tokens:
            end += 1
        lengths = torch.tensor([len(rows[row]) for row in order[start:end]])
        positions = torch.arange(int(lengths.max()))[None]
        mask = (positions < lengths[:, None]).to(device)
        before, after = (positions < lengths[:, None] - 1).to(device), mask & (positions > 0).to(device)
        stop = first + int(lengths.sum())
        padded = embedded.new_zeros(*mask.shape, embedded.shape[1])
        padded[mask] = embedded[first:stop]
        hidden = model.model(inputs_embeds=padded, use_cache=False).last_hidden_state
        pooled.append((hidden * mask[..., None]).sum(dim=1) / lengths[:, None].to(device))
        states.append(hidden[before])
        following.append(flat[first:stop][after[mask]])
        start, first = end, stop
    vectors = torch.cat(pooled)[torch.tensor(order, device=device).argsort()]
    return functional.normalize(vectors, dim=-1), torch.cat(states), torch.cat(following)


def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, texts: list[str], window: int, device: str) -> float:
    """Return the next-token loss in nats per token over ``texts`` joined, in windows of ``window`` tokens."""
    ids = np.concatenate([[*e.ids, 1] for e in tokenizer.encode_batch_fast(texts)])
    windows = torch.from_numpy(ids[: len(ids) // window * window].reshape(-1, window)).to(device)
    model.eval()
    with torch.inference_mode():
        losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in windows.split(8)]
    return sum(losses) / len(windows)
