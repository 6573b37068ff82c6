"""The sentence-transformers trainer: model, data set, loss and arguments of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from embedserve.compat import decoder_of, new_model, set_decoder
from embedserve.encoder import Encoder
from embedserve.errors import InputError, SpecError
from embedserve.heads import head_state
from embedserve.lora import with_adapters
from embedserve.strategies import is_multi_vector
from embedserve.training.cached_states import CachedStates, StateStore
from embedserve.training.dev import DEV_METRIC, DevRanking
from embedserve.training.hyperparameters import TrainSettings
from embedserve.training.pairs import TrainingPair
from embedserve.types import Task

WEIGHTS = "trained.safetensors"
Report = Callable[[str, int, int | None], None]
Judged = Callable[[int, float], None]


def training_model(
    encoder: Encoder, settings: TrainSettings, pairs: list[TrainingPair], cache: Path, report: Report
) -> Any:
    """Return the model to train: ``settings.tune`` selects the weights with gradients.

    With ``tune="head"``, cached hidden states replace the decoder if no trained weight is inside it.
    """
    first: Any = encoder.model[0]
    strategy_weights = head_state(encoder.strategy_modules)
    encoder.model.requires_grad_(False)
    decoder_of(first).requires_grad_(settings.tune == "all")
    for position, module in enumerate(encoder.strategy_modules):
        for name, weight in module.named_parameters():
            if f"{position}.{name}" in strategy_weights:
                weight.requires_grad_(True)
    if settings.tune == "lora":
        set_decoder(first, with_adapters(decoder_of(first), settings.lora_rank))
    if settings.tune != "head" or any(name.startswith("0.") for name in strategy_weights):
        return encoder.model
    texts: list[tuple[Task, str]] = [("query", pair.query) for pair in pairs]
    texts += [("document", pair.positive) for pair in pairs]
    texts += [("document", text) for pair in pairs for text in pair.negatives]
    store = StateStore.build(
        encoder, list(dict.fromkeys(texts)), cache, lambda done, total: report("reading texts", done, total)
    )
    modules = [CachedStates(store, first.tokenizer, is_multi_vector(encoder.spec.strategy)), *list(encoder.model)[1:]]
    return new_model(modules, str(encoder.device), {})


def new_trainer(
    model: Any,
    settings: TrainSettings,
    learn: list[TrainingPair],
    judge: list[TrainingPair],
    teacher: Encoder | None,
    work: Path,
    width: int,
    callbacks: list[TrainerCallback],
) -> Any:
    """Return the trainer of ``model``. Its checkpoints hold only the trained weights."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    kind: Any = SentenceTransformerTrainer
    arguments: Any = SentenceTransformerTrainingArguments
    if is_multi_vector_model(model):
        from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

        kind, arguments = MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    class Trainer(kind):  # type: ignore[misc]
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(_trained_state(self.model), folder / WEIGHTS)

        def _load_from_checkpoint(self, checkpoint_path: str, *_: Any, **__: Any) -> None:
            self.model.load_state_dict(load_file(Path(checkpoint_path) / WEIGHTS), strict=False)

        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Do nothing: `embedserve.training.card` writes the model card."""

        def judge(self) -> float:
            return float(DevRanking(judge)(self.model)[DEV_METRIC])

    columns = _columns(learn, settings, teacher)
    options = _arguments(model, settings, columns, has_dev=bool(judge))
    if judge:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    trainer = Trainer(
        model=model,
        args=arguments(output_dir=str(work / "checkpoints"), **options),
        train_dataset=Dataset.from_dict(columns),
        loss=_loss(model, settings, width),
        evaluator=DevRanking(judge) if judge else None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # the caller reports progress
    return trainer


def _arguments(model: Any, settings: TrainSettings, columns: dict[str, list[Any]], *, has_dev: bool) -> dict[str, Any]:
    """Return the training arguments; with dev pairs, evaluate at every checkpoint and keep the best."""
    tasks = _tasks([name for name in columns if name != "label"])
    steps = settings.steps or max(1, int(settings.epochs * len(columns["query"]) / settings.batch_size))
    every = min(settings.eval_steps, steps)
    options: dict[str, Any] = {}
    if has_dev:
        options = {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True}
        options |= {"metric_for_best_model": f"eval_{DEV_METRIC}", "greater_is_better": True}
    return options | {
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.lr,
        "warmup_steps": int(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "logging_steps": min(10, every),
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "seed": settings.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_drop_last": True,
        "batch_sampler": "no_duplicates",
        "prompts": {name: model.prompts[task] for name, task in tasks.items() if model.prompts.get(task)},
        "router_mapping": tasks,
        "use_cpu": model.device.type == "cpu",
        "bf16": model.device.type == "cuda",
    }


def is_multi_vector_model(model: Any) -> bool:
    """Return whether the model produces one vector per token."""
    return type(model).__name__ == "MultiVectorEncoder"


def _tasks(columns: Sequence[str]) -> dict[str, str]:
    return {name: "query" if name == "query" else "document" for name in columns}


def _trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights with gradients and the running statistics of batch norms."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    trained |= {name for name in model.state_dict() if "running_" in name or "num_batches_tracked" in name}
    return {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items() if name in trained}


def _columns(learn: list[TrainingPair], settings: TrainSettings, teacher: Encoder | None) -> dict[str, list[Any]]:
    """Return the columns of the training set: query, positive, negatives, and the teacher's scores for distillation."""
    columns: dict[str, list[Any]] = {
        "query": [pair.query for pair in learn],
        "positive": [pair.positive for pair in learn],
    }
    counts = [len(pair.negatives) for pair in learn]
    count = settings.negatives or min(counts)
    if max(counts) and not count:
        message = f"{counts.count(0)} of {len(counts)} pairs have no hard negative, but the others do"
        remedy = "set negatives to mine the missing ones, or use data in which all pairs or none have them"
        raise InputError(f"{message}; {remedy}", field="negatives")
    for number in range(count):
        columns[f"negative_{number + 1}"] = [pair.negatives[number] for pair in learn]
    if settings.loss == "distillation" and teacher is not None:
        if not count:
            raise SpecError("loss=distillation compares the positive with negatives; set negatives", field="negatives")
        queries = teacher.embed(columns["query"], "query").vectors
        names = list(columns)[1:]
        scores = [(queries * teacher.embed(columns[name], "document").vectors).sum(axis=1) for name in names]
        columns["label"] = np.stack(scores, axis=1).tolist()
    return columns


def _loss(model: Any, settings: TrainSettings, width: int) -> nn.Module:
    """Return the loss selected by ``settings`` for vectors of ``width`` dimensions."""
    if is_multi_vector_model(model):
        from sentence_transformers.multi_vector_encoder import losses as multi

        if settings.loss == "distillation":
            return multi.MultiVectorDistillKLDivLoss(model, temperature=settings.temperature)
        if settings.mini_batch_size:
            return multi.CachedMultiVectorMultipleNegativesRankingLoss(
                model, scale=1 / settings.temperature, mini_batch_size=settings.mini_batch_size
            )
        return multi.MultiVectorMultipleNegativesRankingLoss(model, scale=1 / settings.temperature)
    from sentence_transformers.sentence_transformer import losses

    if settings.loss == "distillation":
        return losses.DistillKLDivLoss(model, temperature=settings.temperature)
    options: dict[str, Any] = {"scale": 1 / settings.temperature}
    if settings.symmetric:
        options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    if settings.mini_batch_size:
        return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=settings.mini_batch_size, **options)
    loss = losses.MultipleNegativesRankingLoss(model, **options)
    return (
        losses.MatryoshkaLoss(model, loss, sorted({*settings.matryoshka, width}, reverse=True))
        if settings.matryoshka
        else loss
    )


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Reports updates and evaluations to the caller."""

    def __init__(self, report: Report, judged: Judged) -> None:
        self.report, self.judged = report, judged

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the number of updates."""
        self.report("training", state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Report the MRR@10 on the dev pairs."""
        self.judged(state.global_step, metrics[f"eval_{DEV_METRIC}"])
