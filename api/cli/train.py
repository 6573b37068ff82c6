"""``embedserve train``: train a strategy's weights, or a whole encoder, on pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.console import note, out, out_json
from api.cli.progress import Meter
from api.cli.shared_options import Device, Json
from embedserve.errors import EmbedserveError, InputError, SpecError

if TYPE_CHECKING:
    from embedserve import EncoderSpec
    from embedserve.training.hyperparameters import TrainSettings
    from embedserve.training.pairs import Fields, TrainingPair
    from embedserve.training.train import Trained

FEW_PAIRS = 50  # held-out pairs below which the noise of MRR@10 exceeds the effect of training
FROM_RECIPE = "Default: from the recipe."
StrategyName = Annotated[str, typer.Option("--strategy", metavar="NAME", help="The strategy: glot, colbert, mean, …")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="Pairs: a .jsonl, .csv, .tsv (optionally .gz) or .parquet file, a BEIR "
        "folder, or OWNER/DATASET[:SPLIT]; repeatable.",
    ),
]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Output folder.")]
Backbone = Annotated[
    str, typer.Option("--backbone", metavar="MODEL", help="nano, or the folder or Hub id of any decoder model.")
]
Dev = Annotated[
    list[str] | None,
    typer.Option("--dev", metavar="SOURCE", help="Evaluation pairs. Default: a held-out share of the data."),
]
RecipeSource = Annotated[
    Literal["ours", "paper"], typer.Option("--recipe", help="Base settings: this project's or the paper's.")
]
Head = Annotated[
    str | None, typer.Option("--head", metavar="DIR", help="Trained weights to start from.", show_default=False)
]
StrategyOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the strategy, such as layers=2; repeatable."),
]
QueryPrompt = Annotated[str, typer.Option("--query-prompt", metavar="TEXT", help="Prefix of every query.")]
DocumentPrompt = Annotated[str, typer.Option("--document-prompt", metavar="TEXT", help="Prefix of every document.")]
Bidirectional = Annotated[bool, typer.Option("--bidirectional", help="Use bidirectional instead of causal attention.")]
Loss = Annotated[str | None, typer.Option("--loss", metavar="NAME", help=f"contrastive or distillation. {FROM_RECIPE}")]
Teacher = Annotated[
    str | None, typer.Option("--teacher", metavar="MODEL", help="Encoder to distil from or to mine negatives with.")
]
Tune = Annotated[
    str | None, typer.Option("--tune", metavar="PART", help=f"Weights to train: head, lora or all. {FROM_RECIPE}")
]
LoraRank = Annotated[int | None, typer.Option("--lora-rank", metavar="N", help="Rank of the LoRA adapters.")]
Temperature = Annotated[float | None, typer.Option("--temperature", metavar="T", help="Divisor of the similarities.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Pairs per update.")]
MiniBatchSize = Annotated[
    int | None, typer.Option("--mini-batch-size", metavar="N", help="Pairs in memory at a time (gradient caching).")
]
Negatives = Annotated[
    int | None, typer.Option("--negatives", metavar="N", help="Hard negatives per pair, mined if missing.")
]
Matryoshka = Annotated[
    str | None, typer.Option("--matryoshka", metavar="N,N", help="Also train leading dimensions, such as 64,128.")
]
PseudoQueries = Annotated[
    str | None,
    typer.Option("--pseudo-queries", metavar="KIND,KIND", help="Generate queries from passages: keywords, part."),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Maximum number of updates.")]
Epochs = Annotated[float | None, typer.Option("--epochs", metavar="N", help="Passes over the data.")]
LearningRate = Annotated[float | None, typer.Option("--lr", metavar="RATE", help="Peak learning rate.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Truncate texts to N tokens.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Maximum pairs per source.")]
Patience = Annotated[
    int | None, typer.Option("--patience", metavar="N", help="Stop after N evaluations without improvement.")
]
EvalSteps = Annotated[int | None, typer.Option("--eval-steps", metavar="N", help="Updates between evaluations.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed of data and order.")]
StatesCache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="Keep computed hidden states here for later runs.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the result of an earlier run.")]
QueryField = Annotated[
    str | None,
    typer.Option("--query-field", metavar="FIELD", help="Field of the query. Default: query, anchor or question."),
]
PositiveField = Annotated[
    str | None,
    typer.Option(
        "--positive-field", metavar="FIELD", help="Field of the positive. Default: positive, pos, passage or document."
    ),
]
NegativeField = Annotated[
    str | None,
    typer.Option(
        "--negative-field", metavar="FIELD", help="Field of the negatives. Default: negatives, neg or hard_negatives."
    ),
]


def train(
    strategy: StrategyName,
    data: Data,
    output: OutputFolder,
    backbone: Backbone = "nano",
    dev: Dev = None,
    recipe: RecipeSource = "ours",
    head: Head = None,
    option: StrategyOptions = None,
    query_prompt: QueryPrompt = "",
    document_prompt: DocumentPrompt = "",
    bidirectional: Bidirectional = False,
    query_field: QueryField = None,
    positive_field: PositiveField = None,
    negative_field: NegativeField = None,
    loss: Loss = None,
    teacher: Teacher = None,
    tune: Tune = None,
    lora_rank: LoraRank = None,
    temperature: Temperature = None,
    batch_size: BatchSize = None,
    mini_batch_size: MiniBatchSize = None,
    negatives: Negatives = None,
    matryoshka: Matryoshka = None,
    pseudo_queries: PseudoQueries = None,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    max_tokens: MaxTokens = None,
    limit: Limit = None,
    patience: Patience = None,
    eval_steps: EvalSteps = None,
    seed: Seed = None,
    cache: StatesCache = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a strategy on pairs of texts; the result is a folder that --model accepts.

    With --tune head the backbone is frozen: its hidden states are computed once and cached in OUTPUT.work, so that a
    head trains in minutes on a CPU. Strategies without weights, such as mean, need --tune lora. Options that are not
    given come from the strategy's recipe.

    Examples:
      embedserve train --strategy glot --data pairs.jsonl.gz -o my-glot
      embedserve embed --model my-glot "a text"
      embedserve train --strategy mean --tune lora --backbone ./llama --data pairs.csv -o my-encoder
      embedserve train --strategy colbert --data ./beir/scifact --negatives 3 --teacher ./teacher -o my-colbert
      embedserve train --strategy whitening --data texts.jsonl -o my-whitening
    """  # fmt: skip
    from embedserve import EncoderSpec
    from embedserve.spec import read_option
    from embedserve.training.hyperparameters import settings_for
    from embedserve.training.pairs import Fields

    options: dict[str, Any] = {
        "loss": loss, "teacher": teacher, "tune": tune, "lora_rank": lora_rank, "temperature": temperature,
        "batch_size": batch_size, "mini_batch_size": mini_batch_size, "negatives": negatives, "steps": steps,
        "epochs": epochs, "lr": lr, "max_tokens": max_tokens, "limit": limit, "patience": patience,
        "eval_steps": eval_steps, "seed": seed, "matryoshka": _whole_numbers(matryoshka),
        "pseudo_queries": pseudo_queries and tuple(kind.strip() for kind in pseudo_queries.split(",")),
    }  # fmt: skip
    settings = settings_for(strategy, options, published=recipe == "paper")
    if output.expanduser().is_dir() and any(output.expanduser().iterdir()) and not overwrite:
        message = f"{output} is not empty; choose a new folder, or add --overwrite to replace an earlier result"
        raise InputError(message, field="output")
    names = {"query": query_field, "positive": positive_field, "negatives": negative_field}
    fields = Fields(**{name: (value,) for name, value in names.items() if value is not None})
    spec = EncoderSpec(
        strategy,
        backbone,
        options=dict(read_option(text, "option") for text in option or []),
        prompts={"query": query_prompt, "document": document_prompt},
        attention="bidirectional" if bidirectional else "causal",
        head=head,
    )
    paths: dict[str, Any] = {"output": output, "cache": cache, "resume": resume, "device": device or "auto"}
    _print_result(_run(spec, settings, data, dev or [], fields, **paths), as_json=as_json)


def _run(
    spec: EncoderSpec,
    settings: TrainSettings,
    data: Sequence[str],
    dev: Sequence[str],
    fields: Fields,
    *,
    output: Path,
    cache: Path | None,
    resume: bool,
    device: str,
) -> Trained:
    """Train, with progress on stderr."""
    from embedserve.strategies import is_fitted
    from embedserve.training.pairs import read_pairs, read_texts
    from embedserve.training.train import train as run

    def read() -> list[TrainingPair] | list[str]:
        is_unpaired = is_fitted(spec.strategy)
        pairs = (read_texts if is_unpaired else read_pairs)(data, fields, settings.limit, settings.seed)
        sources = f"{len(data)} sources" if len(data) > 1 else "1 source"
        note(f"{len(pairs):,} {'texts' if is_unpaired else 'pairs'} from {sources}")
        return pairs

    meter = Meter("reading texts")
    try:
        return run(
            spec, read, settings, output, dev=(lambda: read_pairs(dev, fields, None, settings.seed)) if dev else None,
            sources=data, device=device, cache=cache, resume=resume,
            report=meter.update, judged=lambda step, quality: meter.say(f"update {step:,}: MRR@10 {quality:.4f}"),
        )  # fmt: skip
    except KeyboardInterrupt:
        meter.close()
        hint = f"; checkpoints are in {output}.work: run the same command with --resume to continue"
        note(f"stopped{hint if Path(f'{output}.work').exists() else ''}")
        raise
    except ImportError as error:
        message = f"training needs {error.name}, which is not installed; run: pip install 'embedserve[train]'"
        raise EmbedserveError(message) from None
    finally:
        meter.close()


def _print_result(result: Trained, *, as_json: bool) -> None:
    if as_json:
        out_json({**vars(result), "folder": str(result.folder)})
        return
    best = f" (best: update {result.kept:,})" if result.kept < result.steps else ""
    out(f"{result.folder}  {result.steps:,} updates{best}  fingerprint {result.fingerprint}")
    if result.before is not None and result.after is not None:
        caution = "; too few pairs for a reliable score, add --dev pairs" if result.judged_by < FEW_PAIRS else ""
        scores = f"{result.before:.4f} before, {result.after:.4f} after{caution}"
        out(f"MRR@10 on {result.judged_by:,} held-out pairs: {scores}")


def _whole_numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SpecError(f"matryoshka must be whole numbers separated by commas, got {text!r}", field="matryoshka")
    return tuple(int(part) for part in parts)
