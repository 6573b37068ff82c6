"""``embedserve train``: one trainer for every strategy with weights of its own, and for any backbone.

The trainers and losses are sentence-transformers'. A frozen decoder is run once over every text; what it gives lies on
disk while the head trains.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from embedserve.compat import LIBRARY_VERSION, decoder_of, new_model, set_decoder
from embedserve.encoder import Encoder
from embedserve.errors import InputError, SpecError
from embedserve.heads import RANDOM, check_head_folder, head_state
from embedserve.loading.saved import check_folder
from embedserve.lora import join, trained_adapters, with_adapters
from embedserve.spec import EncoderSpec, parse_model
from embedserve.strategies import is_fitted, is_multi_vector, is_trained, strategy_of
from embedserve.training.cached_states import CachedStates, StateStore
from embedserve.training.card import write_card
from embedserve.training.dev import DEV_METRIC, DevRanking
from embedserve.training.hyperparameters import TrainSettings, check_settings
from embedserve.training.pairs import TrainingPair, mine_negatives, split_dev
from embedserve.training.pseudo_queries import pseudo_pairs
from embedserve.types import Task

WEIGHTS = "trained.safetensors"
Report = Callable[[str, int, int | None], None]
Judged = Callable[[int, float], None]


@dataclass(frozen=True)
class Trained:
    """What a run gave.

    Attributes:
        folder: Where the result lies.
        before: Quality on the dev pairs before the first update (MRR@10), None without dev pairs.
        after: The same of what was saved.
        steps: Updates made.
        kept: Updates behind the weights that were saved: those that were best on the dev pairs, else the last.
        fingerprint: Of the encoder in ``folder``.
        judged_by: Dev pairs.
    """

    folder: Path
    before: float | None
    after: float | None
    steps: int
    kept: int
    fingerprint: str
    judged_by: int = 0


def train(
    spec: EncoderSpec,
    pairs: Sequence[TrainingPair | str] | Callable[[], Sequence[TrainingPair | str]],
    settings: TrainSettings,
    output: Path,
    *,
    dev: Sequence[TrainingPair] | Callable[[], Sequence[TrainingPair]] | None = None,
    sources: Sequence[str] = (),
    device: str = "auto",
    cache: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    judged: Judged | None = None,
) -> Trained:
    """Train ``spec`` on ``pairs`` and write the encoder to ``output``.

    The result holds the strategy's weights, with ``tune="lora"`` also adapters of the decoder, and names its backbone;
    with ``tune="all"`` it is a whole encoder. Checkpoints and cached states lie in ``OUTPUT.work`` until the end.

    Args:
        spec: Strategy, backbone, prompts and the like; ``head`` may name weights to start from.
        pairs: To learn from, or what reads them once all else is known to be right; texts alone are enough for a
            strategy that is fitted, such as whitening.
        settings: How.
        output: A new or empty folder, or one that an earlier run wrote.
        dev: Pairs to judge by; by default a share of ``pairs`` that shares no positive with the rest.
        sources: Where the pairs came from, for the model card.
        device: Where to compute.
        cache: Where states of texts are kept for further runs; by default in ``OUTPUT.work``.
        resume: Go on from the last checkpoint in ``OUTPUT.work``.
        report: Called with stage, done, and total.
        judged: Called with the updates made and the quality on the dev pairs.

    Raises:
        SpecError: The strategy has nothing to train in this way, or a setting plays no part.
        InputError: There are too few pairs.
    """
    output = output.expanduser().absolute()
    work = output.with_name(f"{output.name}.work")
    report = report or (lambda stage, done, total: None)
    (check_folder if settings.tune == "all" else check_head_folder)(output)
    if LIBRARY_VERSION < 6 and not is_fitted(spec.strategy):
        message = "training needs sentence-transformers 6; train where constraints/core.txt is installed"
        raise SpecError(f"{message}: a head that was trained there loads here too", field="strategy")
    check_settings(spec.strategy, settings)
    if dev is not None and is_fitted(spec.strategy):
        raise SpecError(f"{spec.strategy} is fitted, not trained: nothing is judged; leave dev out", field="dev")
    for name, value in (("resume", resume), ("cache", cache)):
        if value and is_fitted(spec.strategy):
            raise SpecError(
                f"{spec.strategy} is fitted in one pass: there is nothing to {name}; leave it out", field=name
            )
    encoder = _start(spec, settings, device)
    miner = None
    if settings.teacher or settings.negatives:
        miner = _miner(settings.teacher, encoder, device)
    read = pairs() if callable(pairs) else pairs
    given = [pair for pair in read if isinstance(pair, TrainingPair)]
    if is_fitted(spec.strategy):
        texts = [text for one in read for text in ((one,) if isinstance(one, str) else (one.query, one.positive))]
        strategy_of(encoder.spec).fit(encoder, texts)
        return _finish(encoder, settings, output, sources, len(set(texts)), Trained(output, None, None, 0, 0, ""))
    if len(given) < len(read):
        raise InputError(f"{spec.strategy} is trained on pairs, and there are texts alone; give pairs", field="data")
    kept_apart = dev() if callable(dev) else dev
    learn, judge = split_dev(given, settings.dev_share) if kept_apart is None else (given, list(kept_apart))
    learn = [*learn, *pseudo_pairs(learn, settings.pseudo_queries, settings.seed)]
    _check_enough(len(learn), settings)
    if settings.negatives:
        report("mining negatives", 0, None)
        learn = mine_negatives(learn, miner, settings.negatives)
        _check_enough(len(learn), settings, f" with {settings.negatives} negatives each")
    run = {"encoder": encoder.fingerprint, "settings": asdict(settings), "data": _digest(given), "dev": _digest(judge)}
    _check_run(work, run | {"teacher": miner.fingerprint if miner is not None else None}, resume)
    with _cut_to(encoder, settings.max_tokens):
        model = _training_model(encoder, settings, [*learn, *judge], cache or work, report)
        callbacks = [_Progress(report, judged or (lambda step, quality: None))]
        trainer = _trainer(model, settings, learn, judge, miner, work, encoder.dim, callbacks)
        before = trainer.judge() if judge else None
        last = _last_checkpoint(work) if resume else None
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if not trainer.state.global_step:
            message = f"no {settings.batch_size} pairs have only different texts; give other pairs, or lower batch_size"
            raise InputError(message, field="data")
        after = trainer.judge() if judge else None
    if settings.tune == "lora":
        encoder.adapters = join(encoder.adapters, trained_adapters(decoder_of(encoder.model[0])))
    steps = trainer.state.global_step
    found = Trained(output, before, after, steps, trainer.state.best_global_step or steps, "", len(judge))
    found = _finish(encoder, settings, output, sources, len(learn), found)
    shutil.rmtree(work, ignore_errors=True)
    return found


def _digest(pairs: Sequence[TrainingPair]) -> str:
    return hashlib.blake2b(repr(list(pairs)).encode(), digest_size=16).hexdigest()


def _check_run(work: Path, run: dict[str, Any], resume: bool) -> None:
    """Make ``work`` that of ``run``: a new one forgets older checkpoints, one that is resumed must be the same.

    Raises:
        SpecError: There is nothing to resume, or another run left the checkpoints; what differs is named.
    """
    path, now = work / "run.json", json.loads(json.dumps(run))
    if resume:
        if not path.is_file():
            message = f"{work} holds no run to resume; check output, or train without --resume"
            raise SpecError(message, field="resume")
        before = json.loads(path.read_text(encoding="utf-8"))
        flat = [{**values, **values["settings"]} for values in (before, now)]
        if differs := sorted(n for n in flat[1] if n != "settings" and flat[0].get(n) != flat[1][n]):
            message = f"{work} holds the checkpoints of a run with another {', '.join(differs)}"
            raise SpecError(f"{message}; give the same, or train without --resume", field="resume")
        return
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now), encoding="utf-8")


def _check_enough(count: int, settings: TrainSettings, what: str = "") -> None:
    """Raise `InputError` unless ``count`` pairs fill a batch."""
    if count < settings.batch_size:
        message = f"{count} pairs{what} are fewer than one batch of {settings.batch_size}"
        raise InputError(f"{message}; give more, or lower batch_size", field="data")


def _start(spec: EncoderSpec, settings: TrainSettings, device: str) -> Encoder:
    """Return the encoder that training starts from."""
    own = is_trained(spec.strategy, {**settings.options, **spec.options})
    if not own and settings.tune == "head":
        message = (
            f"{spec.strategy} has no trained weights of its own; tune=lora or tune=all train the backbone under it"
        )
        raise SpecError(message, field="tune")
    options = {**settings.options, **spec.options}
    head = spec.head or (RANDOM if own else None)
    if head not in (None, RANDOM):
        options = dict(spec.options)  # those that the head was trained with count
    if spec.backbone != "nano" and (folder := Path(spec.backbone).expanduser()).is_dir():
        spec = replace(spec, backbone=str(folder.resolve()))  # a head finds it from any working directory
    encoder = Encoder.load(replace(spec, options=options, head=head), device)
    if settings.tune == "head" and encoder.spec.options.get("mode") == "training":
        message = "options.mode=training serves the backbone alone, which tune=head leaves as it is"
        raise SpecError(f"{message}; set tune to lora or all, or leave the mode out", field="options.mode")
    if too_wide := [dim for dim in settings.matryoshka if dim > encoder.dim]:
        message = f"matryoshka must lie from 1 to {encoder.dim}, the width of the vectors; got {too_wide[0]}"
        raise SpecError(message, field="matryoshka")
    return encoder


def _miner(teacher: str | None, student: Encoder, device: str) -> Encoder:
    """Return the encoder that negatives are mined with, and that is distilled: ``teacher``, or the plain backbone."""
    if teacher is None:
        return Encoder.load(EncoderSpec("mean", student.spec.backbone), device)
    found = Encoder.load(parse_model(teacher), device)
    if "dense" not in found.outputs:
        message = f"the teacher {teacher} makes a vector for each token, and only one vector a text is distilled or"
        raise SpecError(f"{message} mined with; name an encoder of such vectors", field="teacher")
    return found


@contextmanager
def _cut_to(encoder: Encoder, max_tokens: int) -> Iterator[None]:
    """Let the encoder and its tokenizer read at most ``max_tokens`` of a text."""
    tokenizer = encoder.model.tokenizer
    limits = encoder.max_tokens, tokenizer.model_max_length
    encoder.max_tokens = tokenizer.model_max_length = min(max_tokens, encoder.max_tokens)
    try:
        yield
    finally:
        encoder.max_tokens, tokenizer.model_max_length = limits


def _training_model(
    encoder: Encoder, settings: TrainSettings, pairs: list[TrainingPair], cache: Path, report: Report
) -> Any:
    """Return the library's model with gradients where ``settings.tune`` wants them."""
    first: Any = encoder.model[0]
    own = head_state(encoder.strategy_modules)
    encoder.model.requires_grad_(False)
    decoder_of(first).requires_grad_(settings.tune == "all")
    for place, module in enumerate(encoder.strategy_modules):
        for name, weight in module.named_parameters():
            if f"{place}.{name}" in own:
                weight.requires_grad_(True)
    if settings.tune == "lora":
        set_decoder(first, with_adapters(decoder_of(first), settings.lora_rank))
    if settings.tune != "head" or any(name.startswith("0.") for name in own):
        return encoder.model
    texts: list[tuple[Task, str]] = [("query", pair.query) for pair in pairs]
    texts += [("document", pair.positive) for pair in pairs]
    texts += [("document", text) for pair in pairs for text in pair.negatives]
    store = StateStore.build(
        encoder, list(dict.fromkeys(texts)), cache, lambda done, total: report("reading texts", done, total)
    )
    modules = [CachedStates(store, first.tokenizer, is_multi_vector(encoder.spec.strategy)), *list(encoder.model)[1:]]
    return new_model(modules, str(encoder.device), {})


def _trainer(
    model: Any,
    settings: TrainSettings,
    learn: list[TrainingPair],
    judge: list[TrainingPair],
    teacher: Encoder | None,
    work: Path,
    width: int,
    callbacks: list[TrainerCallback],
) -> Any:
    """Return the library's trainer for ``model``, whose checkpoints hold only what is trained."""
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
            """Leave the library's card out: ours is written at the end."""

        def judge(self) -> float:
            return float(DevRanking(judge)(self.model)[DEV_METRIC])

    columns = _columns(learn, settings, teacher)
    texts = [name for name in columns if name != "label"]
    steps = settings.steps or max(1, int(settings.epochs * len(learn) / settings.batch_size))
    every = min(settings.eval_steps, steps)
    judging = {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True} if judge else {}
    args = arguments(
        output_dir=str(work / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        warmup_steps=int(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        logging_steps=min(10, every),
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        metric_for_best_model=f"eval_{DEV_METRIC}" if judge else None,
        greater_is_better=True if judge else None,
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        batch_sampler="no_duplicates",
        prompts={name: model.prompts[task] for name, task in _tasks(texts).items() if model.prompts.get(task)},
        router_mapping=_tasks(texts),
        use_cpu=model.device.type == "cpu",
        bf16=model.device.type == "cuda",
        **judging,
    )
    if judge:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        loss=_loss(model, settings, width),
        evaluator=DevRanking(judge) if judge else None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # progress is the caller's
    return trainer


def is_multi_vector_model(model: Any) -> bool:
    """Say whether the library's model makes a vector for each token."""
    return type(model).__name__ == "MultiVectorEncoder"


def _tasks(columns: Sequence[str]) -> dict[str, str]:
    return {name: "query" if name == "query" else "document" for name in columns}


def _trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that change: those with gradients, and the running statistics of batch norms."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    trained |= {name for name in model.state_dict() if "running_" in name or "num_batches_tracked" in name}
    return {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items() if name in trained}


def _columns(learn: list[TrainingPair], settings: TrainSettings, teacher: Encoder | None) -> dict[str, list[Any]]:
    """Return the columns of the training set: query, positive, negatives, and for distillation the teacher's scores."""
    columns: dict[str, list[Any]] = {
        "query": [pair.query for pair in learn],
        "positive": [pair.positive for pair in learn],
    }
    counts = [len(pair.negatives) for pair in learn]
    count = settings.negatives or min(counts)
    if max(counts) and not count:
        message = f"{counts.count(0)} of {len(counts)} pairs have no hard negative, and the others do"
        remedy = "set negatives, and those that are missing are mined, or give data where all or none have them"
        raise InputError(f"{message}; {remedy}", field="negatives")
    for number in range(count):
        columns[f"negative_{number + 1}"] = [pair.negatives[number] for pair in learn]
    if settings.loss == "distillation" and teacher is not None:
        if not count:
            raise SpecError("loss=distillation compares a positive with negatives: set negatives", field="negatives")
        queries = teacher.embed(columns["query"], "query").vectors
        names = list(columns)[1:]
        scores = [(queries * teacher.embed(columns[name], "document").vectors).sum(axis=1) for name in names]
        columns["label"] = np.stack(scores, axis=1).tolist()
    return columns


def _loss(model: Any, settings: TrainSettings, width: int) -> nn.Module:
    """Return the library's loss that ``settings`` describe, over vectors of ``width`` dimensions."""
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


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Passes the trainer's steps on."""

    def __init__(self, report: Report, judged: Judged) -> None:
        self.report, self.judged = report, judged

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("training", state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.judged(state.global_step, metrics[f"eval_{DEV_METRIC}"])


def _last_checkpoint(work: Path) -> Path | None:
    """Return the newest whole checkpoint in ``work``, if there is one."""
    found = [path for path in (work / "checkpoints").glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _finish(
    encoder: Encoder, settings: TrainSettings, output: Path, sources: Sequence[str], count: int, found: Trained
) -> Trained:
    """Write the encoder and its model card, and return what came of the run."""
    encoder.model.eval()
    if settings.tune != "all":
        # A fitted map takes a mean away that may be far larger than what stays: half precision is too narrow for it.
        encoder.save_head(output, half=not is_fitted(encoder.spec.strategy))
    else:
        encoder.save(output)
    saved = Encoder.load(output, str(encoder.device))
    found = replace(found, fingerprint=saved.fingerprint)
    write_card(output, saved, settings, sources, count, found.before, found.after, found.steps, found.kept)
    return found
