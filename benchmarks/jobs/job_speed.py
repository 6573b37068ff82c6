"""The offline job: its rate beside bare encoding, what resuming costs, its memory, and Ray's overhead.

python -m benchmarks.jobs.job_speed [--documents 10000] [--shard-size 2000] [--rounds 3] [--memory 20000,200000] [--ray]

The texts are those of `benchmarks.encoding.encode_speed`: descriptions of functions and classes, from a few words to a
long
passage. Bare encoding is one call of `Encoder.embed` on all of them; the job reads them from a JSONL file, cuts and
writes shards. The two take turns, and the ratio is the median over the rounds; where other programs share the cores,
processor time says more than the clock. Reading alone, which one process does for all workers, is measured apart. The
memory is that of a process of its own, with a random decoder of one layer that is fast enough for many documents.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe, peak_memory_kib
from benchmarks.encoding.encode_speed import mixed_texts
from embedserve import Encoder
from indexing.collections.catalog import collection_path
from indexing.jobs.duplicate_ids import DuplicateIds
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.jobs.local_engine import ThreadEngine
from indexing.jobs.shard_engine import ShardEngine
from indexing.jobs.shard_split import ShardSettings, split_shards
from indexing.sources.corpus import read_all

REPEATED = 10_000  # different texts of the memory measurement


def write_corpus(path: Path, texts: list[str], count: int) -> Path:
    """Write ``count`` documents as JSONL: the texts, then repeated with a number after each."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = texts[number % len(texts)] if number < len(texts) else f"{texts[number % len(texts)]} {number}"
            file.write(json.dumps({"id": f"d{number}", "text": text, "n": number}) + "\n")
    return path


def run(source: Path, encoder: Encoder, data: Path, engine: ShardEngine | None = None, **options: Any) -> JobReport:
    """Run the job over ``source`` into a collection without an index, the vectors alone."""
    place = collection_path(data, "bench"), job_path(data, "bench")
    return run_job(read_all(source), encoder, *place, JobOptions(index="exact", **options), engine=engine)


def before_assembling(report: JobReport) -> float:
    """Return the seconds of reading, encoding and writing shards, by the clock."""
    return report.seconds["all"] - report.seconds["assemble"]


def measure_speed(encoder: Encoder, texts: list[str], rounds: int, folder: Path, size: int) -> dict[str, Any]:
    """Compare the job with bare encoding, and a second run of the job with the first."""
    source = write_corpus(folder / "speed.jsonl", texts, len(texts))
    bare, jobs, resumes, assembling, processor = [], [], [], [], []
    encoder.embed(texts[:200])
    for number in range(rounds):
        began, at_work = time.perf_counter(), time.process_time()
        encoder.embed(texts)
        bare.append(time.perf_counter() - began)
        bare_work, at_work = time.process_time() - at_work, time.process_time()
        data = folder / f"round{number}"
        first = run(source, encoder, data, shard_size=size)
        processor.append((time.process_time() - at_work) / bare_work - 1)
        again = run(source, encoder, data, shard_size=size)
        if again.made_documents:
            raise RuntimeError("the second run wrote shards again")
        jobs.append(before_assembling(first))
        resumes.append(before_assembling(again))
        assembling.append(first.seconds["assemble"])
        last = first.plain()["seconds"]
        written = sum(path.stat().st_size for path in (data / "jobs").rglob("*") if path.is_file())
        shutil.rmtree(data)
    return {
        "documents": len(texts),
        "tokens": first.tokens,
        "bare_documents_per_second": round(len(texts) / statistics.median(bare), 1),
        "job_documents_per_second": round(len(texts) / statistics.median(jobs), 1),
        "overhead": round(statistics.median(j / b for j, b in zip(jobs, bare, strict=True)) - 1, 4),
        "overhead_in_processor_time_with_assembling": round(statistics.median(processor), 4),
        "resume_cost": round(statistics.median(r / j for r, j in zip(resumes, jobs, strict=True)), 4),
        "resume_us_per_document": round(1e6 * statistics.median(resumes) / len(texts), 1),
        "assemble_us_per_document": round(1e6 * statistics.median(assembling) / len(texts), 1),
        "shard_bytes_per_document": round(written / len(texts)),
        "seconds_of_last_round": last,
    }


def measure_reading(count: int, folder: Path) -> dict[str, Any]:
    """Measure what the process that reads does for each document: read, cut, name, remember the id."""
    source = write_corpus(folder / "reading.jsonl", mixed_texts(REPEATED), count)
    ids, settings, found = DuplicateIds(folder), ShardSettings("none"), 0
    began = time.process_time()
    for cut in split_shards(read_all(source), settings, 2000):
        for identifier in cut.ids:
            ids.add(identifier, 1)
        found += len(cut.lines)
    seconds = time.process_time() - began
    began = time.process_time()
    repeated = sum(1 for _ in ids.duplicates())
    ids.close()
    return {
        "documents": found,
        "source_bytes_per_document": round(source.stat().st_size / found),
        "processor_us_per_document": round(1e6 * seconds / found, 1),
        "repeated_ids_us_per_document": round(1e6 * (time.process_time() - began) / found, 2),
        "repeated": repeated,
    }


def measure_ray(texts: list[str], folder: Path, model: str, size: int) -> dict[str, Any]:
    """Compare one actor of a Ray cluster on this machine with one thread of this process."""
    import ray

    from indexing.jobs.ray_engine import RayEngine

    encoder = Encoder.load(model, "cpu")
    source = write_corpus(folder / "ray.jsonl", texts, len(texts))
    began = time.perf_counter()
    ray.init(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    started = time.perf_counter() - began
    local = run(source, encoder, folder / "local", ThreadEngine(encoder, 1), shard_size=size)
    began = time.perf_counter()
    engine = RayEngine(partial(Encoder.load, model), 1)
    actor = engine._next_actor()  # until the encoder is loaded there
    engine._idle.put(actor)
    loaded = time.perf_counter() - began
    remote = run(source, encoder, folder / "ray", engine, shard_size=size)
    same = all(
        path.read_bytes() == (folder / "ray" / path.relative_to(folder / "local")).read_bytes()
        for path in (folder / "local" / "jobs" / "bench" / "shards").rglob("*")
        if path.is_file()
    )
    ray.shutdown()
    return {
        "documents": len(texts),
        "local_seconds": round(before_assembling(local), 2),
        "ray_seconds": round(before_assembling(remote), 2),
        "ray_overhead": round(before_assembling(remote) / before_assembling(local) - 1, 4),
        "ray_start_seconds": round(started, 1),
        "actor_start_seconds": round(loaded, 1),
        "same_bytes": same,
    }


def tiny_decoder(folder: Path) -> Path:
    """Write a random decoder of one layer with nano's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    import embedserve

    tokenizer = AutoTokenizer.from_pretrained(Path(embedserve.__file__).parent / "nano")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def child(source: Path, model: Path, data: Path, memory_mb: int) -> None:
    """Run the job in this process and print its peak of resident memory, before assembling and at the end."""
    encoder = Encoder.load(model, "cpu")
    peaks: dict[str, int] = {}

    def note(progress: JobProgress) -> None:
        if progress.stage == "encode":
            peaks["encode"] = peak_memory_kib()

    place = collection_path(data, "bench"), job_path(data, "bench")
    report = run_job(read_all(source), encoder, *place, JobOptions(index="exact", memory_mb=memory_mb), progress=note)
    peaks["all"] = peak_memory_kib()
    print(json.dumps({"documents": report.documents, "rate": round(report.rate), "kib": peaks}))


def measure_memory(counts: list[int], folder: Path, memory_mb: int) -> list[dict[str, Any]]:
    """Run the job over each number of documents, in a new process."""
    model = tiny_decoder(folder / "tiny")
    texts = [text[:300] for text in islice(mixed_texts(REPEATED), REPEATED)]
    found = []
    for count in counts:
        source = write_corpus(folder / f"{count}.jsonl", texts, count)
        data = folder / f"data{count}"
        command = [sys.executable, "-m", "benchmarks.jobs.job_speed", "--child", str(source), str(model), str(data)]
        done = subprocess.run([*command, str(memory_mb)], check=True, stdout=subprocess.PIPE)  # noqa: S603
        found.append(json.loads(done.stdout))
        shutil.rmtree(data)
    return found


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs.job_speed", description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-size", type=int, default=2000)
    parser.add_argument("--reading", type=int, default=100_000, help="documents; 0 skips it")
    parser.add_argument("--memory", default="20000,200000", help="documents, comma-separated; empty skips it")
    parser.add_argument("--memory-mb", type=int, default=64)
    parser.add_argument("--ray", action="store_true", help="measure Ray too")
    parser.add_argument("--work", type=Path, help="folder of written files. Default: a temporary folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        source, model, data, memory_mb = args.child
        child(Path(source), Path(model), Path(data), int(memory_mb))
        return
    print(describe())
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        if args.documents:
            texts = mixed_texts(args.documents)
            print(
                "speed",
                json.dumps(
                    measure_speed(Encoder.load(args.model), texts, args.rounds, folder, args.shard_size), indent=1
                ),
            )
            if args.ray:
                print("ray", json.dumps(measure_ray(texts, folder, args.model, args.shard_size), indent=1), flush=True)
        if args.reading:
            print("reading", json.dumps(measure_reading(args.reading, folder)), flush=True)
        for memory in measure_memory(list(map(int, filter(None, args.memory.split(",")))), folder, args.memory_mb):
            print("memory", json.dumps(memory))


if __name__ == "__main__":
    main()
