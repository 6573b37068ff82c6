"""Read ColBERT models of PyLate, Stanford and sentence-transformers 6, and write them for PyLate.

- PyLate: modules Transformer and Dense; lengths, prefixes and expansion in config_sentence_transformers.json.
- Stanford: config.json with the architecture HF_ColBERT, weights with ``linear.weight``, artifact.metadata.
- sentence-transformers 6: modules Transformer, Dense, MultiVectorMask, Normalize.

Each is read as a `ColbertDecoder` and its projections; the prefix tokens of queries and documents become prompts.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken
from torch import nn

from embedserve.backbone import loading, prepare, quiet_loading
from embedserve.compat import load_token_projection, new_transformer, token_projection
from embedserve.errors import LoadError, SpecError
from embedserve.folders import replacing
from embedserve.model_folders import read_json
from embedserve.strategies.colbert import ColbertDecoder, TokenPooling, skipped_entries
from embedserve.tokens import Template

SETTINGS = "config_sentence_transformers.json"
PYLATE_DENSE = "pylate.models.Dense.Dense"
MULTI_TYPES = ("ColBERT", "MultiVectorEncoder")  # model_type of PyLate and of sentence-transformers 6
QUERY_LENGTH = 32  # default of all three


def is_colbert(folder: Path) -> bool:
    """Return whether ``folder`` contains a ColBERT model of another library."""
    return _is_stanford(folder) or _is_pylate(folder)


def _is_stanford(folder: Path) -> bool:
    path = folder / "config.json"
    config = read_json(path) if path.is_file() and not (folder / "modules.json").is_file() else {}
    return isinstance(config, dict) and "HF_ColBERT" in (config.get("architectures") or [])


def _is_pylate(folder: Path) -> bool:
    path = folder / SETTINGS
    config = read_json(path) if path.is_file() and (folder / "modules.json").is_file() else {}
    keys = ("query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens", "skiplist_words")
    return isinstance(config, dict) and (config.get("model_type") in MULTI_TYPES or any(key in config for key in keys))


def load_colbert(folder: Path) -> tuple[list[nn.Module], dict[str, str]]:
    """Return the modules and the prompts of a ColBERT model whose files were checked for foreign code.

    Raises:
        LoadError: The folder has none of these formats.
    """
    with loading(folder):
        return _load_stanford(folder) if _is_stanford(folder) else _load_pylate(folder)


def _load_stanford(folder: Path) -> tuple[list[nn.Module], dict[str, str]]:
    path = folder / "artifact.metadata"
    metadata = read_json(path) if path.is_file() else {}
    settings = {
        "query_length": metadata.get("query_maxlen") or QUERY_LENGTH,
        "document_length": metadata.get("doc_maxlen"),
        "expands": True,
        "attends": bool(metadata.get("attend_to_mask_tokens")),
    }
    words = string.punctuation if metadata.get("mask_punctuation", True) else ()
    prefixes = {
        "query": (metadata.get("query_token_id") or "[unused0]") + " ",
        "document": (metadata.get("doc_token_id") or "[unused1]") + " ",
    }
    decoder = _decoder(folder, settings, words, prefixes)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            if "linear.weight" in weights.keys():  # noqa: SIM118 (a file, not a dict)
                weight = weights.get_tensor("linear.weight").float()
                return [decoder, token_projection(weight.shape[1], weight.shape[0], weight)], prefixes
    raise LoadError(f"the weights in {folder} have no linear.weight, ColBERT's projection", field="model")


def _load_pylate(folder: Path) -> tuple[list[nn.Module], dict[str, str]]:
    config: Mapping[str, Any] = read_json(folder / SETTINGS)
    entries = [
        (entry["type"].rpartition(".")[2], folder / entry["path"]) for entry in read_json(folder / "modules.json")
    ]
    kinds = [kind for kind, _ in entries]
    if kinds[0] != "Transformer" or any(kind not in ("Dense", "MultiVectorMask", "Normalize") for kind in kinds[1:]):
        message = f"{folder} contains the modules {', '.join(kinds)}; in ColBERT models only Transformer and Dense"
        message += " are supported"
        raise LoadError(message, field="model")
    path = entries[0][1] / "sentence_bert_config.json"
    first_config: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    masks = [read_json(module / "config.json") for kind, module in entries if kind == "MultiVectorMask"]
    settings, words = _settings({**first_config, **config}), config.get("skiplist_words")
    if masks:
        words = masks[0].get("skiplist_words")
    elif words is None:
        words = list(string.punctuation)
    prompts, prefixes = config.get("prompts") or {}, {}
    for task, name in (("query", "query_prefix"), ("document", "document_prefix")):
        prefixes[task] = config.get(name) or ""
        text = (prompts.get(task) or "").removeprefix(prefixes[task])
        prompts = {**prompts, task: prefixes[task] + text}
    decoder = _decoder(entries[0][1], settings, words or (), prefixes)
    if config.get("model_type") != "MultiVectorEncoder":
        vocabulary = decoder.tokenizer.get_vocab()
        decoder.second = [vocabulary[prefix] for prefix in prefixes.values() if prefix in vocabulary]
    projections = [load_token_projection(str(module)) for kind, module in entries if kind == "Dense"]
    return [decoder, *projections], {task: prompts[task] for task in ("query", "document") if prompts[task]}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `ColbertDecoder` from the settings of PyLate, or of sentence-transformers."""
    settings = {"query_length": config.get("query_length"), "document_length": config.get("document_length")}
    if "query_expansion" in config:
        expansion = config["query_expansion"] or {}
        if expansion and (expansion.get("strategy") != "fixed" or expansion.get("token")):
            raise LoadError(f"query_expansion {expansion} is not supported; only the strategy fixed is", field="model")
        length = expansion.get("length") or settings["query_length"]
        return {
            **settings, "query_length": length, "expands": bool(expansion), "attends": bool(expansion.get("attend"))
        }  # fmt: skip
    expands = config.get("do_query_expansion", True) is not False
    length = settings["query_length"] or QUERY_LENGTH
    attends = bool(config.get("attend_to_expansion_tokens"))
    return {**settings, "query_length": length, "expands": expands, "attends": attends}


def _decoder(folder: Path, settings: dict[str, Any], words: Any, prefixes: Mapping[str, str]) -> ColbertDecoder:
    """Return the decoder in ``folder``; prefixes in its vocabulary become special tokens, which are not split."""
    decoder = prepare(
        new_transformer(ColbertDecoder, str(folder), torch.float32, template=asdict(Template()), **settings)
    )
    tokenizer, known = decoder.tokenizer, decoder.tokenizer.get_vocab()
    for prefix in filter(str.strip, prefixes.values()):
        entry = next((text for text in (prefix, prefix.split()[0]) if text in known), None)
        if entry is not None and tokenizer.tokenize(entry) != [entry]:
            tokenizer.add_tokens([AddedToken(entry, normalized=False, special=True)], special_tokens=True)
    decoder.skips = skipped_entries(tokenizer, words)
    return decoder


def save_pylate(encoder: Any, folder: str | Path) -> None:
    """Write a ``colbert`` encoder as a folder that PyLate and sentence-transformers 6 load without embedserve.

    Args:
        encoder: An `Encoder` of the strategy, or one that `load_colbert` read.
        folder: A new or empty folder.

    Raises:
        SpecError: The format cannot represent an option of the encoder.
        LoadError: The folder is not empty.
    """
    first, *others = list(encoder.model)[:-1]  # the last one normalises, which PyLate does itself
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise LoadError(f"{folder} is not empty; use an empty or a new folder", field="folder")
    _check_pylate(encoder, first, others)
    with replacing(folder) as new, quiet_loading():
        first.save(str(new))
        (new / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": int(first.tokenizer.model_max_length), "do_lower_case": False}, indent=2)
        )
        entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        for number, module in enumerate(others, start=1):
            path = f"{number}_Dense"
            (new / path).mkdir()
            module.save(str(new / path))
            values = {"in_features": module.in_features, "out_features": module.out_features, "bias": module.bias}
            values |= {"activation_function": "torch.nn.modules.linear.Identity"}
            (new / path / "config.json").write_text(json.dumps(values, indent=2))
            entries.append({"idx": number, "name": str(number), "path": path, "type": PYLATE_DENSE})
        (new / "modules.json").write_text(json.dumps(entries, indent=2))
        words = [first.tokenizer.convert_ids_to_tokens(entry) for entry in first.skips]
        settings = {
            "model_type": "ColBERT",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            "query_prefix": encoder.spec.prompts.get("query", ""),
            "document_prefix": encoder.spec.prompts.get("document", ""),
            "query_length": first.query_length or encoder.max_tokens,
            "document_length": first.document_length or encoder.max_tokens,
            "do_query_expansion": first.expands,
            "attend_to_expansion_tokens": first.attends,
            "skiplist_words": words,
        }
        (new / SETTINGS).write_text(json.dumps(settings, indent=2))


def _check_pylate(encoder: Any, first: Any, others: list[Any]) -> None:
    """Raise `SpecError` unless PyLate's format can represent the encoder."""
    if not isinstance(first, ColbertDecoder):
        raise SpecError(
            f"{encoder.spec.strategy} has no token vectors; PyLate's format is for colbert", field="strategy"
        )
    unsupported = {
        "template": first.template != asdict(Template()),
        "attention": first.bidirectional,
        "options.token_pooling": any(isinstance(module, TokenPooling) for module in others),
        "options.dim": not others,
    }
    for field, is_used in unsupported.items():
        if is_used:
            message = f"PyLate's format cannot represent this {field}; use Encoder.save instead"
            raise SpecError(message, field=field)
    vocabulary = first.tokenizer.get_vocab()
    for task, prompt in encoder.spec.prompts.items():
        if prompt not in vocabulary:
            message = f"PyLate's prefix must be one token, and the prompt {prompt!r} is not in the vocabulary"
            raise SpecError(f"{message}; omit it or add it to the tokenizer", field=f"prompts.{task}")
        if encoder.tokenize(["a"], task).ids[0][0] == vocabulary[prompt]:
            message = f"PyLate would insert {prompt!r} after a text's first token, as the tokenizer has no begin token"
            raise SpecError(f"{message}; omit the prompt", field=f"prompts.{task}")
