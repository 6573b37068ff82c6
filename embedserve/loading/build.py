"""Build an encoder's modules from a spec or the name of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from embedserve.compat import Normalize, token_normalize
from embedserve.errors import SpecError
from embedserve.folders import RECORD
from embedserve.heads import RANDOM, find_head, is_head, load_head, read_head
from embedserve.loading import saved
from embedserve.loading.colbert_folders import is_colbert
from embedserve.loading.reference import read_file
from embedserve.model_folders import check_model_folder, find_folder, weights_digest
from embedserve.post_transforms import build_post
from embedserve.spec import EncoderSpec, spec_difference
from embedserve.strategies import build_strategy, canonical_options, is_multi_vector, is_trained, with_defaults
from embedserve.types import Task

DENSE, MULTI = "sentence_embedding", "token_embeddings"  # the features with an encoder's vectors


@dataclass(frozen=True)
class Built:
    """The result of `build`.

    Attributes:
        modules: The modules in the order they run; the last one normalises.
        spec: The spec with a value for every option.
        fingerprint: Equal only for encoders whose vectors are comparable.
        name: The model's name.
        head_size: Number of ``modules`` that the strategy built; the others are post-transforms.
        backbone_digest: Digest of the backbone's weights and tokenizer; empty for a saved encoder.
        fingerprint_of: Returns the fingerprint of the same modules with a spec of other prompts.
        adapters: The head's low-rank adapters of the decoder, by name (`embedserve.lora`).
        reference: The reference vectors of a saved encoder.
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
    """Build an encoder from a spec, or from the name or folder of a model; errors are those of `Encoder.load`."""
    spec = model if isinstance(model, EncoderSpec) else EncoderSpec(backbone=str(model))
    folder = find_folder(spec.backbone)
    name = folder.resolve().name if Path(spec.backbone).expanduser().is_dir() else spec.backbone
    if is_head(folder):
        head = read_head(folder)
        if isinstance(model, EncoderSpec):
            _check_saved(model, head.spec, folder)
        spec = replace(head.spec, head=str(folder))
        folder = find_folder(spec.backbone)
    if not saved.is_saved(folder):
        check_model_folder(folder)
        if not is_colbert(folder):
            return _build_spec(spec, folder, name)
    modules, saved_spec, fingerprint = saved.load(folder)
    if isinstance(model, EncoderSpec):
        _check_saved(model, saved_spec, folder)
    reference = read_file(folder / saved.REFERENCE, fingerprint) if (folder / RECORD).is_file() else None
    prompted = partial(_prompted, fingerprint, saved_spec)
    return Built(modules, saved_spec, fingerprint, name, len(modules), "", prompted, reference=reference)


def _build_spec(spec: EncoderSpec, folder: Path, name: str) -> Built:
    digest = weights_digest(folder)
    trained = is_trained(spec.strategy, spec.options)
    if spec.head == RANDOM and not trained:
        raise SpecError(f"{spec.strategy} has no trained weights; omit head", field="head")
    head = find_head(spec, digest) if trained or spec.head is not None else None
    if head is not None:
        _check_head_fields(spec, head.spec)
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
        message = f"{fitted[0]} was fitted to vectors of the plain decoder, and this head adapts the decoder; omit it"
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


def _prompted(fingerprint: str, saved_spec: EncoderSpec, spec: EncoderSpec) -> str:
    """Return the fingerprint with the prompts of ``spec``; ``fingerprint`` is that with those of ``saved_spec``."""
    if spec.prompts == saved_spec.prompts:
        return fingerprint
    text = json.dumps([fingerprint, dict(spec.prompts)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check_head_fields(spec: EncoderSpec, trained: EncoderSpec) -> None:
    """Raise `SpecError` if a field that changes hidden states is set to another value than the head's."""
    default = EncoderSpec(spec.strategy, spec.backbone)
    for name in ("attention", "pool_prompt"):
        value, trained_value = getattr(spec, name), getattr(trained, name)
        if value not in (getattr(default, name), trained_value):
            message = f"the head of {spec.strategy} was trained with {name} {trained_value}, not {value}; omit {name},"
            raise SpecError(f"{message} or train a head with it", field=name)


def _check_saved(spec: EncoderSpec, saved_spec: EncoderSpec, folder: Path) -> None:
    """Raise `SpecError` if a field of ``spec`` is set to another value than the saved encoder in ``folder`` has."""
    values, defaults = spec.to_dict(), EncoderSpec(saved.AS_SAVED, spec.backbone).to_dict()
    for name in spec_difference(values, defaults):
        if values.get(name) != saved_spec.to_dict().get(name):
            message = f"{folder} is a saved encoder, whose {name} cannot be changed; load it by its name alone"
            raise SpecError(message, field=name)
