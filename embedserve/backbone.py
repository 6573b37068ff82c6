"""Loads the backbone: the decoder as an input module, its language model, and its unembedding."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils
from transformers.utils import logging as hf_logging

from embedserve.compat import Transformer, decoder_of, module_width, new_transformer
from embedserve.decoder import Decoder
from embedserve.errors import EmbedserveError, LoadError, SpecError
from embedserve.model_folders import check_model_folder, first_line
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template

T = TypeVar("T", bound=Transformer)
D = TypeVar("D", bound=Decoder)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Names of the two matrices over the vocabulary in the model families.
INPUT_EMBEDDINGS, UNEMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings"), ("lm_head", "embed_out")

_REPORT = threading.Lock()  # `loading` replaces a function of transformers, which all threads share


def load_as(kind: type[T], spec: EncoderSpec, folder: Path, **options: Any) -> T:
    """Load the decoder, without its unembedding, as an input module of class ``kind``.

    Raises:
        LoadError: The files cannot be read.
        SpecError: ``max_tokens`` exceeds the model's positions.
    """
    if spec.max_tokens is not None:
        options["max_seq_length"] = spec.max_tokens
    with loading(folder):
        transformer = new_transformer(kind, str(folder), DTYPES[spec.dtype], **options)
    positions = getattr(decoder_of(transformer).config, "max_position_embeddings", None)
    if spec.max_tokens is not None and positions is not None and spec.max_tokens > positions:
        message = f"max_tokens is {spec.max_tokens}, but {folder} has positions for {positions}; lower it"
        raise SpecError(message, field="max_tokens")
    return prepare(transformer)


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Load quietly, and raise one `LoadError` for anything that is wrong with the files.

    transformers initialises missing weights at random and mentions them only in a report that it logs. That report is
    intercepted here.
    """

    def refuse_gaps(model: Any, *args: Any, loading_info: Any, **named: Any) -> None:
        _refuse_gaps(loading_info.missing_keys - _unembedding_names(model), loading_info.mismatched_keys, folder)
        report(model, *args, loading_info=loading_info, **named)

    with _REPORT, quiet_loading():
        report = modeling_utils.log_state_dict_report
        modeling_utils.log_state_dict_report = refuse_gaps
        try:
            yield
        except EmbedserveError:
            raise
        except Exception as error:  # the class depends on which byte is damaged
            message = f"the model in {folder} cannot be loaded: {first_line(error)}"
            raise LoadError(message, field="model") from error
        finally:
            modeling_utils.log_state_dict_report = report


def _refuse_gaps(missing: Collection[str], mismatched: Collection[tuple[Any, ...]], folder: Path) -> None:
    """Raise `LoadError` if a weight is missing or has another shape, except a missing pooler, which is never used."""
    if gaps := sorted(name for name in missing if "pooler." not in name):
        names = ", ".join(gaps[:3]) + (f" and {len(gaps) - 3} more" if len(gaps) > 3 else "")
        raise LoadError(f"the weights in {folder} lack {names}; copy the model folder again", field="model")
    for name, stored, expected in sorted(mismatched):
        shapes = f"{tuple(stored)}, but config.json specifies {tuple(expected)}"
        raise LoadError(f"{name} in {folder} has shape {shapes}; copy the model folder again", field="model")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the progress bars and the loading report of transformers, which lists the unembedding as unused."""
    verbosity = hf_logging.get_verbosity()
    shows_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if shows_bars:
            hf_logging.enable_progress_bar()


def prepare(transformer: T) -> T:
    """Set what every decoder needs: right padding, a pad token, no dropout."""
    tokenizer = transformer.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise LoadError("the model has no fast tokenizer (tokenizer.json); convert it with transformers", field="model")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise LoadError("the tokenizer has neither a pad token nor an end token; add one", field="model")
        tokenizer.pad_token = tokenizer.eos_token
    num_embeddings = decoder_of(transformer).get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > num_embeddings:
        message = f"the tokenizer has {tokenizer.vocab_size} entries, but the model has {num_embeddings} embeddings: "
        raise LoadError(f"{message}they do not match; copy the model folder again", field="model")
    transformer.eval()
    return transformer


def load_decoder(
    spec: EncoderSpec,
    folder: Path,
    kind: type[D],
    template: Template | None = None,
    *,
    skip_begin: bool = False,
    **options: Any,
) -> D:
    """Load the decoder as an input module of class ``kind``, with the spec's template and attention.

    Args:
        spec: The encoder.
        folder: The backbone's folder.
        kind: The class; ``options`` are its further arguments.
        template: The strategy's own template, which excludes one in the spec.
        skip_begin: Do not pool a special token at the beginning.

    Raises:
        SpecError: Both the strategy and the spec have a template.
    """
    if spec.template is not None and template is not None:
        raise SpecError(f"{spec.strategy} has a template of its own; omit template", field="template")
    if template is None:
        template = Template() if spec.template is None else Template.parse(spec.template)
    template = replace(template, skip_begin=skip_begin, pool_prompt=spec.pool_prompt)
    bidirectional = spec.attention == "bidirectional"
    return load_as(kind, spec, folder, template=asdict(template), bidirectional=bidirectional, **options)


def load_plain(spec: EncoderSpec, folder: Path) -> Transformer:
    """Load the decoder as the library's own input module if possible, so that a saved encoder does not need embedserve.

    It is possible for a causal decoder without a template that pools every token, unless queries and documents are
    encoded differently.
    """
    plain = spec.template is None and spec.attention == "causal" and spec.pool_prompt
    if plain and not any(post.startswith("adapter:") for post in spec.post):
        return load_as(Transformer, spec, folder)
    return load_decoder(spec, folder, Decoder)


def hidden_size(transformer: Transformer) -> int:
    """Return D, the width of the decoder's hidden states."""
    return module_width(transformer)


def load_language_model(folder: Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Any:
    """Load the decoder with its unembedding, in ``dtype``; ``auto`` keeps that of the file.

    Raises:
        LoadError: The folder has no unembedding; it is never initialised at random.
    """
    check_model_folder(folder)
    with loading(folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, output_loading_info=True
        )
    if not _unembedding_names(model) - set(info["missing_keys"]):
        message = f"{folder} has no unembedding (lm_head); use the decoder as published, not a saved encoder"
        raise LoadError(message, field="model")
    return model.eval()


def _unembedding_names(model: Any) -> set[str]:
    """Return the names of the unembedding's weight: several if it is tied, none if the model has no unembedding."""
    head = model.get_output_embeddings()
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if head and weight is head.weight}


def load_unembedding(folder: Path) -> Tensor:
    """Return the unembedding ``lm_head.weight`` (V, D) in float32; of a tied model the input embedding.

    Only that matrix is read if its name is known; otherwise the whole language model.

    Raises:
        LoadError: The folder has none.
    """
    check_model_folder(folder)
    with loading(folder):
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        tied = bool(config.get_text_config().tie_word_embeddings)
        names = INPUT_EMBEDDINGS if tied else UNEMBEDDINGS
        matches = [
            (path, name)
            for path in sorted(folder.glob("*.safetensors"))
            for name in safe_open(str(path), "pt").keys()  # noqa: SIM118 (a file, not a dict)
            if name.rpartition(".")[0].rpartition(".")[2] in names and name.endswith(".weight")
        ]
        if len(matches) == 1:
            path, name = matches[0]
            with safe_open(str(path), "pt") as file:
                weight: Tensor = file.get_tensor(name)
                return weight.float()
    return load_language_model(folder, dtype="auto").get_output_embeddings().weight.detach().float()
