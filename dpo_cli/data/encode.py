"""From text to token ids: one beginning, one end, and nothing merged where the answer starts.

Prompt and answer are tokenised apart, so that every answer of a prompt has the same prompt ids, and these are the
ids a model is given when it generates.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BEFORE = ("1", "\n")
"""Texts that little merges with. A line end is second: some tokenizers drop it."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt; where the tokenizer begins texts with a token of its own, exactly one such."""
    bos = tokenizer.bos_token_id
    missing = [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
    return [ids if ids[:1] == missing else missing + ids for ids in _ids(tokenizer, prompts)]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str], ends: Sequence[int]
) -> list[list[int]]:
    """Ids of each answer as it goes on from its prompt, with exactly one end, the last token.

    Args:
        tokenizer: any.
        prompts: the text before each answer.
        answers: as many.
        ends: tokens that end an answer; what comes after the first of them is left out. The first is appended where
            there is none.
    """
    ids = _continued(tokenizer, prompts, answers) if _begins_with_space(tokenizer) else _ids(tokenizer, answers)
    return [_ended(answer, ends) for answer in ids]


def special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special tokens in a text, in order."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [index for index in _ids(tokenizer, [text])[0] if index in special]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    # verbose: no warning about the model's maximum, texts are cut later.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"])


def _begins_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets a space in front (SentencePiece does that), which an answer inside a conversation has not."""
    alone, *before = _ids(tokenizer, ["a", *_BEFORE])
    after = _ids(tokenizer, [text + "a" for text in _BEFORE])
    return any(ids + alone != joined for ids, joined in zip(before, after, strict=True))


def _continued(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
    whole = _ids(tokenizer, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    parts = zip(_ids(tokenizer, prompts), whole, answers, strict=True)
    return [
        ids[len(before) :] if ids[: len(before)] == before else _alone(tokenizer, answer)
        for before, ids, answer in parts
    ]


def _alone(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """For an answer whose first token would merge with the prompt's last: as it stands after some other text."""
    alone, *before = _ids(tokenizer, [answer, *_BEFORE])
    after = _ids(tokenizer, [text + answer for text in _BEFORE])
    apart = (ids[len(start) :] for start, ids in zip(before, after, strict=True) if ids[: len(start)] == start)
    return next(apart, alone)


def _ended(ids: list[int], ends: Sequence[int]) -> list[int]:
    first = min((ids.index(end) for end in ends if end in ids), default=None)
    return [*ids, ends[0]] if first is None else ids[: first + 1]
