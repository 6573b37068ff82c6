"""Trained weights of a strategy without the backbone's: a small folder that names the backbone it belongs to.

``head.safetensors`` holds the weights, in float16 or float32, those of the strategy's modules and low-rank adapters of
the decoder; ``embedserve.json`` the spec, the digest of the backbone and that of the file. Those under
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
RANDOM = "random"  # the head that training starts from
REMEDY = "train it again or restore the folder"
WHERE = ("token", "cache_folder", "revision", "local_files_only")  # what `load_config` of the library takes


class HeadModule(Module):  # type: ignore[misc]
    """A module with weights of its own behind the decoder; a saved folder brings them back.

    A subclass names the arguments that build it in ``config_keys``. Its weights stay in float32 beside a decoder in
    half precision: it casts the states it reads, and its result back to their dtype, which is what later modules have.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let the library move the weights to another device, but not into the decoder's dtype, as it does to all."""

        def moved(weight: Tensor) -> Tensor:
            found = fn(weight)
            return found if found.dtype == weight.dtype else weight.to(found.device)

        result: Self = super()._apply(moved, recurse)
        return result

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the arguments and the weights to the folder ``output_path``."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Build the module from what `save` wrote; of ``kwargs`` only those that say where to look are read."""
        where = {"subfolder": subfolder} | {name: kwargs[name] for name in WHERE if name in kwargs}
        module = cls(**cls.load_config(model_name_or_path, **where))
        cls.load_torch_weights(model_name_or_path, **where, model=module)
        return module


@dataclass(frozen=True)
class Head:
    """A strategy's trained weights.

    Attributes:
        spec: The encoder they were trained as; its backbone may have moved since.
        backbone_digest: Of the backbone's weights and tokenizer.
        digest: Of the weights.
        path: The file.
    """

    spec: EncoderSpec
    backbone_digest: str
    digest: str
    path: Path


def is_head(folder: Path) -> bool:
    """Say whether ``folder`` holds a head."""
    return (folder / HEAD).is_file() and (folder / RECORD).is_file()


def read_head(folder: Path) -> Head:
    """Return the head in ``folder`` after checking its file against its digest.

    Raises:
        LoadError: There is none.
        CorruptFileError: The record or the weights are damaged.
    """
    folder = folder.expanduser()
    if not is_head(folder):
        raise LoadError(f"{folder} holds no trained head ({HEAD}, {RECORD}); embedserve train writes one", field="head")
    head = read_folder_record(folder, lambda record: _head_of(folder, record), REMEDY, FORMAT)
    if file_digest(head.path) != head.digest:
        raise CorruptFileError(f"{head.path} differs from what was saved; {REMEDY}")
    return head


def _head_of(folder: Path, record: dict[str, Any]) -> Head:
    spec = EncoderSpec.from_dict(dict(record["spec"]))
    return Head(spec, str(record["backbone"]), str(record["head"]), folder / HEAD)


def find_head(spec: EncoderSpec, backbone_digest: str) -> Head | None:
    """Return the head that ``spec`` asks for, by default the one that ships; None for ``random``.

    Raises:
        SpecError: None ships for this strategy and backbone, or the one asked for belongs to others.
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
        message = f"the head in {folder} was trained on another backbone ({head.spec.backbone}); train one for this"
        raise SpecError(message, field="head")
    return head


def _untrained(spec: EncoderSpec) -> str:
    return (
        f"{spec.strategy} has trained weights, and none ship for {spec.backbone}: train them with embedserve train "
        f"--strategy {spec.strategy} --backbone {spec.backbone}, then set head to their folder"
    )


def head_state(modules: list[nn.Module]) -> dict[str, Tensor]:
    """Return the trained weights of a strategy's modules by name: everything but the decoder and what is derived.

    A module names in ``derived`` the weights that building it makes anew.
    """
    state: dict[str, Tensor] = {}
    for place, module in enumerate(modules):
        left_out = (*getattr(module, "derived", ()), *(("model.", "auto_model.") if place == 0 else ()))
        for name, weight in module.state_dict().items():
            if not name.startswith(left_out):
                state[f"{place}.{name}"] = weight
    return state


def load_head(modules: list[nn.Module], head: Head) -> dict[str, Tensor]:
    """Put the weights of ``head`` into a strategy's modules; return the adapters that were added to the decoder.

    Raises:
        SpecError: The options make modules of other shapes than those that were trained.
    """
    wanted = head_state(modules)
    found = load_file(head.path)
    adapters = {name: found.pop(name) for name in list(found) if name.startswith(PREFIX)}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if _shape(wanted, name) != _shape(found, name)):
        shapes = f"{wrong[0]} is {_shape(found, wrong[0])} in the head, but {_shape(wanted, wrong[0])} in the options"
        raise SpecError(f"options do not fit the head in {head.path.parent}: {shapes}; leave them out", field="options")
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(found[name])
    add_adapters(decoder_of(modules[0]), adapters)
    return adapters


def check_head_folder(folder: Path) -> None:
    """Raise `LoadError` if ``folder`` exists and holds something else than a head."""
    if folder.exists() and not (folder.is_dir() and (is_head(folder) or not any(folder.iterdir()))):
        raise LoadError(f"{folder} exists and holds no head; give an empty or a new folder", field="folder")


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

    An older head there is replaced.

    ``half`` stores them in float16.

    Raises:
        LoadError: ``folder`` exists and holds something else.
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
        described = {name: value for name, value in spec.to_dict().items() if name != "head"}
        record = {"format": FORMAT, "spec": described, "backbone": backbone_digest, "head": file_digest(new / HEAD)}
        write_record(new, record)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
