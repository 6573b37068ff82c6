"""The write-ahead log: torn at every byte, flipped at every byte, mixed up, and a disk that fails."""

import errno
import os
import resource
import shutil

import pytest

from embedserve.errors import CorruptFileError, EmbedserveError
from indexing import Collection, Document, create_collection, verify
from indexing.collections.catalog import collection_path
from indexing.collections.wal import WalWriter, create_wal, read_wal
from indexing.segments.fields import BM25, WORDS, field_of
from tests.indexing.bag import BagEncoder

ENCODER = BagEncoder()
NAME = "wal-00000000000000ff.log"


@pytest.fixture
def log(tmp_path):
    """A log of three frames, and where each of them ends."""
    path = tmp_path / NAME
    create_wal(path, 7)
    writer, ends = WalWriter(path, 28), []
    for sequence, payload in ((7, b"first"), (9, b""), (10, b"the third, which is longer" * 9)):
        writer.append(sequence, 2 if sequence == 7 else 1, payload)
        ends.append(writer.size)
    writer.close()
    return path, ends


def test_frames_come_back(log):
    path, ends = log
    frames, end = read_wal(path, 7)
    assert [(frame.sequence, frame.span, len(frame.payload)) for frame in frames] == [
        (7, 2, 5),
        (9, 1, 0),
        (10, 1, 234),
    ]
    assert end == ends[-1] == path.stat().st_size
    later, end = read_wal(path, 10, ends[1])
    assert (later, end) == (frames[2:], ends[2])


def test_a_log_that_ends_at_any_byte_of_its_last_record_has_all_the_others(log):
    path, ends = log
    whole = path.read_bytes()
    for size in range(ends[1], ends[2]):
        path.write_bytes(whole[:size])
        frames, end = read_wal(path, 7)
        assert (len(frames), end) == (2, ends[1]), size


@pytest.mark.parametrize("tail", [b"\0" * 500, b"\xff\xf5W\n" * 50, bytes(range(256))])
def test_what_a_power_cut_leaves_behind_the_last_record_is_cut_off(log, tail):
    path, ends = log
    with path.open("ab") as file:
        file.write(tail)
    assert read_wal(path, 7)[1] == ends[-1]
    WalWriter(path, ends[-1]).close()
    assert path.stat().st_size == ends[-1]


def test_a_log_that_became_shorter_is_refused(log):
    path, ends = log
    with pytest.raises(CorruptFileError, match=f"{NAME} is shorter than the {ends[2] + 1} bytes read earlier"):
        read_wal(path, 11, ends[2] + 1)


def test_every_flipped_byte_before_the_last_record_is_refused_by_name_and_offset(log):
    path, ends = log
    whole = path.read_bytes()
    for place in range(ends[1]):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(CorruptFileError, match=rf"{NAME} is .*(damaged at byte \d+|another collection)"):
            read_wal(path, 7)


def test_a_record_that_was_taken_out_is_missed(log):
    path, ends = log
    whole = path.read_bytes()
    path.write_bytes(whole[: ends[0]] + whole[ends[1] :])
    with pytest.raises(CorruptFileError, match=f"damaged at byte {ends[0]}: record 9 is missing"):
        read_wal(path, 7)


def test_another_log_is_refused(log, tmp_path):
    path, _ = log
    other = tmp_path / "wal-0000000000000001.log"
    shutil.copy(path, other)
    with pytest.raises(CorruptFileError, match="the log of another collection"):
        read_wal(other, 7)
    with pytest.raises(CorruptFileError, match="the log of another collection or version"):
        read_wal(path, 8)
    path.unlink()
    with pytest.raises(CorruptFileError, match="No such file"):
        read_wal(path, 7)


@pytest.fixture
def directory(data_dir):
    directory = collection_path(data_dir, "docs")
    create_collection(directory, {"dense": field_of(ENCODER, index="exact"), BM25: WORDS})
    return directory


def written(directory, *names):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        for name in names:
            collection.upsert([Document(name, f"text {name}")])
    return next(directory.glob("wal-*.log"))


def ids_in(directory):
    with Collection.open(directory) as collection:
        return [document.id for document in collection.documents()]


def test_a_torn_record_is_cut_off_by_the_next_writer_and_ignored_by_readers(directory, caplog):
    log = written(directory, "a", "b")
    whole = log.read_bytes()
    log.write_bytes(whole[:-3])
    assert ids_in(directory) == ["a"]
    assert all(check.ok for check in verify(directory))
    assert log.stat().st_size == len(whole) - 3  # readers change nothing
    written(directory, "c")
    assert "cutting off an unfinished record" in caplog.text
    assert ids_in(directory) == ["a", "c"]


def test_damage_in_the_middle_stops_readers_and_writers(directory):
    log = written(directory, "a", "b", "c")
    data = bytearray(log.read_bytes())
    data[60] ^= 1
    log.write_bytes(data)
    for writable in (False, True):
        with pytest.raises(CorruptFileError, match=r"wal-.*damaged at byte 28"):
            Collection.open(directory, writable=writable)
    assert [check.ok for check in verify(directory)] == [True, False]
    assert log.read_bytes() == data


def test_a_full_disk_refuses_the_write_and_loses_nothing(directory):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert([Document("a", "text a")])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        log = next(directory.glob("wal-*.log"))
        size = log.stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
            for _ in range(2):
                with pytest.raises(EmbedserveError, match=r"cannot write to .*wal-.*nothing was written"):
                    collection.upsert([Document("b", "text b" * 100)])
                assert log.stat().st_size == size
                assert [hit.id for hit in collection.search(["text"])[0]] == ["a"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        collection.upsert([Document("c", "text c")])
    assert ids_in(directory) == ["a", "c"]


@pytest.mark.parametrize("action", ["flush", "compact", "snapshot"])
def test_a_disk_that_is_full_while_segments_are_written_loses_nothing(directory, action):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert([Document(f"a{n}", f"text {n}") for n in range(50)])
        files = sorted(directory.rglob("*"))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
            with pytest.raises(EmbedserveError, match=r"cannot write to .*unchanged"):
                getattr(collection, action)()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path for path in sorted(directory.rglob("*")) if path.name != "segments"] == files
        assert len(collection.search(["text"], 100)[0]) == 50
        collection.upsert([Document("b", "text b")])
        getattr(collection, action)()
    assert len(ids_in(directory)) == 51


def test_a_flush_that_fails_by_itself_does_not_fail_the_write(directory, caplog):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection._writer.flush_rows = 10
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
            assert collection.upsert([Document(f"a{n}", f"text {n}") for n in range(12)]) == 12
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "the log could not become a segment" in caplog.text
        assert len(collection) == 12
        collection.upsert([Document(f"b{n}", f"text {n}") for n in range(12)])
        assert [entry.count for entry in collection.manifest.segments] == [24]
    assert len(ids_in(directory)) == 24


def test_a_sync_that_fails_is_no_acknowledgement_and_stops_the_writer(directory, monkeypatch):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert([Document("a", "text a")])
        fsync = os.fsync

        def failing(descriptor):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(EmbedserveError, match="the disk did not confirm a write"):
            collection.upsert([Document("b", "text b")])
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(EmbedserveError, match=r"may not be on the disk.*open the collection again"):
            collection.upsert([Document("c", "text c")])
        assert [document.id for document in collection.documents()] == ["a"]
    assert ids_in(directory) == ["a"]  # otherwise b would look durable, and d would be written after a gap
    written(directory, "d")
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.flush()
    assert ids_in(directory) == ["a", "d"]


def test_a_reader_that_saw_a_write_that_was_taken_back_reads_on(directory, monkeypatch):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert([Document("a", "text a")])
        reader, seen = Collection.open(directory, ENCODER), []

        def failing(descriptor):
            if not seen:  # the write; the second is that of taking it back
                reader.refresh()
            seen.append([document.id for document in reader.documents()])
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with pytest.raises(EmbedserveError, match="the disk did not confirm a write"):
                collection.upsert([Document("b", "text b " * 100)])
    assert seen == [["a", "b"]] * 2
    written(directory, "c")
    reader.refresh()
    assert [document.id for document in reader.documents()] == ["a", "c"]
    reader.close()


@pytest.mark.parametrize("moment", ["append", "apply"])
def test_ctrl_c_in_the_middle_of_a_write_is_no_acknowledgement_and_harms_nothing(directory, monkeypatch, moment):
    from indexing.collections import wal, writer

    def interrupted(*_):
        raise KeyboardInterrupt

    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert([Document("a", "text a")])
        with monkeypatch.context() as patch:
            patch.setattr(*((wal.os, "pwrite") if moment == "append" else (writer, "apply")), interrupted)
            with pytest.raises(KeyboardInterrupt):
                collection.upsert([Document("b", "text b")])
        with pytest.raises(EmbedserveError, match="interrupted half-way; open it again"):
            collection.upsert([Document("c", "text c")])
        assert [document.id for document in collection.documents()] == ["a"]
    assert ids_in(directory) == (["a"] if moment == "append" else ["a", "b"])
    written(directory, "d")
    assert ids_in(directory)[-1] == "d"
