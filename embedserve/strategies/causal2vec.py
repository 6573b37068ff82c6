"""Causal2Vec (Lin et al., arXiv 2507.23386): a contextual token that summarises the text precedes a causal decoder.

    c = W2 ReLU(W1 mean(E(text)) + b1) + b2        h = decoder([c, e(x_1), …, e(x_m), e(EOS)])        z = [h_c ; h_EOS]

E is a small bidirectional encoder. Every token can attend to c, so the causal mask is kept. Needs a trained head; with
random weights c only disturbs the decoder. Costs one token and a pass of E, not twice the tokens as echo does.

c is in the space of the decoder's embedding module: if a family scales embeddings there (Gemma), c has the scale of
scaled rows; if it scales later, c is scaled with the rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig

from embedserve.backbone import hidden_size, load_decoder, loading
from embedserve.compat import decoder_of, new_pooling
from embedserve.decoder import Decoder, last_positions
from embedserve.errors import LoadError, SpecError
from embedserve.model_folders import check_model_folder, find_folder, weights_digest
from embedserve.spec import EncoderSpec
from embedserve.strategies.strategy import Strategy, option, option_error
from embedserve.tokens import Template, TextTokenizer, bare_ids

SMALL = "small"
HALVES = {"both": ("cls", "lasttoken"), "context": ("cls",), "eos": ("lasttoken",), "mean": ("mean",)}
WEIGHTS, TOKENIZER = "context.safetensors", "pre_encoder"  # in a saved folder, next to the decoder's files
SMALL_POSITIONS = 512


class ContextDecoder(Decoder):
    """A decoder with a contextual token; ``token_embeddings`` (B, 2, D) are the states of that and of the end token.

    Args:
        pre_encoder_config: Configuration of E as plain values.
        shares_embeddings: E reads the decoder's frozen token embeddings through a linear map; otherwise the ids of its
            own tokenizer.
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
        """Return the ids (int64) that E reads: texts without template, truncated for decoder and E."""
        texts = [prompt + text for text in texts] if self.sees_prompt else texts
        limit = min(int(self.tokenizer.model_max_length), self.pre_encoder.config.max_position_embeddings)
        if self.shares_embeddings:
            return bare_ids(self.text_tokenizer(), texts, limit, special=False)
        self._pre_copy = self._pre_copy or TextTokenizer.copy_of(self.pre_tokenizer)
        # RoBERTa models count positions from 2.
        limit = min(limit, self.pre_encoder.config.max_position_embeddings - 2, self.pre_tokenizer.model_max_length)
        return bare_ids(self._pre_copy, texts, limit, special=True)

    def context(self, ids: Tensor) -> Tensor:
        """Return contextual tokens c (B, D), float32, of ``ids`` (B, M), padded with -1 on the right."""
        real = ids >= 0
        if self.shares_embeddings:
            rows = decoder_of(self).get_input_embeddings()(ids.clamp(min=0)).detach().float()
            inputs = {"inputs_embeds": self.pre_encoder.get_input_embeddings()(rows)}
        else:
            inputs = {"input_ids": ids.masked_fill(~real, self.pre_tokenizer.pad_token_id)}
        states = self.pre_encoder(**inputs, attention_mask=real.long()).last_hidden_state
        mean = (states * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        context: Tensor = self.projection(mean)
        return context

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the last states (B, 2, D), float32, of the contextual token and of the last one."""
        embeddings = decoder_of(self).get_input_embeddings()(ids)
        embeddings, mask = prepend(self.context(features.pop("context_ids")), embeddings, mask)
        states = self.run(None, mask, embeddings)
        positions = torch.stack([mask.argmax(dim=1), last_positions(mask)], dim=1)
        return states.gather(1, positions[..., None].expand(-1, -1, states.shape[2])).float()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the decoder, the weights of E and of the projection, and the tokenizer of E."""
        super().save(output_path, *args, **kwargs)
        save_file({name: weight.contiguous() for name, weight in _own_state(self)}, Path(output_path, WEIGHTS))
        if self.pre_tokenizer is not None:
            self.pre_tokenizer.save_pretrained(Path(output_path, TOKENIZER))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> ContextDecoder:
        """Read what `save` wrote."""
        decoder: ContextDecoder = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        folder = Path(model_name_or_path, subfolder)
        weights = load_file(folder / WEIGHTS)
        if weights.keys() != {name for name, _ in _own_state(decoder)}:
            raise LoadError(f"{folder / WEIGHTS} does not fit its configuration; save the encoder again", field="model")
        decoder.load_state_dict(weights, strict=False)
        if not decoder.shares_embeddings:
            decoder.pre_tokenizer = AutoTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        return decoder


def _own_state(decoder: ContextDecoder) -> list[tuple[str, Tensor]]:
    """Return the weights of E and of the projection by name."""
    return [(n, w) for n, w in decoder.state_dict().items() if n.startswith(("pre_encoder.", "projection."))]


def without_pooler(encoder: Any) -> Any:
    """Return ``encoder`` without its pooler, which is neither read nor trained."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def prepend(context: Tensor, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Insert ``context`` (B, D) directly before each row's first real token, for either padding side.

    Args:
        context: Contextual tokens.
        embeddings: (B, T, D).
        mask: (B, T), 1 at real tokens.

    Returns:
        Embeddings (B, T+1, D), in their dtype, and their mask (B, T+1).
    """
    if bool(mask[:, 0].all()):  # padding on the right
        longer = torch.cat([context[:, None].to(embeddings.dtype), embeddings], dim=1)
        return longer, torch.cat([mask[:, :1], mask], dim=1)
    first = mask.argmax(dim=1, keepdim=True)
    position = torch.arange(mask.shape[1] + 1, device=mask.device)[None, :]
    source = position - (position > first).long()  # the token that moves here; c replaces the copy of the first
    moved = embeddings.gather(1, source[..., None].expand(-1, -1, embeddings.shape[2]))
    is_context = (position == first)[..., None]
    return torch.where(is_context, context[:, None].to(moved.dtype), moved), mask.gather(1, source)


def embedding_norm(decoder: Any) -> float:
    """Return the mean norm of the outputs of the decoder's embedding module over its vocabulary."""
    module = decoder.get_input_embeddings()
    blocks = torch.arange(module.weight.shape[0], device=module.weight.device).split(1 << 14)
    return float(torch.cat([module(ids).float().norm(dim=1) for ids in blocks]).mean())


@torch.no_grad()
def initialise(decoder: ContextDecoder) -> None:
    """Scale the initial weights so that c has the norm of a token embedding, as the decoder expects.

    The norm is measured on random ids. The linear map before a small E is scaled to outputs of size 1.
    """
    norm = embedding_norm(decoder_of(decoder))
    last: Any = decoder.projection[-1]
    last.bias.zero_()
    entries = decoder_of(decoder).get_input_embeddings().weight.shape[0]
    if decoder.shares_embeddings:
        nn.init.normal_(decoder.pre_encoder.get_input_embeddings().weight, std=1 / norm)
    else:
        entries = decoder.pre_encoder.get_input_embeddings().weight.shape[0]
    context = decoder.context(torch.randint(0, entries, (32, 16)))
    last.weight *= norm / context.norm(dim=1).mean()


def load_pre_encoder(folder: Path) -> tuple[Any, Any]:
    """Return E from ``folder`` in float32 and its tokenizer."""
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        encoder = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    if encoder.config.is_encoder_decoder or not tokenizer.is_fast or tokenizer.pad_token_id is None:
        message = f"{folder} is not a BERT-type encoder with a fast tokenizer (tokenizer.json) and a pad token"
        raise SpecError(message, field="options.pre_encoder")
    return without_pooler(encoder), tokenizer


def _reserve_position(decoder: ContextDecoder, max_tokens: int | None) -> None:
    """Lower the token limit by one if c would exceed the decoder's positions."""
    positions = getattr(decoder_of(decoder).config, "max_position_embeddings", None)
    if positions is None:
        return
    if max_tokens == positions:
        message = f"max_tokens is {max_tokens}, but one of {positions} positions is the contextual token's; lower it"
        raise SpecError(message, field="max_tokens")
    limit = min(decoder.tokenizer.model_max_length, positions - 1)
    decoder.max_seq_length = decoder.tokenizer.model_max_length = limit  # the same in 6, not in 5.3


@dataclass(frozen=True)
class Causal2VecStrategy(Strategy):
    """A contextual token from a small bidirectional encoder before a causal decoder."""

    pre_encoder: str = option(
        SMALL, "`small`, an encoder over the decoder's embeddings, or a BERT-type model's folder or id"
    )
    width: int = option(160, "width of a small pre-encoder", minimum=1)
    layers: int = option(2, "layers of a small pre-encoder", minimum=1)
    heads: int = option(5, "attention heads of a small pre-encoder", minimum=1)
    halves: Literal["both", "context", "eos", "mean"] = option(
        "both", "parts of the vector: both states, one of them, or their mean; all but `both` keep the decoder's width"
    )
    keep_begin: bool = option(True, "keep the tokenizer's begin token after the contextual token")
    encoder_sees_prompt: bool = option(False, "let the pre-encoder read the query's prompt too")

    def check(self) -> None:
        """Raise `SpecError` for sizes that do not fit each other or the pre-encoder."""
        if not self.pre_encoder:
            raise option_error("pre_encoder", "must be small, or a folder or hub id of a BERT-type model; got ''")
        for field in fields(self):
            is_size = field.name in ("width", "layers", "heads")
            if self.pre_encoder != SMALL and is_size and getattr(self, field.name) != field.default:
                raise option_error(field.name, "is a size of pre_encoder=small; omit it with another pre-encoder")
        if self.width % self.heads:
            raise option_error("width", f"must be a multiple of options.heads ({self.heads}); got {self.width}")

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def canonical(self) -> dict[str, Any]:
        """Return the options with a digest of the pre-encoder's files instead of its folder."""
        folder = self._pre_encoder_folder()
        return super().canonical() | ({} if folder is None else {"pre_encoder": weights_digest(folder)})

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder with its contextual token, and the pooling of the halves."""
        if spec.attention == "bidirectional":
            message = "causal2vec needs a causal decoder; omit attention, or use the strategy mean"
            raise SpecError(message, field="attention")
        if spec.template is not None and Template.parse(spec.template).repeat is not None:
            raise SpecError("causal2vec reads the text once: template must contain {text} once", field="template")
        pre_encoder, pre_tokenizer, config = self._load_pre_encoder()
        decoder = load_decoder(
            spec,
            folder,
            ContextDecoder,
            pre_encoder_config=json.loads(config.to_json_string()),
            shares_embeddings=pre_encoder is None,
            sees_prompt=self.encoder_sees_prompt,
        )
        if pre_encoder is not None:
            decoder.pre_encoder, decoder.pre_tokenizer = pre_encoder, pre_tokenizer
        if decoder.tokenizer.eos_token_id is None:
            message = "causal2vec needs a tokenizer with an end token (eos_token); this one has none"
            raise SpecError(message, field="strategy")
        decoder.template = asdict(replace(Template(**decoder.template), begin=self.keep_begin, end=True))
        _reserve_position(decoder, spec.max_tokens)
        initialise(decoder)
        return [decoder, new_pooling(hidden_size(decoder), HALVES[self.halves])]

    def _pre_encoder_folder(self) -> Path | None:
        """Return the pre-encoder's folder, checked to contain no foreign code; None for a small one."""
        if self.pre_encoder == SMALL:
            return None
        folder = find_folder(self.pre_encoder)
        check_model_folder(folder)
        return folder

    def _load_pre_encoder(self) -> tuple[Any, Any, Any]:
        """Return E, its tokenizer and its configuration; None, None and a configuration for a small E."""
        folder = self._pre_encoder_folder()
        if folder is not None:
            encoder, tokenizer = load_pre_encoder(folder)
            return encoder, tokenizer, encoder.config
        config = BertConfig(
            vocab_size=1,  # the embedding table is replaced by a map of the decoder's embeddings
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=SMALL_POSITIONS,
        )
        return None, None, config
