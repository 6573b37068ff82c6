"""Local evaluation sets as mteb tasks: mteb's own classes and metrics, filled from a folder, without a network.

Where the files are the official test set the task is the official one; every other task is named Local…, so that its
scores cannot be taken for published ones.
"""

from __future__ import annotations

import csv
import json
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

from benchmarks.datasets import read_retrieval, read_sts


@dataclass(frozen=True)
class Source:
    """One local set.

    Attributes:
        folder: Below the folder of all sets.
        task: The name of the task; of mteb's own where it does not begin with Local.
        label: Its name in a table.
        is_large: More than about 300,000 tokens: left out of a quick run.
    """

    folder: str
    task: str
    label: str
    is_large: bool = False


SOURCES = (
    Source("sts/stsb", "STSBenchmark", "STS-B"),
    Source("sts/sts12", "LocalSTS12WithoutMSRvid", "STS12"),
    Source("sts/sts13", "STS13", "STS13"),
    Source("sts/sts14", "STS14", "STS14"),
    Source("retrieval/humaneval-code", "LocalHumanEvalCodeRetrieval", "HumanEval"),
    Source("retrieval/limit-small", "LocalLimitSmallRetrieval", "LIMIT"),
    Source("retrieval/cranfield", "LocalCranfieldRetrieval", "Cranfield"),
    Source("retrieval/pydoc-code", "LocalPydocCodeRetrieval", "pydoc-code"),
    Source("retrieval/squad-dev", "LocalSQuADDevRetrieval", "SQuAD-dev", is_large=True),
    Source("retrieval/scifact", "SciFact", "SciFact", is_large=True),
    Source("retrieval/medquad", "LocalMedQuADRetrieval", "MedQuAD", is_large=True),
    Source("reranking/trecqa", "LocalTrecQAReranking", "TrecQA"),
    Source("pair/msrp", "LocalMSRPPairClassification", "MSRP"),
    Source("classification/amazon-counterfactual-en", "AmazonCounterfactualClassification", "counterf."),
    Source("classification/banking77", "Banking77Classification", "Banking77"),
    Source("classification/sst2", "LocalSST2Classification", "SST2"),
    Source("classification/agnews", "LocalAGNewsClassification", "AGNews", is_large=True),
    Source("clustering/reuters10", "LocalReuters10Clustering", "Reuters10", is_large=True),
    Source("clustering/bbc", "LocalBBCClustering", "BBC", is_large=True),
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


def local_tasks(folder: Path) -> list[AbsTask]:
    """Return a task for each of `SOURCES` that lies in ``folder``, small ones first."""
    found = [source for source in SOURCES if (folder / source.folder).is_dir()]
    return [load_task(source, folder) for source in sorted(found, key=lambda source: source.is_large)]


def load_task(source: Source, folder: Path) -> AbsTask:
    """Return the task of one set, with its data in it."""
    kind = source.folder.partition("/")[0]
    make, base, type_ = KINDS[kind]
    if source.task.startswith("Local"):
        task = _own(source.task, base, type_)
        subset = "default"
    else:
        subset = SUBSETS.get(source.task, "default")
        subsets = [subset] if source.task in SUBSETS else None
        task = mteb.get_task(source.task, hf_subsets=subsets, eval_splits=["test"])
    data = make(folder / source.folder)
    task.dataset = {subset: data} if kind in ("retrieval", "reranking") or source.task in SUBSETS else data
    task.data_loaded = True
    return task


def _own(name: str, base: type[AbsTask], type_: str) -> AbsTask:
    """Return an empty task of our own."""
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
    data = read_retrieval(folder)
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
    return DatasetDict({split: Dataset.from_dict(values) for split, values in splits.items()})


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
