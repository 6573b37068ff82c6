"""Token prepending (TP; Fu et al., ACL 2025, arXiv 2412.11556): feed the last token's state back before the text.

    for layers start <= i < exit:   X_i[p] = X_i[last]          p = the position of a placeholder before the text

before layer i runs, so that under a causal mask every token of the text attends to a summary of the whole prompt. The
vector is the last token's state after ``output_layer``; later layers are skipped. Training-free, and cheaper than the
plain prompt once a layer is skipped. Designed for short sentences: for passages plain mean pooling or echo are better
(see docs/strategies.md).

The placeholder is added to the encoder's own tokenizer; the decoder's embedding table is unchanged. Its row is a draw
from N(0, I), saved with the encoder. With ``start=0`` the row is overwritten before it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import decoder_of
from embedserve.decoder import Decoder, decoder_layers, final_norm, hooked, last_positions
from embedserve.errors import SpecError
from embedserve.prompts import PROMPTS
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import pooling
from embedserve.strategies.strategy import Strategy, option, option_error
from embedserve.tokens import Template, TextTokenizer, tokenize
from embedserve.types import Task, TokenRows

PLACEHOLDER = "\ue0f5"  # a private-use code point
SEPARATOR = -1  # separates the prompts of a text in its row of ids
SEED = 3407
ROW = "placeholder.safetensors"  # in a saved folder, next to the decoder's files


class PrependingDecoder(Decoder):
    """A decoder with one or several prompts; ``token_embeddings`` (B, 1, D) are its vectors.

    Args:
        templates: Fields of `Template`, one for each prompt.
        start: The first layer whose input is edited.
        exit: The layer after the last edited one.
        output_layer: Number of the hidden state that is read, from 1 to the number of layers.
        norm: ``final`` applies the final norm to it; the last layer always has it.
        cleans: Texts are rewritten by `as_sentence`.
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
        """Return the tokenizer with the placeholder as an entry of its vocabulary."""
        if self._copy is None:
            super().text_tokenizer().backend.add_tokens([AddedToken(PLACEHOLDER, normalized=False)])
        return super().text_tokenizer()

    def clean(self, texts: Sequence[str]) -> Sequence[str]:
        """Return ``texts`` without the placeholder, as sentences if ``cleans``."""
        texts = [text.replace(PLACEHOLDER, " ") for text in texts]
        return [as_sentence(text) for text in texts] if self.cleans else texts

    def rows(self, texts: Sequence[str], prompt: str, max_tokens: int, task: Task, first: int = 0) -> TokenRows:
        """Return the ids of a text's prompts, each of at most ``max_tokens``, as one row separated by `SEPARATOR`."""
        tokenizer, prompt = self.text_tokenizer(), prompt.replace(PLACEHOLDER, " ")
        prompts = [
            tokenize(tokenizer, texts, Template(**template), prompt, max_tokens, first) for template in self.templates
        ]
        if len(prompts) == 1:
            return prompts[0]
        ids = []
        for row in range(len(texts)):
            pieces: list[Any] = [piece for rows in prompts for piece in ([SEPARATOR], rows.ids[row])]
            ids.append(np.concatenate(pieces[1:]))
        truncated = np.any([rows.truncated for rows in prompts], axis=0)
        return TokenRows(ids, np.zeros(len(ids), dtype=np.int64), truncated)

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the vectors (B, 1, D): that of the prompt, or the mean over several."""
        if len(self.templates) > 1:
            ids, mask = split_rows(ids, mask, len(self.templates))
        vectors = self.prepended(ids, mask)
        return vectors.view(-1, len(self.templates), vectors.shape[1]).mean(dim=1, keepdim=True)

    def prepended(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last token's state (B, D) after the output layer, with token prepending."""
        model = decoder_of(self)
        rows = torch.arange(len(ids), device=ids.device)
        last, is_placeholder = last_positions(mask), ids == self.placeholder_id()
        position = is_placeholder.int().argmax(dim=1)
        table = model.get_input_embeddings()
        embeddings = table(ids.masked_fill(is_placeholder, 0))
        embeddings = torch.where(is_placeholder[..., None], self.placeholder.to(embeddings), embeddings)

        def prepend(states: Tensor) -> Tensor:
            states = states.clone()
            states[rows, position] = states[rows, last]
            return states

        outputs: list[Tensor] = []
        layers = len(decoder_layers(model))
        stop = min(self.exit, self.output_layer)
        edits = dict.fromkeys(range(self.start, stop), prepend)
        if self.output_layer == layers:
            with hooked(model, edits=edits):
                return self.run(None, mask, embeddings)[rows, last]
        with hooked(model, {self.output_layer: outputs.append}, edits, stop_at=self.output_layer):
            self.run(None, mask, embeddings)
        vectors = outputs[0][rows, last]
        return final_norm(model)(vectors) if self.norm == "final" else vectors

    def placeholder_id(self) -> int:
        """Return the placeholder's vocabulary entry."""
        entry: Any = self.text_tokenizer().backend.token_to_id(PLACEHOLDER)
        return int(entry)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the decoder and the placeholder's row."""
        super().save(output_path, *args, **kwargs)
        save_file({"row": self.placeholder.float().contiguous()}, Path(output_path, ROW))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> PrependingDecoder:
        """Read what `save` wrote."""
        decoder: PrependingDecoder = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        decoder.placeholder.copy_(load_file(Path(model_name_or_path, subfolder, ROW))["row"])
        return decoder


def as_sentence(text: str) -> str:
    """Return ``text`` in the form of the published code: one line, a full stop at the end, no double quotes."""
    text = " ".join(text.split())
    text = text if text.endswith((".", "?", '"', "'")) else f"{text}."
    text = text.replace('"', "'")
    return f"{text[:-1]}." if text.endswith("?") else text


def split_rows(ids: Tensor, mask: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B · prompts, T') of the prompts in rows (B, T) that are separated by `SEPARATOR`."""
    number = (ids == SEPARATOR).cumsum(dim=1)
    row, position = ((ids != SEPARATOR) & (mask != 0)).nonzero(as_tuple=True)
    new_row = row * prompts + number[row, position]
    lengths = new_row.bincount(minlength=len(ids) * prompts)
    new_position = torch.arange(len(row), device=ids.device) - (lengths.cumsum(dim=0) - lengths)[new_row]
    out = ids.new_zeros(len(lengths), int(lengths.max()))
    out_mask = torch.zeros_like(out)
    out[new_row, new_position], out_mask[new_row, new_position] = ids[row, position], 1
    return out, out_mask


@dataclass(frozen=True)
class TokenPrependingStrategy(Strategy):
    """A prompt whose placeholder receives the last token's state in a few layers."""

    prompt: str = option(
        "prompteol",
        f"{', '.join(f'`{name}`' for name in PROMPTS)}, or a prompt with `{{placeholder}}` before `{{text}}`",
    )
    start: int | None = option(
        1, "first layer that is edited; 0 overwrites the placeholder's row; null: the plain prompt", minimum=0
    )
    exit: int | None = option(None, "layer after the last edited one; null: a quarter of the layers", minimum=0)
    output_layer: int = option(-2, "layer whose output is read, from 1, or from the end; -1 is after the final norm")
    norm: Literal["none", "final"] = option("none", "`final` applies the final norm to an earlier layer too")
    clean: bool = option(True, "make the text a sentence: one line, single quotes, a full stop at its end")

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder with token prepending, and a pooling over its one vector per text."""
        if spec.attention == "bidirectional":
            message = "token_prepending needs a causal decoder; with bidirectional attention use prompteol"
            raise SpecError(message, field="attention")
        decoder = load_decoder(
            spec, folder, PrependingDecoder, Template(),
            templates=self._templates(), norm=self.norm, cleans=self.clean,
        )  # fmt: skip
        layers = len(decoder_layers(decoder_of(decoder)))
        decoder.output_layer = self._output_layer(layers)
        decoder.start, decoder.exit = self._span(layers)
        return [decoder, pooling("mean", hidden_size(decoder))]

    def _templates(self) -> list[dict[str, Any]]:
        """Return the fields of a `Template` for each text of the prompt."""
        placeholder = "" if self.start is None else f"{PLACEHOLDER} "
        templates = []
        for text in PROMPTS.get(self.prompt, (self.prompt,)):
            template = Template.parse(text, "options.prompt")
            once = template.before.count("{placeholder}") == 1 and "{placeholder" not in template.after
            if template.repeat is not None or not once:
                allowed = f"{', '.join(PROMPTS)}, or a string with {{placeholder}} once and {{text}} once after it"
                raise option_error("prompt", f"must be {allowed}; got {text!r}")
            before = template.before.replace("{placeholder}", placeholder)
            templates.append(asdict(replace(template, before=before)))
        return templates

    def _output_layer(self, layers: int) -> int:
        """Return the output layer, counted from 1."""
        number = self.output_layer if self.output_layer > 0 else layers + 1 + self.output_layer
        if not 1 <= number <= layers:
            raise option_error(
                "output_layer", f"must be from 1 to {layers}, or from -{layers} to -1; got {self.output_layer}"
            )
        return number

    def _span(self, layers: int) -> tuple[int, int]:
        """Return start and exit of the layers whose input is edited."""
        if self.start is None:
            return 0, 0
        end = max(self.start + 1, layers // 4) if self.exit is None else self.exit
        if end < self.start:
            raise option_error("exit", f"must be at least options.start ({self.start}); got {end}")
        return self.start, min(end, layers)
