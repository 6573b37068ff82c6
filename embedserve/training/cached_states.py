"""Hidden states of a frozen decoder, computed once and cached on disk, so that a head trains in minutes on a CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedserve.batching import token_batches
from embedserve.compat import InputModule
from embedserve.encoder import Encoder
from embedserve.folders import replacing
from embedserve.ragged import offsets_of
from embedserve.types import Task

BLOCK = 4096  # texts at a time
# Features stored per token, and features rebuilt for each batch; all others are stored per text.
PER_TOKEN = ("token_embeddings", "input_ids")
REBUILT = ("attention_mask", "is_query", "lexical_ids")


class StateStore:
    """The decoder's outputs for a set of texts, as memory-mapped arrays.

    Raw files: token states (sum T, D) float16, token ids (sum T,) int32, and one array (N, ...) float16 for each
    feature of a whole text. States with large values are float32. Positions that are not pooled are not stored.

    Args:
        folder: Folder of the arrays, written by `build`.
    """

    def __init__(self, folder: Path) -> None:
        info = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        self.offsets = np.load(folder / "offsets.npy")
        total, dtype = int(self.offsets[-1]), np.dtype(info["dtype"])
        self.states = np.memmap(folder / "states.raw", dtype, "r", shape=(total, info["dim"]))
        self.ids = np.memmap(folder / "ids.raw", np.int32, "r", shape=(total,))
        self.extra = {
            name: np.memmap(folder / f"{name}.raw", dtype, "r", shape=(len(self.offsets) - 1, *shape))
            for name, shape in info["extra"].items()
        }
        self.row_of = {key: number for number, key in enumerate(info["keys"])}

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        texts: Sequence[tuple[Task, str]],
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
    ) -> StateStore:
        """Open the store of ``texts`` below ``folder``, computing it first if it does not exist.

        Its subfolder is named by a digest of texts and decoder, so a store of others is never reused.
        """
        keys = [key_of(task, text) for task, text in texts]
        folder = folder / _name(encoder, keys)
        if not (folder / "store.json").is_file():
            with replacing(folder) as temporary:  # concurrent runs write separate folders; the last one replaces
                _compute(encoder, texts, keys, temporary, progress)
        return cls(folder)

    def batch(self, tasks: Iterable[Task], texts: Iterable[str]) -> dict[str, Tensor]:
        """Return the features of some texts, right-padded: float32 states, int64 ids and the attention mask."""
        positions = [self.row_of[key_of(task, text)] for task, text in zip(tasks, texts, strict=True)]
        spans = [slice(self.offsets[position], self.offsets[position + 1]) for position in positions]
        longest = max(span.stop - span.start for span in spans)
        states = np.zeros((len(positions), longest, self.states.shape[1]), dtype=np.float32)
        ids = np.zeros((len(positions), longest), dtype=np.int64)
        mask = np.zeros((len(positions), longest), dtype=np.int64)
        for row, span in enumerate(spans):
            length = span.stop - span.start
            states[row, :length], ids[row, :length], mask[row, :length] = self.states[span], self.ids[span], 1
        features = {"input_ids": ids, "attention_mask": mask, "token_embeddings": states}
        features |= {name: values[positions].astype(np.float32) for name, values in self.extra.items()}
        return {name: torch.from_numpy(values) for name, values in features.items()}


def key_of(task: Task, text: str) -> str:
    """Return the key of a text for a task."""
    return hashlib.blake2b(f"{task}\0{text}".encode(), digest_size=12).hexdigest()


def _name(encoder: Encoder, keys: list[str]) -> str:
    """Return a digest of the texts and of everything that their hidden states depend on."""
    return hashlib.blake2b(json.dumps([encoder.states_digest, keys]).encode(), digest_size=12).hexdigest()


def _compute(
    encoder: Encoder,
    texts: Sequence[tuple[Task, str]],
    keys: list[str],
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the arrays of a store."""
    lengths: list[int] = []
    extra: dict[str, list[int]] = {}
    files: dict[str, Any] = {}
    dtype: np.dtype[Any] = np.dtype(np.float16)
    try:
        for start in range(0, len(texts), BLOCK):
            arrays = _block(encoder, texts[start : start + BLOCK])
            if start == 0:
                largest = max(np.abs(values).max() for name, values in arrays.items() if name not in ("ids", "lengths"))
                dtype = np.dtype(np.float16 if largest < 1e4 else np.float32)  # headroom for later blocks
                extra = {n: list(v.shape[1:]) for n, v in arrays.items() if n not in ("ids", "lengths", "states")}
                files = {name: (folder / f"{name}.raw").open("wb") for name in arrays if name != "lengths"}
            for name, file in files.items():
                values = arrays[name] if name == "ids" else arrays[name].astype(dtype)
                if name != "ids" and not np.isfinite(values).all():
                    raise FloatingPointError(f"{name} overflow {dtype}")
                file.write(np.ascontiguousarray(values).tobytes())
            lengths += arrays["lengths"].tolist()
            if progress is not None:
                progress(min(start + BLOCK, len(texts)), len(texts))
    finally:
        for file in files.values():
            file.close()
    np.save(folder / "offsets.npy", offsets_of(lengths))
    info = {"dtype": dtype.name, "dim": int(arrays["states"].shape[1]), "extra": extra, "keys": keys}
    (folder / "store.json").write_text(json.dumps(info), encoding="utf-8")


@torch.inference_mode()
def _block(encoder: Encoder, texts: Sequence[tuple[Task, str]]) -> dict[str, np.ndarray]:
    """Return states, ids, lengths and the features per text of some texts, in their order."""
    first: Any = encoder.model[0]
    parts: list[dict[str, np.ndarray]] = [{} for _ in texts]
    for task in ("query", "document"):
        positions = np.array([n for n, (text_task, _) in enumerate(texts) if text_task == task], dtype=np.int64)
        if not len(positions):
            continue
        rows = encoder.tokenize([texts[position][1] for position in positions], task)
        for batch in token_batches(rows.lengths, encoder.batch_tokens):
            features = encoder.first_features(rows.take(batch))
            mask = features["attention_mask"].bool().cpu().numpy()
            if not first.reads_tokens:  # one token per text, so that no row is empty
                mask &= mask.cumsum(axis=1) == 1
            states = features["token_embeddings"].float().cpu().numpy()
            ids = features["input_ids"].cpu().numpy().astype(np.int32)
            others = {
                name: value.float().cpu().numpy()
                for name, value in features.items()
                if name not in PER_TOKEN + REBUILT and isinstance(value, Tensor)
            }
            for row, position in enumerate(positions[batch]):
                parts[position] = {"states": states[row][mask[row]], "ids": ids[row][mask[row]]}
                parts[position] |= {name: value[row : row + 1] for name, value in others.items()}
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return arrays | {"lengths": np.array([len(part["ids"]) for part in parts])}


class CachedStates(InputModule):  # type: ignore[misc]
    """Input module that replaces the decoder while a head is trained: it looks up cached states.

    Args:
        store: States of every training text.
        tokenizer: Tokenizer of the decoder, read by sentence-transformers.
        multi_vector: Whether the strategy computes a vector for each token.
    """

    config_keys: list[str] = []

    def __init__(self, store: StateStore, tokenizer: Any, multi_vector: bool) -> None:
        super().__init__()
        self.store = store
        self.tokenizer = tokenizer
        self.multi_vector = multi_vector

    def preprocess(self, inputs: list[str], prompt: str | None = None, task: Any = None, **_: Any) -> dict[str, Tensor]:
        """Return the decoder's features of texts in the store."""
        task = "query" if task == "query" else "document"
        features = self.store.batch([task] * len(inputs), inputs)
        return features | {"is_query": torch.full((len(inputs),), task == "query")}

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Return ``features`` unchanged."""
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write nothing: the trained weights are in the modules after this one."""
