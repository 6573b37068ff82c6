"""Train a strategy's weights, adapters or a whole encoder with the trainers and losses of sentence-transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedserve.compat import LIBRARY_VERSION, decoder_of
from embedserve.encoder import Encoder
from embedserve.errors import InputError, SpecError
from embedserve.heads import RANDOM, check_head_folder
from embedserve.loading.saved import check_folder
from embedserve.lora import join, trained_adapters
from embedserve.spec import EncoderSpec, parse_model
from embedserve.strategies import is_fitted, is_trained, strategy_of
from embedserve.training.card import write_card
from embedserve.training.checkpoints import last_checkpoint, pairs_digest, prepare_work_folder
from embedserve.training.hyperparameters import TrainSettings, check_settings
from embedserve.training.pairs import TrainingPair, mine_negatives, split_dev
from embedserve.training.pseudo_queries import pseudo_pairs
from embedserve.training.trainer import Judged, ProgressCallback, Report, new_trainer, training_model


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        folder: Folder of the encoder.
        before: MRR@10 on the dev pairs before the first update, None without dev pairs.
        after: MRR@10 of the saved weights.
        steps: Number of updates.
        kept: Number of updates of the saved weights: the best on the dev pairs, otherwise the last.
        fingerprint: Fingerprint of the encoder in ``folder``.
        judged_by: Number of dev pairs.
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

    The output holds the strategy's weights, the decoder's adapters with ``tune="lora"``, and the name of the backbone;
    with ``tune="all"`` it is a complete encoder. ``OUTPUT.work`` holds checkpoints and cached states during the run.

    Args:
        spec: Strategy, backbone, prompts and options; ``head`` may name initial weights.
        pairs: Training pairs, or a function that reads them after everything else has been validated. A fitted
            strategy, such as whitening, also accepts plain texts.
        settings: Hyperparameters.
        output: A new or empty folder, or the output of an earlier run.
        dev: Evaluation pairs. Default: a share of ``pairs`` that has no positive in common with the rest.
        sources: Names of the data sources, for the model card.
        device: Device to train on.
        cache: Folder of the cached hidden states, for reuse by later runs. Default: ``OUTPUT.work``.
        resume: Continue from the last checkpoint in ``OUTPUT.work``.
        report: Called with stage, completed and total.
        judged: Called with the number of updates and the MRR@10 on the dev pairs.

    Raises:
        SpecError: The strategy cannot be trained this way, or a setting has no effect on it.
        InputError: There are too few pairs.
    """
    output = output.expanduser().absolute()
    work = output.with_name(f"{output.name}.work")
    report = report or (lambda stage, done, total: None)
    _check_arguments(spec, settings, output, dev=dev, resume=resume, cache=cache)
    encoder = _start(spec, settings, device)
    miner = None
    if settings.teacher or settings.negatives:
        miner = _miner(settings.teacher, encoder, device)
    items = pairs() if callable(pairs) else pairs
    if is_fitted(spec.strategy):
        return _fit(encoder, items, settings, output, sources)
    data = [item for item in items if isinstance(item, TrainingPair)]
    if len(data) < len(items):
        raise InputError(
            f"{spec.strategy} is trained on pairs, but the data has texts alone; provide pairs", field="data"
        )
    training, held_out = _select_pairs(data, dev() if callable(dev) else dev, settings, miner, report)
    run = {
        "encoder": encoder.fingerprint,
        "settings": asdict(settings),
        "data": pairs_digest(data),
        "dev": pairs_digest(held_out),
    }
    prepare_work_folder(work, run | {"teacher": miner.fingerprint if miner is not None else None}, resume)
    with _truncation(encoder, settings.max_tokens):
        model = training_model(encoder, settings, [*training, *held_out], cache or work, report)
        callbacks = [ProgressCallback(report, judged or (lambda step, quality: None))]
        trainer = new_trainer(model, settings, training, held_out, miner, work, encoder.dim, callbacks)
        before = trainer.judge() if held_out else None
        last = last_checkpoint(work) if resume else None
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if not trainer.state.global_step:
            message = f"no {settings.batch_size} pairs have only different texts; add other pairs, or lower batch_size"
            raise InputError(message, field="data")
        after = trainer.judge() if held_out else None
    if settings.tune == "lora":
        encoder.adapters = join(encoder.adapters, trained_adapters(decoder_of(encoder.model[0])))
    steps = trainer.state.global_step
    result = Trained(output, before, after, steps, trainer.state.best_global_step or steps, "", len(held_out))
    result = _finish(encoder, settings, output, sources, len(training), result)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _fit(
    encoder: Encoder,
    items: Sequence[TrainingPair | str],
    settings: TrainSettings,
    output: Path,
    sources: Sequence[str],
) -> Trained:
    """Fit a strategy, such as whitening, to texts in one pass."""
    texts = [text for item in items for text in ((item,) if isinstance(item, str) else (item.query, item.positive))]
    strategy_of(encoder.spec).fit(encoder, texts)
    return _finish(encoder, settings, output, sources, len(set(texts)), Trained(output, None, None, 0, 0, ""))


def _select_pairs(
    data: list[TrainingPair],
    dev: Sequence[TrainingPair] | None,
    settings: TrainSettings,
    miner: Encoder | None,
    report: Report,
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Return the training pairs, with pseudo-queries and mined negatives, and the evaluation pairs."""
    training, held_out = split_dev(data, settings.dev_share) if dev is None else (data, list(dev))
    training = [*training, *pseudo_pairs(training, settings.pseudo_queries, settings.seed)]
    _check_enough(len(training), settings)
    if settings.negatives:
        report("mining negatives", 0, None)
        training = mine_negatives(training, miner, settings.negatives)
        _check_enough(len(training), settings, f" with {settings.negatives} negatives each")
    return training, held_out


def _check_arguments(
    spec: EncoderSpec, settings: TrainSettings, output: Path, *, dev: Any, resume: bool, cache: Path | None
) -> None:
    """Raise `SpecError` or `LoadError` for arguments that can be refused before the encoder is loaded."""
    (check_folder if settings.tune == "all" else check_head_folder)(output)
    if LIBRARY_VERSION < 6 and not is_fitted(spec.strategy):
        message = "training needs sentence-transformers 6; train with the versions of constraints/core.txt"
        raise SpecError(f"{message}, then load the trained head here", field="strategy")
    check_settings(spec.strategy, settings)
    if dev is not None and is_fitted(spec.strategy):
        raise SpecError(f"{spec.strategy} is fitted, not trained, and uses no evaluation pairs; omit dev", field="dev")
    for name, value in (("resume", resume), ("cache", cache)):
        if value and is_fitted(spec.strategy):
            raise SpecError(f"{spec.strategy} is fitted in one pass: {name} has no effect; omit it", field=name)


def _check_enough(count: int, settings: TrainSettings, what: str = "") -> None:
    """Raise `InputError` unless ``count`` pairs fill a batch."""
    if count < settings.batch_size:
        message = f"{count} pairs{what} are fewer than one batch of {settings.batch_size}"
        raise InputError(f"{message}; add pairs, or lower batch_size", field="data")


def _start(spec: EncoderSpec, settings: TrainSettings, device: str) -> Encoder:
    """Load the initial encoder."""
    has_weights = is_trained(spec.strategy, {**settings.options, **spec.options})
    if not has_weights and settings.tune == "head":
        message = f"{spec.strategy} has no trained weights of its own; set tune=lora or tune=all to train the backbone"
        raise SpecError(message, field="tune")
    options = {**settings.options, **spec.options}
    head = spec.head or (RANDOM if has_weights else None)
    if head not in (None, RANDOM):
        options = dict(spec.options)  # the head's own options take precedence over the recipe's
    if spec.backbone != "nano" and (folder := Path(spec.backbone).expanduser()).is_dir():
        spec = replace(spec, backbone=str(folder.resolve()))  # the saved path must not depend on the working directory
    encoder = Encoder.load(replace(spec, options=options, head=head), device)
    if settings.tune == "head" and encoder.spec.options.get("mode") == "training":
        message = "options.mode=training serves the backbone alone, which tune=head does not train"
        raise SpecError(f"{message}; set tune to lora or all, or omit the mode", field="options.mode")
    if too_wide := [dim for dim in settings.matryoshka if dim > encoder.dim]:
        message = f"matryoshka must be from 1 to {encoder.dim}, the width of the vectors; got {too_wide[0]}"
        raise SpecError(message, field="matryoshka")
    return encoder


def _miner(teacher: str | None, student: Encoder, device: str) -> Encoder:
    """Load the encoder to distil and to mine negatives with. Default: mean pooling of the backbone."""
    if teacher is None:
        return Encoder.load(EncoderSpec("mean", student.spec.backbone), device)
    encoder = Encoder.load(parse_model(teacher), device)
    if "dense" not in encoder.outputs:
        message = f"the teacher {teacher} produces a vector for each token"
        raise SpecError(f"{message}; choose an encoder with one vector per text", field="teacher")
    return encoder


@contextmanager
def _truncation(encoder: Encoder, max_tokens: int) -> Iterator[None]:
    """Truncate texts to ``max_tokens`` within the context."""
    tokenizer = encoder.model.tokenizer
    limits = encoder.max_tokens, tokenizer.model_max_length
    encoder.max_tokens = tokenizer.model_max_length = min(max_tokens, encoder.max_tokens)
    try:
        yield
    finally:
        encoder.max_tokens, tokenizer.model_max_length = limits


def _finish(
    encoder: Encoder, settings: TrainSettings, output: Path, sources: Sequence[str], count: int, result: Trained
) -> Trained:
    """Write the encoder and its model card; return ``result`` with the fingerprint."""
    encoder.model.eval()
    if settings.tune != "all":
        # A fitted transform subtracts a mean that may be far larger than the remainder: float16 is too narrow.
        encoder.save_head(output, half=not is_fitted(encoder.spec.strategy))
    else:
        encoder.save(output)
    saved = Encoder.load(output, str(encoder.device))
    result = replace(result, fingerprint=saved.fingerprint)
    write_card(output, saved, settings, sources, count, result.before, result.after, result.steps, result.kept)
    return result
