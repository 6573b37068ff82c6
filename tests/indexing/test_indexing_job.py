"""The offline job: shards, resuming, dead letters, and the collection it ends with."""

import json
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from embedserve import Encoder
from embedserve.errors import BusyError, EmbedserveError, InputError, LoadError
from embedserve.spec import EncoderSpec
from indexing import Collection, Document, list_collections
from indexing.collections.catalog import collection_path
from indexing.jobs.duplicate_ids import DuplicateIds
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.local_engine import ProcessEngine, ThreadEngine
from indexing.jobs.shard_files import check_shard
from indexing.jobs.shard_split import SHARD_BYTES, ShardSettings, canonical_line, split_shards
from indexing.jobs.shard_work import ShardTask, StoppedError, make_shard
from indexing.sources.corpus import read_all
from indexing.sources.passages import PassageSize
from tests import tiny
from tests.indexing.bag import BagEncoder, make_documents
from tests.indexing.job_child import load_bag, load_nothing

SMALL = JobOptions(shard_size=10)


@pytest.fixture
def tiny_encoder(tiny_llama):
    return Encoder.load(tiny_llama, "cpu")


@pytest.fixture
def work(data_dir):
    return job_path(data_dir, "docs")


@pytest.fixture
def directory(data_dir):
    return collection_path(data_dir, "docs")


def shards_of(work):
    return {
        path.relative_to(work): path.read_bytes() for path in sorted((work / "shards").rglob("*")) if path.is_file()
    }


def letters_of(work):
    path = work / "dead-letters.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def documents_in(directory, encoder):
    with Collection.open(directory, encoder) as collection:
        return list(collection.documents())


def write_lines(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


# ------------------------------------------------------------------ from documents to a collection


def test_a_job_ends_in_a_collection_of_the_documents_in_order(directory, work, encoder):
    report = run_job(make_documents(95), encoder, directory, work, SMALL)
    assert (report.documents, report.rows, report.shards, report.resumed, report.dead_letters) == (95, 95, 10, 0, 0)
    assert report.tokens == sum(len(document.content.split()) for document in make_documents(95))
    assert documents_in(directory, encoder) == make_documents(95)
    with Collection.open(directory, encoder) as collection:
        for document in make_documents(95)[::9]:
            assert collection.search([document.content], k=1)[0][0].id == document.id
    assert json.loads((work / "report.json").read_text()) == report.plain()
    assert sorted(path.name for path in work.iterdir()) == [".lock", "report.json", "shards"]
    assert not list(work.rglob("*.partial"))


def test_a_second_run_makes_nothing_and_one_with_more_documents_only_the_new(directory, work, encoder):
    run_job(make_documents(95), encoder, directory, work, SMALL)
    before = shards_of(work)
    again = run_job(make_documents(95), encoder, directory, work, SMALL)
    assert (again.shards, again.resumed, again.made_documents, again.documents) == (10, 10, 0, 95)
    assert shards_of(work) == before
    more = run_job(make_documents(120), encoder, directory, work, SMALL)
    assert (more.shards, more.resumed, more.made_documents, more.removed) == (12, 9, 30, 1)
    assert documents_in(directory, encoder) == make_documents(120)


def test_what_shapes_a_shard_is_in_its_name(directory, work, encoder):
    run_job(make_documents(40), encoder, directory, work, SMALL)
    other = BagEncoder(EncoderSpec(backbone="bag", strategy="mean"), weights="other")
    assert run_job(make_documents(40), other, directory, work, SMALL).resumed == 0
    assert run_job(make_documents(40), other, directory, work, replace(SMALL, shard_size=20)).resumed == 0
    assert run_job(make_documents(40), other, directory, work, replace(SMALL, shard_size=20, memory_mb=64)).resumed == 2
    changed = [*make_documents(15), Document("old-15", "another text"), *make_documents(40)[16:]]
    assert run_job(changed, other, directory, work, replace(SMALL, shard_size=20)).resumed == 1


def test_passages_change_the_name_too(directory, work, tiny_encoder):
    documents = [Document(f"d{n}", " ".join(tiny.SENTENCES[n % 5 :]), f"T{n}", {"n": n}) for n in range(12)]
    assert run_job(documents, tiny_encoder, directory, work, SMALL).resumed == 0
    split = replace(SMALL, passages=PassageSize(40, 5))
    report = run_job(documents, tiny_encoder, directory, work, split)
    assert (report.resumed, report.documents) == (0, 12)
    assert report.rows > 30
    texts = {document.id: document.text for document in documents}
    for passage in documents_in(directory, tiny_encoder):
        about = passage.metadata
        assert passage.text == texts[about["passage_of"]][about["passage_start"] : about["passage_end"]]
    assert run_job(documents, tiny_encoder, directory, work, split).resumed == 2


def test_passages_need_an_encoder_with_a_tokenizer(directory, work, encoder):
    with pytest.raises(EmbedserveError, match="has no tokenizer"):
        run_job(make_documents(4), encoder, directory, work, JobOptions(passages=PassageSize(20)))


@pytest.mark.parametrize("part", ["dense.npy", "documents.jsonl", "shard.json"])
def test_a_damaged_shard_is_made_again_and_said_so(directory, work, encoder, part):
    run_job(make_documents(40), encoder, directory, work, SMALL)
    before = shards_of(work)
    first = sorted(work.rglob(part))[0]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    report = run_job(make_documents(40), encoder, directory, work, SMALL)
    assert (report.shards, report.resumed, report.damaged) == (4, 3, 1)
    assert str(first) in report.problems[0]
    assert any(line.startswith("damaged: ") for line in report.lines())
    assert shards_of(work) == before


def test_a_shard_without_one_of_its_files_is_made_again(directory, work, encoder):
    run_job(make_documents(40), encoder, directory, work, SMALL)
    before = shards_of(work)
    sorted(work.rglob("places.npy"))[2].unlink()
    assert run_job(make_documents(40), encoder, directory, work, SMALL).damaged == 1
    assert shards_of(work) == before


def test_shards_can_be_dropped(directory, work, encoder):
    report = run_job(make_documents(40), encoder, directory, work, replace(SMALL, drop_shards=True))
    assert (report.shards, report.removed) == (4, 4)
    assert not shards_of(work)
    assert documents_in(directory, encoder) == make_documents(40)


# ------------------------------------------------------------------ skipped records

BAD = [{"id": "a", "text": "one"}, b"\n{oops\n", {"text": " ", "id": "b"}, b"\n", {"id": "", "text": "x"}, b"\n"]
GOOD = [{"id": "c", "text": "two", "tags": ["x"]}, b"\n", {"id": "d", "text": "three"}]


def test_bad_records_are_left_out_and_written_down(tmp_path, directory, work, encoder):
    path = write_lines(tmp_path / "c.jsonl", *BAD, *GOOD, b"\n", {"id": "a", "text": "again", "n": [float("nan")]})
    report = run_job(read_all(path), encoder, directory, work, replace(SMALL, shard_size=2))
    assert (report.documents, report.dead_letters) == (3, 4)
    assert report.dead_letter_file == str(work / "dead-letters.jsonl")
    assert [document.id for document in documents_in(directory, encoder)] == ["a", "c", "d"]
    letters = letters_of(work)
    assert [(letter["source"], letter["line"]) for letter in letters] == [(str(path), line) for line in (2, 3, 4, 7)]
    assert letters[0]["record"] == "{oops"
    assert letters[1]["record"] == {"text": " ", "id": "b"}
    assert letters[2]["reason"] == "id is empty"
    assert "not JSON" in letters[3]["reason"]
    before = (work / "dead-letters.jsonl").read_bytes()
    again = run_job(read_all(path), encoder, directory, work, replace(SMALL, shard_size=2))
    assert (again.resumed, again.made_documents, again.dead_letters) == (again.shards, 0, 4)
    assert (work / "dead-letters.jsonl").read_bytes() == before
    elsewhere = tmp_path / "letters" / "mine.jsonl"
    run_job(read_all(path), encoder, directory, work, replace(SMALL, shard_size=2, dead_letters=elsewhere))
    assert elsewhere.read_bytes() == before


def test_stop_ends_at_the_first_bad_record(tmp_path, data_dir, directory, work, encoder):
    path = write_lines(tmp_path / "c.jsonl", *BAD, *GOOD)
    with pytest.raises(InputError, match=f"{path}, line 2: not valid JSON"):
        run_job(read_all(path), encoder, directory, work, replace(SMALL, on_error="stop"))
    assert list_collections(data_dir) == []


def test_dead_letters_take_the_place_of_nothing_else(tmp_path, directory, work, encoder):
    path = write_lines(tmp_path / "c.jsonl", *BAD, *GOOD)
    before = path.read_bytes()
    for taken in (path, tmp_path):
        with pytest.raises(InputError, match=f"{taken} exists and is not a dead-letter file; choose another") as raised:
            run_job(read_all(path), encoder, directory, work, replace(SMALL, dead_letters=taken))
        assert raised.value.field == "dead_letters"
    with pytest.raises(EmbedserveError, match=r"cannot write to .*c\.jsonl: "):
        run_job(read_all(path), encoder, directory, work, replace(SMALL, dead_letters=path / "letters.jsonl"))
    assert path.read_bytes() == before
    assert not shards_of(work)


def test_mending_a_bad_record_moves_no_other(tmp_path, directory, work, encoder):
    lines = [json.dumps({"text": f"text {n}"}).encode() + b"\n" for n in range(100)]
    run_job(
        read_all(write_lines(tmp_path / "c.jsonl", *lines[:33], b"{\n", *lines[34:])), encoder, directory, work, SMALL
    )
    report = run_job(read_all(write_lines(tmp_path / "c.jsonl", *lines)), encoder, directory, work, SMALL)
    assert (report.documents, report.shards, report.resumed) == (100, 10, 9)
    assert not (work / "dead-letters.jsonl").exists()


def test_a_source_without_one_good_record_is_refused(tmp_path, directory, work, encoder):
    few = write_lines(tmp_path / "few.jsonl", b"{\n" * 99)
    with pytest.raises(InputError, match=r"few\.jsonl, line 1: not valid JSON"):
        run_job(read_all(few), encoder, directory, work, SMALL)
    many = write_lines(tmp_path / "many.jsonl", b'{"body": "x"}\n' * 100, b'{"text": "x"}\n')
    with pytest.raises(InputError, match="no field 'text'"):
        run_job(read_all(many), encoder, directory, work, SMALL)
    with pytest.raises(InputError, match="no documents to index"):
        run_job([], encoder, directory, work, SMALL)
    odd = [Document(f"d{n}", "x", "", {"price": Decimal(n)}) for n in range(200)]
    with pytest.raises(InputError, match="metadata of document 'd0' is not JSON"):
        run_job(odd, encoder, directory, work, SMALL)
    late = write_lines(tmp_path / "late.jsonl", b'{"text": "x"}\n', b"{\n" * 200)
    assert run_job(read_all(late), encoder, directory, work, SMALL).dead_letters == 200


def test_ids_that_come_again_are_left_out_or_an_error(tmp_path, directory, work, encoder):
    records = [{"id": f"d{n % 70}", "text": f"text {n}"} for n in range(95)]
    path = write_lines(tmp_path / "c.jsonl", *(json.dumps(record).encode() + b"\n" for record in records))
    report = run_job(read_all(path), encoder, directory, work, SMALL)
    assert (report.documents, report.rows, report.dead_letters) == (70, 70, 25)
    assert [document.text for document in documents_in(directory, encoder)] == [f"text {n}" for n in range(70)]
    letters = letters_of(work)
    assert [letter["line"] for letter in letters] == list(range(71, 96))
    assert letters[0]["reason"] == f"{path}, line 1 has the same id"
    assert letters[0]["record"] == {"id": "d0", "title": "", "text": "text 70", "metadata": {}}
    with pytest.raises(InputError, match=f"{path}, line 1 and {path}, line 71 have the same id 'd0'"):
        run_job(read_all(path), encoder, directory, work, replace(SMALL, on_error="stop"))


def test_the_same_documents_twice_are_one_shard(directory, work, encoder):
    report = run_job([*make_documents(20), *make_documents(20)], encoder, directory, work, SMALL)
    assert (report.documents, report.dead_letters, report.shards, report.made_documents) == (20, 20, 4, 20)
    assert len(list(work.rglob("shard.json"))) == 2


def test_repeated_ids_of_passages_leave_out_the_whole_document(directory, work, tiny_encoder):
    documents = [Document(f"d{n % 5}", " ".join(tiny.SENTENCES)) for n in range(8)]
    told = []
    split = replace(SMALL, passages=PassageSize(30))
    report = run_job(documents, tiny_encoder, directory, work, split, progress=told.append)
    assert [(last.done, last.total) for last in told[-2:]] == [(report.rows, report.rows)] * 2
    parents = [passage.metadata["passage_of"] for passage in documents_in(directory, tiny_encoder)]
    assert (report.documents, report.dead_letters) == (5, 3)
    assert len(set(parents)) == 5
    assert len(parents) == 5 * parents.count("d0")


def test_what_the_encoder_refuses_is_left_out(directory, work, encoder):
    class Picky(BagEncoder):
        def embed(self, texts, task="document", **options):
            for place, text in enumerate(texts):
                if "topic3" in text:
                    raise InputError(f"texts[{place}] is not to its taste", field=f"texts[{place}]")
            return super().embed(texts, task)

    documents = [replace(document, where=f"c.jsonl, line {n + 1}") for n, document in enumerate(make_documents(40))]
    expected = [document for document in documents if "topic3" not in document.text]
    for _ in range(2):
        report = run_job(documents, Picky(), directory, work, SMALL)
        assert (report.documents, report.dead_letters) == (len(expected), 40 - len(expected))
        assert documents_in(directory, encoder) == expected
        letter = letters_of(work)[0]
        assert letter == {
            "source": "c.jsonl",
            "line": 4,
            "reason": "the text is not to its taste",
            "record": letter["record"],
        }
        assert letter["record"]["id"] == "old-3"
    again = [Document("old-3", f"words {n}", where=f"c.jsonl, line {n}") for n in (41, 42)]
    report = run_job([*documents, *again], Picky(), directory, work, SMALL)
    assert report.documents == len(expected) + 1  # a document that was refused takes no later one's place
    assert documents_in(directory, encoder) == [*expected, again[0]]
    assert letters_of(work)[-1]["reason"] == "c.jsonl, line 41 has the same id"
    with pytest.raises(InputError, match=r"c\.jsonl, line 4: document 'old-3': the text is not to its taste"):
        run_job(documents, Picky(), directory, work, replace(SMALL, on_error="stop"))


def test_ids_that_come_again_are_found_across_buffers(tmp_path, monkeypatch):
    monkeypatch.setattr("indexing.jobs.duplicate_ids.BUFFER", 64)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    ids = DuplicateIds(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"n{number}" for number in rng.integers(0, 400, size=1000)]
    for line, name in enumerate(names):
        ids.add(name, line + 7)
    first = {}
    expected = []
    for place, name in enumerate(names):
        if first.setdefault(name, place) != place:
            expected.append(((place, place + 7), (first[name], first[name] + 7)))
    assert len(list(Path("/proc/self/fd").iterdir())) == opened  # some systems allow 256
    assert sorted(ids.duplicates()) == expected
    ids.close()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ cutting, memory, engines


def test_shards_are_cut_by_records_or_by_bytes(encoder):
    settings = ShardSettings(encoder.fingerprint)
    assert [len(shard.lines) for shard in split_shards(make_documents(25), settings, 10)] == [10, 10, 5]
    long = [Document(f"d{n}", "x" * (SHARD_BYTES // 4)) for n in range(9)]
    assert [len(shard.lines) for shard in split_shards(long, settings, 10)] == [4, 4, 1]


def test_the_memory_allowed_bounds_texts_in_flight_and_blocks(directory, work):
    class Watched(ThreadEngine):
        seen = []

        def submit(self, task):
            self.seen.append(task.block_bytes)
            return super().submit(task)

    class Counting(BagEncoder):
        largest = 0

        def embed(self, texts, task="document", **options):
            Counting.largest = max(Counting.largest, len(texts))
            return super().embed(texts, task)

    encoder = Counting(dim=64 * 1024)  # 256 kB a vector
    engine = Watched(encoder, 1)
    options = JobOptions(shard_size=100, memory_mb=64, index="exact")
    run_job(make_documents(150), encoder, directory, work, options, engine=engine)
    assert Watched.seen == [16 * 2**20] * 2
    assert Counting.largest == 64


def test_shards_that_are_there_wait_in_bounded_memory_for_one_that_is_made(directory, work, monkeypatch):
    monkeypatch.setattr("indexing.jobs.job.LEAST_MEMORY_MB", 1)
    options, read, ended = JobOptions(shard_size=1, memory_mb=1, on_error="stop"), [], Event()

    class Slow(BagEncoder):
        def embed(self, texts, task="document", **options):
            if "changed" in texts[0]:
                ended.wait(1)  # while all the others are there, and read as fast as may be
                read.append(len(seen))
            return super().embed(texts, task)

    seen = []

    def documents(first):
        for n in range(30):
            seen.append(n)
            yield Document(f"d{n}", f"{first if n == 0 else 'word'} {'x' * 65536}")
        ended.set()

    run_job(documents("one"), Slow(), directory, work, options)
    seen.clear()
    ended.clear()
    report = run_job(documents("changed"), Slow(), directory, work, options)
    assert (report.shards, report.resumed) == (30, 29)
    assert read[0] <= 10  # half of 1 MB


def test_a_job_that_is_stopped_ends_at_the_next_block(tmp_path, encoder):
    lines = [canonical_line(document) for document in make_documents(40)]
    settings = ShardSettings(encoder.fingerprint)
    task = ShardTask(tmp_path / "aa" / "aa11", lines, settings, encoder.dim * 4 * 10)  # blocks of ten rows
    blocks = []

    class Watched(BagEncoder):
        def embed(self, texts, task="document", **options):
            blocks.append(len(texts))
            return super().embed(texts, task)

    with pytest.raises(StoppedError):
        make_shard(Watched(), task, stopped=lambda: len(blocks) == 2)
    assert blocks == [10, 10]
    assert not list((tmp_path / "aa").iterdir())


@pytest.mark.parametrize(
    ("options", "field"),
    [({"shard_size": 0}, "shard_size"), ({"memory_mb": 63}, "memory"), ({"on_error": "x"}, "on_error")],
)
def test_options_that_make_no_sense_are_refused(options, field):
    with pytest.raises(InputError) as raised:
        JobOptions(**options)
    assert raised.value.field == field


def test_an_index_that_cannot_be_is_refused_before_anything_is_made(directory, work, encoder):
    with pytest.raises(InputError, match="bogus"):
        run_job(make_documents(5), encoder, directory, work, JobOptions(index="bogus"))
    assert not work.exists()


def test_rows_that_train_an_index_may_be_passages(directory, work, tiny_encoder):
    documents = [Document(f"d{n}", " ".join(tiny.SENTENCES[n:])) for n in range(3)]
    ivf = JobOptions(shard_size=10, index="IVF4,Flat")
    with pytest.raises(InputError, match="cannot be built from 3 rows"):
        run_job(documents, tiny_encoder, directory, work, ivf, total=3)
    report = run_job(documents, tiny_encoder, directory, work, replace(ivf, passages=PassageSize(30)), total=3)
    assert (report.documents, report.rows > 4) == (3, True)


def test_a_process_without_an_encoder_says_why(directory, work, encoder):
    with pytest.raises(LoadError, match="no model for device 7"):
        run_job(make_documents(4), encoder, directory, work, SMALL, engine=ProcessEngine(load_nothing, ["7"]))


def test_threads_and_processes_make_the_same_bytes(data_dir, work, tiny_encoder, encoder):
    documents = [Document(f"d{n}", tiny.SENTENCES[n % 9], "", {"n": n}) for n in range(60)]
    for threads in (1, 3):
        run_job(documents, tiny_encoder, collection_path(data_dir, "docs"), data_dir / f"t{threads}", SMALL,
                engine=ThreadEngine(tiny_encoder, threads))  # fmt: skip
    assert shards_of(data_dir / "t1") == shards_of(data_dir / "t3")
    engine = ProcessEngine(load_bag, ["cpu", "cpu"])
    run_job(make_documents(60), encoder, collection_path(data_dir, "bag"), data_dir / "p", SMALL, engine=engine)
    run_job(make_documents(60), encoder, collection_path(data_dir, "bag"), data_dir / "one", SMALL)
    assert shards_of(data_dir / "p") == shards_of(data_dir / "one")


@pytest.mark.parametrize("strategy", ["colbert", "promptreps"])
def test_every_output_of_an_encoder_is_kept(data_dir, directory, work, tiny_llama, strategy):
    options = {"colbert": ({"dim": 16}, "random"), "promptreps": ({}, None)}[strategy]
    encoder = Encoder.load(EncoderSpec(strategy, str(tiny_llama), options[0], head=options[1]), "cpu")
    documents = [Document(f"d{n}", f"{tiny.SENTENCES[n % 9]} {n}") for n in range(30)]
    report = run_job([*documents, documents[3]], encoder, directory, work, SMALL)
    assert (report.documents, report.dead_letters) == (30, 1)
    with Collection.open(directory, encoder) as collection:
        assert list(collection.documents()) == documents
        assert set(collection.fields) == {*encoder.outputs, "bm25"}
        assert [len(hits) for hits in collection.search([documents[7].text], k=5, mode="hybrid")] == [5]


def test_two_jobs_on_one_collection_are_refused(directory, work, encoder):
    documents = iter(make_documents(40))

    def second():
        yield next(documents)
        with pytest.raises(EmbedserveError, match="is being written to by another"):
            run_job(make_documents(4), encoder, directory, work, SMALL)
        yield from documents

    assert run_job(second(), encoder, directory, work, SMALL).documents == 40


def test_nobody_writes_to_a_collection_while_a_job_fills_it(directory, work, encoder):
    run_job(make_documents(20), encoder, directory, work, SMALL)
    busy = "collection 'docs' is being written to by another"

    def found():
        with pytest.raises(BusyError, match=busy):
            Collection.open(directory, encoder, writable=True)
        assert documents_in(directory, encoder) == make_documents(20)
        yield from make_documents(40)

    assert run_job(found(), encoder, directory, work, SMALL).documents == 40
    with Collection.open(directory, encoder, writable=True) as collection:
        with pytest.raises(BusyError, match=busy):  # before anything is read
            run_job(found(), encoder, directory, work, SMALL)
        collection.upsert([Document("one more", "text")])
    with pytest.raises(BusyError, match=f"job folder {work} is being written to"):
        run_job(other_job(work, encoder), encoder, directory, work, SMALL)
    assert len(documents_in(directory, encoder)) == 41


def other_job(work, encoder):
    run_job(make_documents(4), encoder, collection_path(work.parents[1], "other"), work, SMALL)
    yield


def test_a_shard_of_another_name_is_not_taken(directory, work, encoder):
    run_job(make_documents(20), encoder, directory, work, SMALL)
    one, other = sorted(path.parent for path in work.rglob("shard.json"))
    shutil.rmtree(other)
    shutil.copytree(one, other)
    assert check_shard(other, ShardSettings(encoder.fingerprint))[0] == "damaged"
    assert run_job(make_documents(20), encoder, directory, work, SMALL).damaged == 1
