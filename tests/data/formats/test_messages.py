"""Messages: keys, roles, tools, parts; what a row gives the chat template; dialogues that differ early."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dpo_cli.data.formats import BadRowError, Reading, to_example
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example, Pair


def read(values: dict[str, Any], **reading: Any) -> Example:
    return to_example(Row("rows.jsonl, line 1", values), Reading(**reading))


def problem(values: dict[str, Any], **reading: Any) -> str:
    with pytest.raises(BadRowError) as error:
        read(values, **reading)
    return str(error.value)


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def turns(*said: str) -> list[dict[str, Any]]:
    """``"u: Q"`` is a user turn."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [say(roles[words[0]], words[3:]) for words in said]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


# -- tools


def test_tool_turns_are_kept_whole() -> None:
    prompt = [
        say("user", "Weather?", name="Ada"),
        say("assistant", "", tool_calls=[{"id": "1", **CALL}], reasoning_content="I look it up."),
        say("tool", "rain", tool_call_id="1", name="weather"),
    ]
    found = read({"prompt": [{**turn, "id": 3} for turn in prompt], "chosen": "Wet.", "rejected": "Dry."})
    assert found.prompt == prompt


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL["function"],
        {"function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
        {**CALL, "id": None},
    ],
)
def test_tool_calls_come_in_one_form(call: dict[str, Any]) -> None:
    row = {"prompt": "Q", "chosen": {"role": "assistant", "content": None, "tool_calls": [call]}, "rejected": "b"}
    assert read(row).answers[0] == [say("assistant", "", tool_calls=[CALL])]


def test_sharegpt_function_calls() -> None:
    call = json.dumps(CALL["function"])
    said = [("human", "Q"), ("function_call", call), ("observation", "rain")]
    row = {"conversations": [{"from": who, "value": words} for who, words in said], "chosen": "a", "rejected": "b"}
    assert read(row).prompt == [say("user", "Q"), say("assistant", "", tool_calls=[CALL]), say("tool", "rain")]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("form", [lambda value: value, json.dumps])
def test_what_a_row_gives_the_template(form: Any) -> None:
    kwargs = {"enable_thinking": False}
    found = read({**PAIR, "tools": form(TOOLS), "chat_template_kwargs": form(kwargs)})
    assert found.template_args == {"tools": TOOLS, "enable_thinking": False}
    assert read({**PAIR, "tools": form([]), "chat_template_kwargs": form({})}).template_args == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": "weather"}, "tools: expected a list of objects or its JSON, found str"),
        ({"tools": ["weather"]}, "tools: expected a list of objects or its JSON, found list"),
        ({"tools": "[{]"}, "tools: starts like JSON and isn't (Expecting property name enclosed in double quotes)"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: expected an object, found list"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: tokenize is not the row's to say"),
        ({"chosen": say("assistant", "", tool_calls=[{"name": 3}])}, None),
        ({"chosen": say("assistant", "", tool_calls=[{"name": "f", "arguments": [1]}])}, None),
        ({"system": 3}, "system: expected text, found int"),
    ],
)
def test_bad_tools(more: dict[str, Any], message: str | None) -> None:
    found = problem({**PAIR, **more})
    assert found == message if message else found.startswith("chosen, tool call 1: expected ")


# -- content and order


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": "a", "rejected": "b"}
    assert read(row).prompt == turns("u: One two")
    parts.append({"type": "image", "text": None})
    assert problem(row) == "prompt, message 1: expected text in content, found a list with a part of type image"


def test_text_that_is_no_message_stays_text() -> None:
    for said in ('[{"role": "user"}]', '{"role": 1}', "[1, 2]", "[{", '["a"]', '[{"role": "user", "content": "Q"}] x'):
        assert read({"prompt": said, "chosen": said + "a", "rejected": said + "b"}).prompt == said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["u: Q", "s: S"], "prompt, message 2: a system turn comes first, found it after 1"),
        (["s: S", "s: S", "u: Q"], "prompt, message 2: a system turn comes first, found it after 1"),
        (["t: 3", "u: Q"], "prompt, message 1: a tool turn answers an earlier turn, and there is none"),
    ],
)
def test_roles_out_of_order(said: list[str], message: str) -> None:
    assert problem({**PAIR, "prompt": turns(*said)}) == message


@pytest.mark.parametrize(
    "said", [["u: Q", "u: R"], ["a: Hello", "u: Q"], ["s: S", "a: Hello", "u: Q"], ["u: Q", "t: 3"]]
)
def test_orders_that_data_sets_have(said: list[str]) -> None:
    assert read({**PAIR, "prompt": turns(*said)}).prompt == turns(*said)


# -- system turns


def test_system_turns() -> None:
    assert read(PAIR, system="S").prompt == turns("s: S", "u: Q")
    assert read({**PAIR, "system": "T"}, system="S").prompt == turns("s: T", "u: Q")
    assert read({**PAIR, "system": " "}).prompt == "Q"
    own = {**PAIR, "prompt": turns("s: T", "u: Q")}
    assert read(own, system="S").prompt == turns("s: T", "u: Q")
    assert read({**own, "system": "T"}).prompt == turns("s: T", "u: Q")
    assert problem({**own, "system": "U"}) == (
        "system: the row has a system text, and chosen starts with another system turn"
    )
    assert read({**PAIR, "persona": "P"}, columns={"system": "persona"}).prompt == turns("s: P", "u: Q")


# -- dialogues that differ before their last turn


def dialogues(chosen: list[str], rejected: list[str], loss_on: Any = "differing") -> Example:
    return read({"chosen": turns(*chosen), "rejected": turns(*rejected)}, loss_on=loss_on)


EARLY = (["u: Q", "a: A", "u: R", "a: C"], ["u: Q", "a: B", "u: R", "a: D"])


def test_differing_turns_are_scored_where_asked() -> None:
    found = dialogues(*EARLY)
    assert found.prompt == turns("u: Q")
    assert found.answers == [turns("a: A", "u: R", "a: C"), turns("a: B", "u: R", "a: D")]
    assert found.scored == ((0, 2), (0, 2))
    assert found.pairs == (Pair(0, 1),)
    with pytest.raises(BadRowError) as error:
        dialogues(*EARLY, loss_on="last")
    assert str(error.value) == (
        "chosen and rejected differ before the last turn, from message 2 on; "
        "data.loss_on=differing compares every assistant turn that differs"
    )


def test_turns_between_that_are_the_same_are_not_scored() -> None:
    found = dialogues(
        ["u: Q", "a: A", "u: R", "a: same", "u: T", "a: C"], ["u: Q", "a: B", "u: R", "a: same", "u: T", "a: D"]
    )
    assert found.scored == ((0, 4), (0, 4))


def test_dialogues_may_be_of_different_length() -> None:
    found = dialogues(["u: Q", "a: A"], ["u: Q", "a: B", "u: Why?", "a: D"])
    assert found.answers == [turns("a: A"), turns("a: B", "u: Why?", "a: D")]
    assert found.scored == ((0,), (0, 2))


@pytest.mark.parametrize("loss_on", ["last", "differing"])
def test_an_end_that_is_the_same_is_left_out(loss_on: str) -> None:
    same_end = (["u: Q", "a: A", "u: R", "a: C"], ["u: Q", "a: B", "u: R", "a: C"])
    found = dialogues(*same_end, loss_on=loss_on)
    assert (found.prompt, found.answers, found.scored) == (turns("u: Q"), [turns("a: A"), turns("a: B")], ())
    other_user = (["u: Q", "a: A", "u: R", "a: C"], ["u: Q", "a: B", "u: S", "a: C"])
    assert dialogues(*other_user, loss_on=loss_on).answers == [turns("a: A"), turns("a: B")]


@pytest.mark.parametrize("loss_on", ["last", "differing"])
def test_the_last_turn_is_the_answer_where_only_it_differs(loss_on: str) -> None:
    found = dialogues(["u: Q", "a: A", "u: R", "a: C"], ["u: Q", "a: A", "u: R", "a: D"], loss_on=loss_on)
    assert (found.prompt, found.scored) == (turns("u: Q", "a: A", "u: R"), ())
    assert found.answers == [turns("a: C"), turns("a: D")]


def test_what_no_setting_mends() -> None:
    for loss_on in ("last", "differing"):
        for prompts, message in (
            (("u: Q", "u: R"), "chosen and rejected differ before the last turn, from message 1 on"),
            (("s: S", "s: T"), "chosen and rejected differ before the last turn, from message 1 on"),
        ):
            rows = [[first, "u: Q", "a: " + answer] for first, answer in zip(prompts, "AB", strict=True)]
            with pytest.raises(BadRowError) as error:
                dialogues(*rows, loss_on=loss_on)
            assert str(error.value) == message
    silent = (["u: Q", "a: A", "u: R", "a:  "], ["u: Q", "a: B", "u: R", "a: D"])
    with pytest.raises(BadRowError, match=r"^chosen is empty$"):
        dialogues(*silent)


def test_an_answer_may_call_tools_and_go_on() -> None:
    calls = [say("assistant", "", tool_calls=[CALL]), say("tool", "rain"), say("assistant", "Wet.")]
    row = {"prompt": turns("u: Q"), "chosen": calls, "rejected": turns("a: Dry.")}
    found = read(row, loss_on="differing")
    assert (found.answers, found.scored) == ([calls, turns("a: Dry.")], ((0, 2), (0,)))
    assert "data.loss_on=differing" in problem(row)
    assert read({**row, "rejected": [*calls[:2], say("assistant", "Dry.")]}).prompt == [*turns("u: Q"), *calls[:2]]
