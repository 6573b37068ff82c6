"""Local evaluation sets as mteb tasks, without network.

A local set is a folder ``KIND/NAME`` in the layout that the reader of its kind (`KINDS`) documents; mteb's task classes
and metrics evaluate it. If its files are the official test set, the task has the official name (`SOURCES`). Every other
task is named Local…, so its scores cannot be mistaken for published ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from benchmarks.common.eval_sets import RetrievalSet, read_retrieval, read_sts
from embedserve import InputError


@dataclass(frozen=True)
class Source:
    """A local set with a fixed task name.

    Attributes:
        folder: ``KIND/NAME``, relative to the data folder.
        task: Task name: Local…, or the name of an official task.
        label: Column title in tables.
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
SUBSETS = {"AmazonCounterfactualClassification": "en"}  # language of multilingual official tasks
MAIN_SCORES = {
    "STS": "cosine_spearman",
    "Retrieval": "ndcg_at_10",
    "Reranking": "map_at_1000",
    "PairClassification": "max_ap",
    "Classification": "accuracy",
    "Clustering": "v_measure",
}
LARGE = 1_200_000  # bytes of text, about 300,000 tokens: skipped by --quick
LABELS = {source.task: source.label for source in SOURCES}


class ListedDataset(Dataset):  # type: ignore[misc]
    """Dataset with columns as lists: mteb reads labels one by one, which is slow on Arrow columns."""

    def __getitem__(self, key: Any) -> Any:
        """Return a column as a list, or rows as `Dataset` does."""
        values = super().__getitem__(key)
        return list(values) if isinstance(key, str) else values


def local_sources(folder: Path) -> list[Source]:
    """Return the sets in ``folder``; those larger than `LARGE` come last.

    Raises:
        InputError: ``folder`` holds no set.
    """
    known = {source.folder: source for source in SOURCES}
    sources = []
    for kind, (_, _, type_) in KINDS.items():
        for path in sorted(path for path in (folder / kind).glob("*") if path.is_dir()):
            name = f"{kind}/{path.name}"
            words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^0-9A-Za-z]+", path.name))
            sources.append(known.get(name, Source(name, f"Local{words}{type_}", path.name)))
    if not sources:
        message = (
            f"{folder} holds no evaluation set; expected a folder with {', '.join(f'{kind}/NAME' for kind in KINDS)}"
        )
        raise InputError(message, field="data")
    order = {name: position for position, name in enumerate(known)}
    return sorted(sources, key=lambda s: (size_of(folder, s) > LARGE, order.get(s.folder, len(order))))


def size_of(folder: Path, source: Source) -> int:
    """Return the size of a set in bytes."""
    return sum(path.stat().st_size for path in (folder / source.folder).glob("*.*") if path.suffix != ".md")


def local_tasks(folder: Path) -> list[AbsTask]:
    """Return the task of each set in ``folder``, in the order of `local_sources`."""
    return [load_task(source, folder) for source in local_sources(folder)]


def load_task(source: Source, folder: Path) -> AbsTask:
    """Return the task of one set, with its data loaded.

    Raises:
        InputError: The files do not have the layout of their kind.
    """
    kind = source.folder.partition("/")[0]
    read, base, type_ = KINDS[kind]
    if source.task.startswith("Local"):
        task = local_task(source.task, base, type_)
        subset = "default"
    else:
        subset = SUBSETS.get(source.task, "default")
        subsets = [subset] if source.task in SUBSETS else None
        task = mteb.get_task(source.task, hf_subsets=subsets, eval_splits=["test"])
    try:
        data = read(folder / source.folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        message = f"{folder / source.folder} does not have the layout of {kind} sets: {type(error).__name__}: {error}"
        raise InputError(message, field="data") from error
    task.dataset = {subset: data} if kind in ("retrieval", "reranking") or source.task in SUBSETS else data
    task.data_loaded = True
    local: Any = task
    local.files_digest = _digest(folder / source.folder)
    return task


def _digest(folder: Path) -> str:
    """Return the digest of a set's files, without its notes (``*.md``)."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"):
        whole.update(f"{path.relative_to(folder)}\0".encode())
        whole.update(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
    return whole.hexdigest()


def local_task(name: str, base: type[AbsTask], type_: str) -> AbsTask:
    """Return a task without data: a subclass of mteb's class ``base``, with the usual main score of its type."""
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
    """Return a retrieval set in the form of mteb's retrieval tasks."""
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
        ids = [f"{query}d{index}" for index in range(len(labelled))]
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
    number = {name: index for index, name in enumerate(names)}
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
