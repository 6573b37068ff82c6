"""Causal2Vec (Lin et al., arXiv 2507.23386): one token that has read the whole text stands before a causal decoder.

    c = W2 ReLU(W1 mean(E(text)) + b1) + b2        h = decoder([c, e(x_1), …, e(x_m), e(EOS)])        z = [h_c ; h_EOS]

E is a small bidirectional encoder. Every token of the text sees c, so a causal mask is enough. Worth it where a head
can be trained; with random weights it is the decoder disturbed. Costs one token and E, not the twofold text of echo.

c is in the space of what the decoder's embedding module gives: families that scale embeddings there (Gemma) give
scaled rows, and those that scale later scale c alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig

from embedserve.backbone import check_model_folder, find_folder, hidden_size, load_decoder, loading, weights_digest
from embedserve.compat import decoder_of, new_pooling
from embedserve.decoder import Decoder, last_positions
from embedserve.errors import LoadError, SpecError
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template, TextTokenizer, bare_ids

SMALL = "small"
SIZES = {"width": 160, "layers": 2, "heads": 5}
OPTIONS: dict[str, Any] = {
    "pre_encoder": SMALL,
    **SIZES,
    "halves": "both",
    "keep_begin": True,
    "encoder_sees_prompt": False,
}
TRAINED = True
HALVES = {"both": ("cls", "lasttoken"), "context": ("cls",), "eos": ("lasttoken",), "mean": ("mean",)}
WEIGHTS, TOKENIZER = "context.safetensors", "pre_encoder"  # in a saved folder, beside the decoder's files
SMALL_POSITIONS = 512


class ContextDecoder(Decoder):
    """The decoder behind its contextual token; ``token_embeddings`` (B, 2, D) are the states of that and of the end.

    Args:
        pre_encoder_config: Configuration of E as plain values.
        shares_embeddings: E reads the decoder's token embeddings, which stay as they are, through a linear map;
            otherwise ids of its own tokenizer.
        sees_prompt: E reads the prompt too.
    """

    config_keys = [*Decoder.config_keys, "pre_encoder_config", "shares_embeddings", "sees_prompt"]
    only_reads = False
    pools_all = True

    def __init__(
        self,
        *args: Any,
        pre_encoder_config: dict[str, Any] | None = None,
        shares_embeddings: bool = True,
        sees_prompt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pre_encoder_config = pre_encoder_config or {}
        self.shares_embeddings = shares_embeddings
        self.sees_prompt = sees_prompt
        self.pre_tokenizer: Any = None
        self._pre_copy: TextTokenizer | None = None
        config: Any = AutoConfig.for_model(**self.pre_encoder_config)
        width, hidden = config.hidden_size, hidden_size(self)
        self.pre_encoder = without_pooler(
            AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        )
        if shares_embeddings:
            self.pre_encoder.set_input_embeddings(nn.Linear(hidden, width, bias=False))
        self.projection = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def context_ids(self, texts: Sequence[str], prompt: str) -> list[np.ndarray]:
        """Return the ids (int64) that E reads: texts without template, as many tokens as the decoder or E takes."""
        texts = [prompt + text for text in texts] if self.sees_prompt else texts
        limit = min(int(self.tokenizer.model_max_length), self.pre_encoder.config.max_position_embeddings)
        if self.shares_embeddings:
            return bare_ids(self.text_tokenizer(), texts, limit, special=False)
        self._pre_copy = self._pre_copy or TextTokenizer.copy_of(self.pre_tokenizer)
        # RoBERTa and its kin count positions from 2 on.
        limit = min(limit, self.pre_encoder.config.max_position_embeddings - 2, self.pre_tokenizer.model_max_length)
        return bare_ids(self._pre_copy, texts, limit, special=True)

    def context(self, ids: Tensor) -> Tensor:
        """Return contextual tokens c (B, D), float32, of ``ids`` (B, M), filled up with -1 on the right."""
        real = ids >= 0
        if self.shares_embeddings:
            rows = decoder_of(self).get_input_embeddings()(ids.clamp(min=0)).detach().float()
            inputs = {"inputs_embeds": self.pre_encoder.get_input_embeddings()(rows)}
        else:
            inputs = {"input_ids": ids.masked_fill(~real, self.pre_tokenizer.pad_token_id)}
        states = self.pre_encoder(**inputs, attention_mask=real.long()).last_hidden_state
        mean = (states * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        found: Tensor = self.projection(mean)
        return found

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the last states (B, 2, D), float32, of the contextual token and of the last one."""
        embeddings = decoder_of(self).get_input_embeddings()(ids)
        embeddings, mask = prepend(self.context(features.pop("context_ids")), embeddings, mask)
        states = self.run(None, mask, embeddings)
        places = torch.stack([mask.argmax(dim=1), last_positions(mask)], dim=1)
        return states.gather(1, places[..., None].expand(-1, -1, states.shape[2])).float()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the decoder, and beside it the weights in front of it and the tokenizer of E."""
        super().save(output_path, *args, **kwargs)
        save_file({name: weight.contiguous() for name, weight in _own_state(self)}, Path(output_path, WEIGHTS))
        if self.pre_tokenizer is not None:
            self.pre_tokenizer.save_pretrained(Path(output_path, TOKENIZER))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> ContextDecoder:
        """Read what `save` wrote."""
        decoder: ContextDecoder = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        folder = Path(model_name_or_path, subfolder)
        found = load_file(folder / WEIGHTS)
        if found.keys() != {name for name, _ in _own_state(decoder)}:
            raise LoadError(f"{folder / WEIGHTS} does not fit its configuration; save the encoder again", field="model")
        decoder.load_state_dict(found, strict=False)
        if not decoder.shares_embeddings:
            decoder.pre_tokenizer = AutoTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        return decoder


def _own_state(decoder: ContextDecoder) -> list[tuple[str, Tensor]]:
    """Return the weights in front of the decoder by name."""
    return [(n, w) for n, w in decoder.state_dict().items() if n.startswith(("pre_encoder.", "projection."))]


def without_pooler(encoder: Any) -> Any:
    """Return ``encoder`` without the layer behind its first token, which nothing here reads or trains."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def prepend(context: Tensor, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put ``context`` (B, D) directly before each row's first real token, whatever the padding side.

    Args:
        context: Contextual tokens.
        embeddings: (B, T, D).
        mask: (B, T), 1 at real tokens.

    Returns:
        Embeddings (B, T+1, D) in the type they had, and their mask (B, T+1).
    """
    if bool(mask[:, 0].all()):  # padding on the right
        longer = torch.cat([context[:, None].to(embeddings.dtype), embeddings], dim=1)
        return longer, torch.cat([mask[:, :1], mask], dim=1)
    first = mask.argmax(dim=1, keepdim=True)
    place = torch.arange(mask.shape[1] + 1, device=mask.device)[None, :]
    source = place - (place > first).long()  # the token that moves here; the first real one also stands in for c
    moved = embeddings.gather(1, source[..., None].expand(-1, -1, embeddings.shape[2]))
    is_context = (place == first)[..., None]
    return torch.where(is_context, context[:, None].to(moved.dtype), moved), mask.gather(1, source)


def embedding_norm(decoder: Any) -> float:
    """Return the mean length of what the decoder's embedding module gives for the entries of its vocabulary."""
    module = decoder.get_input_embeddings()
    blocks = torch.arange(module.weight.shape[0], device=module.weight.device).split(1 << 14)
    return float(torch.cat([module(ids).float().norm(dim=1) for ids in blocks]).mean())


@torch.no_grad()
def initialise(decoder: ContextDecoder) -> None:
    """Scale the first weights so that c is about as long as a token embedding: the decoder knows no others.

    Measured on random ids; the linear map before a small E is made to give numbers of size 1 from the embeddings.
    """
    length = embedding_norm(decoder_of(decoder))
    last: Any = decoder.projection[-1]
    last.bias.zero_()
    entries = decoder_of(decoder).get_input_embeddings().weight.shape[0]
    if decoder.shares_embeddings:
        nn.init.normal_(decoder.pre_encoder.get_input_embeddings().weight, std=1 / length)
    else:
        entries = decoder.pre_encoder.get_input_embeddings().weight.shape[0]
    found = decoder.context(torch.randint(0, entries, (32, 16)))
    last.weight *= length / found.norm(dim=1).mean()


def pre_encoder_folder(options: Mapping[str, Any]) -> Path | None:
    """Return the folder of a given E, checked to hold no foreign code; None for a small one."""
    name = options["pre_encoder"]
    if name == SMALL:
        return None
    if not isinstance(name, str) or not name:
        message = f"options.pre_encoder must be small, or a folder or hub id of a BERT-type model; got {name!r}"
        raise SpecError(message, field="options.pre_encoder")
    folder = find_folder(name)
    check_model_folder(folder)
    return folder


def canonical_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with a digest of the pre-encoder's files in the place of its folder."""
    folder = pre_encoder_folder(options)
    return dict(options) if folder is None else {**options, "pre_encoder": weights_digest(folder)}


def load_pre_encoder(folder: Path) -> tuple[Any, Any]:
    """Return E from ``folder`` in float32 and its tokenizer."""
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        encoder = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    if encoder.config.is_encoder_decoder or not tokenizer.is_fast or tokenizer.pad_token_id is None:
        message = f"{folder} is no encoder of BERT's type with a fast tokenizer (tokenizer.json) and a pad token"
        raise SpecError(message, field="options.pre_encoder")
    return without_pooler(encoder), tokenizer


def _check(spec: EncoderSpec, options: dict[str, Any]) -> None:
    """Raise `SpecError` for options that make no sense."""
    if spec.attention == "bidirectional":
        message = "causal2vec spares a causal decoder the two-way attention: leave attention out, or take mean instead"
        raise SpecError(message, field="attention")
    if spec.template is not None and Template.parse(spec.template).repeat is not None:
        raise SpecError("causal2vec reads the text once: template must hold {text} once", field="template")
    if options["halves"] not in list(HALVES):
        message = f"options.halves must be one of {', '.join(HALVES)}, got {options['halves']!r}"
        raise SpecError(message, field="options.halves")
    for name in ("keep_begin", "encoder_sees_prompt"):
        if not isinstance(options[name], bool):
            raise SpecError(f"options.{name} must be true or false, got {options[name]!r}", field=f"options.{name}")
    for name, usual in SIZES.items():
        if type(options[name]) is not int or options[name] < 1:
            raise SpecError(f"options.{name} must be a whole number of at least 1", field=f"options.{name}")
        if options["pre_encoder"] != SMALL and options[name] != usual:
            message = f"options.{name} is of pre_encoder=small; a given pre-encoder has its own, so leave it out"
            raise SpecError(message, field=f"options.{name}")
    if options["width"] % options["heads"]:
        message = f"options.width must be a multiple of options.heads ({options['heads']}), got {options['width']}"
        raise SpecError(message, field="options.width")


def _leave_a_position(decoder: ContextDecoder, max_tokens: int | None) -> None:
    """Keep one of the decoder's positions free for c."""
    positions = getattr(decoder_of(decoder).config, "max_position_embeddings", None)
    if positions is None:
        return
    if max_tokens == positions:
        message = f"max_tokens is {max_tokens}, but one of {positions} positions goes to the contextual token; lower it"
        raise SpecError(message, field="max_tokens")
    limit = min(decoder.tokenizer.model_max_length, positions - 1)
    decoder.max_seq_length = decoder.tokenizer.model_max_length = limit  # the same in 6, not in 5.3


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder behind its contextual token, and pooling of the halves."""
    _check(spec, options)
    given = pre_encoder_folder(options)
    if given is None:
        width, layers, heads = (options[name] for name in SIZES)
        config: Any = BertConfig(
            vocab_size=1,  # the table of entries is replaced by a map from the decoder's
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=SMALL_POSITIONS,
        )
    else:
        encoder, tokenizer = load_pre_encoder(given)
        config = encoder.config
    decoder = load_decoder(
        spec,
        folder,
        ContextDecoder,
        pre_encoder_config=json.loads(config.to_json_string()),
        shares_embeddings=given is None,
        sees_prompt=options["encoder_sees_prompt"],
    )
    if given is not None:
        decoder.pre_encoder, decoder.pre_tokenizer = encoder, tokenizer
    if decoder.tokenizer.eos_token_id is None:
        message = "causal2vec needs a tokenizer with an end token (eos_token); this one has none"
        raise SpecError(message, field="strategy")
    template = replace(Template(**decoder.template), begin=options["keep_begin"], end=True)
    decoder.template = asdict(template)
    _leave_a_position(decoder, spec.max_tokens)
    initialise(decoder)
    return [decoder, new_pooling(hidden_size(decoder), HALVES[options["halves"]])]
