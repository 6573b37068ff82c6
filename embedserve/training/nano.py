"""Train nano, the decoder that ships with the project.

    python -m embedserve.training.nano --data TRAIN_DIR --work WORK_DIR [--out embedserve/nano]

Five resumable steps: texts -> teacher vectors -> tokenizer -> static token embeddings -> decoder.
The decoder is a Llama with untied embeddings. The large epsilon of its RMSNorm lets the norm of a token embedding
express the weight of the token. The loss of a training step is the sum of three:

- distillation of the teacher's sentence vectors into the mean of the last hidden states;
- in-batch contrastive loss over questions and passages, with neighbouring passages as negatives;
- next-token loss over the same texts and over windows of running text.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

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
    running_text,
    unique_passages,
)  # fmt: skip
from embedserve.training.nano_model import held_out_loss, new_decoder, set_first_embeddings
from embedserve.training.nano_recipe import NANO, Recipe, recipe_values
from embedserve.training.nano_steps import Targets, train_decoder, train_static, write_atomically
from embedserve.training.teacher import load_teacher, teacher_vectors

logger = logging.getLogger(__name__)


def _check_recipe(recipe: Recipe, teacher_name: str, path: Path) -> None:
    """Raise `SpecError` if the folder holds the steps of another recipe."""
    values = {**vars(recipe), "teacher": teacher_name}
    if not path.exists():
        write_atomically(path, lambda aside: aside.write_text(json.dumps(values, indent=1), encoding="utf-8"))
    if changed := spec_difference(json.loads(path.read_text(encoding="utf-8")), values):
        message = f"{path.parent} holds a run with another {', '.join(changed)}; choose another --work folder"
        raise SpecError(message, field="work")


def on_axes(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Project ``vectors`` (N, d) on ``axes`` (d, D - 1); return float16 unit vectors (N, D) with a last 0."""
    out = np.zeros((len(vectors), axes.shape[1] + 1), dtype=np.float16)
    for start in range(0, len(vectors), 65_536):
        part = vectors[start : start + 65_536].astype(np.float32) @ axes.astype(np.float32)
        out[start : start + len(part), :-1] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def run(recipe: Recipe, data_dir: Path, work: Path, out: Path, teacher_name: str, device: str) -> None:
    """Run every step that is missing in ``work`` and write the model to ``out``."""
    work.mkdir(parents=True, exist_ok=True)
    _check_recipe(recipe, teacher_name, work / "recipe.json")
    texts_file = work / "texts.json"
    if not texts_file.exists():
        values = json.dumps(vars(sources.collect(data_dir, recipe.seed, recipe.data_scale)))
        write_atomically(texts_file, lambda path: path.write_text(values, encoding="utf-8"))
    collected = sources.TrainingTexts(**json.loads(texts_file.read_text()))
    del collected.texts[recipe.max_texts :]  # the order is random
    text_pairs = sources.retrieval_pairs(data_dir, recipe.seed, recipe.data_scale)
    passages = unique_passages(text_pairs)
    logger.info("texts=%d pairs=%d passages=%d", len(collected.texts), len(text_pairs), len(passages))
    text_vectors = teacher_vectors(collected.texts, work / "teacher", teacher_name, device, logger.info)
    passage_vectors = teacher_vectors(passages, work / "passages", teacher_name, device, logger.info)

    tokenizer_file = work / "tokenizer" / "tokenizer.json"
    if not tokenizer_file.exists():
        trained = vocabulary.train_tokenizer(collected.texts, recipe.vocab_size)
        tokenizer_file.parent.mkdir(exist_ok=True)
        write_atomically(tokenizer_file, lambda path: trained.save(str(path)))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    texts = TokenizedTexts.encode(tokenizer, collected.texts, recipe.train_tokens)
    pairs = TokenizedPairs.encode(tokenizer, text_pairs, recipe.passage_tokens)
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
        write_atomically(static, lambda path: torch.save(model.state_dict(), path))
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
    """Run the command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m embedserve.training.nano", description="Train nano.")
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs/*.jsonl.gz and text/*.jsonl.gz")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the intermediate results; run again to resume"
    )
    parser.add_argument("--out", type=Path, default=here.parent / "nano", help="output folder")
    parser.add_argument("--recipe", type=Path, default=NANO)
    parser.add_argument("--teacher", default="minilm", help="sentence encoder: path, hub id, or minilm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="override a value of the recipe")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    values = recipe_values(args.recipe, args.device)
    for change in args.set:
        name, _, value = change.partition("=")
        if name not in values:
            parser.error(f"--set {name}: unknown name; the recipe has {', '.join(values)}")
        values[name] = type(values[name])(value)
    try:
        run(Recipe(**values), args.data, args.work, args.out, args.teacher, args.device)
    except SpecError as error:
        parser.error(error.message)


if __name__ == "__main__":
    main()
