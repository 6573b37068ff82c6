"""Post-transforms of the vectors: ``embedfilter:4``, ``embedfilter:4:head``, ``truncate:128``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from embedserve.backbone import load_unembedding
from embedserve.compat import vector_width
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec
from embedserve.strategies.embedfilter import filter_matrix, filter_module

NAMES = ("embedfilter", "truncate")


def build_post(
    spec: EncoderSpec, before: list[nn.Module], folder: Path, reads: str
) -> tuple[list[nn.Module], list[str]]:
    """Return one module per transform, and each transform's text with the digest of its file for the file's path.

    Args:
        spec: What is built.
        before: The strategy's modules, whose vectors the first transform reads.
        folder: The backbone's.
        reads: The feature that holds the vectors, ``sentence_embedding`` or ``token_embeddings``.
    """
    modules: list[nn.Module] = []
    backbone_dim = dim = vector_width(before)
    for place, text in enumerate(spec.post):
        field = f"post[{place}]"
        name, *arguments = text.split(":")
        if name not in NAMES:
            raise SpecError(f"there is no post-transform {name!r}; there are {', '.join(NAMES)}", field=field)
        if not arguments or not arguments[0].isdecimal() or len(arguments) > (2 if name == "embedfilter" else 1):
            raise SpecError(f"{text!r} is not of the form {name}:NUMBER", field=field)
        number = int(arguments[0])
        if name == "embedfilter":
            if dim != backbone_dim:
                message = "embedfilter reads the backbone's own width: put it first, before truncate, and only once"
                raise SpecError(message, field=field)
            try:
                weight = filter_matrix(load_unembedding(folder), number, arguments[1] if arguments[1:] else "edge")
            except SpecError as error:
                raise SpecError(f"{text!r}: {error.message}", field=field) from None
            if weight.shape[1] != dim:
                message = f"embedfilter reads vectors of the unembedding's width {weight.shape[1]}, and {spec.strategy}"
                raise SpecError(f"{message} makes them {dim} wide here; choose options that keep it", field=field)
        else:
            if not 1 <= number <= dim:
                raise SpecError(f"truncate takes 1 to {dim} dimensions here, got {number}", field=field)
            weight = torch.eye(dim)[:number].clone()
        modules.append(filter_module(weight, reads))
        dim = weight.shape[0]
    return modules, list(spec.post)
