"""Post-transforms of vectors: the entries of ``EncoderSpec.post``.

- ``embedfilter:RATIO[:DROP|:START]``, such as ``embedfilter:4``, ``embedfilter:4:head`` or ``embedfilter:4:10``;
- ``truncate:DIM``;
- ``whitening:FOLDER[:DIM]`` and ``adapter:FOLDER``, a head that ``embedserve train`` fitted over the same strategy.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from embedserve.compat import vector_width
from embedserve.errors import EmbedserveError, SpecError, did_you_mean
from embedserve.heads import Head, read_head
from embedserve.spec import EncoderSpec
from embedserve.strategies.adapter import Adapter
from embedserve.strategies.embedfilter import directions_of, filter_matrix, filter_module
from embedserve.strategies.inner import canonical_inner
from embedserve.strategies.whitening import whitening_module

FITTED = ("whitening", "adapter")
NAMES = ("embedfilter", "truncate", *FITTED)


def build_post(
    spec: EncoderSpec, before: list[nn.Module], folder: Path, reads: str, backbone_digest: str
) -> tuple[list[nn.Module], list[str]]:
    """Return one module per transform, and the transforms with digests instead of paths, for the fingerprint.

    Args:
        spec: The encoder.
        before: The strategy's modules, whose vectors the first transform reads.
        folder: The backbone's folder.
        reads: The feature with the vectors, ``sentence_embedding`` or ``token_embeddings``.
        backbone_digest: Digest of the backbone's weights.
    """
    modules: list[nn.Module] = []
    canonical: list[str] = []
    strategy_dim = vector_width(before)
    for index, text in enumerate(spec.post):
        name, _, argument = text.partition(":")
        if name not in NAMES:
            message = f"unknown post-transform {name!r}; {did_you_mean(name, NAMES)}known are {', '.join(NAMES)}"
            raise SpecError(message, field=f"post[{index}]")
        dim = vector_width([*before, *modules])
        try:
            if name in FITTED:
                if reads != "sentence_embedding":
                    raise SpecError(f"{name} needs one vector per text; {spec.strategy} has one per token")
                module, text = _fitted(spec, name, argument, dim, backbone_digest)
            elif name == "truncate":
                module = _truncate(argument, dim, reads)
            else:
                if dim != strategy_dim:
                    message = "embedfilter needs the backbone's width: put it first, before truncate, and only once"
                    raise SpecError(message)
                module = _embedfilter(spec, argument, dim, folder, reads)
        except EmbedserveError as error:
            raise SpecError(f"{text!r}: {error.message}", field=f"post[{index}]") from None
        modules.append(module)
        canonical.append(text)
    return modules, canonical


def _truncate(argument: str, dim: int, reads: str) -> nn.Module:
    if not _is_number(argument):
        raise SpecError("it must have the form truncate:NUMBER")
    if not 1 <= int(argument) <= dim:
        raise SpecError(f"truncate takes 1 to {dim} dimensions, the width of these vectors; got {argument}")
    return filter_module(torch.eye(dim)[: int(argument)].clone(), reads)


def _embedfilter(spec: EncoderSpec, argument: str, dim: int, folder: Path, reads: str) -> nn.Module:
    ratio, _, rest = argument.partition(":")
    if not _is_number(ratio):
        raise SpecError("it must have the form embedfilter:NUMBER, embedfilter:NUMBER:DROP or embedfilter:NUMBER:START")
    start = int(rest) if _is_number(rest) else None
    weight = filter_matrix(directions_of(folder), int(ratio), "edge" if start is not None else rest or "edge", start)
    if weight.shape[1] != dim:
        message = f"embedfilter needs vectors of the unembedding's width {weight.shape[1]}; those of {spec.strategy}"
        raise SpecError(f"{message} have {dim} dimensions; change its options")
    return filter_module(weight, reads)


def _fitted(spec: EncoderSpec, name: str, argument: str, dim: int, backbone_digest: str) -> tuple[nn.Module, str]:
    """Return the module of a head, and the transform with the head's digest instead of its folder."""
    path, _, number = argument.rpartition(":") if name == "whitening" else (argument, "", "")
    if not path or not _is_number(number):
        path, number = argument, ""
    if not path:
        raise SpecError(f"it must have the form {name}:FOLDER")
    head = read_head(Path(path))
    _check_fitted(spec, name, head, backbone_digest)
    weights = {key.partition(".")[2]: weight.float() for key, weight in load_file(head.path).items()}
    module: nn.Module
    if name == "adapter":
        width = weights["query.0.weight"].shape[1]
        options = head.spec.options
        module = Adapter(width, options["rank"], options["side"])
    else:
        fitted_dim, width = weights["linear.weight"].shape
        if number and not 1 <= int(number) <= fitted_dim:
            raise SpecError(f"whitening takes 1 to {fitted_dim} dimensions, those of the fit; got {number}")
        target_dim = int(number or fitted_dim)
        weights = {key: weight[:target_dim].contiguous() for key, weight in weights.items()}
        module = whitening_module(width, target_dim)
    if width != dim:
        raise SpecError(f"it was fitted to vectors of {width} dimensions; these have {dim}")
    module.load_state_dict(weights)
    return module, ":".join([name, head.digest, *([number] if number else [])])


def _check_fitted(spec: EncoderSpec, name: str, head: Head, backbone_digest: str) -> None:
    """Raise `SpecError` unless the head was fitted over this strategy and backbone."""
    if head.spec.strategy != name:
        raise SpecError(f"the head was trained for {head.spec.strategy}, not for {name}")
    if head.backbone_digest != backbone_digest:
        raise SpecError(f"the head was fitted over another backbone ({head.spec.backbone}); fit one over this backbone")
    inner = canonical_inner(head.spec.options["of"])
    if inner != {"strategy": spec.strategy, "options": dict(spec.options)}:
        raise SpecError(f"the head was fitted over {head.spec.options['of']!r}, which is another strategy")
    for field in ("template", "attention", "pool_prompt"):
        if getattr(head.spec, field) != getattr(spec, field):
            raise SpecError(f"the head was fitted with {field}={getattr(head.spec, field)!r}; this spec differs")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
