"""ColBERT (Khattab and Zaharia 2020, arXiv 2004.12832) on a decoder: one vector for each token, compared by MaxSim.

    T = rows of last states · W, each divided by its length        s(q, d) = sum over i of max over j of q_i · d_j

W (dim, D) is trained; with ``dim`` null the states themselves are the vectors and nothing is. Better than one vector
where single words decide, for an index many times as large. Costs one forward pass; MaxSim costs at search.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Module, token_projection
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec
from embedserve.tokens import Template, tokenize
from embedserve.types import Task, TokenRows

OPTIONS: dict[str, Any] = {
    "dim": 128,
    "query_length": None,
    "document_length": None,
    "query_expansion": False,
    "attend_to_expansion": False,
    "skiplist": "none",
    "token_pooling": 1,
}
MULTI_VECTOR = True
SKIPLISTS = {"none": (), "punctuation": tuple(string.punctuation)}
EXPANSION = -1  # in a row of ids: a position that fills a query up to its length


def is_trained(options: Mapping[str, Any]) -> bool:
    """Say whether there is a projection to train."""
    return options["dim"] is not None


class ColbertDecoder(Decoder):
    """The decoder, which gives ``token_embeddings`` (B, T, D) and in ``attention_mask`` the tokens that are compared.

    Args:
        query_length: Tokens of a query at most; with ``expands`` exactly so many.
        document_length: Tokens of a document at most.
        expands: Fill queries up to ``query_length``; every position of a query is compared.
        attends: Let tokens attend to the positions that fill up, too.
        skips: Vocabulary entries of a document that are not compared.
        second: Entries that never stand first: PyLate puts its prefix behind the first token, which is the begin token
            or, where the tokenizer has none, the text's own.
    """

    config_keys = [*Decoder.config_keys, "query_length", "document_length", "expands", "attends", "skips", "second"]
    only_reads = False
    multi_vector = True

    def __init__(
        self,
        *args: Any,
        query_length: int | None = None,
        document_length: int | None = None,
        expands: bool = False,
        attends: bool = False,
        skips: list[int] | None = None,
        second: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.query_length, self.document_length = query_length, document_length
        self.expands, self.attends, self.skips, self.second = expands, attends, skips or [], second or []

    def rows(self, texts: Any, prompt: str, max_tokens: int, task: Task, first: int = 0) -> TokenRows:
        """Return the token ids of texts; queries are filled up with `EXPANSION` if asked."""
        limit = (self.query_length if task == "query" else self.document_length) or max_tokens
        template, limit = Template(**self.template), min(limit, max_tokens)
        rows = tokenize(self.text_tokenizer(), texts, template, prompt, limit, first)
        for ids in rows.ids:
            if len(ids) > 1 and ids[0] in self.second:
                ids[:2] = ids[1::-1]
        if task == "query" and self.expands:
            for place, ids in enumerate(rows.ids):
                rows.ids[place] = np.concatenate([ids, np.full(limit - len(ids), EXPANSION)])
        return rows

    def states(self, ids: Tensor, mask: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Return the last states (B, T, D)."""
        if not self.expands or not bool(features["is_query"].any()):
            return self.run(ids, mask)
        # Rows are moved to the left, so that padding is on the right whatever side it came from.
        order = (mask == 0).int().argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        read = mask if self.attends else mask * (ids != EXPANSION)
        states = self.run(ids.masked_fill(ids == EXPANSION, self.expansion_id()), read, keep_mask=True)
        return states.gather(1, order.argsort(dim=1)[..., None].expand_as(states))

    def expansion_id(self) -> int:
        """Return the entry that fills queries up: the mask token, or where there is none the end token."""
        found = [self.tokenizer.mask_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        return next(int(entry) for entry in found if entry is not None)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Leave the skipped tokens of documents out, unless nothing would stay."""
        features = super().forward(features, **kwargs)
        if self.skips:
            ids, mask = features["input_ids"], features["attention_mask"]
            skipped = torch.isin(ids, torch.tensor(self.skips, device=ids.device)) & ~features["is_query"][:, None]
            kept = mask * ~skipped
            features["attention_mask"] = torch.where(kept.any(dim=1, keepdim=True), kept, mask)
        return features


class TokenPooling(Module):  # type: ignore[misc]
    """Fewer vectors for a document: clusters of like tokens become their mean (Clavié et al. 2024, arXiv 2409.14683).

    Ward's clustering of 1 - cosine; the first vector stays. Queries pass through. The means are not of unit length:
    the normalisation behind makes them so, which the published code leaves out.

    Args:
        factor: Of n vectors behind the first, ``max(n // factor, 1)`` stay.
    """

    config_keys = ["factor"]

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace ``token_embeddings`` (B, T, d) and ``attention_mask`` (B, T) of documents by shorter ones."""
        if self.training or bool(features["is_query"].any()):
            return features
        vectors, mask = functional.normalize(features["token_embeddings"].float(), dim=-1), features["attention_mask"]
        pooled = [
            pool_tokens(row[keep].cpu().numpy(), self.factor) for row, keep in zip(vectors, mask.bool(), strict=True)
        ]
        longest = max(map(len, pooled))
        out = np.zeros((len(pooled), longest, vectors.shape[2]), dtype=np.float32)
        out_mask = np.zeros((len(pooled), longest), dtype=np.int64)
        for place, rows in enumerate(pooled):
            out[place, : len(rows)], out_mask[place, : len(rows)] = rows, 1
        features["token_embeddings"] = torch.from_numpy(out).to(vectors.device)
        features["attention_mask"] = torch.from_numpy(out_mask).to(mask.device)
        features.pop("input_ids", None)  # a mean stands for several entries
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the factor."""
        self.save_config(output_path)


def pool_tokens(rows: np.ndarray, factor: int, protected: int = 1) -> np.ndarray:
    """Return the means of clusters of unit rows (n, d) behind the first ``protected``, not normalised again.

    At most ``max((n - protected) // factor, 1)`` clusters, in the order of their first member.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    free = rows[protected:]
    if factor == 1 or len(free) < 2:
        return rows
    upper = np.triu_indices(len(free), k=1)
    distances = np.maximum(1 - (free @ free.T)[upper], 0)  # of equal rows rounding makes less than 0
    found = fcluster(linkage(distances, method="ward"), max(len(free) // factor, 1), "maxclust")
    _, first, cluster = np.unique(found, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), rows.shape[1]), dtype=np.float64)
    np.add.at(sums, cluster, free)
    means = sums / np.bincount(cluster)[:, None]
    return np.concatenate([rows[:protected], means[np.argsort(first)].astype(rows.dtype)])


def skipped_entries(tokenizer: Any, words: Any) -> list[int]:
    """Return the vocabulary entries of ``words``; those that are no entry are left out."""
    found = {tokenizer.convert_tokens_to_ids(word) for word in words}
    return sorted(entry for entry in found if entry is not None and entry != tokenizer.unk_token_id)


def _check(options: dict[str, Any]) -> None:
    """Raise `SpecError` for options that make no sense."""
    for name, least in (("dim", 1), ("query_length", 4), ("document_length", 4), ("token_pooling", 1)):
        value = options[name]
        if not (value is None and name != "token_pooling") and (type(value) is not int or value < least):
            also = "" if name == "token_pooling" else ", or null"
            message = f"options.{name} must be a whole number of at least {least}{also}; got {value!r}"
            raise SpecError(message, field=f"options.{name}")
    for name in ("query_expansion", "attend_to_expansion"):
        if not isinstance(options[name], bool):
            raise SpecError(f"options.{name} must be true or false, got {options[name]!r}", field=f"options.{name}")
    if options["query_expansion"] and options["query_length"] is None:
        message = "options.query_expansion fills queries up to options.query_length; set that too, for example to 32"
        raise SpecError(message, field="options.query_length")
    if options["attend_to_expansion"] and not options["query_expansion"]:
        message = "options.attend_to_expansion goes with options.query_expansion; set both or neither"
        raise SpecError(message, field="options.attend_to_expansion")
    if options["skiplist"] not in list(SKIPLISTS):
        message = f"options.skiplist must be none or punctuation, got {options['skiplist']!r}"
        raise SpecError(message, field="options.skiplist")


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder and what makes its states token vectors."""
    _check(options)
    decoder = load_decoder(
        spec,
        folder,
        ColbertDecoder,
        query_length=options["query_length"],
        document_length=options["document_length"],
        expands=options["query_expansion"],
        attends=options["attend_to_expansion"],
    )
    if Template(**decoder.template).repeat is not None and options["query_expansion"]:
        message = "an echo template ends in the end token, so queries cannot be filled up; leave query_expansion out"
        raise SpecError(message, field="options.query_expansion")
    for name in ("query_length", "document_length"):
        if (options[name] or 0) > decoder.tokenizer.model_max_length:
            message = (
                f"options.{name} is {options[name]}, but the model reads {decoder.tokenizer.model_max_length} tokens"
            )
            raise SpecError(f"{message}; lower it", field=f"options.{name}")
    decoder.skips = skipped_entries(decoder.tokenizer, SKIPLISTS[options["skiplist"]])
    modules: list[nn.Module] = [decoder]
    if options["dim"] is not None:
        modules.append(token_projection(hidden_size(decoder), options["dim"]))
    if options["token_pooling"] > 1:
        modules.append(TokenPooling(options["token_pooling"]))
    return modules
