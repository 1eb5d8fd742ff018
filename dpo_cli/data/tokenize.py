"""From Examples to Groups: templated, tokenised, and cut to the longest length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.encode import encode_answers, encode_prompts, special_tokens
from dpo_cli.data.render import as_it_stands, goes_through_template, question, render, text_after_answer
from dpo_cli.data.types import Example, Group
from dpo_cli.errors import DataError, DpoError

_CHUNK = 1000
_SHOWN = 10


@dataclass(slots=True)
class TokenizeCounts:
    """What became of the examples. Cuts are counted in the groups that are kept."""

    groups: int = 0
    prompts_truncated: int = 0
    answers_truncated: int = 0
    dropped_too_long: int = 0
    made_equal: int = 0
    """Left out: the template or the cut made two answers of a pair the same, which teaches nothing."""
    longest: int = 0
    """Tokens of the longest prompt with its longest answer, before any cut."""

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Encoded:
    example: Example
    prompt: list[int]
    answers: list[list[int]]


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: Literal["auto", "chat", "plain"],
    max_length: int,
    max_prompt_length: int | None,
    on_too_long: Literal["truncate", "drop", "raise"],
    advance: Callable[[int], None],
) -> tuple[list[Group], TokenizeCounts]:
    """One Group for each example, in order, without those that are left out.

    The first token of a prompt is the tokenizer's beginning-of-sequence, if it puts one; the last token of an answer
    is the one that ends the turn, unless the answer was cut. See ``cut`` for what is cut.

    Args:
        examples: at least one.
        tokenizer: with a chat template unless rows are text and tokenised as they stand.
        text: ``chat`` renders text as one user and one assistant turn, ``plain`` takes it as it stands, ``auto`` is
            ``chat`` where there is a template.
        max_length: of prompt + answer, at least 2.
        max_prompt_length: of the prompt; None = see ``cut``.
        on_too_long: what is done with rows that don't fit.
        advance: told how many examples are done since the last time.

    Raises:
        DpoError: rows, ``text`` and tokenizer don't go together.
        DataError: a row that the template can't render, a prompt without any token, rows that are too long
            (``raise``), or nothing left.
    """
    counts = TokenizeCounts()
    groups: list[Group] = []
    too_long: list[str] = []
    for row in _encode(examples, tokenizer, text, advance):
        counts.longest = max(counts.longest, len(row.prompt) + max(map(len, row.answers)))
        prompt, answers = cut(row.prompt, row.answers, max_length, max_prompt_length, tokenizer.bos_token_id)
        prompts_cut = int(len(prompt) < len(row.prompt))
        answers_cut = sum(len(kept) < len(answer) for kept, answer in zip(answers, row.answers, strict=True))
        if on_too_long != "truncate" and (prompts_cut or answers_cut):
            lengths = " and ".join(str(len(answer)) for answer in row.answers)
            too_long.append(f"{row.example.source}: prompt of {len(row.prompt)} tokens, answers of {lengths}")
        elif any(answers[pair.winner] == answers[pair.loser] for pair in row.example.pairs):
            counts.made_equal += 1
        else:
            counts.prompts_truncated += prompts_cut
            counts.answers_truncated += answers_cut
            groups.append(_group(row.example, prompt, answers))
    counts.groups, counts.dropped_too_long = len(groups), len(too_long)
    limits = f"data.max_length={max_length}, data.max_prompt_length={max_prompt_length or 'null'}"
    if too_long and on_too_long == "raise":
        total = f"... {len(too_long)} of {len(examples)} rows are too long, the longest {counts.longest} ({limits})"
        advice = "data.on_too_long=truncate cuts such rows, drop leaves them out"
        raise DataError("\n".join([*too_long[:_SHOWN], f"{total}; {advice}"]))
    if not groups:
        equal = f"{counts.made_equal} with answers that the template or the cut made equal"
        raise DataError(f"no row is left of {len(examples)}: {len(too_long)} too long ({limits}), {equal}")
    return groups, counts


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


def _encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    text: Literal["auto", "chat", "plain"],
    advance: Callable[[int], None],
) -> Iterator[_Encoded]:
    chat = goes_through_template(examples, tokenizer, text)
    ends = end_tokens(examples, tokenizer, text)
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        texts = [render(example, tokenizer) if chat else as_it_stands(example) for example in chunk]
        prompts = encode_prompts(tokenizer, [row.prompt for row in texts])
        before = [row.prompt for row in texts for _ in row.answers]
        answers = iter(encode_answers(tokenizer, before, [answer for row in texts for answer in row.answers], ends))
        for example, prompt in zip(chunk, prompts, strict=True):
            if not prompt:
                raise DataError(f"{example.source}: the prompt is empty, and this tokenizer has no token to begin with")
            yield _Encoded(example, prompt, [next(answers) for _ in example.answers])
        advance(len(chunk))


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
