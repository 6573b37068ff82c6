"""``embedserve index``: build, inspect, verify and list collections."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.console import CORRUPT, note, out, out_json, stop
from api.cli.index_build import SAMPLE, build, facts, run_saved_plan
from api.cli.progress import Meter
from api.cli.shared_options import CollectionName, DataDir, Json, help_of
from api.settings import load_settings

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Document
    from indexing.collections.collection_build import BuildProgress
    from indexing.collections.manifest import Manifest

STAGES = {"embed": "embedding", "index": "indexing ", "write": "writing  "}

index_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Build, inspect, verify and list collections.\n\n"
    "A collection is a folder in DATA_DIR/collections with documents, vectors and an index.",
)


def build_with_progress(
    documents: Iterable[Document],
    encoder: Encoder,
    data_dir: Path,
    name: str,
    *,
    index: str = "auto",
    total: int | None = None,
) -> Manifest:
    """Build a collection with progress on stderr."""
    from indexing import build_collection
    from indexing.collections.catalog import collection_path

    meter = Meter(STAGES["embed"])

    def show(progress: BuildProgress) -> None:
        meter.update(STAGES[progress.stage], progress.done, progress.total)

    try:
        return build_collection(
            documents, encoder, collection_path(data_dir, name), index=index, total=total, progress=show
        )
    finally:
        meter.close()


def info(
    name: CollectionName = SAMPLE,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show the size, index and encoder of a collection.

    Compares file sizes only; embedserve index verify reads every byte.

    Examples:
      embedserve index info python-docs
      embedserve index info notes --json
    """
    from indexing.collections.aliases import resolve
    from indexing.collections.catalog import read_published, total_bytes

    settings = load_settings(data_dir=data_dir)
    directory = resolve(settings.data_dir, name)
    manifest, size = read_published(directory, lambda manifest: (manifest, total_bytes(directory, manifest)))
    values = {"name": name, **facts(manifest), "spec": dict(manifest.spec), "bytes": size, "path": str(directory)}
    if json:
        out_json(values)
        return
    values["spec"] = ", ".join(f"{key}={value}" for key, value in values["spec"].items() if value)
    values["bytes"] = f"{values['bytes']:,}"
    values["count"] = f"{values['count']:,}"
    for key, value in values.items():
        out(f"{key:12} {value}")


def verify_files(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Collections. Default: all.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Verify the checksums of every file of collections.

    Exits with code 4 if a file is damaged.

    Examples:
      embedserve index verify
      embedserve index verify notes --json
    """
    from indexing import list_collections, verify
    from indexing.collections.aliases import resolve

    settings = load_settings(data_dir=data_dir)
    names = names or list_collections(settings.data_dir)
    results = {name: verify(resolve(settings.data_dir, name)) for name in names}
    if json:
        checks = [
            {
                "collection": name,
                "file": check.name,
                "bytes": check.bytes,
                "ok": check.ok,
                "problem": check.problem or None,
            }
            for name, checked in results.items()
            for check in checked
        ]
        out_json({"ok": all(check["ok"] for check in checks), "files": checks})
    else:
        for name, checked in results.items():
            for check in checked:
                verdict = "ok  " if check.ok else "FAIL"
                out(
                    f"{verdict}  {name}/{check.name}  {check.bytes:,} bytes"
                    + (f"  {check.problem}" if check.problem else "")
                )
        if not names:
            note(f"there are no collections in {settings.collections_dir}")
    damaged = [name for name, checked in results.items() if not all(check.ok for check in checked)]
    if damaged:
        if not json:
            note(f"damaged: {', '.join(damaged)}; rebuild with `embedserve index build`, or restore a backup")
        stop(CORRUPT)


def list_all(data_dir: DataDir = None, json: Json = False) -> None:
    """List all collections.

    Examples:
      embedserve index list
      embedserve index list --json
    """
    from embedserve.errors import EmbedserveError
    from indexing import list_collections
    from indexing.collections.catalog import collection_path
    from indexing.collections.manifest import read_manifest

    settings = load_settings(data_dir=data_dir)
    rows: list[dict[str, Any]] = []
    for name in list_collections(settings.data_dir):
        try:
            rows.append({"name": name, **facts(read_manifest(collection_path(settings.data_dir, name))), "error": None})
        except EmbedserveError as error:
            rows.append({"name": name, "error": error.message})
    if json:
        out_json({"data_dir": str(settings.data_dir), "collections": rows})
        return
    if not rows:
        note(f"there are no collections in {settings.collections_dir}; try: embedserve index build python-docs")
    for row in rows:
        if row["error"]:
            out(f"{row['name']:24} damaged: {row['error']}")
        else:
            out(f"{row['name']:24} {row['count']:>9,} documents  {row['index']:10} {row['encoder']}  {row['created']}")


for word, command in (("build", build), ("info", info), ("verify", verify_files), ("list", list_all)):
    index_app.command(word, help=help_of(command))(command)
index_app.command("run-plan", help=help_of(run_saved_plan), hidden=True)(run_saved_plan)
