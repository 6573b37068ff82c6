"""Evaluated systems: an encoder and an engine that searches its vectors, with a revision for all settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch import nn

from benchmarks.harness.index_search import ENGINES, SearchEngine, engine_of
from embedserve import Encoder, EncoderSpec, InputError
from embedserve.spec import parse_model, parse_spec
from embedserve.strategies import STRATEGIES

MINILM, BM25 = "all-MiniLM-L6-v2", "bm25"
# Every strategy on nano, and the baselines; the adapter is excluded because of the patent named in its docs.
MATRIX = {
    MINILM: "",
    BM25: "",
    "mean": "mean",
    "last_token": "last_token",
    "weighted_mean": "weighted_mean",
    "layer_mean": "layer_mean",
    "mean, bidirectional": json.dumps({"strategy": "mean", "attention": "bidirectional"}),
    "echo": "echo",
    "prompteol": "prompteol",
    "token_prepending": "token_prepending",
    "embedfilter d/2": "embedfilter:ratio=2",
    "embedfilter d/4": "embedfilter:ratio=4",
    "embedfilter d/8": "embedfilter:ratio=8",
    "last_token, embedfilter d/2": "last_token+embedfilter:2",
    "last_token, embedfilter d/4": "last_token+embedfilter:4",
    "prompteol, embedfilter d/2": "prompteol+embedfilter:2",
    "prompteol, embedfilter d/4": "prompteol+embedfilter:4",
    "truncate d/2": "mean+truncate:160",
    "truncate d/4": "mean+truncate:80",
    "whitening": "whitening",
    "weighted_layers": "weighted_layers",
    "multilayer": "multilayer",
    "latent_attention": "latent_attention",
    "glot": "glot",
    "causal2vec": "causal2vec",
    "lexsembridge": "lexsembridge",
    "promptreps, dense": "promptreps",
    "promptreps, hybrid": "promptreps#hybrid",
    "colbert": "colbert",
}
MODEL_TYPES = {"dense": "dense", "multi": "late-interaction", "sparse": "sparse"}
SIMILARITIES = {"late-interaction": ScoringFunction.MAX_SIM, "sparse": ScoringFunction.DOT_PRODUCT}


@dataclass(frozen=True)
class System:
    """An encoder and an engine.

    Attributes:
        name: Name in tables.
        encoder: None for BM25, which reads words.
        engine: Search engine; None for exhaustive search.
    """

    name: str
    encoder: Encoder | None
    engine: SearchEngine | None = None

    def fits(self, task: AbsTask) -> bool:
        """Return whether the system supports the task: one that compares or classifies texts needs dense vectors."""
        if self.engine is None and self.encoder is not None and "dense" in self.encoder.outputs:
            return True
        reranks = task.metadata.type in ("Reranking", "InstructionReranking")
        return isinstance(task, AbsTaskRetrieval) and (not reranks or self.engine is None or self.engine.reranks)

    def with_prompts(self, prompts: Mapping[str, str]) -> System:
        """Return the system with other prompts for queries and documents."""
        return self if self.encoder is None else replace(self, encoder=self.encoder.with_prompts(prompts))


def load_system(text: str, device: str = "auto", batch_tokens: int | None = None) -> System:
    """Load the system named ``ENCODER[#ENGINE]`` or ``bm25``.

    ENCODER is a name in `MATRIX`, a spec, a folder, or a model name; ENGINE is parsed by `engine_of`.

    Raises:
        EmbedserveError: The encoder or engine is unknown, or the encoder lacks the vectors that the engine searches.
    """
    if text == BM25:
        return System(BM25, None, ENGINES[BM25])
    described, name = MATRIX.get(text) or text, ""
    head, mark, tail = described.rpartition("#")
    if mark and not set(tail) & set('"}'):  # a template in JSON may contain the mark
        described, name = head, tail
    engine = engine_of(name) if name else None
    if described == BM25:
        raise InputError("bm25 takes no engine: it does not search vectors", field="encoder")
    encoder = Encoder.load(_model(described), device=device)
    if engine is not None and (missing := [output for output in engine.needs if output not in encoder.outputs]):
        message = f"{text}: {engine.name} searches {missing[0]} vectors, but {encoder.spec.strategy} returns"
        raise InputError(f"{message} {' and '.join(encoder.outputs)} ones", field="encoder")
    if engine is not None:
        engine.settings(encoder.dim)  # fails on unknown index types before encoding
    if batch_tokens is not None:
        encoder.batch_tokens = batch_tokens
    return System(text, encoder, engine)


def _model(described: str) -> Any:
    """Return the argument of `Encoder.load`; names in `MATRIX` take precedence over folders."""
    if described == MINILM:
        from embedserve.training.teacher import minilm_folder

        return minilm_folder()
    text = MATRIX.get(described, described)
    if described in MATRIX and text in STRATEGIES:
        return EncoderSpec(text)
    return parse_spec(text) if described in MATRIX else parse_model(described)


def revision_of(system: System, task_prompts: str = "") -> str:
    """Return the revision: the encoder's fingerprint, the engine with a digest of its settings, and the prompts.

    ``task_prompts`` is a digest of prompts that differ by task.
    """
    parts = [system.encoder.fingerprint if system.encoder is not None else ""]
    if system.engine is not None:
        settings = system.engine.settings(system.encoder.dim if system.encoder is not None else 0)
        parts.append(f"{system.engine.name}-{digest(settings)}")
    return "-".join(safe(part) for part in [*parts, task_prompts] if part)


def meta_of(system: System, revision: str, **fields: Any) -> ModelMeta:
    """Return mteb's description of a system; ``fields`` override its values."""
    encoder, engine = system.encoder, system.engine
    described: dict[str, Any] = {
        "name": f"embedserve/{safe(system.name if encoder is None else encoder.spec.strategy)}",
        "revision": revision,
        "languages": ["eng-Latn"],
        "open_weights": True,
        "use_instructions": bool(encoder is not None and encoder.spec.prompts),
        "similarity_fn_name": ScoringFunction.COSINE,
        "model_type": ["sparse"],
        "framework": [],
    }
    if encoder is not None:
        weights = list(encoder.model.parameters())
        tables = {id(m.weight): m.weight for m in encoder.model.modules() if isinstance(m, nn.Embedding)}
        searched = _searched(encoder, engine)
        described |= {
            "n_parameters": sum(weight.numel() for weight in weights),
            "n_embedding_parameters": sum(table.numel() for table in tables.values()),
            "memory_usage_mb": round(sum(w.numel() * w.element_size() for w in weights) / 2**20, 1),
            "max_tokens": encoder.max_tokens,
            "embed_dim": encoder.dim,
            "framework": ["Sentence Transformers", "PyTorch"],
            "similarity_fn_name": SIMILARITIES.get(searched, ScoringFunction.COSINE),
            "model_type": [searched],
        }
    return ModelMeta.create_empty(overwrites=described | fields)


def _searched(encoder: Encoder, engine: SearchEngine | None) -> str:
    """Return mteb's model type for the vectors that are searched."""
    if engine is None:
        return "dense" if "dense" in encoder.outputs else "late-interaction"
    if engine.name.startswith("hybrid"):
        return "hybrid"
    return MODEL_TYPES[engine.needs[0]]


def safe(text: str) -> str:
    """Return ``text`` with characters safe in file names."""
    return "".join(c if c.isalnum() or c in "_-." else "-" for c in text)


def digest(values: Any) -> str:
    """Return a digest of plain values as 12 hex digits."""
    text = json.dumps(values, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is not a plain value")
