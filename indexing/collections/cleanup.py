"""Remove files that no manifest refers to, but never a log with acknowledged writes."""

from __future__ import annotations

import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from embedserve.errors import CorruptFileError, EmbedserveError, NotFoundError
from indexing.collections.manifest import HEX, MANIFEST, SEGMENT_NAME, SEGMENTS, WAL_NAME, read_manifest
from indexing.collections.wal import FILE_START
from indexing.storage.files import file_bytes, sync

logger = logging.getLogger(__name__)

DROPPED = "dropped.json"  # the manifest of a dropped collection, until its files are removed
REMOVABLE = re.compile(rf"v-{HEX}|wal-{HEX}\.log|dead-{HEX}\.npy|\.manifest\.json\..*|dropped\.json")


def orphaned_logs(directory: Path) -> list[Path]:
    """Return the logs with writes in a directory whose manifest is lost; none if the collection was dropped."""
    if (directory / MANIFEST).exists() or (directory / DROPPED).exists() or not directory.is_dir():
        return []
    logs = [path for path in directory.iterdir() if WAL_NAME.fullmatch(path.name)]
    return sorted(path for path in logs if file_bytes(path) > FILE_START)


def check_no_orphaned_log(directory: Path) -> None:
    """Raise `EmbedserveError` if the directory has no manifest, but a log with acknowledged writes."""
    if logs := orphaned_logs(directory):
        raise EmbedserveError(
            f"{directory} has no {MANIFEST}, but its log {logs[0].name} contains acknowledged writes; "
            f"restore {MANIFEST} from a backup, or move the directory away",
            field="collection",
        )


def mark_dropped(directory: Path) -> None:
    """Turn a collection into removable files in one step, and remove its logs."""
    os.replace(directory / MANIFEST, directory / DROPPED)
    sync(directory)
    for path in directory.iterdir():  # before the mark, which tells them from logs whose manifest was lost
        if WAL_NAME.fullmatch(path.name):
            path.unlink()
    sync(directory)


def remove_unpublished(directory: Path) -> None:
    """Remove files that the manifest does not refer to: replaced ones, and those of a killed writer.

    If the manifest is damaged, nothing is removed: a repair may need the files. A file that cannot be removed is logged
    as a warning: the collection is intact, but the file takes space.

    Raises:
        EmbedserveError: The manifest is missing, but a log contains acknowledged writes; nothing is removed.
    """
    try:
        manifest = read_manifest(directory)
    except NotFoundError:
        check_no_orphaned_log(directory)
        keep = {DROPPED}
    except CorruptFileError:
        return
    else:
        keep = {manifest.wal, *(name for name, _ in manifest.files()), *(entry.name for entry in manifest.segments)}
    try:
        inside = directory / SEGMENTS
        leftovers = [path for path in directory.iterdir() if REMOVABLE.fullmatch(path.name) and path.name not in keep]
        if inside.is_dir():
            leftovers += [path for path in inside.iterdir() if path.name not in keep]
            leftovers += [] if any(map(SEGMENT_NAME.fullmatch, keep)) else [inside]
        # The rename of the manifest may not be durable yet. Until it is, a power failure brings back the old manifest,
        # which needs its files.
        sync(directory)
    except OSError as error:
        logger.warning("old files in %s were not removed: %s", directory, error)
        return
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        if path.exists():
            logger.warning("%s is no longer needed but could not be removed; remove it to free its space", path)
