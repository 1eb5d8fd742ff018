"""The table of shapes: what data sets' rows look like, and how each is read.

To add one: write a function from a row's fields to ``Told``, and put a line into ``SHAPES``, in docs/data.md and in
the tests. Fields have the names that the data set gives its columns; ``data.columns`` says where they are in others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from dpo_cli.data.formats.messages import Content, content, dialogue, hh_prompt, parse_helpsteer, turns
from dpo_cli.data.formats.reading import BadRowError
from dpo_cli.data.formats.values import as_number, from_json, kind_of, list_of, number, numbers_of, text, truth
from dpo_cli.data.types import Message

Fields = Mapping[str, Any]
COMMON = ("system", "tools", "chat_template_kwargs")
"""Fields that a row of any shape may have."""


class Told(NamedTuple):
    """What a row says, before prompt and answers are brought into one form."""

    prompt: Content | None
    """None = the answers are whole dialogues, as messages."""
    answers: dict[str, Content]
    """By the names of their columns, for messages to the user."""
    scores: list[float] | None = None
    """How good each answer is, higher is better; None = the first of two is better."""
    label: bool | None = None
    """Of one answer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows of one kind look like."""

    kind: Literal["pair", "ranking", "judged"]
    needs: tuple[str, ...]
    """Columns that all such rows have, not null."""
    read: Callable[[Fields], Told]
    may_have: tuple[str, ...] = ()
    """Further columns that are read."""
    by_name_only: bool = False
    """Never recognised by its columns, which another shape has as well."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Everything that is read, but for ``COMMON``."""
        return self.needs + self.may_have


def _pair(fields: Fields, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected") -> Told:
    answers = {column: content(fields[column], column) for column in (chosen, rejected)}
    return Told(content(fields[prompt], prompt), answers)


def _pair_after_turns(fields: Fields, prompt: str) -> Told:
    answers = {column: content(fields[column], column) for column in ("chosen", "rejected")}
    return Told(turns(fields[prompt], prompt), answers)


def _hh_prompt(fields: Fields) -> Told:
    answers: dict[str, Content] = {column: text(fields[column], column).strip() for column in ("chosen", "rejected")}
    return Told(hh_prompt(text(fields["prompt"], "prompt"), "prompt"), answers)


def _dialogues(fields: Fields, chosen: str = "chosen", rejected: str = "rejected") -> Told:
    return Told(None, {column: dialogue(fields[column], column) for column in (chosen, rejected)})


def _swift(fields: Fields) -> Told:
    messages = turns(fields["messages"], "messages")
    rejected = content(fields["rejected_response"], "rejected_response")
    return Told(messages[:-1] or None, {"messages": messages[-1:], "rejected_response": rejected})


def _alpaca_prompt(fields: Fields) -> Content:
    """Instruction and input with a line break between them, after the history's turns."""
    said = text(fields["instruction"], "instruction")
    more = fields.get("input")
    if more is not None and text(more, "input"):
        said = f"{said}\n{more}"
    history = from_json(fields.get("history"), "history")
    if history in (None, [], ""):
        return said
    if not isinstance(history, list):
        raise BadRowError(f"history: expected a list of pairs of texts, found {kind_of(history)}")
    before: list[Message] = []
    for place, said_before in enumerate(history, start=1):
        if not isinstance(said_before, list) or len(said_before) != 2:
            raise BadRowError(f"history, number {place}: expected a pair of texts, found {kind_of(said_before)}")
        for role, words in zip(("user", "assistant"), said_before, strict=True):
            before.append(Message(role=role, content=text(words, f"history, number {place}")))
    return [*before, Message(role="user", content=said)]


def _alpaca(fields: Fields) -> Told:
    answers = {column: content(fields[column], column) for column in ("chosen", "rejected")}
    return Told(_alpaca_prompt(fields), answers)


def _alpaca_ranked(fields: Fields) -> Told:
    listed = list_of(fields, "output", str)
    if len(listed) != 2:
        raise BadRowError(f"output: expected two answers, the better one first, found {len(listed)}")
    return Told(_alpaca_prompt(fields), _numbered("output", listed))


def _alpaca_judged(fields: Fields) -> Told:
    label = truth(fields, "kto_tag")
    return Told(_alpaca_prompt(fields), {"output": text(fields["output"], "output")}, label=label)


def _two(fields: Fields, prompt: Content, answers: tuple[str, str], advantage: float) -> Told:
    """Of two answers the first is better by ``advantage``, which is negative where it is worse, 0 where it is not."""
    return Told(prompt, {column: content(fields[column], column) for column in answers}, [advantage, 0.0])


def _prompt(fields: Fields, column: str) -> Content:
    return content(fields[column], column)


def _shp(fields: Fields) -> Told:
    advantage = 1.0 if truth(fields, "labels") else -1.0
    return _two(fields, _prompt(fields, "history"), ("human_ref_A", "human_ref_B"), advantage)


def _safe_rlhf(fields: Fields) -> Told:
    better = number(fields, "better_response_id")
    if better not in (0, 1):
        raise BadRowError(f"better_response_id: expected 0 or 1, found {better:g}")
    return _two(fields, _prompt(fields, "prompt"), ("response_0", "response_1"), 1 - 2 * better)


def _webgpt(fields: Fields) -> Told:
    asked = from_json(fields["question"], "question")
    question = asked.get("full_text") if isinstance(asked, dict) else fields["question"]
    advantage = number(fields, "score_0") - number(fields, "score_1")
    return _two(fields, text(question, "question"), ("answer_0", "answer_1"), advantage)


def _helpsteer2(fields: Fields) -> Told:
    prompt = parse_helpsteer(text(fields["prompt"], "prompt"))
    return _two(fields, prompt, ("response_1", "response_2"), -number(fields, "preference_strength"))


def _helpsteer3(fields: Fields) -> Told:
    prompt = turns(fields["context"], "context")
    return _two(fields, prompt, ("response1", "response2"), -number(fields, "overall_preference"))


def _ranked(fields: Fields) -> Told:
    answers = _numbered("completions", list_of(fields, "completions", str | list | dict))
    prompt = _prompt(fields, "prompt")
    column = next((name for name in ("scores", "ranks") if fields.get(name) is not None), None)
    if column is None:
        raise BadRowError("no column scores or ranks beside completions")
    given = numbers_of(fields, column, len(answers))
    return Told(prompt, answers, given if column == "scores" else [-rank for rank in given])


def _ultrafeedback(fields: Fields) -> Told:
    """Scored by ``overall_score``, or by ``fine-grained_score`` where a completion has no overall score."""
    listed = list_of(fields, "completions", dict)
    answers = _numbered("completions", [completion.get("response") for completion in listed])
    for key in ("overall_score", "fine-grained_score"):
        scores = [as_number(completion.get(key)) for completion in listed]
        found = [score for score in scores if score is not None]
        if len(found) == len(listed):
            return Told(_prompt(fields, "instruction"), answers, found)
    raise BadRowError("completions: expected a number in overall_score or fine-grained_score of each")


def _nectar(fields: Fields) -> Told:
    listed = list_of(fields, "answers", dict)
    answers = _numbered("answers", [answer.get("answer") for answer in listed])
    ranks = [number(answer, "rank") for answer in listed]
    said = text(fields["prompt"], "prompt")
    prompt: Content = hh_prompt(said, "prompt") if said.lstrip().startswith("Human:") else said
    return Told(prompt, answers, [-rank for rank in ranks])


def _rewardbench2(fields: Fields) -> Told:
    good, bad = (_numbered(column, list_of(fields, column, str | list | dict)) for column in ("chosen", "rejected"))
    return Told(_prompt(fields, "prompt"), good | bad, [1.0] * len(good) + [0.0] * len(bad))


def _judged(fields: Fields) -> Told:
    label = truth(fields, "label")
    return Told(_prompt(fields, "prompt"), {"completion": _prompt(fields, "completion")}, label=label)


def _judged_dialogue(fields: Fields, messages: str, label: str) -> Told:
    return Told(None, {messages: turns(fields[messages], messages)}, label=truth(fields, label))


def _numbered(column: str, listed: list[Any]) -> dict[str, Content]:
    names = [f"{column}, answer {place}" for place in range(1, len(listed) + 1)]
    return {name: content(value, name) for name, value in zip(names, listed, strict=True)}


_PAIR = ("chosen", "rejected")
_ALPACA = ("input", "history")
SHAPES: dict[str, Shape] = {
    # chosen and rejected, with a prompt
    "prompt_pair": Shape("pair", ("prompt", *_PAIR), _pair),
    "ultrafeedback_binarized": Shape("pair", ("prompt", *_PAIR, "messages"), _pair),
    "question_pair": Shape("pair", ("question", *_PAIR), partial(_pair, prompt="question")),
    "input_pair": Shape("pair", ("input", *_PAIR), partial(_pair, prompt="input")),
    "alpaca_pair": Shape("pair", ("instruction", *_PAIR), _alpaca, _ALPACA),
    "alpaca_ranked": Shape("pair", ("instruction", "output"), _alpaca_ranked, _ALPACA),
    "argilla_responses": Shape(
        "pair",
        ("instruction", "chosen_response", "rejected_response"),
        partial(_pair, prompt="instruction", chosen="chosen_response", rejected="rejected_response"),
    ),
    "messages_pair": Shape("pair", ("messages", *_PAIR), partial(_pair_after_turns, prompt="messages")),
    "sharegpt_pair": Shape("pair", ("conversations", *_PAIR), partial(_pair_after_turns, prompt="conversations")),
    "hh_prompt": Shape("pair", ("prompt", *_PAIR), _hh_prompt, by_name_only=True),
    # two whole dialogues
    "dialogues": Shape("pair", _PAIR, _dialogues),
    "swift": Shape("pair", ("messages", "rejected_response"), _swift),
    "swift_messages": Shape(
        "pair",
        ("messages", "rejected_messages"),
        partial(_dialogues, chosen="messages", rejected="rejected_messages"),
    ),
    # two answers, either of which may be the better one
    "shp": Shape("pair", ("history", "human_ref_A", "human_ref_B", "labels"), _shp),
    "safe_rlhf": Shape("pair", ("prompt", "response_0", "response_1", "better_response_id"), _safe_rlhf),
    "webgpt": Shape("pair", ("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt),
    "helpsteer2": Shape("pair", ("prompt", "response_1", "response_2", "preference_strength"), _helpsteer2),
    "helpsteer3": Shape("pair", ("context", "response1", "response2", "overall_preference"), _helpsteer3),
    # several answers, ranked
    "ranked": Shape("ranking", ("prompt", "completions"), _ranked, ("scores", "ranks")),
    "ultrafeedback": Shape("ranking", ("instruction", "completions"), _ultrafeedback),
    "nectar": Shape("ranking", ("prompt", "answers"), _nectar),
    "rewardbench2": Shape("ranking", ("prompt", *_PAIR, "num_correct"), _rewardbench2),
    # one answer, judged
    "judged": Shape("judged", ("prompt", "completion", "label"), _judged),
    "messages_judged": Shape(
        "judged", ("messages", "label"), partial(_judged_dialogue, messages="messages", label="label")
    ),
    "messages_kto_tag": Shape(
        "judged", ("messages", "kto_tag"), partial(_judged_dialogue, messages="messages", label="kto_tag")
    ),
    "sharegpt_judged": Shape(
        "judged", ("conversations", "label"), partial(_judged_dialogue, messages="conversations", label="label")
    ),
    "sharegpt_kto_tag": Shape(
        "judged", ("conversations", "kto_tag"), partial(_judged_dialogue, messages="conversations", label="kto_tag")
    ),
    "alpaca_kto_tag": Shape("judged", ("instruction", "output", "kto_tag"), _alpaca_judged, _ALPACA),
}
"""By name, as ``data.shape`` takes it."""
