"""Heads: folders with a strategy's trained weights, without those of the backbone.

``head.safetensors`` has the weights of the strategy's modules and low-rank adapters of the decoder, in float16 or
float32. ``embedserve.json`` has the spec, the digest of the backbone and that of the weights. The heads in
``embedserve/zoo`` ship with the project, one for each strategy trained on nano.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedserve.compat import Module, decoder_of
from embedserve.disk_records import file_digest
from embedserve.errors import CorruptFileError, LoadError, SpecError
from embedserve.folders import RECORD, read_folder_record, replacing, write_record
from embedserve.lora import PREFIX, add_adapters
from embedserve.spec import EncoderSpec

HEAD = "head.safetensors"
FORMAT = 1
ZOO = Path(__file__).parent / "zoo"
RANDOM = "random"  # untrained weights
REMEDY = "train it again or restore the folder"
HUB_ARGUMENTS = ("token", "cache_folder", "revision", "local_files_only")  # arguments of the library's load_config


class HeadModule(Module):  # type: ignore[misc]
    """A module after the decoder with its own weights.

    A subclass lists the arguments of its constructor in ``config_keys``. Its weights stay in float32 even with a
    decoder in half precision: ``forward`` casts its inputs to float32 and its result back to their dtype.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the weights to another device; ignore casts to the decoder's dtype."""

        def move(weight: Tensor) -> Tensor:
            result = fn(weight)
            return result if result.dtype == weight.dtype else weight.to(result.device)

        module: Self = super()._apply(move, recurse)
        return module

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the arguments and the weights to the folder ``output_path``."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Load a module that `save` wrote; of ``kwargs`` only `HUB_ARGUMENTS` are used."""
        where = {"subfolder": subfolder} | {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        module = cls(**cls.load_config(model_name_or_path, **where))
        cls.load_torch_weights(model_name_or_path, **where, model=module)
        return module


@dataclass(frozen=True)
class Head:
    """A strategy's trained weights.

    Attributes:
        spec: The encoder in training; its backbone may have moved since.
        backbone_digest: Digest of the backbone's weights and tokenizer.
        digest: Digest of the head's weights.
        path: The file of the weights.
    """

    spec: EncoderSpec
    backbone_digest: str
    digest: str
    path: Path


def is_head(folder: Path) -> bool:
    """Return whether ``folder`` contains a head."""
    return (folder / HEAD).is_file() and (folder / RECORD).is_file()


def read_head(folder: Path) -> Head:
    """Return the head in ``folder`` after verifying the digests.

    Raises:
        LoadError: The folder does not contain a head.
        CorruptFileError: The record or the weights are damaged.
    """
    folder = folder.expanduser()
    if not is_head(folder):
        raise LoadError(f"{folder} contains no head ({HEAD}, {RECORD}); train one with embedserve train", field="head")
    head = read_folder_record(folder, lambda record: _head_of(folder, record), REMEDY, FORMAT)
    if file_digest(head.path) != head.digest:
        raise CorruptFileError(f"{head.path} is damaged: its digest does not match; {REMEDY}")
    return head


def _head_of(folder: Path, record: dict[str, Any]) -> Head:
    spec = EncoderSpec.from_dict(dict(record["spec"]))
    return Head(spec, str(record["backbone"]), str(record["head"]), folder / HEAD)


def find_head(spec: EncoderSpec, backbone_digest: str) -> Head | None:
    """Return the head of ``spec``. Default: the one that ships. None for ``head="random"``.

    Raises:
        SpecError: No head ships for this strategy and backbone, or the requested one is of another.
    """
    if spec.head == RANDOM:
        return None
    folder = ZOO / spec.strategy if spec.head is None else Path(spec.head)
    if spec.head is None and not is_head(folder):
        raise SpecError(_untrained(spec), field="head")
    head = read_head(folder)
    if head.spec.strategy != spec.strategy:
        message = f"the head in {folder} was trained for {head.spec.strategy}, not for {spec.strategy}"
        raise SpecError(message, field="head")
    if head.backbone_digest != backbone_digest:
        if spec.head is None:
            raise SpecError(_untrained(spec), field="head")
        message = f"the head in {folder} was trained on another backbone ({head.spec.backbone}); train one on this"
        raise SpecError(message, field="head")
    return head


def _untrained(spec: EncoderSpec) -> str:
    return (
        f"{spec.strategy} has trained weights, and no head ships for {spec.backbone}: train one with embedserve train "
        f"--strategy {spec.strategy} --backbone {spec.backbone}, then set head to its folder"
    )


def head_state(modules: list[nn.Module]) -> dict[str, Tensor]:
    """Return the trained weights of a strategy's modules by name, without those of the decoder.

    Weights that a module lists in ``derived`` are recomputed when it is built, and omitted.
    """
    state: dict[str, Tensor] = {}
    for number, module in enumerate(modules):
        excluded = (*getattr(module, "derived", ()), *(("model.", "auto_model.") if number == 0 else ()))
        for name, weight in module.state_dict().items():
            if not name.startswith(excluded):
                state[f"{number}.{name}"] = weight
    return state


def load_head(modules: list[nn.Module], head: Head) -> dict[str, Tensor]:
    """Copy the weights of ``head`` into a strategy's modules; return the low-rank adapters added to the decoder.

    Raises:
        SpecError: The options give modules of other shapes than the trained ones.
    """
    target = head_state(modules)
    trained = load_file(head.path)
    adapters = {name: trained.pop(name) for name in list(trained) if name.startswith(PREFIX)}
    differing = [name for name in target.keys() | trained.keys() if _shape(target, name) != _shape(trained, name)]
    if differing:
        name = min(differing)
        shapes = f"{name} is {_shape(trained, name)} in the head, but {_shape(target, name)} with these options"
        raise SpecError(f"options do not fit the head in {head.path.parent}: {shapes}; omit them", field="options")
    with torch.no_grad():
        for name, weight in target.items():
            weight.copy_(trained[name])
    add_adapters(decoder_of(modules[0]), adapters)
    return adapters


def check_head_folder(folder: Path) -> None:
    """Raise `LoadError` if ``folder`` exists, is not empty and does not contain a head."""
    if folder.exists() and not (folder.is_dir() and (is_head(folder) or not any(folder.iterdir()))):
        raise LoadError(f"{folder} exists and does not contain a head; use an empty or a new folder", field="folder")


def save_head(
    modules: list[nn.Module],
    spec: EncoderSpec,
    backbone_digest: str,
    folder: Path,
    *,
    adapters: Mapping[str, Tensor] | None = None,
    half: bool = True,
) -> None:
    """Write the trained weights of ``modules``, and ``adapters`` of the decoder, to ``folder``.

    An existing head there is replaced. ``half`` stores the weights in float16.

    Raises:
        LoadError: ``folder`` exists and contains something else.
    """
    folder = folder.expanduser().absolute()
    check_head_folder(folder)
    dtype = torch.float16 if half else torch.float32
    weights = {
        name: weight.detach().cpu().to(dtype if weight.is_floating_point() else weight.dtype).contiguous()
        for name, weight in {**head_state(modules), **(adapters or {})}.items()
    }
    with replacing(folder) as new:
        save_file(weights, new / HEAD)
        values = {name: value for name, value in spec.to_dict().items() if name != "head"}
        record = {"format": FORMAT, "spec": values, "backbone": backbone_digest, "head": file_digest(new / HEAD)}
        write_record(new, record)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
