"""``embedserve train``: the weights of a strategy, or a whole encoder, from pairs of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.console import note, out, out_json
from api.cli.progress import Meter
from api.cli.shared_options import Device, Json
from embedserve.errors import EmbedserveError, InputError, SpecError

if TYPE_CHECKING:
    from embedserve.training.train import Trained

FEW = 50  # held-out pairs below which their MRR@10 moves by more than training does


def train(
    strategy: Annotated[str, typer.Option("--strategy", help="What is trained: glot, colbert, multilayer, …")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="Pairs: .jsonl, .csv, .tsv, .parquet (.gz), a BEIR folder or owner/dataset[:split]."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")],
    backbone: Annotated[str, typer.Option("--backbone", help="nano, or any decoder's folder or hub id.")] = "nano",
    dev: Annotated[list[str] | None, typer.Option("--dev", help="Pairs to judge by; else a share of the data.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="ours, or paper for the published values.")] = "ours",
    head: Annotated[
        str | None, typer.Option("--head", help="Trained weights to start from.", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the strategy, such as layers=2.")
    ] = None,
    query_prompt: Annotated[str, typer.Option("--query-prompt", help="Put in front of every query.")] = "",
    document_prompt: Annotated[str, typer.Option("--document-prompt", help="Put in front of every document.")] = "",
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Let every token see every other.")] = False,
    query_field: Annotated[str | None, typer.Option("--query-field", help="Name of the query's field.")] = None,
    positive_field: Annotated[
        str | None, typer.Option("--positive-field", help="Name of the positive's field.")
    ] = None,
    negative_field: Annotated[
        str | None, typer.Option("--negative-field", help="Name of the negatives' field.")
    ] = None,
    loss: Annotated[str | None, typer.Option("--loss", help="contrastive or distillation.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Encoder to distil and to mine with: a model or a spec."),
    ] = None,
    tune: Annotated[str | None, typer.Option("--tune", help="head, lora or all.")] = None,
    lora_rank: Annotated[int | None, typer.Option("--lora-rank", help="Rank of the adapters.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Divides the similarities.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs of one update.")] = None,
    mini_batch_size: Annotated[
        int | None, typer.Option("--mini-batch-size", help="Pairs in memory at a time (gradient caching).")
    ] = None,
    negatives: Annotated[int | None, typer.Option("--negatives", help="Hard negatives of each pair.")] = None,
    matryoshka: Annotated[
        str | None, typer.Option("--matryoshka", help="Dimensions to train at, such as 64,128.")
    ] = None,
    pseudo_queries: Annotated[
        str | None, typer.Option("--pseudo-queries", help="Queries made of the passages: keywords,part.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Updates at most.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Tokens read of a text.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Pairs of each source at most.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Judgements without a better one.")] = None,
    eval_steps: Annotated[int | None, typer.Option("--eval-steps", help="Updates between judgements.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Draws data and order.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder that keeps the states of texts for further runs.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a strategy on pairs of texts, and save what `--model` then takes.

    With --tune head the backbone is frozen: its states are computed once and kept in OUTPUT.work until the end, so
    that a head trains in minutes on a CPU. Settings that are left out come from the strategy's recipe: strategies
    without weights of their own, such as mean, are trained with --tune lora.

    Examples:
      embedserve train --strategy glot --data pairs.jsonl.gz -o my-glot
      embedserve embed --model my-glot "a text"
      embedserve train --strategy mean --tune lora --backbone ./llama --data pairs.csv -o my-encoder
      embedserve train --strategy colbert --data ./beir/scifact --negatives 3 --teacher ./teacher -o my-colbert
      embedserve train --strategy whitening --data texts.jsonl -o my-whitening
    """
    from embedserve import EncoderSpec
    from embedserve.spec import read_option
    from embedserve.strategies import is_fitted
    from embedserve.training.hyperparameters import settings_for
    from embedserve.training.pairs import Fields, TrainingPair, read_pairs, read_texts
    from embedserve.training.train import train as run

    if recipe not in ("ours", "paper"):
        raise SpecError(f"recipe must be ours or paper, got {recipe!r}", field="recipe")
    given: dict[str, Any] = {
        "loss": loss, "teacher": teacher, "tune": tune, "lora_rank": lora_rank, "temperature": temperature,
        "batch_size": batch_size, "mini_batch_size": mini_batch_size, "negatives": negatives, "steps": steps,
        "epochs": epochs, "lr": lr, "max_tokens": max_tokens, "limit": limit, "patience": patience,
        "eval_steps": eval_steps, "seed": seed, "matryoshka": _numbers(matryoshka),
        "pseudo_queries": pseudo_queries and tuple(kind.strip() for kind in pseudo_queries.split(",")),
    }  # fmt: skip
    settings = settings_for(strategy, given, published=recipe == "paper")
    if output.expanduser().is_dir() and any(output.expanduser().iterdir()) and not overwrite:
        message = f"{output} is not empty; give a new folder, or --overwrite what an earlier run wrote there"
        raise InputError(message, field="output")
    names = {"query": query_field, "positive": positive_field, "negatives": negative_field}
    fields = Fields(**{name: (value,) for name, value in names.items() if value is not None})
    prompts = {"query": query_prompt, "document": document_prompt}
    spec = EncoderSpec(
        strategy,
        backbone,
        options=dict(read_option(text, "option") for text in option or []),
        prompts=prompts,
        attention="bidirectional" if bidirectional else "causal",
        head=head,
    )

    def pairs() -> list[TrainingPair] | list[str]:
        fitted = is_fitted(strategy)
        found = (read_texts if fitted else read_pairs)(data, fields, settings.limit, settings.seed)
        sources = f"{len(data)} sources" if len(data) > 1 else "1 source"
        note(f"{len(found):,} {'texts' if fitted else 'pairs'} from {sources}")
        return found

    meter = Meter("reading texts")
    try:
        found = run(
            spec, pairs, settings, output, dev=(lambda: read_pairs(dev, fields, None, settings.seed)) if dev else None,
            sources=data, device=device or "auto", cache=cache, resume=resume,
            report=meter.update, judged=lambda step, quality: meter.say(f"update {step:,}: MRR@10 {quality:.4f}"),
        )  # fmt: skip
    except KeyboardInterrupt:
        meter.close()
        kept = f"; the checkpoints lie in {output}.work: run the same command with --resume to go on"
        note(f"stopped{kept if Path(f'{output}.work').exists() else ''}")
        raise
    except ImportError as error:
        message = f"training needs {error.name}, which is not installed; run: pip install 'embedserve[train]'"
        raise EmbedserveError(message) from None
    finally:
        meter.close()
    _print(found, as_json=as_json)


def _print(found: Trained, *, as_json: bool) -> None:
    if as_json:
        out_json({**vars(found), "folder": str(found.folder)})
        return
    kept = f" (the best, of update {found.kept:,}, is kept)" if found.kept < found.steps else ""
    out(f"{found.folder}  {found.steps:,} updates{kept}  fingerprint {found.fingerprint}")
    if found.before is not None and found.after is not None:
        few = "; so few say little: give --dev pairs" if found.judged_by < FEW else ""
        out(f"MRR@10 on {found.judged_by:,} held-out pairs: {found.before:.4f} before, {found.after:.4f} after{few}")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SpecError(f"matryoshka must be whole numbers with commas between, got {text!r}", field="matryoshka")
    return tuple(int(part) for part in parts)
