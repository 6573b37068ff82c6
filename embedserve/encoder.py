"""Encoder: the one facade over every strategy. Texts in, unit vectors out."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.batching import BATCH_TOKENS, pad_ids, pad_right, token_batches
from embedserve.compat import decoder_of, new_model
from embedserve.decoder import Decoder, pooled_positions
from embedserve.errors import DeviceError, InputError, LoadError, SpecError
from embedserve.gather import SPARSE, gather
from embedserve.heads import head_state, save_head
from embedserve.lean import lean_pass
from embedserve.loading import saved
from embedserve.loading.build import DENSE, MULTI, Built, build
from embedserve.loading.reference import reference_vectors
from embedserve.lora import tensors_digest
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template, TextTokenizer, check_texts, tokenize
from embedserve.types import Embeddings, Encoded, Task, TokenRows, shorten

R = TypeVar("R")
BLOCK = 8192  # texts tokenised at a time: bounds the memory of a long call
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Encoder:
    """A built strategy: ``embed`` turns texts into vectors that may be compared by dot product.

    Build one with `Encoder.load`. ``model`` is the sentence-transformers model underneath.

    Attributes:
        name: What was loaded.
        spec: Everything that shapes a vector.
        fingerprint: Equal only for encoders whose vectors may be compared.
        reference: What a saved encoder made of `embedserve.loading.reference.TEXTS` when it was saved; None where none
        came
            with it.
        adapters: Low-rank adapters that were added to the decoder's weights, by name; a head keeps them.
        outputs: What one forward pass makes: ``dense``, ``multi`` (a vector for each token), ``sparse``.
        dim: Width d of a dense vector or of a token's.
        max_tokens: Tokens read of one text.
        on_halved: Called whenever a batch did not fit the device's memory and is tried again in halves.
    """

    def __init__(self, built: Built, device: str) -> None:
        self.spec, self.fingerprint, self.name = built.spec, built.fingerprint, built.name
        self.model = new_model(built.modules, device, dict(built.spec.prompts))
        self.model.eval()
        self.device = torch.device(device)
        self.max_tokens = int(self.model.tokenizer.model_max_length)
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.adapters, self.reference = built.adapters, built.reference
        self.on_halved: Callable[[], None] | None = None
        self._built = built
        self._modules: list[Any] = list(self.model)
        first = self._modules[0]
        own = isinstance(first, Decoder)
        self._tokenizer = first.text_tokenizer() if own else TextTokenizer.copy_of(self.model.tokenizer)
        self._skipped = {task: self._prompt_length(prompt) for task, prompt in built.spec.prompts.items()}
        self._hides_padding = _hides_right_padding(first, self.device)
        self._lean = lean_pass(first, first.run if own else _states_of(first))
        if own:
            first.hides_padding, first.lean = self._hides_padding, self._lean
        self._loaded_state = _weights_state(self.model)
        trial = self._run(self.tokenize(["a"]))
        made = {"dense": DENSE in trial, "multi": DENSE not in trial, "sparse": SPARSE in trial}
        self.outputs = tuple(name for name, is_made in made.items() if is_made)
        self.dim = int(trial[DENSE if made["dense"] else MULTI].shape[-1])

    @property
    def workers(self) -> int:
        """How many batches run at the same time: one for each thread that torch has on a CPU, else one."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer that texts are read with; its truncation and padding are nobody else's."""
        return self._tokenizer

    @property
    def backbone_digest(self) -> str:
        """Digest of the backbone's weights and tokenizer; empty where a saved encoder holds weights of its own."""
        return self._built.backbone_digest

    @property
    def states_digest(self) -> str:
        """Digest of all that shapes what `first_features` gives: equal encoders may share one pass of the decoder."""
        first: Any = self.model[0]
        described = {key: getattr(first, key, None) for key in first.config_keys} | {
            "class": type(first).__name__,
            "backbone": self.backbone_digest or self.fingerprint,
            "weights": tensors_digest({**self.adapters, **head_state([first])}),
            "prompts": dict(self.spec.prompts),
            "max_tokens": self.max_tokens,
            "dtype": self.spec.dtype,
        }
        text = json.dumps(described, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    @property
    def passes_digest(self) -> str:
        """Digest of all that shapes the decoder's layers: encoders of equal ones may share its passes.

        Two of them may read other layers or pool other positions; those of one `states_digest` share that, too.
        """
        first: Any = self.model[0]
        if not getattr(first, "only_reads", not isinstance(first, Decoder)):
            return self.states_digest
        template = asdict(Template(**getattr(first, "template", {})))
        described = {
            "template": {name: value for name, value in template.items() if name not in ("skip_begin", "pool_prompt")},
            "bidirectional": getattr(first, "bidirectional", False),
            "backbone": self.backbone_digest or self.fingerprint,
            "weights": tensors_digest(self.adapters),
            "prompts": dict(self.spec.prompts),
            "max_tokens": self.max_tokens,
            "dtype": self.spec.dtype,
        }
        text = json.dumps(described, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    @property
    def strategy_modules(self) -> list[Any]:
        """The modules that the strategy built, without post-transforms and the last normalisation."""
        return self._modules[: self._built.head_size]

    @classmethod
    def load(cls, model: str | Path | EncoderSpec = "nano", device: str = "auto") -> Encoder:
        """Load an encoder.

        Args:
            model: ``"nano"``; a folder that `save` or ``embedserve train`` wrote; any sentence-transformers folder,
                taken as it is; any decoder in Hugging Face layout or on the hub, mean-pooled; or an `EncoderSpec`.
            device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.

        Raises:
            NotFoundError: There is no such model, neither a folder nor on the hub.
            LoadError: The folder has no weights, is damaged, or wants to run code of its own.
            SpecError: The spec makes no sense for this backbone.
        """
        device = _find_device(device)
        return cls(build(model), device)

    def with_prompts(self, prompts: Mapping[str, str]) -> Encoder:
        """Return an encoder over the same weights that puts other ``prompts`` in front, with its own fingerprint.

        Args:
            prompts: A prefix for each task, ``query`` and ``document``; those left out have none.

        Raises:
            SpecError: Another task, or no string.
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
        """Write the encoder as a sentence-transformers folder with the spec and reference vectors beside it.

        Weights that were trained since the encoder was loaded give the saved one a fingerprint of its own.
        """
        changed = _weights_state(self.model) != self._loaded_state
        fingerprint = None if changed else self.fingerprint
        saved.save(self.model, self.spec, fingerprint, Path(folder), reference_vectors(self))

    def save_head(self, folder: str | Path, *, half: bool = True) -> None:
        """Write the strategy's trained weights alone, without those of the backbone; `load` takes the folder too."""
        if not self.backbone_digest:
            message = f"{self.name} is a whole encoder with weights of its own; save writes it, a head needs a backbone"
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
        """Return the token ids of checked texts, prompt included, cut to ``max_tokens``.

        Args:
            texts: Checked by `check_input`.
            task: Which prompt to use.
            first: The place of the first text in the caller's list, for messages.
            prompt: Put in front of each text in place of the prompt of the task.
            max_tokens: Tokens to keep of one text; left out, as many as the model reads.
        """
        skipped = self._skipped.get(task, 0)
        if prompt is None:
            prompt = self.spec.prompts.get(task, "")
        elif prompt != self.spec.prompts.get(task, ""):
            skipped = self._prompt_length(prompt) if prompt else 0
        longest = self.max_tokens if max_tokens is None else max_tokens
        reader: Any = self._modules[0]
        own = isinstance(reader, Decoder)
        if own:
            texts = reader.clean(texts)
            rows = reader.rows(texts, prompt, longest, task, first)
        else:
            rows = tokenize(self._tokenizer, texts, Template(), prompt, longest, first)
        if skipped:
            rows.pooled_from[:] = np.minimum(skipped, rows.tokens - 1)
        lexical, context = (reader.lexical_ids(texts), reader.context_ids(texts, prompt)) if own else (None, None)
        return TokenRows(rows.ids, rows.pooled_from, rows.truncated, task, lexical, context)

    def token_spans(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return where the tokens of each text stand in it, without prompt and special tokens, and however many.

        Returns:
            For each text (n, 2) int64: the first character of each token and the one behind its last. The tokens of one
            character that takes several have the same place.
        """
        encodings = self._tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    def _prompt_length(self, prompt: str) -> int:
        """Return how many tokens of ``prompt`` the pooling leaves out: 0 unless the model says include_prompt=False."""
        if all(getattr(module, "include_prompt", True) for module in self._modules):
            return 0
        return len(self._tokenizer.backend.encode(prompt).ids) - self._tokenizer.num_added_after

    def embed_rows(self, rows: TokenRows) -> np.ndarray:
        """Return unit vectors, float32 (N, d), of token rows in their order.

        A batch that does not fit the device's memory is halved and tried again.
        """
        self._check_makes("dense")
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for places, features in self.batches(rows, self._run):
            out[places] = features[DENSE].cpu().numpy()
        return out

    def encode_rows(self, rows: TokenRows) -> Encoded:
        """Return everything that one forward pass over token rows makes, in their order."""
        return gather(rows, self.outputs, self.dim, self.batches(rows, self._run))

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
            SpecError: The encoder makes a vector for each token: `encode` returns those.
        """
        self._check_makes("dense")
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
        """Return everything that one forward pass over ``texts`` makes: see ``outputs``.

        Args and errors are those of `embed`; ``dimensions`` shortens the vectors of texts and of tokens.
        """
        self._check_dimensions(dimensions)
        check_input(texts, task)
        return self.encode_rows(self.tokenize(texts, task)).shortened(dimensions)

    def _token_blocks(self, texts: Sequence[str], task: Task) -> Iterator[tuple[int, TokenRows]]:
        """Yield the place of the first text of each block, and the block's token rows.

        While a GPU works on a block, a thread reads the next one; on a CPU the cores have enough to do.
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
            message = f"dimensions must lie from 1 to {self.dim} for {self.name}, got {dimensions!r}"
            raise InputError(message, field="dimensions")

    def _check_makes(self, output: str) -> None:
        if output not in self.outputs:
            message = f"{self.spec.strategy} makes {' and '.join(self.outputs)} vectors, not {output} ones"
            raise SpecError(f"{message}; use Encoder.encode, or a strategy that does", field="strategy")

    def batches(self, rows: TokenRows, run: Callable[[TokenRows], R]) -> Iterator[tuple[np.ndarray, R]]:
        """Yield places and what ``run`` makes of the rows there, each place once.

        On a CPU each core takes batches of its own: one thread for a matrix product needs no other to wait for.
        """
        batches = list(token_batches(rows.lengths, self.batch_tokens))
        workers = min(self.workers, len(batches))
        if workers < 2:
            for batch in batches:
                yield from self._halving(rows, batch, run)
            return
        pool = ThreadPoolExecutor(workers, "embed", initializer=torch.set_num_threads, initargs=(1,))
        try:
            for found in pool.map(lambda batch: self._halving(rows, batch, run), batches):
                yield from found
        finally:
            pool.shutdown(cancel_futures=True)

    def _halving(self, rows: TokenRows, batch: np.ndarray, run: Callable[[TokenRows], R]) -> list[tuple[np.ndarray, R]]:
        """Run one batch, in halves where the device's memory is too small for the whole."""
        try:
            return [(batch, run(rows.take(batch)))]
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
        except torch.AcceleratorError as error:
            message = f"the device has failed and answers nothing more: {str(error).splitlines()[0]}; start anew"
            raise DeviceError(message, field="device") from error
        if self.on_halved is not None:
            self.on_halved()
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self._halving(rows, batch[:middle], run) + self._halving(rows, batch[middle:], run)

    def _run(self, rows: TokenRows) -> dict[str, Tensor]:
        """Return the features of one batch, on the device."""
        return self.finish(self.first_features(rows), rows.task)

    @torch.inference_mode()
    def finish(self, features: dict[str, Tensor], task: Task) -> dict[str, Tensor]:
        """Return what the modules behind the decoder make of its features of one batch."""
        for module in self._modules[1:]:
            takes_task = "task" in getattr(module, "forward_kwargs", ())
            features = module(features, task=task) if takes_task else module(features)
        key = DENSE if DENSE in features else MULTI
        if not bool(features[key].isfinite().all()):
            narrow = self.spec.dtype == "float16"
            remedy = "use bfloat16 or float32" if narrow else "its weights are damaged: copy the model folder anew"
            raise LoadError(
                f"{self.name} gives vectors that are not finite in {self.spec.dtype}; {remedy}", field="model"
            )
        if features[key].dtype != torch.float32:
            features[key] = functional.normalize(features[key].float(), dim=-1)
        return features

    @torch.inference_mode()
    def first_features(self, rows: TokenRows) -> dict[str, Tensor]:
        """Return what the decoder leaves for the modules behind it, of one batch, on the device."""
        padded, mask = pad_right(rows.ids)
        ids, attention_mask, pooled_from = (
            torch.from_numpy(array).to(self.device) for array in (padded, mask, rows.pooled_from)
        )
        features: dict[str, Any] = {"input_ids": ids}
        if isinstance(self._modules[0], Decoder):
            features |= {"attention_mask": attention_mask, "pooled_from": pooled_from}
            features["is_query"] = torch.full((len(rows),), rows.task == "query", device=self.device)
            for name in ("lexical_ids", "context_ids"):
                if (further := getattr(rows, name)) is not None:
                    features[name] = torch.from_numpy(pad_ids(further)).to(self.device)
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


def check_input(texts: Sequence[str], task: str) -> None:
    """Raise `InputError` unless texts can be encoded for ``task``."""
    check_texts(texts)
    if task not in ("query", "document"):
        raise InputError(f"task must be query or document, got {task!r}", field="task")


def _states_of(transformer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what gives the states of the library's own input module, of ids and mask."""
    return lambda ids, mask: transformer({"input_ids": ids, "attention_mask": mask})["token_embeddings"]


def _weights_state(model: nn.Module) -> dict[str, int]:
    """Return a checksum of each weight, at the speed of memory: differs once one has changed."""
    return {
        name: int(weight.detach().contiguous().view(INTEGERS[weight.element_size()]).sum(dtype=torch.int64))
        for name, weight in model.state_dict().items()
    }


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


@torch.inference_mode()
def _hides_right_padding(transformer: Any, device: torch.device) -> bool:
    """Say whether padding on the right cannot change the states before it, as in every causal model.

    Then no attention mask is built and attention runs its fast causal kernel. Found by trial, not by the name of
    the model: bidirectional models answer no.
    """

    def states(ids: Tensor) -> Tensor:
        if isinstance(transformer, Decoder):
            return transformer.run(ids, torch.ones_like(ids))
        found: Tensor = transformer({"input_ids": ids})["token_embeddings"]
        return found

    ids = torch.tensor([[5, 3, 4, 2, 2, 3, 5]], device=device)  # no usual pad id at the ends: some models warn of it
    alone, padded = states(ids[:, :4]), states(ids)[:, :4]
    return bool(torch.allclose(alone, padded, rtol=1e-2 if alone.dtype != torch.float32 else 1e-4, atol=1e-4))
