"""A spec, or the name of a model, -> the modules that run, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from embedserve.backbone import check_model_folder, find_folder, weights_digest
from embedserve.compat import Normalize, token_normalize
from embedserve.errors import SpecError
from embedserve.folders import RECORD
from embedserve.heads import RANDOM, find_head, is_head, load_head, read_head
from embedserve.loading import saved
from embedserve.loading.colbert_folders import is_colbert
from embedserve.loading.reference import read_file
from embedserve.post_transforms import build_post
from embedserve.spec import EncoderSpec, spec_difference
from embedserve.strategies import build_strategy, canonical_options, is_multi_vector, is_trained, with_defaults
from embedserve.types import Task

DENSE, MULTI = "sentence_embedding", "token_embeddings"  # the feature that holds an encoder's vectors


@dataclass(frozen=True)
class Built:
    """What `build` makes.

    Attributes:
        modules: In the order they run; the last ones normalise.
        spec: Everything that shapes a vector, defaults spelled out.
        fingerprint: Equal only for encoders whose vectors may be compared.
        name: What was loaded.
        head_size: How many of ``modules`` the strategy built; the others are post-transforms.
        backbone_digest: Of the backbone's weights and tokenizer; empty for a saved encoder.
        fingerprint_of: The fingerprint of the same modules with a spec of other prompts.
        adapters: What a head added to the decoder's weights, by name (`embedserve.lora`).
        reference: The reference vectors that came with a saved encoder.
    """

    modules: list[nn.Module]
    spec: EncoderSpec
    fingerprint: str
    name: str
    head_size: int
    backbone_digest: str
    fingerprint_of: Callable[[EncoderSpec], str]
    adapters: dict[str, Tensor] = field(default_factory=dict)
    reference: Mapping[Task, np.ndarray] | None = None


def build(model: str | Path | EncoderSpec) -> Built:
    """Build an encoder from a spec, or from the name or folder of a model; what is raised stands in `Encoder.load`."""
    spec = model if isinstance(model, EncoderSpec) else EncoderSpec(backbone=str(model))
    folder = find_folder(spec.backbone)
    name = folder.resolve().name if Path(spec.backbone).expanduser().is_dir() else spec.backbone
    if is_head(folder):
        head = read_head(folder)
        if isinstance(model, EncoderSpec):
            _refuse_another(model, head.spec, folder)
        spec = replace(head.spec, head=str(folder))
        folder = find_folder(spec.backbone)
    if saved.is_saved(folder):
        modules, found, fingerprint = saved.load(folder)
        if isinstance(model, EncoderSpec):
            _refuse_another(model, found, folder)
        reference = read_file(folder / saved.REFERENCE, fingerprint) if (folder / RECORD).is_file() else None
        prompted = partial(_prompted, fingerprint, found)
        return Built(modules, found, fingerprint, name, len(modules), "", prompted, reference=reference)
    check_model_folder(folder)
    if is_colbert(folder):
        modules, found, fingerprint = saved.load_foreign_colbert(folder)
        if isinstance(model, EncoderSpec):
            _refuse_another(model, found, folder)
        return Built(modules, found, fingerprint, name, len(modules), "", partial(_prompted, fingerprint, found))
    return _build_spec(spec, folder, name)


def _build_spec(spec: EncoderSpec, folder: Path, name: str) -> Built:
    digest = weights_digest(folder)
    trained = is_trained(spec.strategy, spec.options)
    if spec.head == RANDOM and not trained:
        raise SpecError(f"{spec.strategy} has no trained weights; leave head out", field="head")
    head = find_head(spec, digest) if trained or spec.head is not None else None
    if head is not None:
        _refuse_overridden(spec, head.spec)
        spec = replace(
            spec,
            options={**head.spec.options, **spec.options},
            template=spec.template or head.spec.template,
            prompts=spec.prompts or head.spec.prompts,
            attention=head.spec.attention,
            pool_prompt=head.spec.pool_prompt,
        )
    spec = with_defaults(spec)
    modules = build_strategy(spec, folder)
    adapters = {} if head is None else load_head(modules, head)
    if adapters and (fitted := [post for post in spec.post if post.startswith(("whitening:", "adapter:"))]):
        message = (
            f"{fitted[0]} was fitted to the plain decoder's vectors, and this head adapts the decoder; leave it out"
        )
        raise SpecError(message, field="post")
    size = len(modules)
    vectors = MULTI if is_multi_vector(spec.strategy) else DENSE
    transforms, canonical = build_post(spec, modules, folder, vectors, digest)
    modules += [*transforms, Normalize() if vectors == DENSE else token_normalize()]
    head_digest = None if head is None else head.digest
    fingerprint_of = partial(
        EncoderSpec.fingerprint,
        weights_digest=digest, head_digest=head_digest, post=canonical, options=canonical_options(spec),
    )  # fmt: skip
    return Built(modules, spec, fingerprint_of(spec), name, size, digest, fingerprint_of, adapters)


def _prompted(fingerprint: str, own: EncoderSpec, spec: EncoderSpec) -> str:
    """Return the fingerprint, with the prompts of ``spec``, of an encoder that has ``fingerprint`` with its own."""
    if spec.prompts == own.prompts:
        return fingerprint
    described = json.dumps([fingerprint, dict(spec.prompts)], sort_keys=True)
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def _refuse_overridden(asked: EncoderSpec, trained: EncoderSpec) -> None:
    """Raise `SpecError` where a field that shapes states was set, and the head was trained with another value."""
    plain = EncoderSpec(asked.strategy, asked.backbone)
    for name in ("attention", "pool_prompt"):
        value, own = getattr(asked, name), getattr(trained, name)
        if value not in (getattr(plain, name), own):
            message = f"the head of {asked.strategy} was trained with {name} {own}, not {value}; leave {name} out, or"
            raise SpecError(f"{message} train one with it", field=name)


def _refuse_another(asked: EncoderSpec, found: EncoderSpec, folder: Path) -> None:
    """Raise `SpecError` if a field of ``asked`` was set, and is not what the saved encoder in ``folder`` has."""
    values, unset = asked.to_dict(), EncoderSpec(saved.AS_SAVED, asked.backbone).to_dict()
    for name in spec_difference(values, unset):
        if values.get(name) != found.to_dict().get(name):
            message = f"{folder} is a finished encoder with {name} of its own; load it by its name alone"
            raise SpecError(message, field=name)
