"""Token prepending (TP; Fu et al., ACL 2025, arXiv 2412.11556): what the last token knows, put in front of the text.

    for layers start <= i < exit:   X_i[p] = X_i[last]          p = the place of a placeholder before the text

before layer i runs, so that under a causal mask every token of the text sees a summary of the whole prompt. The
vector is the last token's state behind ``output_layer``; no layer after that one is run. Training-free, and cheaper
than its plain prompt as soon as a layer is saved. Made for short sentences: for passages plain mean pooling or echo
are better (see docs/strategies.md).

The placeholder is an entry of the encoder's own tokenizer; the decoder's table is not touched. Its row is one draw of
N(0, I), kept with a saved encoder. With ``start`` 0 the row is overwritten before anything reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Pooling, decoder_of
from embedserve.decoder import Decoder, decoder_layers, final_norm, hooked, last_positions
from embedserve.errors import SpecError
from embedserve.prompts import PROMPTS
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template, TextTokenizer, tokenize
from embedserve.types import Task, TokenRows

OPTIONS: dict[str, Any] = {
    "prompt": "prompteol",
    "start": 1,
    "exit": None,
    "output_layer": -2,
    "norm": "none",
    "clean": True,
}
PLACEHOLDER = "\ue0f5"  # a code point that no text has a use for
SEPARATOR = -1  # between the prompts of one text, in one row of ids
SEED = 3407
ROW = "placeholder.safetensors"  # in a saved folder, beside the decoder's files


class PrependingDecoder(Decoder):
    """The decoder behind one or several prompts; ``token_embeddings`` (B, 1, D) are its vectors.

    Args:
        templates: Fields of `Template`, one for each prompt.
        start: The first layer whose input is edited.
        exit: The layer behind the last such one.
        output_layer: Number of the hidden state that is read, from 1 to the number of layers.
        norm: ``final`` puts it through the final norm; the last one always goes through it.
        cleans: Texts are made sentences, see `as_sentence`.
    """

    config_keys = [*Decoder.config_keys, "templates", "start", "exit", "output_layer", "norm", "cleans"]
    only_reads = False
    reads_tokens = False
    pools_all = True

    def __init__(
        self,
        *args: Any,
        templates: list[dict[str, Any]] | None = None,
        start: int = 1,
        exit: int = 2,
        output_layer: int = 1,
        norm: str = "none",
        cleans: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.templates = templates or []
        self.start, self.exit, self.output_layer = start, exit, output_layer
        self.norm, self.cleans = norm, cleans
        row = torch.randn(hidden_size(self), generator=torch.Generator().manual_seed(SEED))
        self.register_buffer("placeholder", row, persistent=False)

    def text_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer with the placeholder as an entry."""
        if self._copy is None:
            super().text_tokenizer().backend.add_tokens([AddedToken(PLACEHOLDER, normalized=False)])
        return super().text_tokenizer()

    def clean(self, texts: Sequence[str]) -> Sequence[str]:
        """Return ``texts`` as sentences, and without the placeholder."""
        texts = [text.replace(PLACEHOLDER, " ") for text in texts]
        return [as_sentence(text) for text in texts] if self.cleans else texts

    def rows(self, texts: Sequence[str], prompt: str, max_tokens: int, task: Task, first: int = 0) -> TokenRows:
        """Return the ids of all prompts of a text as one row, with `SEPARATOR` between; each has ``max_tokens``."""
        tokenizer, prompt = self.text_tokenizer(), prompt.replace(PLACEHOLDER, " ")
        parts = [
            tokenize(tokenizer, texts, Template(**template), prompt, max_tokens, first) for template in self.templates
        ]
        if len(parts) == 1:
            return parts[0]
        ids = []
        for place in range(len(texts)):
            pieces: list[Any] = [piece for part in parts for piece in ([SEPARATOR], part.ids[place])]
            ids.append(np.concatenate(pieces[1:]))
        truncated = np.any([part.truncated for part in parts], axis=0)
        return TokenRows(ids, np.zeros(len(ids), dtype=np.int64), truncated)

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the vectors (B, 1, D): of one prompt, or the mean of several."""
        if len(self.templates) > 1:
            ids, mask = split_rows(ids, mask, len(self.templates))
        found = self.prepended(ids, mask)
        return found.view(-1, len(self.templates), found.shape[1]).mean(dim=1, keepdim=True)

    def prepended(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last token's state (B, D) at the output layer, with what it knows put at the placeholder."""
        model = decoder_of(self)
        rows = torch.arange(len(ids), device=ids.device)
        last, is_placeholder = last_positions(mask), ids == self.placeholder_id()
        place = is_placeholder.int().argmax(dim=1)
        table = model.get_input_embeddings()
        embeddings = table(ids.masked_fill(is_placeholder, 0))
        embeddings = torch.where(is_placeholder[..., None], self.placeholder.to(embeddings), embeddings)

        def prepend(states: Tensor) -> Tensor:
            states = states.clone()
            states[rows, place] = states[rows, last]
            return states

        read: list[Tensor] = []
        layers = len(decoder_layers(model))
        stop = min(self.exit, self.output_layer)
        edits = dict.fromkeys(range(self.start, stop), prepend)
        if self.output_layer == layers:
            with hooked(model, edits=edits):
                return self.run(None, mask, embeddings)[rows, last]
        with hooked(model, {self.output_layer: read.append}, edits, stop_at=self.output_layer):
            self.run(None, mask, embeddings)
        found = read[0][rows, last]
        return final_norm(model)(found) if self.norm == "final" else found

    def placeholder_id(self) -> int:
        """Return the placeholder's entry."""
        found: Any = self.text_tokenizer().backend.token_to_id(PLACEHOLDER)
        return int(found)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the decoder, and the placeholder's row beside it."""
        super().save(output_path, *args, **kwargs)
        save_file({"row": self.placeholder.float().contiguous()}, Path(output_path, ROW))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> PrependingDecoder:
        """Read what `save` wrote."""
        decoder: PrependingDecoder = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        decoder.placeholder.copy_(load_file(Path(model_name_or_path, subfolder, ROW))["row"])
        return decoder


def as_sentence(text: str) -> str:
    """Return ``text`` as the published prompts want it: one line that ends in a full stop and holds no double quote."""
    text = " ".join(text.split())
    text = text if text.endswith((".", "?", '"', "'")) else f"{text}."
    text = text.replace('"', "'")
    return f"{text[:-1]}." if text.endswith("?") else text


def split_rows(ids: Tensor, mask: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B · parts, T') of the prompts that stand in rows (B, T) with `SEPARATOR` between them."""
    number = (ids == SEPARATOR).cumsum(dim=1)
    row, place = ((ids != SEPARATOR) & (mask != 0)).nonzero(as_tuple=True)
    new_row = row * parts + number[row, place]
    lengths = new_row.bincount(minlength=len(ids) * parts)
    new_place = torch.arange(len(row), device=ids.device) - (lengths.cumsum(dim=0) - lengths)[new_row]
    out = ids.new_zeros(len(lengths), int(lengths.max()))
    out_mask = torch.zeros_like(out)
    out[new_row, new_place], out_mask[new_row, new_place] = ids[row, place], 1
    return out, out_mask


def _templates(prompt: Any, with_placeholder: bool) -> list[dict[str, Any]]:
    """Return the fields of a `Template` for each prompt of a name, or for one that was given."""
    field = "options.prompt"
    texts = PROMPTS[prompt] if isinstance(prompt, str) and prompt in PROMPTS else (prompt,)
    found = []
    for text in texts:
        template = Template.parse(text, field)
        wanted = "{text} once and {placeholder} before it, in this order"
        if (
            template.repeat is not None
            or template.before.count("{placeholder}") != 1
            or "{placeholder" in template.after
        ):
            message = f"options.prompt must be one of {', '.join(PROMPTS)}, or a string that holds {wanted}"
            raise SpecError(f"{message}; got {text!r}", field=field)
        before = template.before.replace("{placeholder}", f"{PLACEHOLDER} " if with_placeholder else "")
        found.append(asdict(replace(template, before=before)))
    return found


def _layer(value: Any, layers: int) -> int:
    """Return an output layer as a number from 1; from the end -1 is the last."""
    if type(value) is int and (1 <= value <= layers or -layers <= value <= -1):
        return value if value > 0 else layers + 1 + value
    message = f"options.output_layer must lie from 1 to {layers}, or from -{layers} to -1 counted from the end"
    raise SpecError(f"{message}; got {value!r}", field="options.output_layer")


def _span(options: dict[str, Any], layers: int) -> tuple[int, int]:
    """Return the layers whose input is edited, as start and exit."""
    start, end = options["start"], options["exit"]
    for name, value in (("start", start), ("exit", end)):
        if value is not None and (type(value) is not int or value < 0):
            message = f"options.{name} must be a whole number of at least 0 or null, got {value!r}"
            raise SpecError(message, field=f"options.{name}")
    if start is None:
        return 0, 0
    end = max(start + 1, layers // 4) if end is None else end
    if end < start:
        message = f"options.exit must not lie before options.start ({start}), got {end}"
        raise SpecError(message, field="options.exit")
    return start, min(end, layers)


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder with token prepending; its one vector of a text passes through a pooling."""
    if spec.attention == "bidirectional":
        message = "token prepending shows a causal decoder what comes later; with two-way attention take prompteol"
        raise SpecError(message, field="attention")
    if options["norm"] not in ("none", "final"):
        raise SpecError(f"options.norm must be none or final, got {options['norm']!r}", field="options.norm")
    if not isinstance(options["clean"], bool):
        raise SpecError(f"options.clean must be true or false, got {options['clean']!r}", field="options.clean")
    templates = _templates(options["prompt"], options["start"] is not None)
    decoder = load_decoder(
        spec, folder, PrependingDecoder, Template(), templates=templates, norm=options["norm"], cleans=options["clean"]
    )
    layers = len(decoder_layers(decoder_of(decoder)))
    decoder.output_layer = _layer(options["output_layer"], layers)
    decoder.start, decoder.exit = _span(options, layers)
    return [decoder, Pooling(hidden_size(decoder), pooling_mode="mean")]
