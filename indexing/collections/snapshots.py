"""Snapshots: immutable copies of a collection, made of hard links, and their restore."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from embedserve.errors import CorruptFileError, InputError, NotFoundError
from indexing.collections.catalog import NAME, check_files, check_log, check_name, collection_path
from indexing.collections.cleanup import remove_unpublished
from indexing.collections.file_links import link_file, link_folder, sources_of, unchanged
from indexing.collections.manifest import MANIFEST, SEGMENTS, Manifest, new_name, read_manifest, write_manifest
from indexing.collections.wal import new_wal
from indexing.storage.checksums import REMEDY, FileCheck
from indexing.storage.files import make_directory, sync, write_lock, writing

ANOTHER = "take another snapshot"
PARTIAL = re.compile(r"\.[a-z0-9_-]+\.partial")


def snapshots_path(data_dir: Path | str, collection: str) -> Path:
    """Return the folder of a collection's snapshots."""
    return Path(data_dir) / "snapshots" / check_name(collection)


def list_snapshots(data_dir: Path | str, collection: str) -> list[str]:
    """Return the names of a collection's snapshots, sorted."""
    manifests = snapshots_path(data_dir, collection).glob(f"*/{MANIFEST}")
    return sorted(path.parent.name for path in manifests if NAME.fullmatch(path.parent.name))


def snapshot_path(data_dir: Path | str, collection: str, name: str) -> Path:
    """Return the folder of a snapshot; `NotFoundError` if it does not exist."""
    folder = snapshots_path(data_dir, collection) / check_name(name)
    _manifest_of(folder, data_dir, collection)
    return folder


def write_snapshot(directory: Path, manifest: Manifest, name: str) -> Path:
    """Create the snapshot ``name`` of a manifest whose log is empty; return its folder.

    Called by the writer, which holds the lock, so that no file is removed during the copy. An interrupted snapshot does
    not count and is removed by the next one. Every file is read once, to verify its digest.

    Raises:
        InputError: The snapshot exists.
        CorruptFileError: A file of the collection changed on disk; no snapshot was created.
        EmbedserveError: The disk is full; no snapshot was created.
    """
    parent = snapshots_path(directory.parents[1], directory.name)
    target, partial = parent / check_name(name), parent / f".{name}.partial"
    if target.exists():
        raise InputError(f"snapshot {name!r} of {directory.name!r} already exists; choose another name", field="name")
    with writing(parent):
        make_directory(parent)
        for path in parent.iterdir():
            if PARTIAL.fullmatch(path.name):
                shutil.rmtree(path)
        partial.mkdir()
        publish_copy(directory, manifest, partial)
        os.replace(partial, target)
        sync(parent)
    return target


def publish_copy(
    directory: Path, manifest: Manifest, target: Path, remedy: str = REMEDY, field: str = "collection"
) -> Manifest:
    """Link the files of ``manifest`` into ``target`` under new names, with an empty log, and publish them there.

    Raises:
        CorruptFileError: A file does not match its digest, with ``remedy`` and ``field``; nothing was published.
    """
    make_directory(target / SEGMENTS)
    entries = []
    with unchanged(sources_of(directory, manifest), remedy, field):
        for entry in manifest.segments:
            name, dead = new_name(), entry.dead
            link_folder(directory / SEGMENTS / entry.name, target / SEGMENTS / name)
            if dead is not None:
                source = directory / dead.name
                dead = replace(dead, name=f"dead-{new_name()}.npy")
                link_file(source, target / dead.name)
            entries.append(replace(entry, name=name, dead=dead))
    sync(target / SEGMENTS)
    wal = new_wal(target, f"wal-{new_name()}.log", manifest.sequence).name
    copy = replace(manifest, version=new_name(), segments=tuple(entries), wal=wal)
    write_manifest(target, copy)
    return copy


def verify_snapshot(data_dir: Path | str, collection: str, name: str) -> list[FileCheck]:
    """Read every byte of a snapshot and return one result for each file, the manifest first."""
    folder = snapshots_path(data_dir, collection) / check_name(name)
    manifest = _manifest_of(folder, data_dir, collection)
    return [FileCheck(MANIFEST, (folder / MANIFEST).stat().st_size), *check_files(folder, manifest)]


def restore(data_dir: Path | str, collection: str, name: str, *, to: str | None = None) -> Manifest:
    """Replace the collection, or the collection ``to``, by a snapshot in one atomic step. The snapshot is kept.

    Until the last step, and after a crash before it, the old collection is in place.

    Raises:
        NotFoundError: No such snapshot.
        CorruptFileError: A file of the snapshot is damaged; the collection is unchanged.
        EmbedserveError: The collection is open for writing, the disk is full, or the directory contains writes of a
            collection whose manifest is lost.
    """
    folder = snapshots_path(data_dir, collection) / check_name(name)
    manifest = _manifest_of(folder, data_dir, collection)
    log = check_log(folder, manifest)
    if not log.ok:
        raise CorruptFileError(f"{folder / log.name} {log.problem}; {ANOTHER}", field="name")
    directory = collection_path(data_dir, to or collection)
    with writing(directory):
        make_directory(directory)
    with write_lock(directory):
        remove_unpublished(directory)
        try:
            with writing(directory):
                return publish_copy(folder, replace(manifest, name=directory.name), directory, ANOTHER, "name")
        finally:
            remove_unpublished(directory)


def _manifest_of(folder: Path, data_dir: Path | str, collection: str) -> Manifest:
    try:
        return read_manifest(folder)
    except NotFoundError:
        known = ", ".join(list_snapshots(data_dir, collection)) or "none"
        message = f"snapshot {folder.name!r} of {collection!r} does not exist; snapshots: {known}"
        raise NotFoundError(message, field="name") from None
