"""From Examples to Groups: templated, tokenised, and cut to the longest length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.encode import Encode, encode_after, encode_prompts, encoder, ended, special_tokens
from dpo_cli.data.render import (
    Rendered,
    as_it_stands,
    check_template_args,
    goes_through_template,
    question,
    render_all,
    text_after_answer,
)
from dpo_cli.data.special import SpecialTokens
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
    """Which side of a prompt is cut off: see ``cut``."""
    on_too_long: Literal["truncate", "drop", "raise"] = "truncate"
    """What is done with rows that don't fit."""
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given besides messages, where a row says nothing else."""

    @property
    def limits(self) -> str:
        """For messages."""
        return f"data.max_length={self.max_length}, data.max_prompt_length={self.max_prompt_length or 'null'}"


class AnswerIds(NamedTuple):
    """An answer's tokens, up to the last that is scored."""

    ids: list[int]
    scored: list[bool] | None
    """None = all."""

    def cut(self, length: int) -> AnswerIds:
        """Its start, up to the last token that is scored; what follows is there for nobody."""
        if self.scored is None:
            return AnswerIds(self.ids[:length], None)
        scored = self.scored[:length]
        while scored and not scored[-1]:
            scored.pop()
        return AnswerIds(self.ids[: len(scored)], None if all(scored) and scored else scored)

    def scored_ids(self) -> list[int]:
        return (
            [number for number, scored in zip(self.ids, self.scored, strict=True) if scored]
            if self.scored
            else self.ids
        )


class Ids(NamedTuple):
    """A row's tokens before any cut."""

    prompt: list[int]
    answers: list[AnswerIds]
    kept_end: int
    """Tokens at the prompt's end that no cut takes away."""


LeftOut = Literal["", "too_long", "made_equal", "nothing_scored"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of an Example."""

    example: Example
    rendered: Rendered
    """Its text."""
    whole: Ids
    """Its tokens before any cut."""
    group: Group | None
    left_out: LeftOut = ""
    """Why there is no group. ``made_equal``: the template or the cut made the scored tokens of a pair's two answers the
    same, which teaches nothing. ``nothing_scored``: the cut left an answer without a scored token."""

    @property
    def prompt_length(self) -> int:
        """Tokens before any cut."""
        return len(self.whole.prompt)

    @property
    def answer_lengths(self) -> tuple[int, ...]:
        """Tokens before any cut, up to the last that is scored."""
        return tuple(len(answer.ids) for answer in self.whole.answers)

    @property
    def special_in_text(self) -> str:
        """A special token that stands in what people wrote: text in a conversation, itself in plain rows."""
        return self.rendered.special

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
    nothing_scored: int = 0
    """Left out, these three: see ``Encoded``."""
    special_in_text: int = 0
    """Examples with such: see ``Encoded``."""
    longest: int = 0
    """Tokens of the longest prompt with its longest answer, before any cut."""

    def add(self, encoded: Encoded) -> None:
        """Count one."""
        self.longest = max(self.longest, encoded.prompt_length + max(encoded.answer_lengths))
        self.dropped_too_long += encoded.left_out == "too_long"
        self.made_equal += encoded.left_out == "made_equal"
        self.nothing_scored += encoded.left_out == "nothing_scored"
        self.special_in_text += bool(encoded.special_in_text)
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
    is the one that ends the turn, unless the answer was cut. See ``cut`` for what is cut, and ``special`` for special
    tokens that people wrote.

    Args:
        examples: a thousand or so at a time is fastest.
        tokenizer: the model's.
        encoding: how.
        ends: from ``end_tokens``.

    Raises:
        DpoError: rows, ``text`` and tokenizer don't go together, or ``template_args`` can't be given to a template.
        DataError: a row that the template can't render, or a prompt without any token.
    """
    check_template_args(encoding.template_args, "data.template_args")
    special = SpecialTokens.of(tokenizer)
    if goes_through_template(examples, tokenizer, encoding.text):
        texts = _render_all(examples, tokenizer, encoding, ends, special)
        others = frozenset(special.ids) - {tokenizer.unk_token_id}  # which stands for letters that it doesn't know
    else:
        texts, others = [as_it_stands(example, special) for example in examples], frozenset()
    found: dict[int, Ids] = {}
    copy = partial(special.encode_copy, tokenizer)
    for encode, hidden in ((encoder(tokenizer), False), (copy, True)):
        places = [place for place, row in enumerate(texts) if row.hidden == hidden]
        if places:
            rows = [texts[place] for place in places]
            found.update(zip(places, _encode(rows, tokenizer, encode, ends, others), strict=True))
    return [
        _encoded(example, texts[place], found[place], tokenizer.bos_token_id, encoding)
        for place, example in enumerate(examples)
    ]


def _render_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    ends: Sequence[int],
    special: SpecialTokens,
) -> list[Rendered]:
    options: dict[str, Any] = {
        "template_args": encoding.template_args,
        "ends": tokenizer.convert_ids_to_tokens(list(ends)),
        "special": special,
        "after_prompt": encoding.truncate_prompt == "end",
    }
    return render_all(examples, tokenizer, **options)


def _encode(
    rows: Sequence[Rendered],
    tokenizer: PreTrainedTokenizerBase,
    encode: Encode,
    ends: Sequence[int],
    others: Collection[int],
) -> list[Ids]:
    """Rows that are encoded alike, in order; ``others`` as in ``ended``."""
    prompts = encode_prompts(tokenizer, encode, [row.prompt for row in rows])
    before, texts = [], []
    for row in rows:
        for spans in row.answers:
            text = row.prompt
            for span in spans:
                before.append(text)
                texts.append(span.text)
                text += span.text
    pieces = iter(encode_after(encode, before, texts))
    after = list(dict.fromkeys(row.after_prompt for row in rows))
    kept = dict(zip(after, encode(after), strict=True))
    return [
        Ids(
            prompt,
            [
                _answer([span.scored for span in spans], [next(pieces) for _ in spans], ends, others)
                for spans in row.answers
            ],
            _same_end(prompt, kept[row.after_prompt]),
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def _answer(scored: list[bool], pieces: list[list[int]], ends: Sequence[int], others: Collection[int]) -> AnswerIds:
    if not pieces:
        return AnswerIds([], [])
    pieces[-1] = ended(pieces[-1], ends, others)
    if len(pieces) == 1:
        return AnswerIds(pieces[0], None)
    ids = [number for piece in pieces for number in piece]
    return AnswerIds(ids, [each for each, piece in zip(scored, pieces, strict=True) for _ in piece])


def _same_end(ids: list[int], other: list[int]) -> int:
    """How many last tokens are the same."""
    return next(
        (same for same, (one, two) in enumerate(zip(reversed(ids), reversed(other), strict=False)) if one != two),
        min(len(ids), len(other)),
    )


def _encoded(example: Example, rendered: Rendered, row: Ids, bos: int | None, encoding: Encoding) -> Encoded:
    if not row.prompt:
        raise DataError(f"{example.source}: the prompt is empty, and this tokenizer has no token to begin with")
    whole = [answer.ids for answer in row.answers]
    prompt, kept = cut(
        row.prompt,
        whole,
        encoding.max_length,
        encoding.max_prompt_length,
        bos,
        side=encoding.truncate_prompt,
        kept_end=row.kept_end,
    )
    answers = [answer.cut(len(ids)) for answer, ids in zip(row.answers, kept, strict=True)]
    left_out: LeftOut = ""
    if encoding.on_too_long != "truncate" and (prompt, kept) != (row.prompt, whole):
        left_out = "too_long"
    elif not all(answer.ids for answer in answers):
        left_out = "nothing_scored"
    elif any(answers[pair.winner].scored_ids() == answers[pair.loser].scored_ids() for pair in example.pairs):
        left_out = "made_equal"
    group = None if left_out else _group(example, prompt, answers)
    return Encoded(example, rendered, row, group, left_out)


def cut(
    prompt: list[int],
    answers: list[list[int]],
    max_length: int,
    max_prompt_length: int | None,
    bos: int | None,
    *,
    side: Literal["start", "end"] = "start",
    kept_end: int = 0,
) -> tuple[list[int], list[list[int]]]:
    """Prompt and answers cut so that the prompt and any one answer fit in ``max_length``.

    An answer keeps its start. A prompt loses its ``side``: with ``start`` it keeps its end, and a ``bos`` at its start.
    With ``end`` it keeps its start, and behind that the last ``kept_end`` tokens: what the template writes after the
    last message's text, so that the text is cut, and the answer still follows an assistant's header.

    The prompt gets ``max_prompt_length`` if that is given, else what the longest answer leaves, but half of
    ``max_length`` in any case; the answers get the rest. So every answer keeps a token, and what fits isn't cut.
    """
    left = max(max_length - max(len(answer) for answer in answers), max_length // 2)
    limit = min(max_prompt_length or left, max_length - 1)
    if len(prompt) > limit:
        bos_kept = int(prompt[0] == bos and limit > 1)
        end = limit - bos_kept if side == "start" else min(kept_end, limit - bos_kept)
        prompt = prompt[: limit - end] + prompt[len(prompt) - end :]
    return prompt, [answer[: max_length - len(prompt)] for answer in answers]


def end_tokens(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    text: Literal["auto", "chat", "plain"],
    template_args: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """What ends an answer: end-of-sequence, and the special token that the template writes after an answer.

    Args:
        examples: the first one shows what the template writes.
        tokenizer, text: as for ``tokenize``.
        template_args: ``Encoding``'s.

    Raises:
        DpoError: as ``tokenize``.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if goes_through_template(examples, tokenizer, text):
        ends += special_tokens(tokenizer, text_after_answer(examples[0], tokenizer, template_args))[:1]
    if not ends:
        raise DpoError("the tokenizer has no end-of-sequence token, so that answers would have no end")
    return ends


def _group(example: Example, prompt: list[int], answers: list[AnswerIds]) -> Group:
    return Group(
        prompt_ids=np.array(prompt, dtype=np.int32),
        answers=tuple(np.array(answer.ids, dtype=np.int32) for answer in answers),
        pairs=example.pairs,
        source=example.source,
        question=question(example),
        labels=example.labels,
        ranks=example.ranks,
        weight=example.weight,
        scored=_masks(answers),
    )


def _masks(answers: list[AnswerIds]) -> tuple[NDArray[np.bool_], ...]:
    if all(answer.scored is None for answer in answers):
        return ()
    return tuple(np.array([True] * len(ids) if scored is None else scored, dtype=bool) for ids, scored in answers)
