"""From Examples to Groups: templated, tokenised, and cut to the longest length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.encode import encode_answers, encode_prompts, special_tokens
from dpo_cli.data.render import as_it_stands, goes_through_template, question, render, text_after_answer
from dpo_cli.data.types import Example, Group
from dpo_cli.errors import DataError, DpoError


@dataclass(frozen=True, slots=True)
class Encoding:
    """How Examples become tokens."""

    text: Literal["auto", "chat", "plain"] = "auto"
    """Text fields through the chat template, or as they stand; ``auto``: ``chat`` where there is a template."""
    max_length: int = 2048
    """Of prompt + answer, at least 2."""
    max_prompt_length: int | None = None
    """Of the prompt; None = see ``cut``."""
    truncate_prompt: Literal["start", "end"] = "start"
    """Which side of a prompt is cut off."""
    on_too_long: Literal["truncate", "drop", "raise"] = "truncate"
    """What is done with rows that don't fit."""
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given besides messages, where a row says nothing else."""

    @property
    def limits(self) -> str:
        """For messages."""
        return f"data.max_length={self.max_length}, data.max_prompt_length={self.max_prompt_length or 'null'}"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of an Example."""

    example: Example
    prompt_length: int
    """Tokens before any cut."""
    answer_lengths: tuple[int, ...]
    """Tokens before any cut."""
    group: Group | None
    left_out: Literal["", "too_long", "made_equal"] = ""
    """Why there is no group. ``made_equal``: the template or the cut made two answers of a pair the same, which
    teaches nothing."""

    def __str__(self) -> str:
        lengths = " and ".join(map(str, self.answer_lengths))
        return f"{self.example.source}: prompt of {self.prompt_length} tokens, answers of {lengths}"


@dataclass(slots=True)
class TokenizeCounts:
    """What became of the examples. Cuts are counted in the groups that are kept."""

    groups: int = 0
    prompts_truncated: int = 0
    answers_truncated: int = 0
    dropped_too_long: int = 0
    made_equal: int = 0
    """Left out: see ``Encoded``."""
    longest: int = 0
    """Tokens of the longest prompt with its longest answer, before any cut."""

    def add(self, encoded: Encoded) -> None:
        """Count one."""
        self.longest = max(self.longest, encoded.prompt_length + max(encoded.answer_lengths))
        self.dropped_too_long += encoded.left_out == "too_long"
        self.made_equal += encoded.left_out == "made_equal"
        if encoded.group is not None:
            self.groups += 1
            self.prompts_truncated += len(encoded.group.prompt_ids) < encoded.prompt_length
            lengths = zip(encoded.group.answers, encoded.answer_lengths, strict=True)
            self.answers_truncated += sum(len(answer) < before for answer, before in lengths)

    def merge(self, other: TokenizeCounts) -> None:
        """Count the examples of another as well."""
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name == "longest" else mine + value)

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, encoding: Encoding, ends: Sequence[int]
) -> list[Encoded]:
    """What becomes of each example, in order.

    The first token of a prompt is the tokenizer's beginning-of-sequence, if it puts one; the last token of an answer
    is the one that ends the turn, unless the answer was cut. See ``cut`` for what is cut.

    Args:
        examples: a thousand or so at a time is fastest.
        tokenizer: the model's.
        encoding: how.
        ends: from ``end_tokens``.

    Raises:
        DpoError: rows, ``text`` and tokenizer don't go together.
        DataError: a row that the template can't render, or a prompt without any token.
    """
    chat = goes_through_template(examples, tokenizer, encoding.text)
    texts = [render(example, tokenizer) if chat else as_it_stands(example) for example in examples]
    prompts = encode_prompts(tokenizer, [row.prompt for row in texts])
    before = [row.prompt for row in texts for _ in row.answers]
    answers = iter(encode_answers(tokenizer, before, [answer for row in texts for answer in row.answers], ends))
    return [
        _encoded(example, prompt, [next(answers) for _ in example.answers], tokenizer.bos_token_id, encoding)
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def _encoded(
    example: Example, whole_prompt: list[int], whole: list[list[int]], bos: int | None, encoding: Encoding
) -> Encoded:
    if not whole_prompt:
        raise DataError(f"{example.source}: the prompt is empty, and this tokenizer has no token to begin with")
    prompt, answers = cut(whole_prompt, whole, encoding.max_length, encoding.max_prompt_length, bos)
    group: Group | None = _group(example, prompt, answers)
    left_out: Literal["", "too_long", "made_equal"] = ""
    if encoding.on_too_long != "truncate" and (prompt, answers) != (whole_prompt, whole):
        group, left_out = None, "too_long"
    elif any(answers[pair.winner] == answers[pair.loser] for pair in example.pairs):
        group, left_out = None, "made_equal"
    return Encoded(example, len(whole_prompt), tuple(map(len, whole)), group, left_out)


def cut(
    prompt: list[int], answers: list[list[int]], max_length: int, max_prompt_length: int | None, bos: int | None
) -> tuple[list[int], list[list[int]]]:
    """Prompt and answers cut so that the prompt and any one answer fit in ``max_length``.

    The prompt keeps its end (and a ``bos`` at its start), an answer its start. The prompt gets ``max_prompt_length``
    if that is given, else what the longest answer leaves, but half of ``max_length`` in any case; the answers get the
    rest. So every answer keeps a token, and what fits isn't cut.
    """
    left = max(max_length - max(len(answer) for answer in answers), max_length // 2)
    limit = min(max_prompt_length or left, max_length - 1)
    if len(prompt) > limit:
        keep = prompt[:1] if prompt[0] == bos and limit > 1 else []
        prompt = keep + prompt[len(prompt) - limit + len(keep) :]
    return prompt, [answer[: max_length - len(prompt)] for answer in answers]


def end_tokens(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, text: Literal["auto", "chat", "plain"]
) -> list[int]:
    """What ends an answer: end-of-sequence, and the special token that the template writes after an answer.

    Raises:
        DpoError: as ``tokenize``.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if goes_through_template(examples, tokenizer, text):
        ends += special_tokens(tokenizer, text_after_answer(examples[0], tokenizer))[:1]
    if not ends:
        raise DpoError("the tokenizer has no end-of-sequence token, so that answers would have no end")
    return ends


def _group(example: Example, prompt: list[int], answers: list[list[int]]) -> Group:
    ids = tuple(np.array(answer, dtype=np.int32) for answer in answers)
    return Group(
        prompt_ids=np.array(prompt, dtype=np.int32),
        answers=ids,
        pairs=example.pairs,
        source=example.source,
        question=question(example),
        labels=example.labels,
        ranks=example.ranks,
        weight=example.weight,
    )
