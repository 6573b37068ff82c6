"""Tiny random decoders, the same on every machine, of each family that users bring."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

SENTENCES = [
    "The cat watches the bridge in the evening, and the dog sleeps.",
    "Join a sequence of arrays along a new axis.",
    "An honest judge questions seven letters without a reason!",
    "rain",
    "Why does my neighbour paint the quiet garden before the rain?",
    'The old engine measures two maps; nobody remembers "the winter storm" after lunch.',
    "a small dog",
    ("Return the number of items, or raise a ValueError where there are none. " * 3).strip(),
    "Größe, naïveté and 東京 are words too.",
]
SHARED = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SHARED, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SHARED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHARED, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SHARED, sliding_window=8, tie_word_embeddings=False),
    "gemma2": lambda: Gemma2Config(**SHARED, query_pre_attn_scalar=8, sliding_window=8),
    "gpt2": lambda: GPT2Config(**OLD, n_positions=256, n_embd=32, n_layer=4, n_head=4),
    "gpt_neox": lambda: GPTNeoXConfig(
        **OLD,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    ),
}
WITH_BOS = {"llama", "mistral", "gemma2"}


def tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `SENTENCES`."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        model_max_length=256,
    )


BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_tokenizer(words: list[str], positions: int) -> PreTrainedTokenizerFast:
    """BERT's tokenizer over whole ``words``, its special tokens first."""
    vocabulary = {word: number for number, word in enumerate([*BERT_SPECIAL, *words])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT_SPECIAL, strict=True))
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=positions, **tokens)


def save_model(family: str, folder: Path) -> Path:
    """Write a random decoder of ``family`` with weights large enough that attention matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 2.0 * weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer(bos=family in WITH_BOS).save_pretrained(folder)
    return folder
