"""Runs token rows through the modules of an encoder, batch by batch, and collects the outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedserve.batching import BATCH_TOKENS, pad_ids, pad_right, token_batches
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, pooled_positions
from embedserve.errors import DeviceError, LoadError
from embedserve.lean import lean_pass
from embedserve.loading.build import DENSE, MULTI
from embedserve.ragged import offsets_of
from embedserve.types import Embeddings, Encoded, SparseEmbeddings, Task, TokenEmbeddings, TokenRows

SPARSE = "sparse_weights"  # (B, M) float: weights of the entries in features["lexical_ids"] (B, M), -1: no entry
R = TypeVar("R")
Values = tuple[np.ndarray, np.ndarray]  # of one text: vectors or weights, and their vocabulary entries

logger = logging.getLogger(__name__)


class Runner:
    """Runs batches of token rows through modules: the part of an encoder after the tokenizer.

    Args:
        modules: The input module first, then pooling, post-transforms and normalisation.
        device: ``cpu``, ``cuda`` or ``cuda:NUMBER``.
        dtype: Of the weights, for messages.
        name: Of the encoder, for messages.

    Attributes:
        batch_tokens: Tokens of one batch, padding included.
        on_halved: Called when a batch exceeds the device's memory and is retried in halves.
        lean_reason: Empty if the lean forward pass is used, else why not.
    """

    def __init__(self, modules: list[Any], device: str, dtype: str, name: str) -> None:
        self.device, self.dtype, self.name = torch.device(device), dtype, name
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.on_halved: Callable[[], None] | None = None
        self._modules = modules
        first = modules[0]
        is_decoder = isinstance(first, Decoder)
        self._hides_padding = hides_right_padding(first, self.device)
        self._lean, self.lean_reason = lean_pass(first, first.run if is_decoder else _states_of(first))
        if is_decoder:
            first.hides_padding, first.lean = self._hides_padding, self._lean
        logger.info("lean forward pass of %s: %s", name, self.lean_reason or "used")

    @property
    def workers(self) -> int:
        """Number of batches that run in parallel: on a CPU the number of torch threads, else 1."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def collect(self, rows: TokenRows, outputs: Collection[str], dim: int) -> Encoded:
        """Run N token rows and return their outputs, in order.

        Args:
            rows: Token rows.
            outputs: Any of ``dense``, ``multi`` and ``sparse``.
            dim: Width of a vector.

        Returns:
            ``dense`` (N, dim) float32, ``multi`` one vector per token, ``sparse`` the weights above 0; None for others.
        """
        dense = np.empty((len(rows), dim), dtype=np.float32)
        token_parts: list[Any] = [None] * len(rows)
        sparse_parts: list[Any] = [None] * len(rows)
        for indices, features in self.batches(rows, self.run):
            if "dense" in outputs:
                dense[indices] = features[DENSE].cpu().numpy()
            if "multi" in outputs:
                _scatter(token_parts, indices, _token_values(features))
            if "sparse" in outputs:
                _scatter(sparse_parts, indices, _sparse_values(features))
        multi = sparse = None
        if "multi" in outputs:
            values, ids, offsets = _concatenate(token_parts, dim)
            multi = TokenEmbeddings(values, offsets, ids, rows.tokens, rows.truncated)
        if "sparse" in outputs:
            values, ids, offsets = _concatenate(sparse_parts)
            sparse = SparseEmbeddings(ids, values, offsets, rows.tokens, rows.truncated)
        return Encoded(Embeddings(dense, rows.tokens, rows.truncated) if "dense" in outputs else None, multi, sparse)

    def batches(self, rows: TokenRows, run: Callable[[TokenRows], R]) -> Iterator[tuple[np.ndarray, R]]:
        """Yield the indices of each batch and the result of ``run`` on its rows; each index occurs once.

        On a CPU each core runs its own batch, so the threads of a matrix product do not wait for each other.
        """
        batches = list(token_batches(rows.lengths, self.batch_tokens))
        workers = min(self.workers, len(batches))
        if workers < 2:
            for batch in batches:
                yield from self._run_halving(rows, batch, run)
            return
        pool = ThreadPoolExecutor(workers, "embed", initializer=torch.set_num_threads, initargs=(1,))
        try:
            for results in pool.map(lambda batch: self._run_halving(rows, batch, run), batches):
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_halving(
        self, rows: TokenRows, batch: np.ndarray, run: Callable[[TokenRows], R]
    ) -> list[tuple[np.ndarray, R]]:
        """Run one batch; halve it if the device runs out of memory."""
        try:
            return [(batch, run(rows.take(batch)))]
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
        except torch.AcceleratorError as error:
            message = f"the device failed and no longer responds: {str(error).splitlines()[0]}; restart the process"
            raise DeviceError(message, field="device") from error
        if self.on_halved is not None:
            self.on_halved()
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self._run_halving(rows, batch[:middle], run) + self._run_halving(rows, batch[middle:], run)

    def run(self, rows: TokenRows) -> dict[str, Tensor]:
        """Return the features of one batch, on the device."""
        return self.finish(self.first_features(rows), rows.task)

    @torch.inference_mode()
    def first_features(self, rows: TokenRows) -> dict[str, Tensor]:
        """Run the input module on one batch and return its features, on the device."""
        padded, mask = pad_right(rows.ids)
        ids, attention_mask, pooled_from = (
            torch.from_numpy(array).to(self.device) for array in (padded, mask, rows.pooled_from)
        )
        features: dict[str, Any] = {"input_ids": ids}
        if isinstance(self._modules[0], Decoder):
            features |= {"attention_mask": attention_mask, "pooled_from": pooled_from}
            features["is_query"] = torch.full((len(rows),), rows.task == "query", device=self.device)
            for name in ("lexical_ids", "context_ids"):
                if (extra := getattr(rows, name)) is not None:
                    features[name] = torch.from_numpy(pad_ids(extra)).to(self.device)
            return self._modules[0](features)
        if self._lean is not None and self._lean.is_free(decoder_of(self._modules[0])):
            features["token_embeddings"] = self._lean.states(ids, None if mask.all() else attention_mask)
        else:
            if not (self._hides_padding or mask.all()):
                features["attention_mask"] = attention_mask
            features = self._modules[0](features)
        features["attention_mask"] = (
            pooled_positions(attention_mask, pooled_from) if rows.pooled_from.any() else attention_mask
        )
        return features

    @torch.inference_mode()
    def finish(self, features: dict[str, Tensor], task: Task) -> dict[str, Tensor]:
        """Run the modules after the input module on the features of one batch.

        Raises:
            LoadError: A vector is not finite.
        """
        for module in self._modules[1:]:
            takes_task = "task" in getattr(module, "forward_kwargs", ())
            features = module(features, task=task) if takes_task else module(features)
        key = DENSE if DENSE in features else MULTI
        if not bool(features[key].isfinite().all()):
            remedy = (
                "use bfloat16 or float32" if self.dtype == "float16" else "its weights are damaged: copy them again"
            )
            raise LoadError(f"{self.name} returns vectors that are not finite in {self.dtype}; {remedy}", field="model")
        if features[key].dtype != torch.float32:
            features[key] = functional.normalize(features[key].float(), dim=-1)
        return features


def _scatter(parts: list[Any], indices: np.ndarray, values: list[Values]) -> None:
    for index, part in zip(indices, values, strict=True):
        parts[index] = part


def _token_values(features: dict[str, Tensor]) -> list[Values]:
    """Return each text's token vectors (t, d) and their vocabulary entries (t,)."""
    vectors, mask = features[MULTI].cpu().numpy(), features["attention_mask"].bool().cpu().numpy()
    ids = features["input_ids"].cpu().numpy() if "input_ids" in features else np.full(mask.shape, -1)
    if ids.shape != mask.shape:  # a pooled token covers several entries
        ids = np.full(mask.shape, -1)
    return [(vectors[row][mask[row]], ids[row][mask[row]]) for row in range(len(mask))]


def _sparse_values(features: dict[str, Tensor]) -> list[Values]:
    """Return each text's positive weights and their vocabulary entries, in ascending order of entries."""
    weights, entries = features[SPARSE].float().cpu().numpy(), features["lexical_ids"].cpu().numpy()
    values = []
    for row_weights, row_entries in zip(weights, entries, strict=True):
        positive = np.flatnonzero((row_entries >= 0) & (row_weights > 0))
        positive = positive[np.argsort(row_entries[positive], kind="stable")]
        values.append((row_weights[positive], row_entries[positive]))
    return values


def _concatenate(parts: list[Values], *width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values, the ids and the offsets (N + 1,) of N texts."""
    values = np.concatenate([np.zeros((0, *width), np.float32), *(part[0] for part in parts)])
    ids = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    return values, ids, offsets_of([len(part) for part, _ in parts])


def _states_of(transformer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function from ids and mask to the states of the library's own input module."""
    return lambda ids, mask: transformer({"input_ids": ids, "attention_mask": mask})["token_embeddings"]


@torch.inference_mode()
def hides_right_padding(transformer: Any, device: torch.device) -> bool:
    """Return whether padding on the right cannot change the states before it, as in every causal model.

    Then no attention mask is built and attention uses its fast causal kernel. Determined by a trial, not by the name of
    the model: it is False for bidirectional models.
    """

    def states(ids: Tensor) -> Tensor:
        if isinstance(transformer, Decoder):
            return transformer.run(ids, torch.ones_like(ids))
        embeddings: Tensor = transformer({"input_ids": ids})["token_embeddings"]
        return embeddings

    ids = torch.tensor([[5, 3, 4, 2, 2, 3, 5]], device=device)  # no usual pad id at the ends: some models warn about it
    alone, padded = states(ids[:, :4]), states(ids)[:, :4]
    return bool(torch.allclose(alone, padded, rtol=1e-2 if alone.dtype != torch.float32 else 1e-4, atol=1e-4))
