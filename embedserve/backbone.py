"""The decoder: found on disk, checked, loaded, and read layer by layer."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils
from transformers.utils import logging as hf_logging

from embedserve.compat import Transformer, decoder_of, module_width, new_transformer
from embedserve.decoder import Decoder
from embedserve.errors import EmbedserveError, LoadError, NotFoundError, SpecError
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template

T = TypeVar("T", bound=Transformer)
D = TypeVar("D", bound=Decoder)
NANO = Path(__file__).parent / "nano"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What the weights digest covers: everything in a backbone's folder that can change a vector.
DIGESTED = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.safetensors"),
)
# What families call the two matrices over the vocabulary.
INPUT_EMBEDDINGS, UNEMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings"), ("lm_head", "embed_out")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")

_REPORT = threading.Lock()  # `loading` takes the place of a function that all threads share


def find_folder(name: str) -> Path:
    """Return the folder of a model: ``nano``, a folder, or a hub id, which is downloaded.

    Raises:
        NotFoundError: There is neither a folder nor a reachable hub repository of that name.
    """
    try:
        folder = NANO if name == "nano" else Path(name).expanduser()
        if folder.is_dir():
            return folder
        is_file = folder.exists()
    except (OSError, RuntimeError):  # a name too long for a file, or the home of nobody
        return _download(name)
    if name == "nano":
        raise NotFoundError(f"nano is missing from this installation: no folder {folder}; install anew", field="model")
    if is_file:
        raise LoadError(f"model {name!r} is a file; give the folder that holds config.json", field="model")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        unnamed = isinstance(error, HFValidationError)
        gave = "no model on the hub can have that name" if unnamed else f"the hub gave none ({_first_line(error)})"
        message = f"no model {name!r}: there is no such folder, and {gave}. "
        raise NotFoundError(message + "Give a folder with config.json, or 'nano'.", field="model") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_json(path: Path) -> Any:
    """Return the values of a JSON file of a model folder, or raise `LoadError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not JSON ({error}); copy the model folder anew", field="model") from None


def check_model_folder(folder: Path) -> None:
    """Raise `LoadError` unless ``folder`` can be loaded without running foreign code."""
    if not (folder / "config.json").is_file():
        raise LoadError(
            f"model folder {folder} has no config.json; give a folder in Hugging Face layout", field="model"
        )
    check_no_foreign_code(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.glob("*.bin")]
        found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        message = f"model folder {folder} has {found}; it needs *.safetensors (save_pretrained writes them)"
        raise LoadError(message, field="model")
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):  # transformers would take an empty one
        message = f"model folder {folder} has no tokenizer; it needs tokenizer.json (save_pretrained writes it)"
        raise LoadError(message, field="model")


def check_no_foreign_code(folder: Path) -> None:
    """Raise `LoadError` if a configuration anywhere in ``folder`` names code of its own, or another model."""
    for path in sorted(folder.rglob("*.json")):
        if path.name == "adapter_config.json":
            raise LoadError(
                f"{path}: adapters are not loaded; merge it into the weights (merge_and_unload)", field="model"
            )
        if "config" not in path.name:
            continue
        values = read_json(path)
        if path.name == "config.json" and path.parent == folder and not isinstance(values, dict):
            raise LoadError(f"{path} must hold an object; copy the model folder anew", field="model")
        if isinstance(values, dict) and "auto_map" in values:
            message = f"{path} has auto_map, which would run code from the model folder; use a model of a known family"
            raise LoadError(message, field="model")


def weights_digest(folder: Path) -> str:
    """Return 32 hex digits over the configuration, the tokenizer and the weights in ``folder``."""
    paths = sorted({path for pattern in DIGESTED for path in folder.absolute().glob(pattern)})
    stats = [path.stat() for path in paths]
    return _digest(tuple(paths), tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats))


@lru_cache(maxsize=64)
def _digest(paths: tuple[Path, ...], stats: tuple[tuple[int, ...], ...]) -> str:
    """Return the digest of files, read again only once one of their ``stats`` has changed."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def load_as(kind: type[T], spec: EncoderSpec, folder: Path, **options: Any) -> T:
    """Load the decoder, without its unembedding, as an input module of class ``kind``.

    Raises:
        LoadError: The files cannot be read.
        SpecError: ``max_tokens`` is more than the model has positions for.
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
    """Load quietly, and turn whatever is wrong with the files into one `LoadError`.

    Where a weight is in no file, transformers makes up a random one and says so only in the report it logs. What it
    would report comes to us instead.
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
        except Exception as error:  # what transformers raises depends on which byte is wrong
            message = f"the model in {folder} cannot be loaded: {_first_line(error)}"
            raise LoadError(message, field="model") from error
        finally:
            modeling_utils.log_state_dict_report = report


def _refuse_gaps(missing: Collection[str], mismatched: Collection[tuple[Any, ...]], folder: Path) -> None:
    """Raise `LoadError` if a weight is in no file or has another shape; that of a pooler, which is never read, may."""
    if gaps := sorted(name for name in missing if "pooler." not in name):
        some = ", ".join(gaps[:3]) + (f" and {len(gaps) - 3} more" if len(gaps) > 3 else "")
        raise LoadError(f"the weights in {folder} lack {some}; copy the model folder anew", field="model")
    for name, found, wanted in sorted(mismatched):
        shapes = f"{tuple(found)}, but config.json asks for {tuple(wanted)}"
        raise LoadError(f"{name} in {folder} has shape {shapes}; copy the model folder anew", field="model")


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
    rows = decoder_of(transformer).get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        message = f"the tokenizer has {tokenizer.vocab_size} entries, but the model embeds {rows}: they do not belong"
        raise LoadError(f"{message} together; copy the model folder anew", field="model")
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
    """Load the decoder as an input module of our own class ``kind``, with the spec's template and attention.

    Args:
        spec: What is built.
        folder: The backbone's.
        kind: The class; ``options`` are its further arguments.
        template: The strategy's own, which leaves no place for one in the spec.
        skip_begin: Leave a special token at the beginning out of the pooling.

    Raises:
        SpecError: There would be two templates.
    """
    if spec.template is not None and template is not None:
        message = f"{spec.strategy} has a template of its own, so template must be left out"
        raise SpecError(message, field="template")
    if template is None:
        template = Template() if spec.template is None else Template.parse(spec.template)
    template = replace(template, skip_begin=skip_begin, pool_prompt=spec.pool_prompt)
    bidirectional = spec.attention == "bidirectional"
    return load_as(kind, spec, folder, template=asdict(template), bidirectional=bidirectional, **options)


def load_plain(spec: EncoderSpec, folder: Path) -> Transformer:
    """Load the decoder as the library's own input module where that is enough, so that a saved encoder needs no more.

    It is enough for a causal decoder without a template that pools every token, unless a query is encoded otherwise
    than a document.
    """
    plain = spec.template is None and spec.attention == "causal" and spec.pool_prompt
    if plain and not any(post.startswith("adapter:") for post in spec.post):
        return load_as(Transformer, spec, folder)
    return load_decoder(spec, folder, Decoder)


def hidden_size(transformer: Transformer) -> int:
    """Return D, the width of the decoder's hidden states."""
    return module_width(transformer)


def load_language_model(folder: Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Any:
    """Load the decoder with its unembedding, in ``dtype``; ``auto`` keeps that of its file.

    Raises:
        LoadError: The folder holds no unembedding; a random one is never made up.
    """
    check_model_folder(folder)
    with loading(folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, output_loading_info=True
        )
    if not _unembedding_names(model) - set(info["missing_keys"]):
        message = f"{folder} holds no unembedding (lm_head); use the decoder as it was published, not a saved encoder"
        raise LoadError(message, field="model")
    return model.eval()


def _unembedding_names(model: Any) -> set[str]:
    """Return the names of the unembedding's weight, several where it is tied; none where the model has no such."""
    head = model.get_output_embeddings()
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if head and weight is head.weight}


def load_unembedding(folder: Path) -> Tensor:
    """Return the unembedding ``lm_head.weight`` (V, D) in float32; of a tied model the input embedding.

    Only that matrix is read where its name is known; otherwise the whole language model.

    Raises:
        LoadError: The folder holds none.
    """
    check_model_folder(folder)
    with loading(folder):
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        tied = bool(config.get_text_config().tie_word_embeddings)
        names = INPUT_EMBEDDINGS if tied else UNEMBEDDINGS
        found = [
            (path, name)
            for path in sorted(folder.glob("*.safetensors"))
            for name in safe_open(str(path), "pt").keys()  # noqa: SIM118 (a file, not a dict)
            if name.rpartition(".")[0].rpartition(".")[2] in names and name.endswith(".weight")
        ]
        if len(found) == 1:
            with safe_open(str(found[0][0]), "pt") as file:
                weight: Tensor = file.get_tensor(found[0][1])
                return weight.float()
    return load_language_model(folder, dtype="auto").get_output_embeddings().weight.detach().float()
