"""Which tasks: mteb's by name or benchmark, or local sets as mteb tasks, which need no network.

A local set is a folder ``KIND/NAME``, of a kind of `KINDS`, in the layout that its reader describes; mteb's own classes
and metrics evaluate it. Where the files are the official test set (`SOURCES` says so) the task is the official one;
every other task is named Local…, so that its scores cannot be taken for published ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from benchmarks.common.eval_sets import RetrievalSet, read_retrieval, read_sts
from embedserve import InputError
from embedserve.errors import did_you_mean


@dataclass(frozen=True)
class Source:
    """A local set whose task has a name of its own.

    Attributes:
        folder: Below the folder of all sets.
        task: The name of the task; of mteb's own where it does not begin with Local.
        label: Its name in a table.
    """

    folder: str
    task: str
    label: str


SOURCES = (
    Source("sts/stsb", "STSBenchmark", "STS-B"),
    Source("sts/sts12", "LocalSTS12WithoutMSRvid", "STS12"),
    Source("sts/sts13", "STS13", "STS13"),
    Source("sts/sts14", "STS14", "STS14"),
    Source("retrieval/humaneval-code", "LocalHumanEvalCodeRetrieval", "HumanEval"),
    Source("retrieval/limit-small", "LocalLimitSmallRetrieval", "LIMIT"),
    Source("retrieval/cranfield", "LocalCranfieldRetrieval", "Cranfield"),
    Source("retrieval/pydoc-code", "LocalPydocCodeRetrieval", "pydoc-code"),
    Source("retrieval/squad-dev", "LocalSQuADDevRetrieval", "SQuAD-dev"),
    Source("retrieval/scifact", "SciFact", "SciFact"),
    Source("retrieval/medquad", "LocalMedQuADRetrieval", "MedQuAD"),
    Source("reranking/trecqa", "LocalTrecQAReranking", "TrecQA"),
    Source("pair/msrp", "LocalMSRPPairClassification", "MSRP"),
    Source("classification/amazon-counterfactual-en", "AmazonCounterfactualClassification", "counterf."),
    Source("classification/banking77", "Banking77Classification", "Banking77"),
    Source("classification/sst2", "LocalSST2Classification", "SST2"),
    Source("classification/agnews", "LocalAGNewsClassification", "AGNews"),
    Source("clustering/reuters10", "LocalReuters10Clustering", "Reuters10"),
    Source("clustering/bbc", "LocalBBCClustering", "BBC"),
)
SUBSETS = {"AmazonCounterfactualClassification": "en"}  # of official tasks in several languages
MAIN_SCORES = {
    "STS": "cosine_spearman",
    "Retrieval": "ndcg_at_10",
    "Reranking": "map_at_1000",
    "PairClassification": "max_ap",
    "Classification": "accuracy",
    "Clustering": "v_measure",
}


LARGE = 1_200_000  # bytes of texts, about 300,000 tokens: left out of a quick run
LABELS = {source.task: source.label for source in SOURCES}


class ListedDataset(Dataset):  # type: ignore[misc]
    """A dataset whose columns are lists: mteb reads labels one by one, which the library's own columns do slowly."""

    def __getitem__(self, key: Any) -> Any:
        """Return a column as a list, or rows as the library does."""
        found = super().__getitem__(key)
        return list(found) if isinstance(key, str) else found


def local_sources(folder: Path) -> list[Source]:
    """Return the sets below ``folder``, small ones first.

    Raises:
        InputError: There is none.
    """
    known = {source.folder: source for source in SOURCES}
    found = []
    for kind, (_, _, type_) in KINDS.items():
        for path in sorted(path for path in (folder / kind).glob("*") if path.is_dir()):
            name = f"{kind}/{path.name}"
            words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^0-9A-Za-z]+", path.name))
            found.append(known.get(name, Source(name, f"Local{words}{type_}", path.name)))
    if not found:
        message = f"{folder} holds no evaluation set; give a folder with {', '.join(f'{kind}/NAME' for kind in KINDS)}"
        raise InputError(message, field="data")
    return sorted(
        found,
        key=lambda source: (
            size_of(folder, source) > LARGE,
            [s.folder for s in SOURCES].index(source.folder) if source.folder in known else len(known),
        ),
    )


def size_of(folder: Path, source: Source) -> int:
    """Return the bytes of a set's texts."""
    return sum(path.stat().st_size for path in (folder / source.folder).glob("*.*") if path.suffix != ".md")


def local_tasks(folder: Path) -> list[AbsTask]:
    """Return a task for each set below ``folder``, small ones first."""
    return [load_task(source, folder) for source in local_sources(folder)]


def load_task(source: Source, folder: Path) -> AbsTask:
    """Return the task of one set, with its data in it.

    Raises:
        InputError: The files are not in the layout of their kind.
    """
    kind = source.folder.partition("/")[0]
    make, base, type_ = KINDS[kind]
    if source.task.startswith("Local"):
        task = own_task(source.task, base, type_)
        subset = "default"
    else:
        subset = SUBSETS.get(source.task, "default")
        subsets = [subset] if source.task in SUBSETS else None
        task = mteb.get_task(source.task, hf_subsets=subsets, eval_splits=["test"])
    try:
        data = make(folder / source.folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        message = f"{folder / source.folder} is not in the layout of {kind} sets: {type(error).__name__}: {error}"
        raise InputError(message, field="data") from error
    task.dataset = {subset: data} if kind in ("retrieval", "reranking") or source.task in SUBSETS else data
    task.data_loaded = True
    local: Any = task
    local.files_digest = _digest(folder / source.folder)
    return task


def data_digest(task: AbsTask) -> str:
    """Return a digest of what a task is filled with: a local set's files, or the data set's revision and its parts."""
    named = task.metadata.dataset
    parts = [named.get("path"), named.get("revision"), sorted(task.hf_subsets or []), sorted(task.eval_splits or [])]
    described = json.dumps([getattr(task, "files_digest", ""), *parts], default=str)
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def _digest(folder: Path) -> str:
    """Return a digest of a set's files."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"):
        whole.update(f"{path.relative_to(folder)}\0".encode())
        whole.update(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
    return whole.hexdigest()


def choose_tasks(
    data: Path | None, names: Sequence[str] = (), benchmark: str | None = None, *, quick: bool = False
) -> tuple[list[AbsTask], dict[str, int]]:
    """Return the tasks of a run, and the sizes of their texts where they are known.

    Args:
        data: Folder of local sets; None takes mteb's own tasks, whose data come from the hub or its cache.
        names: Of the tasks; all of the folder if left out.
        benchmark: A name of mteb's, such as ``MTEB(eng, v2)``, NanoBEIR or BEIR; of its tasks ``names`` chooses.
        quick: Leave large local sets out.

    Raises:
        InputError: There is no such task or benchmark, or nothing was asked for.
    """
    if data is None:
        return _hub_tasks(names, benchmark), {}
    sources = local_sources(data)
    known = [source.task for source in sources]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"{data} has no task {name!r}; {hint}it has {', '.join(known)}", field="tasks")
    if benchmark is not None:
        of_benchmark = {task.metadata.name for task in benchmark_of(benchmark).tasks}
        sources = [source for source in sources if source.task in of_benchmark]
    chosen = [
        source
        for source in sources
        if source.task in (names or known) and not (quick and size_of(data, source) > LARGE)
    ]
    if not chosen:
        raise InputError(f"of the tasks asked for {data} has none; it has {', '.join(known)}", field="tasks")
    return [load_task(source, data) for source in chosen], {s.task: size_of(data, s) for s in chosen}


def known_names(tasks: Sequence[AbsTask]) -> set[str]:
    """Return the names of ``tasks`` and of mteb's, and the kinds of tasks."""
    metadata = [task.metadata for task in (*tasks, *mteb.get_tasks())]
    return {str(meta.name) for meta in metadata} | {str(meta.type) for meta in metadata}


def benchmark_of(name: str) -> Any:
    """Return a benchmark of mteb's; raise `InputError` where there is none of that name."""
    try:
        return mteb.get_benchmark(name)
    except (KeyError, ValueError):
        known = [benchmark.name for benchmark in mteb.get_benchmarks()]
        hint = did_you_mean(name, known)
        message = f"mteb has no benchmark {name!r}; {hint}it has {', '.join(known)}"
        raise InputError(message, field="benchmark") from None


def _hub_tasks(names: Sequence[str], benchmark: str | None) -> list[AbsTask]:
    if benchmark is not None:
        tasks = list(benchmark_of(benchmark).tasks)
        of_it = [task.metadata.name for task in tasks]
        if unknown := [name for name in names if name not in of_it]:
            hint = did_you_mean(unknown[0], of_it)
            raise InputError(f"{benchmark} has no task {unknown[0]!r}; {hint}it has {', '.join(of_it)}", field="tasks")
        return _parts([task for task in tasks if not names or task.metadata.name in names])
    if not names:
        raise InputError("name --tasks or a --benchmark, or give a folder of local sets with --data", field="tasks")
    found = []
    for name in names:
        try:
            found.append(mteb.get_task(name))
        except KeyError:
            hint = did_you_mean(name, [task.metadata.name for task in mteb.get_tasks()])
            raise InputError(f"mteb has no task {name!r}; {hint}see mteb available-tasks", field="tasks") from None
    return _parts(found)


def _parts(tasks: Sequence[AbsTask]) -> list[AbsTask]:
    """Return ``tasks`` with those that are means of others, such as CQADupstackRetrieval, as those others."""
    return [part for task in tasks for part in (task.tasks if isinstance(task, AbsTaskAggregate) else [task])]


def own_task(name: str, base: type[AbsTask], type_: str) -> AbsTask:
    """Return an empty task of our own: mteb's class for a kind of task, with its main score."""
    kind_of_task: Any = type_
    metadata = TaskMetadata(
        name=name,
        description=f"{name.removeprefix('Local')}, from local files",
        dataset={"path": "local", "revision": "1"},
        type=kind_of_task,
        eval_langs=["eng-Latn"],
        main_score=MAIN_SCORES[type_],
    )
    kind: Any = type(name, (base,), {"metadata": metadata})
    if type_ == "Clustering":
        kind.max_document_to_embed, kind.max_fraction_of_documents_to_embed = None, 1.0
    task: AbsTask = kind()
    return task


def _sts(folder: Path) -> DatasetDict:
    scores, first, second = read_sts(folder)
    return DatasetDict(test=Dataset.from_dict({"sentence1": first, "sentence2": second, "score": scores}))


def _retrieval(folder: Path) -> dict[str, Any]:
    return retrieval_splits(read_retrieval(folder))


def retrieval_splits(data: RetrievalSet) -> dict[str, Any]:
    """Return a retrieval set as mteb's retrieval tasks hold it."""
    corpus = {"id": data.document_ids, "title": [""] * len(data.documents), "text": data.documents}
    return {
        "test": {
            "corpus": Dataset.from_dict(corpus),
            "queries": Dataset.from_dict({"id": data.query_ids, "text": data.queries}),
            "relevant_docs": data.qrels,
            "top_ranked": None,
        }
    }


def _reranking(folder: Path) -> dict[str, Any]:
    queries: dict[str, list[str]] = {"id": [], "text": []}
    corpus: dict[str, list[str]] = {"id": [], "title": [], "text": []}
    relevant: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[str]] = {}
    for number, row in enumerate(_json_lines(folder / "test.jsonl")):
        query = f"q{number}"
        queries["id"].append(query)
        queries["text"].append(row["query"])
        labelled = [(text, 1) for text in row["positive"]] + [(text, 0) for text in row["negative"]]
        ids = [f"{query}d{place}" for place in range(len(labelled))]
        corpus["id"] += ids
        corpus["title"] += [""] * len(ids)
        corpus["text"] += [text for text, _ in labelled]
        candidates[query] = ids
        relevant[query] = {name: gain for name, (_, gain) in zip(ids, labelled, strict=True)}
    return {
        "test": {
            "corpus": Dataset.from_dict(corpus),
            "queries": Dataset.from_dict(queries),
            "relevant_docs": relevant,
            "top_ranked": candidates,
        }
    }


def _pairs(folder: Path) -> DatasetDict:
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row[0] in ("0", "1")]
    columns = {"sentence1": [row[1] for row in rows], "sentence2": [row[2] for row in rows]}
    return DatasetDict(test=Dataset.from_dict({**columns, "labels": [int(row[0]) for row in rows]}))


def _classification(folder: Path) -> DatasetDict:
    splits = {}
    for split in ("train", "test"):
        rows = list(_json_lines(folder / f"{split}.jsonl"))
        splits[split] = {"text": [row["text"] or "-" for row in rows], "label": [row["label"] for row in rows]}
    names = sorted({label for values in splits.values() for label in values["label"]})
    number = {name: place for place, name in enumerate(names)}
    for values in splits.values():
        values["label"] = [number[label] for label in values["label"]]
    return DatasetDict({split: ListedDataset.from_dict(values) for split, values in splits.items()})


def _clustering(folder: Path) -> DatasetDict:
    rows = list(_json_lines(folder / "test.jsonl"))
    columns = {"sentences": [row["text"] or "-" for row in rows], "labels": [row["label"] for row in rows]}
    return DatasetDict(test=Dataset.from_dict(columns))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


KINDS: dict[str, tuple[Callable[[Path], Any], Any, str]] = {
    "sts": (_sts, AbsTaskSTS, "STS"),
    "retrieval": (_retrieval, AbsTaskRetrieval, "Retrieval"),
    "reranking": (_reranking, AbsTaskRetrieval, "Reranking"),
    "pair": (_pairs, AbsTaskPairClassification, "PairClassification"),
    "classification": (_classification, AbsTaskClassification, "Classification"),
    "clustering": (_clustering, AbsTaskClustering, "Clustering"),
}
