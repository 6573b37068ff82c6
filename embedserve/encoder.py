"""Encoder: the one facade over every strategy. Texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from embedserve import saved
from embedserve.backbone import check_model_folder, find_folder, pooled_positions, weights_digest
from embedserve.batching import BATCH_TOKENS, pad_right, token_batches
from embedserve.compat import Normalize, module_width
from embedserve.errors import InputError, LoadError, SpecError
from embedserve.post import build_post
from embedserve.spec import EncoderSpec, spec_difference
from embedserve.strategies import build_strategy, with_defaults
from embedserve.tokens import Template, TextTokenizer, check_texts, tokenize
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
        self._tokenizer = TextTokenizer.copy_of(self.model.tokenizer)
        self._skipped = {task: self._prompt_length(prompt) for task, prompt in spec.prompts.items()}
        self._hides_padding = _hides_right_padding(self._modules[0], self.device)
        self._loaded_state = _weights_state(self.model)
        self.dim = int(self._run(TokenRows([np.array([3, 4])], np.array([0]), np.array([False]))).shape[1])

    @classmethod
    def load(cls, model: str | Path | EncoderSpec = "nano", device: str = "auto") -> Encoder:
        """Load an encoder.

        Args:
            model: ``"nano"``; a folder that `save` wrote; any sentence-transformers folder, taken as it is; any
                decoder in Hugging Face layout or on the hub, mean-pooled; or an `EncoderSpec`.
            device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.

        Raises:
            NotFoundError: There is no such model, neither a folder nor on the hub.
            LoadError: The folder has no weights, is damaged, or wants to run code of its own.
            SpecError: The spec makes no sense for this backbone.
        """
        device = _find_device(device)
        spec = model if isinstance(model, EncoderSpec) else EncoderSpec(backbone=str(model))
        folder = find_folder(spec.backbone)
        name = folder.resolve().name if Path(spec.backbone).expanduser().is_dir() else spec.backbone
        if saved.is_saved(folder):
            modules, found, fingerprint = saved.load(folder)
            if isinstance(model, EncoderSpec):
                _refuse_another(model, found, folder)
            return cls(modules, found, fingerprint, name, device)
        check_model_folder(folder)
        spec = with_defaults(spec)
        modules = build_strategy(spec, folder)
        modules += build_post(spec.post, module_width(modules[-1]), folder)
        modules.append(Normalize())
        return cls(modules, spec, spec.fingerprint(weights_digest(folder)), name, device)

    def save(self, folder: str | Path) -> None:
        """Write the encoder as a sentence-transformers folder with the spec beside it.

        Weights that were trained since the encoder was loaded give the saved one a fingerprint of its own.
        """
        changed = _weights_state(self.model) != self._loaded_state
        saved.save(self.model, self.spec, None if changed else self.fingerprint, Path(folder))

    def tokenize(self, texts: Sequence[str], task: Task = "document", first: int = 0) -> TokenRows:
        """Return the token ids of checked texts, prompt included, cut to ``max_tokens``.

        ``first`` is the place of the first text in the caller's list, for messages.
        """
        prompt = self.spec.prompts.get(task, "")
        rows = tokenize(self._tokenizer, texts, self._template, prompt, self.max_tokens, first)
        if skipped := self._skipped.get(task, 0):
            rows.pooled_from[:] = np.minimum(skipped, rows.tokens - 1)
        return rows

    def _prompt_length(self, prompt: str) -> int:
        """Return how many tokens of ``prompt`` the pooling leaves out: 0 unless the model says include_prompt=False."""
        if all(getattr(module, "include_prompt", True) for module in self._modules):
            return 0
        return len(self._tokenizer.backend.encode(prompt).ids) - self._tokenizer.num_added_behind

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
            LoadError: A vector holds something that is no finite number: half precision was too narrow.
        """
        check_texts(texts)
        if task not in ("query", "document"):
            raise InputError(f"task must be query or document, got {task!r}", field="task")
        if dimensions is not None and not (type(dimensions) is int and 1 <= dimensions <= self.dim):
            message = f"dimensions must lie from 1 to {self.dim} for {self.name}, got {dimensions!r}"
            raise InputError(message, field="dimensions")
        vectors = np.empty((len(texts), dimensions or self.dim), dtype=np.float32)
        tokens, truncated = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)
        for start in range(0, len(texts), BLOCK):
            block = slice(start, min(start + BLOCK, len(texts)))
            rows = self.tokenize(texts[block], task, first=start)
            vectors[block] = shorten(self.embed_rows(rows), dimensions)
            tokens[block], truncated[block] = rows.tokens, rows.truncated
            if progress is not None:
                progress(block.stop, len(texts))
        return Embeddings(vectors, tokens, truncated)

    def _halving(self, rows: TokenRows, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Run one batch, in halves where the device's memory is too small for the whole."""
        try:
            part = TokenRows([rows.ids[row] for row in batch], rows.pooled_from[batch], rows.truncated[batch])
            return [(batch, self._run(part).cpu().numpy())]
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
        if not bool(vectors.isfinite().all()):
            narrow = self.spec.dtype == "float16"
            remedy = "use bfloat16 or float32" if narrow else "its weights are damaged: copy the model folder anew"
            raise LoadError(
                f"{self.name} gives vectors that are not finite in {self.spec.dtype}; {remedy}", field="model"
            )
        return vectors if vectors.dtype == torch.float32 else functional.normalize(vectors.float(), dim=-1)


def _refuse_another(asked: EncoderSpec, found: EncoderSpec, folder: Path) -> None:
    """Raise `SpecError` if a field of ``asked`` was set, and is not what the saved encoder in ``folder`` has."""
    values, unset = asked.to_dict(), EncoderSpec(saved.AS_SAVED, asked.backbone).to_dict()
    for field in spec_difference(values, unset):
        if values[field] != found.to_dict()[field]:
            message = f"{folder} is a finished encoder with {field} of its own; load it by its name alone"
            raise SpecError(message, field=field)


def _weights_state(model: nn.Module) -> list[tuple[str, int, int]]:
    """Return where each weight lies and how often it was written to: differs once a weight has changed."""
    return [(name, weight.data_ptr(), weight._version) for name, weight in model.named_parameters()]


def _find_device(device: str) -> str:
    """Return ``device``, or the best there is for ``auto``; raise `SpecError` where it cannot be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = str(device).partition(":")
    if kind not in BATCH_TOKENS or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise SpecError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {device!r}", field="device")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise SpecError(
            f"device is {device}, but torch sees {torch.cuda.device_count()} GPUs; use cpu or auto", field="device"
        )
    return str(device)


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
    ids = torch.tensor([[5, 3, 4, 2, 2, 3, 5]], device=device)  # no usual pad id at the ends: some models warn of it
    alone = transformer({"input_ids": ids[:, :4]})["token_embeddings"]
    padded = transformer({"input_ids": ids})["token_embeddings"][:, :4]
    return bool(torch.allclose(alone, padded, rtol=1e-2 if alone.dtype != torch.float32 else 1e-4, atol=1e-4))
