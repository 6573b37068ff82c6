"""Evaluation during training: the rank of each held-out query's positive among all held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor

from embedserve.compat import SentenceEvaluator
from embedserve.training.pairs import TrainingPair

DEV_METRIC = "dev_mrr@10"
BATCH = 32


class DevRanking(SentenceEvaluator):  # type: ignore[misc]
    """MRR@10 of exact search, by cosine similarity, or by MaxSim for a vector per token."""

    def __init__(self, pairs: Sequence[TrainingPair]) -> None:
        super().__init__()
        self.primary_metric = DEV_METRIC
        self.documents = list(dict.fromkeys(pair.positive for pair in pairs))
        row_of = {text: number for number, text in enumerate(self.documents)}
        self.answers: dict[str, set[int]] = {}
        for pair in pairs:
            self.answers.setdefault(pair.query, set()).add(row_of[pair.positive])

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return the metric of ``model``."""
        was_training = model.training
        model.eval()
        queries = list(self.answers)
        with torch.no_grad():
            documents = _vectors(model, self.documents, "document")
            ranks = []
            for query, scores in zip(queries, _scores(_vectors(model, queries, "query"), documents), strict=True):
                best = scores[list(self.answers[query])].max()
                ranks.append(1 + int((scores > best).sum()))
        model.train(was_training)
        return {DEV_METRIC: sum(1 / rank for rank in ranks if rank <= 10) / len(ranks)}


def _vectors(model: Any, texts: list[str], task: str) -> list[Tensor]:
    """Return one tensor for each text: (1, d), or (t, d) for late interaction."""
    vectors: list[Tensor] = [torch.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    prompt = model.prompts.get(task) or None
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        features = model.preprocess([texts[index] for index in indices], prompt=prompt, task=task)
        features = model(batch_to_device(features, model.device), task=task)
        if "sentence_embedding" in features:
            rows = list(features["sentence_embedding"][:, None])
        else:
            mask = features["attention_mask"].bool()
            rows = [states[pooled] for states, pooled in zip(features["token_embeddings"], mask, strict=True)]
        for index, row in zip(indices, rows, strict=True):
            vectors[index] = row.float()
    return vectors


def _scores(queries: list[Tensor], documents: list[Tensor]) -> list[Tensor]:
    """Return the MaxSim of each query with every document (N,); for single vectors it is the dot product."""
    offsets = torch.tensor([0, *(len(document) for document in documents)]).cumsum(0)
    tokens = torch.cat(documents)
    owner = torch.repeat_interleave(torch.arange(len(documents)), offsets.diff()).to(tokens.device)
    scores = []
    for query in queries:
        similarity = query @ tokens.T
        best = similarity.new_full((len(query), len(documents)), -torch.inf)
        best.scatter_reduce_(1, owner.expand(len(query), -1), similarity, "amax")
        scores.append(best.sum(dim=0))
    return scores
