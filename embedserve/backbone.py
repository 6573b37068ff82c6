"""The decoder: found on disk, checked, loaded, and read layer by layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from embedserve.compat import Transformer, module_width
from embedserve.errors import LoadError, NotFoundError
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template, tokenize

T = TypeVar("T", bound=Transformer)
NANO = Path(__file__).parent / "nano"
WEIGHT_FILES = ("*.safetensors",)
DIGESTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", *WEIGHT_FILES)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_backbone(name: str) -> Path:
    """Return the folder of a backbone: ``nano``, a folder, or a hub id, which is downloaded.

    Raises:
        NotFoundError: There is neither a folder nor a reachable hub repository of that name.
        LoadError: The folder has no configuration, no safetensors weights, or wants to run code of its own.
    """
    folder = NANO if name == "nano" else Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise LoadError(f"model {name!r} is a file; give the folder that holds config.json", field="model")
        folder = _download(name)
    check_model_folder(folder)
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        message = f"no model {name!r}: there is no such folder, and the hub gave none ({reason}). "
        raise NotFoundError(message + "Give a folder with config.json, or 'nano'.", field="model") from None


def check_model_folder(folder: Path) -> None:
    """Raise `LoadError` unless ``folder`` can be loaded without running foreign code."""
    config = folder / "config.json"
    if not config.is_file():
        raise LoadError(
            f"model folder {folder} has no config.json; give a folder in Hugging Face layout", field="model"
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{config} is not JSON ({error}); copy the model folder anew", field="model") from None
    if "auto_map" in values:
        message = f"{config} has auto_map, which would run code from the model folder; use a model of a known family"
        raise LoadError(message, field="model")
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.glob("*.bin")]
        found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        message = f"model folder {folder} has {found}; it needs *.safetensors (save_pretrained writes them)"
        raise LoadError(message, field="model")


def weights_digest(folder: Path) -> str:
    """Return 32 hex digits over the configuration, the tokenizer and the weights in ``folder``."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in DIGESTED for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def load_transformer(spec: EncoderSpec, folder: Path) -> Transformer:
    """Load the decoder as the library's own input module, without the unembedding."""
    return load_as(Transformer, spec, folder)


def load_as(kind: type[T], spec: EncoderSpec, folder: Path, **options: Any) -> T:
    """Load the decoder as an input module of class ``kind``; ``options`` are that class's own."""
    arguments = options if spec.max_tokens is None else {"max_seq_length": spec.max_tokens, **options}
    with quiet_loading():
        try:
            transformer = kind(
                str(folder),
                model_kwargs={"dtype": DTYPES[spec.dtype], "local_files_only": True},
                processor_kwargs={"local_files_only": True},
                **arguments,
            )
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise LoadError(f"the weights or tokenizer in {folder} cannot be loaded: {reason}", field="model") from None
    return prepare(transformer)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the loading report and progress bars of transformers: an unembedding left out is what we want."""
    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def prepare(transformer: T) -> T:
    """Set what every decoder needs here: right padding, a pad token, no dropout."""
    tokenizer = transformer.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise LoadError("the model has no fast tokenizer (tokenizer.json); convert it with transformers", field="model")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise LoadError("the tokenizer has neither a pad token nor an end token; add one", field="model")
        tokenizer.pad_token = tokenizer.eos_token
    transformer.eval()
    return transformer


def hidden_size(transformer: Transformer) -> int:
    """Return D, the width of the decoder's hidden states."""
    return module_width(transformer)


class FormattedTransformer(Transformer):  # type: ignore[misc]
    """The decoder behind a text template: PromptEOL's cue, echo's second copy.

    Args:
        template: The fields of `embedserve.tokens.Template`.
        prompts: The prefix of each task.
    """

    config_keys = [*Transformer.config_keys, "template"]

    def __init__(self, *args: Any, template: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.template = template or {}

    def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` (B, T) and ``pooled_from`` (B,)."""
        limit = int(self.tokenizer.model_max_length)
        rows = tokenize(self.tokenizer, inputs, Template(**self.template), prompt or "", limit)
        batch = self.tokenizer.pad({"input_ids": [row.tolist() for row in rows.ids]}, return_tensors="pt")
        return {**batch, "pooled_from": torch.from_numpy(rows.pooled_from)}

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Run the decoder, then leave in ``attention_mask`` only the positions that pooling may read."""
        pooled_from = features.pop("pooled_from", None)
        features = super().forward(features, **kwargs)
        if pooled_from is not None and "attention_mask" in features:
            features["attention_mask"] = pooled_positions(features["attention_mask"], pooled_from)
        return features


def pooled_positions(attention_mask: Tensor, pooled_from: Tensor) -> Tensor:
    """Return ``attention_mask`` (B, T) with the first ``pooled_from`` (B,) real tokens of each row set to 0."""
    place = attention_mask.cumsum(dim=1) - 1  # counted over real tokens: the padding side does not matter
    return attention_mask * (place >= pooled_from[:, None])


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder's layers, found by their number: families name them differently."""
    config: Any = model.config
    wanted = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise LoadError(f"{type(model).__name__} has no list of {wanted} layers; is it a decoder?", field="model")


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm after the last layer."""
    for name in ("norm", "ln_f", "final_layer_norm", "final_norm"):
        for path, module in model.named_modules():
            if path.rpartition(".")[2] == name and ".layers." not in path and ".h." not in path:
                return module
    raise LoadError(f"{type(model).__name__} has no final norm that this strategy knows", field="model")


def load_unembedding(folder: Path) -> Tensor:
    """Return the unembedding ``lm_head.weight`` (V, D) in float32; of a tied model the input embedding.

    Raises:
        LoadError: The model has no unembedding: it is no decoder language model.
    """
    try:
        with quiet_loading():
            model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (ValueError, OSError) as error:
        message = f"{folder} has no unembedding: {str(error).splitlines()[0]} Use a decoder language model."
        raise LoadError(message, field="model") from None
    head = model.get_output_embeddings()
    if head is None:
        raise LoadError(f"{type(model).__name__} has no unembedding; use a decoder language model", field="model")
    return head.weight.detach().float()
