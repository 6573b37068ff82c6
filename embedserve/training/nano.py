"""The recipe of nano, the decoder that ships with the project.

    python -m embedserve.training.nano --data TRAIN_DIR --work WORK_DIR [--out embedserve/nano]

Five steps, each resumable: texts -> teacher vectors -> tokenizer -> static token embeddings -> decoder.
The decoder is a Llama (RMSNorm with a large epsilon, so that the norm of a token embedding still says how much the
token matters), its embeddings and unembedding are separate. One training step adds three losses:

- distillation of the teacher's sentence vectors into the mean of the last hidden states;
- in-batch contrastive loss over questions and passages, the negatives of a question being the passages beside its own;
- next-token loss over the same texts and over windows of running text.
"""

from __future__ import annotations

import argparse
import json
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
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from embedserve.backbone import quiet_loading
from embedserve.errors import SpecError
from embedserve.folders import give_usual_modes
from embedserve.spec import spec_difference
from embedserve.training import text_folders as sources
from embedserve.training import vocabulary
from embedserve.training.batches import (
    Batches,
    TokenizedPairs,
    TokenizedTexts,
    also_right,
    running_text,
    unique_passages,
)  # fmt: skip
from embedserve.training.losses import contrastive_loss, distillation_loss, next_token_loss
from embedserve.training.recipe import NANO, Recipe, recipe_values
from embedserve.training.teacher import load_teacher, teacher_vectors

logger = logging.getLogger(__name__)

CHECKPOINT_STEPS = 100


def new_decoder(recipe: Recipe) -> LlamaForCausalLM:
    """Build the decoder with small output projections, so that at first every layer changes little."""
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
    """Fill the token embeddings, the last of whose dimensions is one small constant, and start the unembedding.

    The unembedding reads log p(token) off the constant, so the language model starts at the unigram distribution.
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


@dataclass(frozen=True)
class Targets:
    """The teacher's unit vectors (N, D) of the texts and of the passages, float16."""

    texts: np.ndarray
    passages: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Token id rows: ``num_questions`` questions, their passages, then texts; all but the questions have a target.

    ``answers`` (num_questions,) is the place of each question's passage among the rows after the questions.
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
    passages, places = np.unique(answers, return_inverse=True)
    crops, crop_places = batches.crops(rng, passages)
    places = np.concatenate([places, crop_places])
    questions = np.concatenate([questions, -1 - np.arange(len(crops))])  # no two crops ask the same
    texts = batches.text_rows(rng, text_tokens)
    rows = [batches.pairs.questions[row] for row in questions if row >= 0] + crops
    rows += [batches.pairs.passages[row] for row in passages] + [batches.texts[row] for row in texts]
    wanted = np.concatenate([targets.passages[passages], targets.texts[texts]]).astype(np.float32)
    return Examples(
        rows,
        len(questions),
        torch.from_numpy(places).to(device),
        torch.from_numpy(also_right(questions, places)).to(device),
        torch.from_numpy(wanted).to(device),
    )


def train_static(model: LlamaForCausalLM, batches: Batches, targets: Targets, recipe: Recipe, device: str) -> None:
    """Fit the token embeddings alone: the normed mean of a text's token embeddings is its vector.

    A step reads ``static_tokens`` of texts and as many of pairs: no layers, so batches are large.
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
        weight.grad[:, -1] = 0  # the constant stays
        optimizer.step()
        if step % 50 == 0:
            logger.info("static step=%d distill=%.4f contrastive=%.4f", step, distill.item(), contrast.item())


def encode(
    model: LlamaForCausalLM, rows: list[np.ndarray], device: str, chunk_tokens: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit mean-pooled vectors (B, D) of token id rows in the order given, and what predicts which next token.

    The second and third result are the last hidden states (N, D) of every token that has a next one, in any order,
    and those next tokens (N,). Rows of like length share a right-padded chunk; causal attention never sees the
    padding, so no mask is needed.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    chunk_tokens = chunk_tokens if device == "cpu" else 1 << 16
    # One lookup for all rows: its gradient is as large as the vocabulary, so it is wanted once, not once a chunk.
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
        places = torch.arange(int(lengths.max()))[None]
        mask = (places < lengths[:, None]).to(device)
        before, after = (places < lengths[:, None] - 1).to(device), mask & (places > 0).to(device)
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


def train_decoder(
    model: LlamaForCausalLM, batches: Batches, targets: Targets, recipe: Recipe, device: str, checkpoint: Path
) -> None:
    """Train all weights; goes on from ``checkpoint`` where there is one."""
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
    began, seen, smooth = time.monotonic(), 0, np.zeros(3)
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
            spent = time.monotonic() - began
            left = spent / (step + 1 - first) * (recipe.steps - step - 1)
            logger.info(
                "step=%d/%d distill=%.4f contrastive=%.4f next_token=%.4f tokens_per_s=%.0f minutes_left=%.0f",
                step + 1, recipe.steps, *(smooth / 50), seen / spent, left / 60,
            )  # fmt: skip
            smooth[:] = 0
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == recipe.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            _write_whole(checkpoint, partial(torch.save, state))


def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, texts: list[str], window: int, device: str) -> float:
    """Return the next-token loss in nats per token over ``texts`` joined, in windows of ``window`` tokens."""
    ids = np.concatenate([[*e.ids, 1] for e in tokenizer.encode_batch_fast(texts)])
    windows = torch.from_numpy(ids[: len(ids) // window * window].reshape(-1, window)).to(device)
    model.eval()
    with torch.inference_mode():
        losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in windows.split(8)]
    return sum(losses) / len(windows)


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place: a run that is killed leaves no half of it."""
    aside = path.with_suffix(".partial")
    write(aside)
    os.replace(aside, path)


def _check_recipe(recipe: Recipe, teacher_name: str, path: Path) -> None:
    """Raise `SpecError` if the folder was begun with another recipe: its steps would not fit together."""
    values = {**vars(recipe), "teacher": teacher_name}
    if not path.exists():
        _write_whole(path, lambda aside: aside.write_text(json.dumps(values, indent=1), encoding="utf-8"))
    if changed := spec_difference(json.loads(path.read_text(encoding="utf-8")), values):
        message = f"{path.parent} was begun with another {', '.join(changed)}; give another --work folder"
        raise SpecError(message, field="work")


def on_axes(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return ``vectors`` (N, d) on ``axes`` (d, D - 1) as unit vectors (N, D), the last dimension zero, float16."""
    out = np.zeros((len(vectors), axes.shape[1] + 1), dtype=np.float16)
    for start in range(0, len(vectors), 65_536):
        part = vectors[start : start + 65_536].astype(np.float32) @ axes.astype(np.float32)
        out[start : start + len(part), :-1] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def run(recipe: Recipe, data_dir: Path, work: Path, out: Path, teacher_name: str, device: str) -> None:
    """Run every step that ``work`` does not hold yet and write the model to ``out``."""
    work.mkdir(parents=True, exist_ok=True)
    _check_recipe(recipe, teacher_name, work / "recipe.json")
    found = work / "texts.json"
    if not found.exists():
        values = json.dumps(vars(sources.collect(data_dir, recipe.seed, recipe.data_scale)))
        _write_whole(found, lambda path: path.write_text(values, encoding="utf-8"))
    collected = sources.TrainingTexts(**json.loads(found.read_text()))
    del collected.texts[recipe.max_texts :]  # they stand in random order
    found_pairs = sources.retrieval_pairs(data_dir, recipe.seed, recipe.data_scale)
    passages = unique_passages(found_pairs)
    logger.info("texts=%d pairs=%d passages=%d", len(collected.texts), len(found_pairs), len(passages))
    text_vectors = teacher_vectors(collected.texts, work / "teacher", teacher_name, device, logger.info)
    passage_vectors = teacher_vectors(passages, work / "passages", teacher_name, device, logger.info)

    tokenizer_file = work / "tokenizer" / "tokenizer.json"
    if not tokenizer_file.exists():
        trained = vocabulary.train_tokenizer(collected.texts, recipe.vocab_size)
        tokenizer_file.parent.mkdir(exist_ok=True)
        _write_whole(tokenizer_file, lambda path: trained.save(str(path)))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    texts = TokenizedTexts.encode(tokenizer, collected.texts, recipe.train_tokens)
    pairs = TokenizedPairs.encode(tokenizer, found_pairs, recipe.passage_tokens)
    running = running_text(data_dir, tokenizer, recipe.seed, recipe.running_chars)
    batches = Batches(texts, pairs, running, recipe)
    logger.info("tokens: texts=%d passages=%d running=%d", len(texts.flat), len(pairs.passages.flat), len(running))

    axes = vocabulary.principal_axes(text_vectors[:100_000], recipe.hidden_size - 1)
    targets = Targets(on_axes(text_vectors, axes), on_axes(passage_vectors, axes))

    model = new_decoder(recipe)
    static = work / "static.pt"
    if not static.exists():
        frequencies = vocabulary.token_frequencies(texts.flat, recipe.vocab_size)
        teacher = load_teacher(teacher_name, device)
        first = vocabulary.first_embeddings(tokenizer, teacher, axes, frequencies)
        set_first_embeddings(model, first, frequencies, recipe.embedding_scale)
        model.to(device)
        train_static(model, batches, targets, recipe, device)
        _write_whole(static, lambda path: torch.save(model.state_dict(), path))
    model.load_state_dict(torch.load(static, weights_only=True, map_location="cpu"))
    model.to(device)
    train_decoder(model, batches, targets, recipe, device, work / "decoder.pt")

    loss = held_out_loss(model, tokenizer, collected.held_out, recipe.lm_window, device)
    logger.info("held-out next-token loss=%.4f nats", loss)
    with quiet_loading():
        model.to(device="cpu", dtype=torch.float16).save_pretrained(str(out))
    give_usual_modes(out)
    vocabulary.save_tokenizer(tokenizer, out, recipe.max_tokens)
    (out / "training.json").write_text(
        json.dumps({"recipe": vars(recipe), "teacher": teacher_name, "held_out_next_token_loss": loss}, indent=1)
    )


def main() -> None:
    """Read the command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m embedserve.training.nano", description="Train nano.")
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs/*.jsonl.gz and text/*.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the steps leave; run again to resume")
    parser.add_argument("--out", type=Path, default=here.parent / "nano", help="where the finished model goes")
    parser.add_argument("--recipe", type=Path, default=NANO)
    parser.add_argument("--teacher", default="minilm", help="sentence encoder: path, hub id, or minilm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="change a number of the recipe")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    values = recipe_values(args.recipe, args.device)
    for change in args.set:
        name, _, value = change.partition("=")
        if name not in values:
            parser.error(f"--set {name}: the recipe has no such number; it has {', '.join(values)}")
        values[name] = type(values[name])(value)
    try:
        run(Recipe(**values), args.data, args.work, args.out, args.teacher, args.device)
    except SpecError as error:
        parser.error(error.message)


if __name__ == "__main__":
    main()
