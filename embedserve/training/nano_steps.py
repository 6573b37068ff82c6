"""The two optimisations of nano: static token embeddings, then all weights."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from embedserve.training.batches import Batches, false_negatives
from embedserve.training.losses import contrastive_loss, distillation_loss, next_token_loss
from embedserve.training.nano_model import encode
from embedserve.training.nano_recipe import Recipe

logger = logging.getLogger(__name__)

CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class Targets:
    """The teacher's unit vectors (N, D) of the texts and of the passages, float16."""

    texts: np.ndarray
    passages: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Token id rows: ``num_questions`` questions, their passages, then texts; all but the questions have a target.

    ``answers`` (num_questions,) is the index of each question's passage among the rows after the questions.
    """

    rows: list[np.ndarray]
    num_questions: int
    answers: Tensor
    same: Tensor
    targets: Tensor

    def losses(self, vectors: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the distillation loss and the contrastive one at ``temperature`` of ``vectors`` (len(rows), D)."""
        questions, taught = vectors[: self.num_questions], vectors[self.num_questions :]
        contrast = contrastive_loss(questions, taught[self.answers], self.same, temperature)
        return distillation_loss(taught, self.targets), contrast


def draw(
    batches: Batches, targets: Targets, rng: np.random.Generator, pair_tokens: int, text_tokens: int, device: str
) -> Examples:
    """Draw the examples of one step."""
    questions, answers = batches.pair_rows(rng, pair_tokens)
    passages, positions = np.unique(answers, return_inverse=True)
    crops, crop_positions = batches.crops(rng, passages)
    positions = np.concatenate([positions, crop_positions])
    questions = np.concatenate([questions, -1 - np.arange(len(crops))])  # every crop is a different question
    texts = batches.text_rows(rng, text_tokens)
    rows = [batches.pairs.questions[row] for row in questions if row >= 0] + crops
    rows += [batches.pairs.passages[row] for row in passages] + [batches.texts[row] for row in texts]
    target_vectors = np.concatenate([targets.passages[passages], targets.texts[texts]]).astype(np.float32)
    return Examples(
        rows,
        len(questions),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(false_negatives(questions, positions)).to(device),
        torch.from_numpy(target_vectors).to(device),
    )


def train_static(model: LlamaForCausalLM, batches: Batches, targets: Targets, recipe: Recipe, device: str) -> None:
    """Fit the token embeddings alone: the normed mean of a text's token embeddings is its vector.

    A step reads ``static_tokens`` tokens of texts and of pairs; without layers, batches can be large.
    """
    weight, norm = model.model.embed_tokens.weight, model.model.norm
    optimizer = torch.optim.Adam([weight], lr=recipe.static_lr, betas=(0.9, 0.99))
    for step in range(recipe.static_steps):
        optimizer.param_groups[0]["lr"] = recipe.static_lr * (1 - step / recipe.static_steps)
        rng = np.random.default_rng([recipe.seed, 1, step])
        examples = draw(batches, targets, rng, recipe.static_tokens, recipe.static_tokens, device)
        flat = torch.from_numpy(np.concatenate(examples.rows).astype(np.int64)).to(device)
        starts = torch.tensor([0, *np.cumsum([len(row) for row in examples.rows])[:-1]], device=device)
        pooled = functional.embedding_bag(flat, norm(weight), starts, mode="mean")
        distill, contrast = examples.losses(functional.normalize(pooled, dim=-1), recipe.contrastive_temperature)
        loss = distill + recipe.contrastive_weight * contrast
        optimizer.zero_grad()
        loss.backward()
        assert weight.grad is not None
        weight.grad[:, -1] = 0  # do not train the constant
        optimizer.step()
        if step % 50 == 0:
            logger.info("static step=%d distill=%.4f contrastive=%.4f", step, distill.item(), contrast.item())


def train_decoder(
    model: LlamaForCausalLM, batches: Batches, targets: Targets, recipe: Recipe, device: str, checkpoint: Path
) -> None:
    """Train all weights; continue from ``checkpoint`` if it exists."""
    embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
    matrices = [w for w in model.model.layers.parameters() if w.ndim == 2]
    norms = [w for w in model.model.parameters() if w.ndim == 1]
    groups = [
        {"params": matrices, "lr": recipe.layer_lr, "weight_decay": recipe.weight_decay},
        {"params": norms, "lr": recipe.layer_lr, "weight_decay": 0.0},
        {"params": [embedding], "lr": recipe.embedding_lr, "weight_decay": 0.0},
        {"params": [unembedding], "lr": recipe.unembedding_lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        logger.info("resumed at step=%d", first)
    model.train()
    start_s, seen, smooth = time.monotonic(), 0, np.zeros(3)
    for step in range(first, recipe.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / recipe.warmup_steps) * (1 - step / recipe.steps)
        rng = np.random.default_rng([recipe.seed, 2, step])
        examples = draw(batches, targets, rng, recipe.pair_tokens, recipe.single_tokens, device)
        rows = examples.rows + list(batches.windows(rng))
        vectors, states, following = encode(model, rows, device)
        distill, contrast = examples.losses(vectors[: len(examples.rows)], recipe.contrastive_temperature)
        language = next_token_loss(states, unembedding, following, rng)
        loss = distill + recipe.contrastive_weight * contrast + recipe.lm_weight * language
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += sum(map(len, rows))
        smooth += [distill.item(), contrast.item(), language.item()]
        if (step + 1) % 50 == 0:
            elapsed_s = time.monotonic() - start_s
            remaining_s = elapsed_s / (step + 1 - first) * (recipe.steps - step - 1)
            logger.info(
                "step=%d/%d distill=%.4f contrastive=%.4f next_token=%.4f tokens_per_s=%.0f minutes_left=%.0f",
                step + 1, recipe.steps, *(smooth / 50), seen / elapsed_s, remaining_s / 60,
            )  # fmt: skip
            smooth[:] = 0
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == recipe.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_atomically(checkpoint, partial(torch.save, state))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``."""
    partial_file = path.with_suffix(".partial")
    write(partial_file)
    os.replace(partial_file, path)
