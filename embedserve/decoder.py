"""The decoder as an input module with a template, and hooks that read or edit its hidden states."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedserve.batching import pad_ids
from embedserve.compat import Transformer, decoder_of
from embedserve.errors import LoadError
from embedserve.lean import LeanPass
from embedserve.tokens import Template, TextTokenizer, tokenize
from embedserve.types import Task, TokenRows


class Decoder(Transformer):  # type: ignore[misc]
    """A causal or bidirectional decoder with a text template that marks which texts are queries.

    Right and left padding, with or without an attention mask, give the same states. Strategies that change the
    computation inside the decoder override `states`.

    Args:
        template: The fields of `embedserve.tokens.Template`.
        bidirectional: Every token attends to every other (LLM2Vec, BehnamGhader et al. 2024, section 2.1).

    Attributes:
        hides_padding: Whether a check at load showed that right padding does not change the states before it. Batches
            are then run without an attention mask, which allows the fast causal attention kernel.
        lean: The lean pass, if a check at load showed that it gives the same states.
    """

    config_keys = [*Transformer.config_keys, "template", "bidirectional"]
    reads_tokens = True  # whether later modules read ``token_embeddings``; if not, training does not store them
    only_reads = True  # whether the decoder's layers run unchanged; False if states or inputs are edited
    pools_all = False  # whether `states` returns only the vectors to pool instead of one for each token

    def __init__(
        self, *args: Any, template: dict[str, Any] | None = None, bidirectional: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.template = template or {}
        self.bidirectional = bidirectional
        self.hides_padding = False
        self.lean: LeanPass | None = None
        self._copy: TextTokenizer | None = None

    def text_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer used by `Encoder` and `preprocess`."""
        self._copy = self._copy or TextTokenizer.copy_of(self.tokenizer)
        return self._copy

    def clean(self, texts: Sequence[str]) -> Sequence[str]:
        """Return the texts to tokenise. Default: unchanged."""
        return texts

    def lexical_ids(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Return the vocabulary entries (int64) to which each text may give a weight; None without sparse weights."""
        return None

    def context_ids(self, texts: Sequence[str], prompt: str) -> list[np.ndarray] | None:
        """Return the ids (int64) of each text for a second model before the decoder; None without one."""
        return None

    def rows(self, texts: Sequence[str], prompt: str, max_tokens: int, task: Task, first: int = 0) -> TokenRows:
        """Return the token ids of texts prepared by `clean`; see `embedserve.tokens.tokenize`."""
        return tokenize(self.text_tokenizer(), texts, Template(**self.template), prompt, max_tokens, first)

    def preprocess(
        self, inputs: list[str], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` (B, T), ``pooled_from`` int64 and ``is_query`` bool (B,)."""
        limit = int(self.tokenizer.model_max_length)
        inputs = list(self.clean(inputs))
        rows = self.rows(inputs, prompt or "", limit, "query" if task == "query" else "document")
        batch = self.tokenizer.pad({"input_ids": [row.tolist() for row in rows.ids]}, return_tensors="pt")
        is_query = torch.full((len(inputs),), task == "query")
        features = {**batch, "pooled_from": torch.from_numpy(rows.pooled_from), "is_query": is_query}
        further = {"lexical_ids": self.lexical_ids(inputs), "context_ids": self.context_ids(inputs, prompt or "")}
        return features | {name: torch.from_numpy(pad_ids(ids)) for name, ids in further.items() if ids is not None}

    def tokenize(self, texts: list[str], **kwargs: Any) -> dict[str, Tensor]:
        """Call `preprocess`; sentence-transformers 5.3 uses this name."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Add ``token_embeddings`` (B, T, D) and restrict ``attention_mask`` to the positions to pool."""
        ids = features["input_ids"]
        mask = features.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(ids)
        states = features["token_embeddings"] = self.states(ids, mask, features)
        pooled_from = features.pop("pooled_from", None)
        if self.pools_all:
            mask = mask.new_ones(states.shape[:2])
        elif pooled_from is not None:
            mask = pooled_positions(mask, pooled_from)
        features["attention_mask"] = mask
        return features

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the states (B, T, D) to pool. Default: those after the final norm.

        Args:
            ids: (B, T) int64.
            mask: (B, T), 1 at real tokens.
            features: The other outputs of `preprocess`; a subclass may add to it.
        """
        return self.run(ids, mask)

    def run(
        self, ids: Tensor | None, mask: Tensor, embeddings: Tensor | None = None, *, keep_mask: bool = False
    ) -> Tensor:
        """Run the decoder over ``ids`` (B, T), or over input ``embeddings`` (B, T, D), and return its last states.

        Positions are counted over real tokens, as models with learned position embeddings require. ``keep_mask``
        passes the mask even if padding is hidden, for rows whose padding is read.
        """
        inputs: dict[str, Any] = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}
        starts_real = bool(mask[:, 0].all())
        if self.bidirectional:
            inputs["attention_mask"] = two_way_mask(mask, decoder_of(self).dtype)
        elif keep_mask or not (self.hides_padding and starts_real):
            inputs["attention_mask"] = mask
        if not starts_real:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        model = decoder_of(self)
        plain = ids is not None and starts_real and not (self.bidirectional or keep_mask)
        if ids is not None and plain and self.lean is not None and self.lean.is_free(model):
            return self.lean.states(ids, None if self.hides_padding else mask)
        states: Tensor = model(**inputs, use_cache=False).last_hidden_state
        return states


def two_way_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive attention mask (B, 1, T, T) with which every token attends to all real tokens of its row.

    A mask of four dimensions reaches the attention of every family unchanged; overriding the methods that build masks
    fails silently from transformers 4.53 on.
    """
    hidden = torch.finfo(dtype).min * (mask == 0).to(dtype)
    return hidden[:, None, None, :].expand(-1, 1, mask.shape[1], -1).contiguous()


def pooled_positions(attention_mask: Tensor, pooled_from: Tensor) -> Tensor:
    """Return ``attention_mask`` (B, T) with the first ``pooled_from`` (B,) real tokens of each row set to 0."""
    position = attention_mask.cumsum(dim=1) - 1  # counted over real tokens: the padding side does not matter
    return attention_mask * (position >= pooled_from[:, None])


def last_positions(mask: Tensor) -> Tensor:
    """Return the last position (B,) int64 of each row of ``mask`` (B, T) that is not 0; padding may be on any side."""
    return mask.shape[1] - 1 - mask.flip(1).bool().int().argmax(dim=1)


class _StopForwardError(Exception):
    """Raised to skip the remaining layers."""


Read = Callable[[Tensor], None]
Edit = Callable[[Tensor], Tensor]


@contextmanager
def hooked(
    model: nn.Module,
    reads: Mapping[int, Read] | None = None,
    edits: Mapping[int, Edit] | None = None,
    stop_at: int | None = None,
) -> Iterator[None]:
    """Read and edit hidden states (B, T, D) while this thread runs the decoder; the hooks are removed at exit.

    All threads share the hooked modules, so each hook acts only in the thread that registered it.

    Hidden state 0 is the input of the first layer, n the output of layer n; the last is the output of the last layer
    *before* the final norm.

    Args:
        model: The decoder.
        reads: Called with the hidden state of that number.
        edits: Called with it before the next layer; the result replaces it. ``reads`` of the same number get the
            unedited state.
        stop_at: Run no layer after this hidden state; the block ends there.
    """
    layers = decoder_layers(model)
    reads, edits = dict(reads or {}), dict(edits or {})
    handles = []
    numbers = {*reads, *edits} | ({stop_at} if stop_at is not None else set())
    try:
        for number in sorted(numbers):
            if number < len(layers):
                hook = _input_hook(reads.get(number), edits.get(number), stops=number == stop_at)
                handles.append(layers[number].register_forward_pre_hook(hook, with_kwargs=True))
        if len(layers) in reads:
            handles.append(layers[-1].register_forward_hook(_output_hook(reads[len(layers)])))
        yield
    except _StopForwardError:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(read: Read | None, edit: Edit | None, *, stops: bool) -> Callable[..., Any]:
    """Return a pre-forward hook that acts only in this thread.

    While another thread adds or removes a hook, the call may lack the keyword arguments.
    """
    owner = threading.get_ident()

    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any] | None = None) -> Any:
        if threading.get_ident() != owner:
            return None
        named = named or {}
        state = args[0] if args else named["hidden_states"]
        if read is not None:
            read(state)
        if stops:
            raise _StopForwardError
        if edit is None:
            return None
        state = edit(state)
        return ((state, *args[1:]), named) if args else (args, {**named, "hidden_states": state})

    return hook


def _output_hook(read: Read) -> Callable[..., None]:
    """Return a forward hook of the last layer that acts only in this thread."""
    owner = threading.get_ident()

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if threading.get_ident() == owner:
            read(output if isinstance(output, Tensor) else output[0])

    return hook


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder's layers, identified by their count since names differ between families."""
    config: Any = model.config
    num_layers = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise LoadError(f"{type(model).__name__} has no list of {num_layers} layers; is it a decoder?", field="model")


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm after the last layer."""
    inside = {id(module) for module in decoder_layers(model).modules()}
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in ("norm", "norm_f", "ln_f", "final_layer_norm", "final_layernorm") and id(module) not in inside:
            return module
    raise LoadError(f"{type(model).__name__} has no final norm that this strategy knows", field="model")
