"""``embedserve bench report`` and ``embedserve bench submit``: outputs from existing results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness.needs import needing_extra, needing_mteb

Results = Annotated[Path, typer.Option("--results", help="Folder of results of embedserve bench mteb.")]


def report(
    results: Results = Path("results"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path("report"),
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="System to compare all others with.", show_default=False)
    ] = None,
) -> None:
    """Write report.md, report.html and figures from results; needs no model and no network.

    Each score has an interval, each comparison with --baseline a p value. The page is self-contained.

    Examples:
      embedserve bench report --results results --baseline mean --output report
    """
    with needing_extra():
        from benchmarks.harness.report import write_report
    for path in write_report(results, output, baseline):
        print(path)


def submit(
    system: Annotated[str, typer.Option("--system", help="Name of the system in the tables.")],
    name: Annotated[str, typer.Option("--name", help="ORG/MODEL on the hub.")],
    results: Results = Path("results"),
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")] = Path("submission"),
    revision: Annotated[str | None, typer.Option("--revision", help="Commit on the hub.", show_default=False)] = None,
    benchmark: Annotated[str, typer.Option("--benchmark", "-b", help="Benchmark to submit to.")] = "MTEB(eng, v2)",
    training_datasets: Annotated[
        str | None,
        typer.Option(
            "--training-datasets",
            help="Names in mteb of all training sets, comma-separated, or none. Default: not stated.",
            show_default=False,
        ),
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Such as apache-2.0.", show_default=False)] = None,
    release_date: Annotated[str | None, typer.Option("--release-date", help="YYYY-MM-DD.", show_default=False)] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="URL of the model.", show_default=False)] = None,
    public_training_code: Annotated[
        str | None, typer.Option("--public-training-code", help="URL.", show_default=False)
    ] = None,
    public_training_data: Annotated[
        str | None, typer.Option("--public-training-data", help="URL.", show_default=False)
    ] = None,
    adapted_from: Annotated[
        str | None, typer.Option("--adapted-from", help="The backbone on the hub.", show_default=False)
    ] = None,
    contacts: Annotated[
        str | None, typer.Option("--contacts", help="GitHub names, comma-separated.", show_default=False)
    ] = None,
) -> None:
    """Write a submission to mteb's leaderboard, and print what is missing.

    The folder holds the model's description for mteb, the result files of official tasks in the layout of mteb's
    results repository, and CHECKLIST.md. Nothing is sent.

    Examples:
      embedserve bench submit --system mean --name acme/small --license apache-2.0 --training-datasets MSMARCO,NQ
    """
    with needing_mteb():
        from benchmarks.harness.submit import write_submission
    fields: dict[str, Any] = {
        "license": license_,
        "release_date": release_date,
        "reference": reference,
        "public_training_code": public_training_code,
        "public_training_data": public_training_data,
        "adapted_from": adapted_from,
        "contacts": None if contacts is None else listed(contacts),
        "training_datasets": None if training_datasets is None else set(listed(training_datasets)),
    }
    stated = {field: value for field, value in fields.items() if value is not None}
    submission = write_submission(results, output, system, name, revision=revision, benchmark=benchmark, fields=stated)
    print(submission.checklist)


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated list; "none" gives an empty list."""
    return [] if text.strip().lower() == "none" else [part.strip() for part in text.split(",") if part.strip()]
