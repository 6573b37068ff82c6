"""An `Encoder` as mteb wants it: one vector a text as an encoder, token vectors as a search by MaxSim."""

from __future__ import annotations

from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from embedserve import Encoder
from embedserve.scoring import maxsim
from embedserve.types import Task


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


class DenseModel(AbsEncoder):
    """mteb's encoder over `Encoder.embed`: texts with a query's prompt where mteb says that they are queries."""

    def __init__(self, encoder: Encoder, name: str) -> None:
        self.encoder = encoder
        self.mteb_model_meta = model_meta(encoder, name)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Return unit vectors (N, d) float32 of all texts of ``inputs``, in one call."""
        texts = [text if text.strip() else "-" for batch in inputs for text in batch["text"]]
        unique = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(unique)}
        vectors = self.encoder.embed(unique, _task(prompt_type)).vectors
        found: np.ndarray = vectors[[place[text] for text in texts]]
        return found


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
        for row, query in enumerate(queries["id"]):
            scores = maxsim(asked[row], self.documents)
            if top_ranked is not None:
                best = np.array([place[name] for name in top_ranked[query]])
            else:
                count = min(top_k, len(scores))
                best = np.argpartition(-scores, count - 1)[:count]
            found[query] = {self.ids[number]: float(scores[number]) for number in best}
        return found


def as_mteb_model(encoder: Encoder, name: str) -> DenseModel | TokenModel:
    """Return the encoder as mteb wants it."""
    return DenseModel(encoder, name) if "dense" in encoder.outputs else TokenModel(encoder, name)


def _task(prompt_type: PromptType | None) -> Task:
    return "query" if prompt_type == PromptType.query else "document"
