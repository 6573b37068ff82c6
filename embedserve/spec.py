"""EncoderSpec: everything that determines a vector, as one value that can be saved, compared and fingerprinted."""

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
# Omitted from records and fingerprints if they have their default: older encoders keep their fingerprints.
LATER_FIELDS = ("template", "attention", "head", "pool_prompt")


@dataclass(frozen=True)
class EncoderSpec:
    """How a text becomes a vector.

    Attributes:
        strategy: A name of `embedserve.strategies`.
        backbone: ``"nano"``, a folder in Hugging Face layout, or a hub id.
        options: The strategy's options: ``embedserve strategies NAME`` lists them.
        post: Post-transforms in order, each ``name:argument``: ``embedfilter:4``, ``truncate:128``.
        template: Text around each input, which replaces ``{text}``: ``This sentence means: {text}``. With ``{text}``
            twice the input is repeated, and only its second copy is pooled.
        attention: ``bidirectional`` removes the causal mask (LLM2Vec); the weights are unchanged.
        head: A folder written by ``embedserve train``, or ``random`` for the weights that training starts from.
            Default: the head that ships for this strategy and backbone.
        prompts: A prefix for each task, ``query`` and ``document``. Default: none.
        max_tokens: Maximum tokens of a text, prompt included. Default: the backbone's limit.
        dtype: Data type of the backbone's weights and arithmetic.
        pool_prompt: If False, pooling starts at the first token of the text: the begin token, the prompt and the
            template before the text are read but not pooled (LLM2Vec's ``skip_instruction``).
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
            raise SpecError(f"strategy must be a non-empty string, got {self.strategy!r}", field="strategy")
        if not isinstance(self.backbone, str) or not self.backbone:
            raise SpecError(f"backbone must be a folder or a hub id, got {self.backbone!r}", field="backbone")
        if not isinstance(self.post, (list, tuple)) or not all(isinstance(text, str) for text in self.post):
            raise SpecError(f"post must be a list of transforms, such as truncate:128; got {self.post!r}", field="post")
        for name in ("options", "prompts"):
            if not isinstance(getattr(self, name), Mapping):
                raise SpecError(f"{name} must be an object, got {getattr(self, name)!r}", field=name)
        if unknown := [name for name in self.prompts if name not in ("query", "document")]:
            raise SpecError(f"prompts has unknown tasks {unknown}; the tasks are query and document", field="prompts")
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
        except (TypeError, ValueError) as error:  # ValueError: NaN, a reference cycle or a lone surrogate
            raise SpecError(f"options must be JSON values: {error}", field="options") from None
        object.__setattr__(self, "options", MappingProxyType(options))
        object.__setattr__(self, "prompts", MappingProxyType({k: v for k, v in sorted(self.prompts.items()) if v}))
        object.__setattr__(self, "post", tuple(self.post))

    def _check_names(self) -> None:
        for name in ("template", "head"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value and is_unicode(value)):
                raise SpecError(f"{name} must be a non-empty string, got {value!r}", field=name)
        for name, choices in (("dtype", DTYPES), ("attention", ATTENTION)):
            if getattr(self, name) not in choices:
                raise SpecError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}", field=name)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return EncoderSpec.from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for `from_dict`."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in LATER_FIELDS or getattr(self, f.name) != f.default
        }
        options = json.loads(json.dumps(dict(self.options)))  # a deep copy
        return values | {"options": options, "prompts": dict(self.prompts), "post": list(self.post)}

    def to_json(self) -> str:
        """Return the spec as JSON, for `from_json`; equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """Return the spec with these fields.

        Raises:
            SpecError: A field is unknown or has an invalid value.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise SpecError(f"a spec has no field {name!r}; {hint}fields are {', '.join(known)}", field=name)
        return cls(**values)

    @classmethod
    def from_json(cls, text: str, **fields: Any) -> EncoderSpec:
        """Return the spec in a JSON object; ``fields`` are the defaults of fields that it omits."""
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
        """Return 32 hex digits that are equal only if vectors are comparable.

        Files enter by their contents, not by their path.

        Args:
            weights_digest: Digest of the backbone's weights and tokenizer.
            head_digest: Digest of the strategy's trained weights, if it has any.
            post: The post-transforms with digests instead of files. Default: `post` of the spec.
            options: The options with digests instead of files. Default: `options` of the spec.
        """
        values = self.to_dict()
        values["backbone"] = weights_digest
        values["post"] = list(post or self.post)
        values["options"] = dict(options or values["options"])
        if head_digest is not None:
            values["head"] = head_digest
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_unicode(text: str) -> bool:
    """Return whether ``text`` can be encoded as UTF-8: it has no lone surrogate, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def spec_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields in which two specs, as plain values, differ."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def parse_spec(text: str, **fields: Any) -> EncoderSpec:
    """Return the spec written on one line, for the command line; ``fields`` are the defaults of what it omits.

    ``STRATEGY[:OPTION=VALUE,…][+POST…][@BACKBONE]``, such as ``embedfilter:ratio=4``,
    ``mean+embedfilter:2+truncate:64`` or ``glot@./llama``; or a JSON object; or a backbone: ``nano`` or a folder.

    Raises:
        SpecError: The text has none of these forms.
    """
    text = text.strip()
    if text.startswith("{"):
        return EncoderSpec.from_json(text, **fields)
    text, _, backbone = text.partition("@")
    if backbone:
        fields["backbone"] = backbone
    elif text == "nano" or "/" in text or Path(text).is_dir():
        return EncoderSpec(**{**fields, "backbone": text})
    text, *post = text.split("+")
    strategy, _, options = text.partition(":")
    return EncoderSpec(**{**fields, "strategy": strategy, "options": _options(options), "post": tuple(post)})


def parse_model(text: str) -> str | EncoderSpec:
    """Return the argument of `Encoder.load` for one line: a model's name or folder unchanged, otherwise a spec.

    A folder may contain a saved encoder or a head, which a spec does not describe.
    """
    text = text.strip()
    if text and not text.startswith("{") and Path(text).expanduser().is_dir():
        return text
    spec = parse_spec(text)
    return text if spec == EncoderSpec(backbone=text) else spec


def _options(text: str) -> dict[str, Any]:
    """Return the options in ``name=value,…``."""
    return dict(read_option(part) for part in re.split(r",(?=[a-z_]+=)", text)) if text else {}


def read_option(text: str, field: str = "options") -> tuple[str, Any]:
    """Return name and value of ``NAME=VALUE``; a value that is not JSON is a string.

    Raises:
        SpecError: The name or the equals sign is missing.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise SpecError(f"{text!r} must have the form NAME=VALUE", field=field)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
