"""The tokenizer of nano and the initial values of its token embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from embedserve.training.teacher import embed_by_exact_length

PAD, END = "<|pad|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a lower-cased byte-level BPE; camelCase is split, so ``HTTPServer`` reads as ``http server``."""
    tokenizer = Tokenizer(models.BPE())
    camel = Regex(r"(?<=[A-Za-z])(?=[A-Z][a-z]{2})")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(camel, " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write ``tokenizer.json`` and its configuration in Hugging Face layout."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=max_tokens,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(str(folder))


def token_frequencies(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return each vocabulary entry's share of all token ids (N,), float64 (V,), add-one smoothed."""
    counts = np.bincount(ids, minlength=vocab_size) + 1.0
    return counts / counts.sum()


def principal_axes(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Return the orthonormal axes (d, dim) that best preserve the dot products of ``vectors`` (N, d)."""
    gram = vectors.astype(np.float64).T @ vectors.astype(np.float64)
    return np.linalg.eigh(gram)[1][:, ::-1][:, :dim]


def first_embeddings(
    tokenizer: Tokenizer, teacher: SentenceTransformer, axes: np.ndarray, frequencies: np.ndarray, smooth: float = 1e-4
) -> np.ndarray:
    """Return the teacher's vector of every vocabulary entry, projected on ``axes``: float32 (V, dim).

    Frequent entries are shrunk by smooth / (smooth + p), the smooth inverse frequency of Arora et al. 2017, section 3.
    """
    words = [tokenizer.decode([token]).strip() or "." for token in range(len(frequencies))]
    vectors = embed_by_exact_length(teacher, words).astype(np.float32) @ axes.astype(np.float32)
    return vectors * (smooth / (smooth + frequencies))[:, None].astype(np.float32)
