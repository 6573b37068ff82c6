"""EncoderSpec: everything that changes a vector, in one value that can be saved, compared and fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from embedserve.errors import SpecError, did_you_mean

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("causal", "bidirectional")
# Left out of records and fingerprints where they have their default: encoders made before they existed stay the same.
LATER_FIELDS = ("template", "attention", "head", "pool_prompt")


@dataclass(frozen=True)
class EncoderSpec:
    """What turns a text into a vector.

    Attributes:
        strategy: A name of `embedserve.strategies`.
        backbone: ``"nano"``, a folder in Hugging Face layout, or a hub id.
        options: The strategy's own options; defaults stand in the strategy's file.
        post: Post-transforms in order, each ``name:argument``: ``embedfilter:4``, ``truncate:128``.
        template: What stands around each text, with ``{text}`` in its place: ``This sentence means: {text}``. With
            ``{text}`` twice the text is echoed, and only its second copy is pooled.
        attention: ``bidirectional`` lets every token see every other (LLM2Vec's toggle); the weights stay the same.
        head: A folder of trained weights that ``embedserve train`` wrote, or ``random`` for those that training
            starts from; None takes the one that ships for this strategy and backbone.
        prompts: A prefix for each task, ``query`` and ``document``; none by default.
        max_tokens: Tokens the model reads of one text, prompt included; None takes the backbone's own limit.
        dtype: Arithmetic of the backbone.
        pool_prompt: With False, pooling begins at the first token of the text: the begin token, the prompt and what the
            template puts in front are read, and not pooled (LLM2Vec's ``skip_instruction``).
    """

    strategy: str = "mean"
    backbone: str = "nano"
    options: Mapping[str, Any] = field(default_factory=dict)
    post: tuple[str, ...] = ()
    template: str | None = None
    attention: Literal["causal", "bidirectional"] = "causal"
    head: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pool_prompt: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, str) or not self.strategy:
            raise SpecError(f"strategy must be a name, got {self.strategy!r}", field="strategy")
        if not isinstance(self.backbone, str) or not self.backbone:
            raise SpecError(f"backbone must be a path or an id, got {self.backbone!r}", field="backbone")
        if not isinstance(self.post, (list, tuple)) or not all(isinstance(text, str) for text in self.post):
            raise SpecError(f"post must be a list of transforms such as truncate:128, got {self.post!r}", field="post")
        for name in ("options", "prompts"):
            if not isinstance(getattr(self, name), Mapping):
                raise SpecError(f"{name} must be an object, got {getattr(self, name)!r}", field=name)
        if unknown := [name for name in self.prompts if name not in ("query", "document")]:
            raise SpecError(f"prompts has {unknown}; the tasks are query and document", field="prompts")
        if not all(isinstance(prompt, str) and is_unicode(prompt) for prompt in self.prompts.values()):
            raise SpecError("prompts must be strings of valid Unicode", field="prompts")
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 8):
            raise SpecError(
                f"max_tokens must be a whole number of at least 8, got {self.max_tokens!r}", field="max_tokens"
            )
        if not isinstance(self.pool_prompt, bool):
            raise SpecError(f"pool_prompt must be true or false, got {self.pool_prompt!r}", field="pool_prompt")
        self._check_names()
        try:
            options = json.loads(json.dumps(dict(self.options), allow_nan=False, ensure_ascii=False).encode())
        except (TypeError, ValueError) as error:  # NaN, a circle or half a surrogate pair is a ValueError
            raise SpecError(f"options must hold only JSON values: {error}", field="options") from None
        object.__setattr__(self, "options", MappingProxyType(options))
        object.__setattr__(self, "prompts", MappingProxyType({k: v for k, v in sorted(self.prompts.items()) if v}))
        object.__setattr__(self, "post", tuple(self.post))

    def _check_names(self) -> None:
        for name in ("template", "head"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value and is_unicode(value)):
                raise SpecError(f"{name} must be a string, got {value!r}", field=name)
        for name, known in (("dtype", DTYPES), ("attention", ATTENTION)):
            if getattr(self, name) not in known:
                raise SpecError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}", field=name)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return EncoderSpec.from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in LATER_FIELDS or getattr(self, f.name) != f.default
        }
        options = json.loads(json.dumps(dict(self.options)))  # a copy all the way down
        return values | {"options": options, "prompts": dict(self.prompts), "post": list(self.post)}

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads back; equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """Build a spec from plain values; an unknown name is refused with the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise SpecError(f"a spec has no field {name!r}; {hint}the fields are {', '.join(known)}", field=name)
        return cls(**values)

    @classmethod
    def from_json(cls, text: str, **fields: Any) -> EncoderSpec:
        """Build a spec from the text of `to_json`, or of a part of it; ``fields`` are those it leaves out."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"the spec is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise SpecError(f"the spec must be a JSON object, got {type(values).__name__}")
        return cls.from_dict({**fields, **values})

    def fingerprint(
        self,
        weights_digest: str,
        head_digest: str | None = None,
        post: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return 32 hex digits that are equal only where vectors may be compared.

        Files count by what is in them, never by their path.

        Args:
            weights_digest: Of the backbone's weights and tokenizer.
            head_digest: Of the strategy's trained weights, where it has any.
            post: The post-transforms with digests in the place of their files; by default as they stand.
            options: The options, likewise.
        """
        values = self.to_dict()
        values["backbone"] = weights_digest
        values["post"] = list(post or self.post)
        values["options"] = dict(options or values["options"])
        if head_digest is not None:
            values["head"] = head_digest
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_unicode(text: str) -> bool:
    """Say whether ``text`` holds no half of a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def spec_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the fields in which two specs, as plain values, differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def parse_spec(text: str, **fields: Any) -> EncoderSpec:
    """Read a spec from one line, as command lines and benchmarks take it; ``fields`` are those it leaves out.

    ``STRATEGY[:OPTION=VALUE,…][+POST…][@BACKBONE]``: ``embedfilter:ratio=4``, ``mean+embedfilter:2+truncate:64``,
    ``glot@./llama``; or the spec as a JSON object; or the name of a model: ``nano``, or a folder.

    Raises:
        SpecError: It is none of these.
    """
    text = text.strip()
    if text.startswith("{"):
        return EncoderSpec.from_json(text, **fields)
    described, _, backbone = text.partition("@")
    if backbone:
        fields["backbone"] = backbone
    elif described == "nano" or "/" in described or Path(described).is_dir():
        return EncoderSpec(**{**fields, "backbone": described})
    described, *post = described.split("+")
    strategy, _, options = described.partition(":")
    return EncoderSpec(**{**fields, "strategy": strategy, "options": _options(options), "post": tuple(post)})


def parse_model(text: str) -> str | EncoderSpec:
    """Return what `Encoder.load` takes for one line: the name of a model, or a folder, as it stands; else its spec.

    A folder may hold a finished encoder or a head, which no spec describes.
    """
    text = text.strip()
    if text and not text.startswith("{") and Path(text).expanduser().is_dir():
        return text
    spec = parse_spec(text)
    return text if spec == EncoderSpec(backbone=text) else spec


def _options(text: str) -> dict[str, Any]:
    """Read ``name=value,…``."""
    return dict(read_option(part) for part in re.split(r",(?=[a-z_]+=)", text)) if text else {}


def read_option(text: str, field: str = "options") -> tuple[str, Any]:
    """Read ``NAME=VALUE``; a value that reads as JSON is taken so, everything else as text.

    Raises:
        SpecError: It has no name or no equals sign.
    """
    name, equals, value = (piece.strip() for piece in text.partition("="))
    if not equals or not name:
        raise SpecError(f"{text!r} is not of the form NAME=VALUE", field=field)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
