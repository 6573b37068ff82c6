"""Encoder: the facade over every strategy. Texts in, unit vectors out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.compat import new_model
from embedserve.decoder import Decoder
from embedserve.device import find_device
from embedserve.errors import InputError, SpecError
from embedserve.heads import save_head
from embedserve.loading import saved
from embedserve.loading.build import DENSE, MULTI, Built, build
from embedserve.loading.reference import reference_vectors
from embedserve.runner import SPARSE, Runner
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template, TextTokenizer, check_input, tokenize
from embedserve.types import Embeddings, Encoded, Task, TokenRows, shorten
from embedserve.weights import passes_digest, states_digest, weights_state

BLOCK = 8192  # texts per tokenizer call; bounds the memory of a long call


class Encoder(Runner):
    """A built strategy: ``embed`` turns texts into vectors that are compared by dot product.

    Build one with `Encoder.load`. ``model`` is the underlying sentence-transformers model. The attributes of `Runner`
    are available as well.

    Attributes:
        name: The name or folder that was loaded.
        spec: Everything that affects a vector.
        fingerprint: Equal only for encoders whose vectors are comparable.
        reference: Vectors of `embedserve.loading.reference.TEXTS` from the saved folder; None if it has none.
        adapters: Low-rank adapters added to the decoder's weights, by name; a head stores them.
        outputs: Outputs of one forward pass: ``dense``, ``multi`` (one vector per token), ``sparse``.
        dim: Width d of a dense vector or of a token vector.
        max_tokens: Maximum number of tokens read of one text.
    """

    def __init__(self, built: Built, device: str) -> None:
        self.spec, self.fingerprint = built.spec, built.fingerprint
        self.model = new_model(built.modules, device, dict(built.spec.prompts))
        self.model.eval()
        super().__init__(list(self.model), device, built.spec.dtype, built.name)
        self.max_tokens = int(self.model.tokenizer.model_max_length)
        self.adapters, self.reference = built.adapters, built.reference
        self._built = built
        first = self._modules[0]
        is_decoder = isinstance(first, Decoder)
        self._tokenizer = first.text_tokenizer() if is_decoder else TextTokenizer.copy_of(self.model.tokenizer)
        self._skipped = {task: self._prompt_length(prompt) for task, prompt in built.spec.prompts.items()}
        self._loaded_state = weights_state(self.model)
        trial = self.run(self.tokenize(["a"]))
        available = {"dense": DENSE in trial, "multi": DENSE not in trial, "sparse": SPARSE in trial}
        self.outputs = tuple(output for output, is_available in available.items() if is_available)
        self.dim = int(trial[DENSE if available["dense"] else MULTI].shape[-1])

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer of this encoder; its truncation and padding settings are not shared."""
        return self._tokenizer

    @property
    def backbone_digest(self) -> str:
        """Digest of the backbone's weights and tokenizer; empty for a saved encoder with weights of its own."""
        return self._built.backbone_digest

    @property
    def states_digest(self) -> str:
        """Digest of everything that affects `first_features`: encoders with equal digests can share one pass."""
        return states_digest(self.model[0], self.adapters, self._pass_settings())

    @property
    def passes_digest(self) -> str:
        """Digest of everything that affects the decoder's layers: encoders with equal digests can share its passes.

        Encoders with equal passes_digest may still read different layers or pool different positions; encoders with
        equal `states_digest` do not.
        """
        return passes_digest(self.model[0], self.adapters, self._pass_settings())

    def _pass_settings(self) -> dict[str, Any]:
        backbone, prompts = self.backbone_digest or self.fingerprint, dict(self.spec.prompts)
        return {"backbone": backbone, "prompts": prompts, "max_tokens": self.max_tokens, "dtype": self.spec.dtype}

    @property
    def strategy_modules(self) -> list[Any]:
        """The modules that the strategy built, without post-transforms and the final normalisation."""
        return self._modules[: self._built.head_size]

    @classmethod
    def load(cls, model: str | Path | EncoderSpec = "nano", device: str = "auto") -> Encoder:
        """Load an encoder.

        Args:
            model: ``"nano"``; a folder written by `save` or ``embedserve train``; any sentence-transformers folder,
                used unchanged; any decoder in Hugging Face layout or on the hub, mean-pooled; or an `EncoderSpec`.
            device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.

        Raises:
            NotFoundError: There is no such folder, and no such model on the hub.
            LoadError: The folder has no weights, is damaged, or would run code of its own.
            SpecError: The spec does not fit this backbone.
        """
        device = find_device(device)
        return cls(build(model), device)

    def with_prompts(self, prompts: Mapping[str, str]) -> Encoder:
        """Return an encoder over the same weights with other ``prompts`` and its own fingerprint.

        Args:
            prompts: Prefixes by task, ``query`` and ``document``; an omitted task has none.

        Raises:
            SpecError: The task is unknown, or a prefix is not a string.
        """
        spec = replace(self.spec, prompts=prompts)
        if spec.prompts == self.spec.prompts:
            return self
        fingerprint = self._built.fingerprint_of(spec)
        built = replace(
            self._built,
            modules=self._modules,
            spec=spec,
            fingerprint=fingerprint,
            adapters=self.adapters,
            reference=None,
        )
        other = Encoder(built, str(self.device))
        other._loaded_state = self._loaded_state
        other.batch_tokens = self.batch_tokens
        return other

    def save(self, folder: str | Path) -> None:
        """Write the encoder as a sentence-transformers folder, with the spec and reference vectors.

        If the weights were trained since loading, the saved encoder gets a new fingerprint.
        """
        changed = weights_state(self.model) != self._loaded_state
        fingerprint = None if changed else self.fingerprint
        saved.save(self.model, self.spec, fingerprint, Path(folder), reference_vectors(self))

    def save_head(self, folder: str | Path, *, half: bool = True) -> None:
        """Write only the strategy's trained weights, without the backbone; `load` accepts the folder."""
        if not self.backbone_digest:
            message = f"{self.name} is a complete encoder with its own weights; use save, since a head needs a backbone"
            raise SpecError(message, field="model")
        modules, adapters = self.strategy_modules, self.adapters
        save_head(modules, self.spec, self.backbone_digest, Path(folder), adapters=adapters, half=half)

    def tokenize(
        self,
        texts: Sequence[str],
        task: Task = "document",
        first: int = 0,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
    ) -> TokenRows:
        """Return the token rows of checked texts, prompt included, truncated to ``max_tokens``.

        Args:
            texts: Checked by `check_input`.
            task: Selects the prompt.
            first: Index of the first text in the caller's list, for messages.
            prompt: Prefix of each text instead of the task's prompt.
            max_tokens: Tokens to keep of one text. Default: the model's maximum.
        """
        skipped = self._skipped.get(task, 0)
        if prompt is None:
            prompt = self.spec.prompts.get(task, "")
        elif prompt != self.spec.prompts.get(task, ""):
            skipped = self._prompt_length(prompt) if prompt else 0
        longest = self.max_tokens if max_tokens is None else max_tokens
        decoder: Any = self._modules[0] if isinstance(self._modules[0], Decoder) else None
        if decoder is not None:
            texts = decoder.clean(texts)
            rows = decoder.rows(texts, prompt, longest, task, first)
        else:
            rows = tokenize(self._tokenizer, texts, Template(), prompt, longest, first)
        if skipped:
            rows.pooled_from[:] = np.minimum(skipped, rows.tokens - 1)
        lexical = context = None
        if decoder is not None:
            lexical, context = decoder.lexical_ids(texts), decoder.context_ids(texts, prompt)
        return TokenRows(rows.ids, rows.pooled_from, rows.truncated, task, lexical, context)

    def token_spans(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the character spans of the tokens of each text, without prompt, special tokens and truncation.

        Returns:
            For each text (n, 2) int64: start and end of each token in characters. Tokens that share a character have
            the same span.
        """
        encodings = self._tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    def _prompt_length(self, prompt: str) -> int:
        """Return the number of prompt tokens that the pooling skips: 0 unless the model has include_prompt=False."""
        if all(getattr(module, "include_prompt", True) for module in self._modules):
            return 0
        return len(self._tokenizer.backend.encode(prompt).ids) - self._tokenizer.num_added_after

    def embed_rows(self, rows: TokenRows) -> np.ndarray:
        """Return unit vectors (N, d) float32 of token rows, in order."""
        self._check_output("dense")
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for indices, features in self.batches(rows, self.run):
            vectors[indices] = features[DENSE].cpu().numpy()
        return vectors

    def encode_rows(self, rows: TokenRows) -> Encoded:
        """Return every output of one forward pass over token rows, in order."""
        return self.collect(rows, self.outputs, self.dim)

    def embed(
        self,
        texts: Sequence[str],
        task: Task = "document",
        *,
        dimensions: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Embeddings:
        """Return unit vectors of ``texts``, in order. Batches are formed internally.

        The vector of a text does not depend on the other texts (to 1e-5 in float32).

        Args:
            texts: Non-empty strings.
            task: ``query`` or ``document``: selects the prompt.
            dimensions: Leading dimensions to keep, normalised again. Default: all.
            progress: Called with the number of embedded texts and of all texts.

        Raises:
            InputError: A text is blank or not a string, or ``dimensions`` is out of range.
            LoadError: A vector is not finite, for example because half precision overflowed.
            SpecError: The encoder has token vectors only: use `encode`.
        """
        self._check_output("dense")
        self._check_dimensions(dimensions)
        check_input(texts, task)
        vectors = np.empty((len(texts), dimensions or self.dim), dtype=np.float32)
        tokens, truncated = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)
        for start, rows in self._token_blocks(texts, task):
            block = slice(start, start + len(rows))
            vectors[block] = shorten(self.embed_rows(rows), dimensions)
            tokens[block], truncated[block] = rows.tokens, rows.truncated
            if progress is not None:
                progress(block.stop, len(texts))
        return Embeddings(vectors, tokens, truncated)

    def encode(self, texts: Sequence[str], task: Task = "document", *, dimensions: int | None = None) -> Encoded:
        """Return every output of one forward pass over ``texts``; see ``outputs``.

        Arguments and errors as in `embed`; ``dimensions`` truncates the vectors of texts and of tokens.
        """
        self._check_dimensions(dimensions)
        check_input(texts, task)
        return self.encode_rows(self.tokenize(texts, task)).shortened(dimensions)

    def _token_blocks(self, texts: Sequence[str], task: Task) -> Iterator[tuple[int, TokenRows]]:
        """Yield the index of the first text of each block, and the token rows of the block.

        While a GPU computes a block, a thread tokenises the next one. On a CPU that would compete for the cores.
        """
        starts = range(0, len(texts), BLOCK)
        if self.device.type == "cpu":
            for start in starts:
                yield start, self.tokenize(texts[start : start + BLOCK], task, start)
            return
        with ThreadPoolExecutor(1, "tokenize") as thread:
            ahead: deque[Future[TokenRows]] = deque()
            for start in starts:
                ahead.append(thread.submit(self.tokenize, texts[start : start + BLOCK], task, start))
                if len(ahead) > 1:
                    yield start - BLOCK, ahead.popleft().result()
            if ahead:
                yield starts[-1], ahead.popleft().result()

    def _check_dimensions(self, dimensions: int | None) -> None:
        if dimensions is not None and not (type(dimensions) is int and 1 <= dimensions <= self.dim):
            message = f"dimensions must be from 1 to {self.dim} for {self.name}, got {dimensions!r}"
            raise InputError(message, field="dimensions")

    def _check_output(self, output: str) -> None:
        if output not in self.outputs:
            message = f"{self.spec.strategy} has {' and '.join(self.outputs)} vectors, not {output} ones"
            raise SpecError(f"{message}; use Encoder.encode, or a strategy that has them", field="strategy")
