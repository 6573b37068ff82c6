"""Encoder: the one facade over every strategy. Texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from embedserve import saved
from embedserve.backbone import find_backbone, pooled_positions, weights_digest
from embedserve.batching import BATCH_TOKENS, pad_right, token_batches
from embedserve.compat import module_width
from embedserve.errors import InputError, SpecError
from embedserve.post import build_post
from embedserve.spec import EncoderSpec
from embedserve.strategies import build_strategy
from embedserve.tokens import Template, check_texts, tokenize
from embedserve.types import Embeddings, Task, TokenRows

BLOCK = 8192  # texts tokenised at a time: bounds the memory of a long call


class Encoder:
    """A built strategy: ``embed`` turns texts into vectors that may be compared by dot product.

    Build one with `Encoder.load`. ``model`` is the sentence-transformers model underneath.

    Attributes:
        name: What was loaded.
        spec: Everything that shapes a vector.
        fingerprint: Equal only for encoders whose vectors may be compared.
        dim: Width d of a vector.
        max_tokens: Tokens read of one text.
    """

    def __init__(self, modules: list[nn.Module], spec: EncoderSpec, fingerprint: str, name: str, device: str) -> None:
        self.spec, self.fingerprint, self.name = spec, fingerprint, name
        self.model = SentenceTransformer(
            modules=modules, device=device, prompts=dict(spec.prompts), similarity_fn_name="cosine"
        )
        self.model.eval()
        self.device = torch.device(device)
        self.max_tokens = int(self.model.tokenizer.model_max_length)
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self._modules: list[Any] = list(self.model)
        self._template = Template(**getattr(self._modules[0], "template", {}))
        self._hides_padding = _hides_right_padding(self._modules[0], self.device)
        self.dim = int(self._run(TokenRows([np.array([0, 1])], np.array([0]), np.array([False]))).shape[1])

    @classmethod
    def load(cls, model: str | Path | EncoderSpec = "nano", device: str = "auto") -> Encoder:
        """Load an encoder.

        Args:
            model: ``"nano"``; a folder that `save` wrote; any sentence-transformers folder, taken as it is; any
                decoder in Hugging Face layout or on the hub, mean-pooled; or an `EncoderSpec`.
            device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.

        Raises:
            NotFoundError: There is no such model.
            LoadError: The folder has no weights, is damaged, or wants to run code of its own.
            SpecError: The spec makes no sense for this backbone.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.split(":")[0] not in BATCH_TOKENS:
            raise SpecError(f"device must be auto, cpu or cuda, got {device!r}", field="device")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise SpecError("device is cuda, but torch sees no GPU; use cpu or auto", field="device")
        if isinstance(model, EncoderSpec):
            spec = model
        elif saved.is_saved(Path(model)):
            modules, spec, fingerprint = saved.load(Path(model))
            return cls(modules, spec, fingerprint, Path(model).name, device)
        else:
            spec = EncoderSpec(backbone=str(model))
        folder = find_backbone(spec.backbone)
        modules = build_strategy(spec, folder)
        modules += build_post(spec.post, module_width(modules[-1]), folder)
        modules.append(saved.normalize_module())
        name = spec.backbone if spec.backbone == "nano" else folder.name
        return cls(modules, spec, spec.fingerprint(weights_digest(folder)), name, device)

    def save(self, folder: str | Path) -> None:
        """Write the encoder as a sentence-transformers folder with the spec beside it."""
        saved.save(self.model, self.spec, self.fingerprint, Path(folder))

    def tokenize(self, texts: Sequence[str], task: Task = "document") -> TokenRows:
        """Return the token ids of checked texts, prompt included, cut to ``max_tokens``."""
        if task not in ("query", "document"):
            raise InputError(f"task must be query or document, got {task!r}", field="task")
        prompt = self.spec.prompts.get(task, "")
        return tokenize(self.model.tokenizer, texts, self._template, prompt, self.max_tokens)

    def embed_rows(self, rows: TokenRows) -> np.ndarray:
        """Return unit vectors, float32 (N, d), of token rows in their order.

        A batch that does not fit the device's memory is halved and tried again.
        """
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for batch in token_batches(rows.tokens, self.batch_tokens):
            for part, vectors in self._halving(rows, batch):
                out[part] = vectors
        return out

    def embed(
        self,
        texts: Sequence[str],
        task: Task = "document",
        *,
        dimensions: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Embeddings:
        """Return unit vectors of ``texts`` in their order; no batch size to choose.

        The vector of a text does not depend on the texts beside it (to 1e-5 in float32).

        Args:
            texts: Non-empty strings.
            task: Which prompt to use: ``query`` or ``document``.
            dimensions: Keep only so many leading dimensions, normalised again.
            progress: Called with texts done and texts in all.

        Raises:
            InputError: A text is empty or no string, or ``dimensions`` is out of range.
        """
        check_texts(texts)
        if dimensions is not None and not 1 <= dimensions <= self.dim:
            message = f"dimensions must lie from 1 to {self.dim} for {self.name}, got {dimensions}"
            raise InputError(message, field="dimensions")
        vectors = np.empty((len(texts), dimensions or self.dim), dtype=np.float32)
        tokens, truncated = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)
        for start in range(0, len(texts), BLOCK):
            block = slice(start, min(start + BLOCK, len(texts)))
            rows = self.tokenize(texts[block], task)
            vectors[block] = shorten(self.embed_rows(rows), dimensions)
            tokens[block], truncated[block] = rows.tokens, rows.truncated
            if progress is not None:
                progress(block.stop, len(texts))
        return Embeddings(vectors, tokens, truncated)

    def _halving(self, rows: TokenRows, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Run one batch, in halves where the device's memory is too small for the whole."""
        try:
            part = TokenRows([rows.ids[row] for row in batch], rows.pooled_from[batch], rows.truncated[batch])
            return [(batch, self._run(part).float().cpu().numpy())]
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self._halving(rows, batch[:middle]) + self._halving(rows, batch[middle:])

    @torch.inference_mode()
    def _run(self, rows: TokenRows) -> Tensor:
        """Return the vectors (B, d) of one batch, on the device."""
        ids, mask = pad_right(rows.ids)
        attention_mask = torch.from_numpy(mask).to(self.device)
        features: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if not (self._hides_padding or mask.all()):
            features["attention_mask"] = attention_mask
        features = self._modules[0](features)
        features["attention_mask"] = pooled_positions(
            attention_mask, torch.from_numpy(rows.pooled_from).to(self.device)
        )
        for module in self._modules[1:]:
            features = module(features)
        vectors: Tensor = features["sentence_embedding"]
        return vectors


def shorten(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Return the first ``dimensions`` columns of unit vectors (N, d), normalised again."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)


@torch.inference_mode()
def _hides_right_padding(transformer: Any, device: torch.device) -> bool:
    """Say whether padding on the right cannot change the states before it, as in every causal model.

    Then no attention mask is built and attention runs its fast causal kernel. Found by trial, not by the name of
    the model: bidirectional models answer no.
    """
    ids = torch.tensor([[2, 3, 4, 5, 0, 0, 0]], device=device)
    alone = transformer({"input_ids": ids[:, :4]})["token_embeddings"]
    padded = transformer({"input_ids": ids})["token_embeddings"][:, :4]
    return bool(torch.allclose(alone, padded, rtol=1e-2 if alone.dtype != torch.float32 else 1e-4, atol=1e-4))
