"""An `Encoder` as mteb wants it: one vector a text as an encoder, token vectors as a search by MaxSim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from embedserve import Encoder
from embedserve.together import embed_together
from embedserve.types import Task, TokenEmbeddings

MAXSIM_QUERIES, MAXSIM_DOCUMENTS = 32, 32  # of one matrix product: enough columns for it, few enough for the cache
Embed = Callable[[Encoder, list[str], Task], np.ndarray]


def model_meta(encoder: Encoder, name: str) -> ModelMeta:
    """Return mteb's description of an encoder; results belong to its fingerprint, so two never share an entry."""
    return ModelMeta.create_empty(
        overwrites={
            "name": f"embedserve/{name}",
            "revision": encoder.fingerprint,
            "max_tokens": encoder.max_tokens,
            "embed_dim": encoder.dim,
            "similarity_fn_name": ScoringFunction.COSINE if "dense" in encoder.outputs else ScoringFunction.MAX_SIM,
            "model_type": ["dense" if "dense" in encoder.outputs else "late-interaction"],
            "open_weights": True,
        }
    )


class SharedVectors:
    """Vectors of several encoders: a text that one asks for is encoded for all that read the same states.

    Args:
        encoders: Those that will ask; the vectors are kept as long as this lives.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.groups: dict[str, dict[str, Encoder]] = {}
        for encoder in encoders:
            self.groups.setdefault(encoder.states_digest, {})[encoder.fingerprint] = encoder
        self.places: dict[tuple[str, Task], dict[str, int]] = {}
        self.vectors: dict[tuple[str, Task], np.ndarray] = {}  # by fingerprint

    def __call__(self, encoder: Encoder, texts: list[str], task: Task) -> np.ndarray:
        """Return unit vectors (N, d) float32 of ``texts``."""
        group = list(self.groups[encoder.states_digest].values())
        place = self.places.setdefault((encoder.states_digest, task), {})
        if missing := [text for text in dict.fromkeys(texts) if text not in place]:
            for member, found in zip(group, embed_together(group, missing, task), strict=True):
                key = (member.fingerprint, task)
                self.vectors[key] = (
                    np.concatenate([self.vectors[key], found.vectors]) if key in self.vectors else found.vectors
                )
            place |= {text: number for number, text in enumerate(missing, start=len(place))}
        kept: np.ndarray = self.vectors[encoder.fingerprint, task][[place[text] for text in texts]]
        return kept


def embed_alone(encoder: Encoder, texts: list[str], task: Task) -> np.ndarray:
    """Return unit vectors (N, d) float32 of ``texts``, each encoded once."""
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    found: np.ndarray = encoder.embed(unique, task).vectors[[place[text] for text in texts]]
    return found


class DenseModel(AbsEncoder):
    """mteb's encoder over ``embed``: texts with a query's prompt where mteb says that they are queries."""

    def __init__(self, encoder: Encoder, name: str, embed: Embed = embed_alone) -> None:
        self.encoder, self.embed = encoder, embed
        self.mteb_model_meta = model_meta(encoder, name)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Return unit vectors (N, d) float32 of all texts of ``inputs``, in one call."""
        texts = [text if text.strip() else "-" for batch in inputs for text in batch["text"]]
        return self.embed(self.encoder, texts, _task(prompt_type))


def maxsim_all(queries: TokenEmbeddings, documents: TokenEmbeddings) -> Iterator[np.ndarray]:
    """Yield each query's exact MaxSim (N,) float32 with every document; some queries share one matrix product."""
    vectors, offsets = torch.from_numpy(documents.vectors), documents.offsets
    ends = [*range(0, len(documents), MAXSIM_DOCUMENTS), len(documents)]
    for start in range(0, len(queries), MAXSIM_QUERIES):
        bounds = queries.offsets[start : start + MAXSIM_QUERIES + 1]
        columns = torch.from_numpy(queries.vectors[bounds[0] : bounds[-1]]).T
        owner = torch.repeat_interleave(torch.arange(len(bounds) - 1), torch.from_numpy(np.diff(bounds)))
        scores = torch.zeros(len(documents), len(bounds) - 1)
        for first, last in pairwise(ends):
            products = vectors[offsets[first] : offsets[last]] @ columns  # (T, q)
            spans = torch.from_numpy(offsets[first : last + 1] - offsets[first])
            best = torch.segment_reduce(products, "max", offsets=spans, axis=0)  # (n, q)
            scores[first:last].index_add_(1, owner, best)
        yield from scores.T.contiguous().numpy()


class TokenModel:
    """mteb's search over `Encoder.encode`: every document is scored by MaxSim, exactly."""

    def __init__(self, encoder: Encoder, name: str) -> None:
        self.encoder = encoder
        self.mteb_model_meta = model_meta(encoder, name)

    def index(self, corpus: Any, **_: Any) -> None:
        """Encode the documents."""
        self.ids = list(corpus["id"])
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(self.ids)
        texts = [f"{title} {text}".strip() or "-" for title, text in zip(titles, corpus["text"], strict=True)]
        self.documents: Any = self.encoder.encode(texts, "document").multi

    def search(
        self, queries: Any, *, top_k: int, top_ranked: dict[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return the scores of each query's best ``top_k`` documents, or of its candidates in ``top_ranked``."""
        place = {name: number for number, name in enumerate(self.ids)}
        asked: Any = self.encoder.encode([text or "-" for text in queries["text"]], "query").multi
        found = {}
        for query, scores in zip(queries["id"], maxsim_all(asked, self.documents), strict=True):
            if top_ranked is not None:
                best = np.array([place[name] for name in top_ranked[query]])
            else:
                count = min(top_k, len(scores))
                best = np.argpartition(-scores, count - 1)[:count]
            found[query] = {self.ids[number]: float(scores[number]) for number in best}
        return found


def as_mteb_model(encoder: Encoder, name: str, embed: Embed = embed_alone) -> DenseModel | TokenModel:
    """Return the encoder as mteb wants it."""
    return DenseModel(encoder, name, embed) if "dense" in encoder.outputs else TokenModel(encoder, name)


def _task(prompt_type: PromptType | None) -> Task:
    return "query" if prompt_type == PromptType.query else "document"
