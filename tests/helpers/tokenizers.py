"""Small tokenizers, one for each way in which tokenizers begin, end and join texts."""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import dpo_cli.quickstart

CORPUS = [
    "Say hello to the world. Hello again: 12 and 345 and 6789!",
    "user assistant system question answer  the end\n\n",
]
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


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


def gpt2() -> PreTrainedTokenizerBase:
    """Byte-level, one token for beginning, end and padding, put nowhere."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level(end), bos_token=end, eos_token=end, pad_token=end)


def roberta() -> PreTrainedTokenizerBase:
    """Byte-level, a space put before every stretch of text, a BOS before it and an EOS after."""
    tokenizer = _byte_level("<s>", "</s>", split=pre_tokenizers.ByteLevel(add_prefix_space=True))
    return _wrapped(tokenizer, "<s>", "</s>")


def llama3() -> PreTrainedTokenizerBase:
    """Byte-level, digits one by one, punctuation joined to the word after it, a BOS."""
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = _byte_level("<|begin_of_text|>", "<|end_of_text|>", split=split)
    tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


def unsplit() -> PreTrainedTokenizerBase:
    """Byte-level, merging whatever stands together: words with spaces, digits and line ends. No BOS."""
    tokenizer = _byte_level("</s>", split=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), size=500)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def endless() -> PreTrainedTokenizerBase:
    """Byte-level, no EOS and no BOS: only a template's end of turn can end an answer."""
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level("<|pad|>"), pad_token="<|pad|>")


def swallowing() -> PreTrainedTokenizerBase:
    """Byte-level, special tokens that take the spaces beside them along, as Phi-3's do; an EOS after every text."""
    tokenizer = _byte_level("<s>")
    tokenizer.add_special_tokens(
        [
            AddedToken("</s>", special=True, normalized=False, rstrip=True),
            AddedToken("<|im_start|>", special=True, normalized=False, rstrip=True),
            AddedToken("<|im_end|>", special=True, normalized=False, lstrip=True, rstrip=True),
        ]
    )
    return _wrapped(tokenizer, "<s>", "</s>")


def bert() -> PreTrainedTokenizerBase:
    """Whole words and their pieces, lower case without accents or line ends, [CLS] before and [SEP] after."""
    special = ("[CLS]", "[SEP]", "[UNK]")
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "user", "assistant", "hello", "##s"]
    tokenizer = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _wrapped(tokenizer, "[CLS]", "[SEP]", unk_token="[UNK]")


def unigram() -> PreTrainedTokenizerBase:
    """Like XLM-R's: NFKC, white space is one space and none at the ends, a space before every text."""
    special = ("<s>", "</s>", "<unk>")
    letters = string.ascii_letters + string.digits + string.punctuation
    words = ["▁user", "▁assistant", "▁the", "ing", ":▁", *(f"▁{letter}" for letter in letters)]
    pieces = [(piece, 0.0) for piece in (*special, *(f"<0x{byte:02X}>" for byte in range(256)))]
    pieces += [(piece, -5.0 + len(piece) / 2) for piece in ("▁", *letters, *words)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _wrapped(tokenizer, "<s>", "</s>")


def _wrapped(tokenizer: Tokenizer, bos: str, eos: str, **special: str) -> PreTrainedTokenizerBase:
    """One that puts both a BOS and an EOS around every text."""
    tokens = [(token, tokenizer.token_to_id(token)) for token in (bos, eos)]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=tokens)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, **special)


def _byte_level(*special: str, split: PreTokenizer = WORDS, size: int = 340) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer
