"""Prompt and answers from dialogues: where the prompt ends, and which turns are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from dpo_cli.data.formats.messages import Content
from dpo_cli.data.formats.reading import BadRowError, EmptyAnswerError, EqualAnswersError, Reading
from dpo_cli.data.formats.values import names
from dpo_cli.data.types import Message


class Said(NamedTuple):
    """Prompt and answers, as in ``Example``."""

    prompt: Content
    answers: list[str] | list[list[Message]]
    scored: tuple[tuple[int, ...], ...] = ()


def prompt_and_answers(prompt: Content | None, answers: Mapping[str, Content], system: str, reading: Reading) -> Said:
    """A row's prompt and answers; all text, or all messages.

    Args:
        prompt: None = the answers are whole dialogues, as messages.
        answers: by the names of their columns.
        system: the row's; empty = it has none.
        reading: ``system`` goes before prompts that have none; ``loss_on``: see ``split``.

    Raises:
        BadRowError: as ``split``; an answer that neither is one assistant turn nor goes on from the prompt, or a
            second, different system turn.
    """
    texts = [answer for answer in answers.values() if isinstance(answer, str)]
    if isinstance(prompt, str) and len(texts) == len(answers) and not (system or reading.system):
        return Said(prompt, texts)
    dialogues = {
        column: _with_system(_dialogue(prompt, answer, column), column, system, reading.system)
        for column, answer in answers.items()
    }
    return split(dialogues, reading.loss_on)


def split(dialogues: Mapping[str, list[Message]], loss_on: Literal["last", "differing"]) -> Said:
    """The dialogues' common prompt and what follows it.

    The prompt ends before the first turn that differs, which must be the assistant's: people differing is a
    difference between prompts, and no answer's merit. Turns at the end that are the same in every dialogue follow
    what is compared and tell nothing, so they are left out, as is a user's turn that nobody answers then. (hh-rlhf
    has no such rows; data where one turn was rewritten in the middle has.) What is left of each dialogue is its
    answer.

    ``last``: it must be one turn. ``differing``: it may be several, with the other side's turns between as they
    stand in that dialogue; scored are the assistant's turns that are not the same in all dialogues at that place.

    A single dialogue (judged, not compared) has its last turn as the answer either way.

    Raises:
        BadRowError: a dialogue that doesn't end in an assistant turn or is the start of another; no prompt or one
            that ends in the wrong turn; a difference that isn't the assistant's; several turns and ``last``.
    """
    for column, turns in dialogues.items():
        if turns[-1]["role"] != "assistant":
            raise BadRowError(f"{column}: expected an assistant turn at the end, found {turns[-1]['role']}")
    columns, whole = list(dialogues), list(dialogues.values())
    start = _first_difference(whole)
    _check_difference(columns, whole, start)
    prompt = whole[0][:start]
    if not prompt:
        alone = all(len(turns) == 1 for turns in whole)
        why = (
            f"{' and '.join(columns)} are one turn each" if alone else f"{' and '.join(columns)} differ from the start"
        )
        raise BadRowError(f"no prompt: there is no column prompt, and {why}")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise BadRowError(f"prompt: expected a user or tool turn at the end, found {prompt[-1]['role']}")
    answers = _without_common_end([turns[start:] for turns in whole])
    if all(len(answer) == 1 for answer in answers):
        return Said(prompt, answers)
    if loss_on == "last":
        raise BadRowError(
            f"{' and '.join(columns)} differ before the last turn, from message {start + 1} on; "
            "data.loss_on=differing compares every assistant turn that differs"
        )
    return Said(prompt, answers, tuple(_differing(answers, number) for number in range(len(answers))))


def check_answers(said: Said, columns: Sequence[str]) -> None:
    """Each scored turn says something, and no two answers are the same.

    Raises:
        EmptyAnswerError, EqualAnswersError: otherwise.
    """
    answers: Sequence[Content] = said.answers
    for number, (column, answer) in enumerate(zip(columns, answers, strict=True)):
        scored = said.scored[number] if said.scored else (0,)
        silent = _is_blank(answer) if isinstance(answer, str) else any(_is_silent(answer[turn]) for turn in scored)
        if silent:
            raise EmptyAnswerError(f"{column} is empty")
    for first, second in combinations(range(len(said.answers)), 2):
        if said.answers[first] == said.answers[second]:
            raise EqualAnswersError(f"{columns[first]} and {columns[second]} are the same")


def _is_blank(text: str) -> bool:
    return not text.strip()


def _is_silent(turn: Message) -> bool:
    return _is_blank(turn["content"]) and not turn.get("tool_calls")


def _first_difference(whole: Sequence[list[Message]]) -> int:
    """Index of the first turn that is not the same in all; at most the last of the shortest."""
    shortest = min(map(len, whole))
    if len(whole) == 1:
        return shortest - 1
    differing = (turn for turn in range(shortest) if any(other[turn] != whole[0][turn] for other in whole[1:]))
    return next(differing, shortest - 1 if all(len(turns) == shortest for turns in whole) else shortest)


def _check_difference(columns: Sequence[str], whole: Sequence[list[Message]], start: int) -> None:
    for column, turns in zip(columns, whole, strict=True):
        if len(turns) == start:
            others = " and ".join(other for other in columns if other != column)
            raise BadRowError(f"{column} ends with message {start}, where {others} is the same and goes on")
    if any(turns[start]["role"] != "assistant" for turns in whole):
        raise BadRowError(f"{' and '.join(columns)} differ before the last turn, from message {start + 1} on")


def _without_common_end(answers: list[list[Message]]) -> list[list[Message]]:
    """Ends that are the same are cut off, but never the first turn, and each answer ends in an assistant turn."""
    if len(answers) == 1:
        return answers
    common = 0
    room = min(map(len, answers)) - 1
    while common < room and all(answer[-1 - common] == answers[0][-1 - common] for answer in answers):
        common += 1
    return [_to_last_assistant(answer[: len(answer) - common]) for answer in answers]


def _to_last_assistant(answer: list[Message]) -> list[Message]:
    last = max(turn for turn, message in enumerate(answer) if message["role"] == "assistant")
    return answer[: last + 1]


def _differing(answers: Sequence[list[Message]], number: int) -> tuple[int, ...]:
    """Indices of this answer's assistant turns that are not the same in all answers."""
    return tuple(
        turn
        for turn, message in enumerate(answers[number])
        if message["role"] == "assistant" and not all(turn < len(other) and other[turn] == message for other in answers)
    )


def _dialogue(prompt: Content | None, answer: Content, column: str) -> list[Message]:
    """Prompt and answer as one dialogue, whether or not the answer repeats the prompt."""
    turns = [Message(role="assistant", content=answer)] if isinstance(answer, str) else answer
    if prompt is None:
        return turns
    if isinstance(prompt, str):
        if turns[0]["role"] != "assistant" and any(turn["role"] == "user" for turn in turns):
            # As in ultrafeedback_binarized: the text is one of the dialogue's own user turns.
            return turns
        prompt = [Message(role="user", content=prompt)]
    if turns[: len(prompt)] == prompt:
        return turns
    roles = [turn["role"] for turn in turns]
    if roles[0] != "assistant":
        raise BadRowError(
            f"{column}: expected one assistant turn, alone or after the prompt's turns, found {names(roles)[:80]}"
        )
    return [*prompt, *turns]


def _with_system(turns: list[Message], column: str, system: str, default: str | None) -> list[Message]:
    if turns[0]["role"] == "system":
        if system and turns[0]["content"] != system:
            raise BadRowError(f"system: the row has a system text, and {column} starts with another system turn")
        return turns
    text = system or default
    return [Message(role="system", content=text), *turns] if text else turns
