"""From text to token ids: one beginning, one end, and nothing merged where the answer starts.

Prompt and answer are tokenised apart, so that every answer of a prompt has the same prompt ids, and these are the
ids a model is given when it generates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from transformers import PreTrainedTokenizerBase

_BEFORE = ("1", "\n")
"""Texts that little merges with. A line end is second: some tokenizers drop it."""

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Ids of texts, without any token that isn't in them."""


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """The tokenizer's own, special tokens included."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # verbose: no warning about the model's maximum, texts are cut later.
        encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    return encode


def encode_prompts(tokenizer: PreTrainedTokenizerBase, encode: Encode, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt; where the tokenizer begins texts with a token of its own, exactly one such."""
    bos = tokenizer.bos_token_id
    missing = [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
    return [ids if ids[:1] == missing else missing + ids for ids in encode(prompts)]


def encode_after(encode: Encode, before: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as it goes on from the text before it, without changing a token of that."""
    return _continued(encode, before, texts) if _begins_with_space(encode) else encode(texts)


def ended(ids: list[int], ends: Sequence[int], others: Collection[int] = ()) -> list[int]:
    """An answer's ids with exactly one end, the last token.

    Args:
        ids: of the answer and of what a template writes after it.
        ends: tokens that end an answer; what comes after the first of them is left out. ``ends[0]`` is appended where
            there is none.
        others: tokens that end it as well if only one token or none comes after them: some templates write a call of a
            tool that way.
    """
    first = min((ids.index(end) for end in ends if end in ids), default=None)
    if first is not None:
        return ids[: first + 1]
    if others:
        last = next((place for place in range(len(ids))[-2:] if ids[place] in others), None)
        if last is not None:
            return ids[: last + 1]
    return [*ids, ends[0]]


def special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special tokens in a text, in order."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [index for index in encoder(tokenizer)([text])[0] if index in special]


def _begins_with_space(encode: Encode) -> bool:
    """Whether a text gets a space in front (SentencePiece does that), which an answer inside a conversation has not."""
    alone, *before = encode(["a", *_BEFORE])
    after = encode([text + "a" for text in _BEFORE])
    return any(ids + alone != joined for ids, joined in zip(before, after, strict=True))


def _continued(encode: Encode, before: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    different = list(dict.fromkeys(before))
    known = dict(zip(different, encode(different), strict=True))
    whole = encode([start + text for start, text in zip(before, texts, strict=True)])
    return [
        ids[len(known[start]) :] if ids[: len(known[start])] == known[start] else _alone(encode, text)
        for start, ids, text in zip(before, whole, texts, strict=True)
    ]


def _alone(encode: Encode, text: str) -> list[int]:
    """For a text whose first token would merge with the last before it: as it stands after some other text."""
    alone, *before = encode([text, *_BEFORE])
    after = encode([start + text for start in _BEFORE])
    apart = (ids[len(start) :] for start, ids in zip(before, after, strict=True) if ids[: len(start)] == start)
    return next(apart, alone)
