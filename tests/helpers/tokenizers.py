"""Small tokenizers, one for each way in which tokenizers begin, end and join texts."""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import dpo_cli.quickstart

CORPUS = [
    "Say hello to the world. Hello again: 12 and 345 and 6789!",
    "user assistant system question answer  the end\n\n",
]


def quickstart() -> PreTrainedTokenizerBase:
    """Byte-level, no BOS, end-of-turn is EOS, with a chat template."""
    folder = Path(dpo_cli.quickstart.__file__).parent / "assets" / "model"
    return AutoTokenizer.from_pretrained(folder)


def without_bos() -> PreTrainedTokenizerBase:
    """Byte-level, no BOS, padding is EOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level("<|endoftext|>"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def with_bos() -> PreTrainedTokenizerBase:
    """Byte-level, a BOS put before every text."""
    tokenizer = _byte_level("<s>", "</s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def sentencepiece() -> PreTrainedTokenizerBase:
    """Like Llama 2's: a space put before every text, bytes for what it doesn't know, a BOS."""
    letters = string.ascii_letters + string.digits + string.punctuation + "▁"
    tokens = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("▁", letter) for letter in string.ascii_letters + "▁"]
    vocabulary = {token: index for index, token in enumerate([*tokens, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _byte_level(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=340, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer
