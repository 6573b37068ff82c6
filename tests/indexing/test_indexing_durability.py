"""What is on the disk before what: a power cut between any two steps of a build must leave a whole collection."""

import errno
import fcntl
import logging
import os
import shutil
from pathlib import Path

import pytest

from embedserve.errors import BusyError, EmbedserveError
from indexing import build_collection
from indexing.collections.catalog import collection_path
from indexing.collections.manifest import read_manifest
from indexing.storage.files import disk_advice, replace_file, replacing, take_lock
from tests.indexing.bag import BagEncoder, contents, make_documents


def segment_of(directory):
    """The folder of the only segment."""
    return directory / "segments" / read_manifest(directory).segments[0].name


def path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()


@pytest.fixture
def steps(monkeypatch):
    """The calls that a power cut could come between, as (what, path), in order; they all still happen."""
    told = []
    fsync, replace, rmtree, mkdir = os.fsync, os.replace, shutil.rmtree, os.mkdir

    def tell(what, path):
        told.append((what, Path(path)))

    monkeypatch.setattr(os, "fsync", lambda fd: (tell("sync", path_of(fd)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (tell("replace", new), replace(old, new)))
    monkeypatch.setattr(os, "mkdir", lambda path, *mode: (tell("mkdir", path), mkdir(path, *mode)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (tell("remove", path), rmtree(path, **options)))
    return told


def test_a_version_is_safe_before_it_is_published_and_that_before_the_old_one_goes(directory, steps):
    old = segment_of(directory)
    new = build_collection(make_documents(30, "new"), BagEncoder(), directory, batch_size=16)
    folder = segment_of(directory)
    published = steps.index(("replace", directory / "manifest.json"))
    removed = steps.index(("remove", old))
    replaced = {path for what, path in steps[:published] if what == "replace"}
    tags = {path.name[:16] for path in folder.rglob("*.npy") if path.parent != folder}
    for path in [*folder.rglob("*"), folder, folder.parent, directory, directory / new.wal]:
        if path not in replaced and path.name[:16] not in tags | {file.name[:16] for file in folder.rglob("*.faiss")}:
            assert ("sync", path) in steps[:published], path
    assert len(list(folder.rglob("*"))) == 16
    made = steps.index(("mkdir", folder))
    assert ("sync", folder.parent) in steps[made:published]
    assert ("sync", directory) in steps[made:published]
    what, partial = steps[published - 1]
    assert what == "sync"
    assert partial.name.startswith(".manifest.json.")
    assert ("sync", directory) in steps[published:removed]
    assert [path for what, path in steps if what == "remove"] == [old]


def test_what_a_killed_build_published_is_synced_before_the_next_one_removes_its_past(directory, steps):
    before = directory / "segments" / "0123456789abcdef"
    before.mkdir()  # of the collection before the one that was published
    steps.clear()
    build_collection(make_documents(3), BagEncoder(), directory)
    removed = steps.index(("remove", before))
    synced_last = max(n for n, step in enumerate(steps[:removed]) if step == ("sync", directory))
    assert all(what != "replace" for what, _ in steps[synced_last:removed])


def test_the_folders_above_a_new_collection_are_safe_before_anything_is_in_them(tmp_path, steps):
    directory = collection_path(tmp_path / "deep" / "data", "docs")
    build_collection(make_documents(3), BagEncoder(), directory)
    made = [tmp_path / "deep", tmp_path / "deep" / "data", tmp_path / "deep" / "data" / "collections", directory]
    assert steps[:8] == [step for path in made for step in (("mkdir", path), ("sync", path.parent))]


def test_replacing_keeps_the_old_file_whatever_fails(tmp_path, steps):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), replacing(path) as file:
        file.write(b"half of the n")
        raise RuntimeError("stop")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"new", [path])
    assert [what for what, _ in steps] == ["sync", "replace", "sync"]
    assert steps[0][1].parent == tmp_path
    assert steps[1:] == [("replace", path), ("sync", tmp_path)]


def failing_sync(monkeypatch, directory, allowed):
    """Let syncing ``directory`` fail after ``allowed`` times."""
    fsync, left = os.fsync, [allowed]

    def sync(descriptor):
        if path_of(descriptor) == directory:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)


def test_a_replacement_that_the_disk_does_not_confirm_is_not_called_unchanged(tmp_path, monkeypatch):
    failing_sync(monkeypatch, tmp_path, 0)
    with pytest.raises(EmbedserveError, match=r"was replaced, but the disk did not confirm it") as raised:
        replace_file(tmp_path / "file", b"new")
    assert "unchanged" not in raised.value.message
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_publication_that_the_disk_does_not_confirm_removes_nothing(directory, monkeypatch, caplog):
    old = segment_of(directory)
    failing_sync(monkeypatch, directory, 3)  # at the start, for the new segment, and with the new log
    with pytest.raises(EmbedserveError, match="the disk did not confirm it"):
        build_collection(make_documents(30, "new"), BagEncoder(), directory)
    assert old.exists()
    assert "were not removed" in caplog.text
    assert contents(directory) == ("new", 30)


def test_old_files_that_cannot_be_removed_are_named_and_fail_nothing(directory, monkeypatch, caplog):
    old = segment_of(directory)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)
    with caplog.at_level(logging.WARNING):
        build_collection(make_documents(30, "new"), BagEncoder(), directory)
    assert contents(directory) == ("new", 30)
    assert f"{old} is no longer needed but could not be removed" in caplog.text


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_named(directory, monkeypatch, reason):
    def flock(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(EmbedserveError, match=r"cannot lock .*docs: .*a file system with locks") as raised:
        build_collection(make_documents(3), BagEncoder(), directory)
    assert raised.value.field == "collection"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (errno.ENOSPC, "free some disk space"), (errno.EDQUOT, "free some disk space"),
        (errno.EACCES, "give this user write"),
        (errno.EROFS, "give this user write"), (errno.ENOENT, "check the directory"),
    ],
)  # fmt: skip
def test_the_advice_goes_by_what_went_wrong(reason, words):
    assert disk_advice(OSError(reason, os.strerror(reason))).startswith(words)


@pytest.mark.parametrize("again", [False, True])
def test_the_lock_of_a_folder_that_is_dropped_meanwhile_is_no_right_to_write(directory, monkeypatch, again):
    flock = fcntl.flock

    def late(file, how):
        shutil.rmtree(directory)
        if again:
            directory.mkdir()
            (directory / ".lock").touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BusyError, match="collection 'docs' is being written to by another"):
        take_lock(directory)
