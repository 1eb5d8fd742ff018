"""The shapes of rows: what each becomes, and what is said of those that fit none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data.formats import BadRowError, to_example
from dpo_cli.data.sources import Place, Row, open_source
from dpo_cli.data.types import Example, Pair

REAL = os.environ.get("DPO_TEST_DATA", "")


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def row(**values: Any) -> Row:
    return Row("a.jsonl, line 1", values)


HH_PROMPT = "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\nmore\n\nAssistant: A2"
GOOD = [
    pytest.param(
        {"prompt": "Hi ", "chosen": " Hello\n", "rejected": "No", "score": 3}, "Hi ", [" Hello\n", "No"], id="text"
    ),
    pytest.param({"prompt": "", "chosen": "a", "rejected": "b"}, "", ["a", "b"], id="text without a prompt"),
    pytest.param(
        {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": assistant("B")},
        [user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="messages",
    ),
    pytest.param(
        {"prompt": [system("S"), user("Q")], "chosen": "A", "rejected": [assistant("B")]},
        [system("S"), user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="messages and text",
    ),
    pytest.param(
        {"prompt": "Q", "chosen": [assistant("A")], "rejected": [assistant("B")]},
        [user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="text and messages",
    ),
    pytest.param(
        {"prompt": "Q", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
        [user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="ultrafeedback_binarized",
    ),
    pytest.param(
        {
            "prompt": "Q2",
            "chosen": [system("S"), user("Q"), assistant("A"), user("Q2"), assistant("C")],
            "rejected": [system("S"), user("Q"), assistant("A"), user("Q2"), assistant("D")],
        },
        [system("S"), user("Q"), assistant("A"), user("Q2")],
        [[assistant("C")], [assistant("D")]],
        id="text prompt is the last turn of a dialogue",
    ),
    pytest.param(
        {"prompt": [user("Q")], "chosen": [user("Q"), assistant("A")], "rejected": [assistant("B")]},
        [user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="one answer repeats the prompt",
    ),
    pytest.param(
        {
            "chosen": [user("Q"), assistant("A"), user("R"), assistant("C")],
            "rejected": [user("Q"), assistant("A"), user("R"), assistant("D")],
        },
        [user("Q"), assistant("A"), user("R")],
        [[assistant("C")], [assistant("D")]],
        id="whole dialogues",
    ),
    pytest.param(
        {
            "chosen": f"{HH_PROMPT} \n\nHuman: Q3\n\nAssistant: yes",
            "rejected": f"{HH_PROMPT}\n\nHuman: Q3\n\nAssistant: no ",
        },
        [user("Q1"), assistant("A1"), user("Q2\nmore"), assistant("A2"), user("Q3")],
        [[assistant("yes")], [assistant("no")]],
        id="hh-rlhf of three turns",
    ),
    pytest.param(
        {"chosen": "Human: Q\n\nHuman: R\n\nAssistant: a", "rejected": "Human: Q\n\nHuman: R\n\nAssistant: b"},
        [user("Q"), user("R")],
        [[assistant("a")], [assistant("b")]],
        id="hh-rlhf without the first blank line, and one speaker twice",
    ),
    pytest.param(
        {
            "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "chatgpt", "value": "B"},
        },
        [system("S"), user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="ShareGPT",
    ),
    pytest.param(
        {"conversations": [{"from": "user", "value": "Q"}], "chosen": "A", "rejected": "B"},
        [user("Q")],
        [[assistant("A")], [assistant("B")]],
        id="ShareGPT with text answers",
    ),
    pytest.param(
        {"prompt": [user("Q"), {"role": "tool", "content": "42"}], "chosen": "A", "rejected": "B"},
        [user("Q"), {"role": "tool", "content": "42"}],
        [[assistant("A")], [assistant("B")]],
        id="a tool's turn last",
    ),
]


@pytest.mark.parametrize(("values", "prompt", "answers"), GOOD)
def test_shapes(values: dict[str, Any], prompt: Any, answers: Any) -> None:
    assert to_example(row(**values)) == Example(prompt, answers, (Pair(0, 1),), "a.jsonl, line 1")


TEXT = {"prompt": "Q", "chosen": "A", "rejected": "B"}
BAD = [
    (
        {"text": "x", "tag": 1},
        "no shape has the columns tag, text: data.columns says where a field is, and docs/data.md lists the shapes",
    ),
    (
        {"prompt": "Q", "chosen": "A"},
        "no shape has the columns chosen, prompt: the nearest, prompt_pair, lacks rejected; data.columns says where a "
        "field is, and docs/data.md lists the shapes",
    ),
    (TEXT | {"chosen": 3}, "chosen: expected text or a list of messages, found int"),
    (TEXT | {"prompt": None}, "chosen: with no column prompt, expected text that starts with Human:, found 'A'"),
    (TEXT | {"prompt": 7}, "prompt: expected text or a list of messages, found int"),
    (TEXT | {"rejected": []}, "rejected: expected at least one message, found none"),
    (TEXT | {"chosen": ["A"]}, "chosen, message 1: expected an object with role and content, found str"),
    (TEXT | {"chosen": [{"content": "A"}]}, "chosen, message 1: expected text in role, found no such key"),
    (
        TEXT | {"chosen": [user("Q"), {"role": "assistant"}]},
        "chosen, message 2: expected text in content, found no such key",
    ),
    (TEXT | {"chosen": {"role": "assistant", "content": None}}, "chosen: expected text in content, found null"),
    (
        TEXT | {"chosen": {"role": "assistant", "content": [{"type": "image"}]}},
        "chosen: expected text in content, found a list with a part of type image",
    ),
    (TEXT | {"chosen": {"from": "gpt", "content": "A"}}, "chosen: expected text in value, found no such key"),
    (
        TEXT | {"prompt": [{"role": "critic", "content": "Q"}]},
        "prompt, message 1: expected role to be one of system, user, assistant, tool, human, gpt, chatgpt, bing, bard, "
        "function_call, tool_call, observation, tool_response, function, found 'critic'",
    ),
    (
        TEXT | {"chosen": assistant("") | {"tool_calls": [{}]}},
        "chosen, tool call 1: expected an object with a function's name and arguments, found an object with nothing",
    ),
    (TEXT | {"chosen": "\ud83d"}, "chosen: half a character (\\ud83d) at 1"),
    (TEXT | {"chosen": " \n"}, "chosen is empty"),
    (TEXT | {"rejected": ""}, "rejected is empty"),
    (TEXT | {"prompt": [user("Q")], "rejected": [assistant(" ")]}, "rejected is empty"),
    (TEXT | {"rejected": "A"}, "chosen and rejected are the same"),
    (TEXT | {"chosen": assistant("A"), "rejected": assistant("A")}, "chosen and rejected are the same"),
    ({"chosen": "\n\nHuman: Q\n\nAssistant:", "rejected": "\n\nHuman: Q\n\nAssistant: B"}, "chosen is empty"),
    (
        {"chosen": "Just an answer", "rejected": "Another"},
        "chosen: with no column prompt, expected text that starts with Human:, found 'Just an answer'",
    ),
    (
        {"chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"},
        "chosen: with no column prompt, expected text that starts with Human:, found '\\n\\nAssistant: A'",
    ),
    (
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("R"), assistant("B")]},
        "chosen and rejected differ before the last turn, from message 1 on",
    ),
    (
        {
            "chosen": [user("Q"), assistant("A")],
            "rejected": [user("Q"), assistant("A"), user("R"), assistant("B")],
        },
        "chosen ends with message 2, where rejected is the same and goes on",
    ),
    (
        {"chosen": [assistant("A")], "rejected": [assistant("B")]},
        "no prompt: there is no column prompt, and chosen and rejected are one turn each",
    ),
    (
        {"chosen": [user("Q"), user("R")], "rejected": [user("Q"), assistant("B")]},
        "chosen: expected an assistant turn at the end, found user",
    ),
    (
        TEXT | {"prompt": [user("Q"), assistant("A")]},
        "prompt: expected a user or tool turn at the end, found assistant",
    ),
    (
        TEXT | {"prompt": [user("Q")], "chosen": [user("R"), assistant("A")]},
        "chosen: expected one assistant turn, alone or after the prompt's turns, found user, assistant",
    ),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_rows_say_field_found_and_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError) as error:
        to_example(row(**values))
    assert str(error.value) == message


def real(name: str) -> tuple[list[Example], list[str]]:
    """Examples of a real file, and what is wrong with its bad rows."""
    examples, problems = [], []
    place = Place(str(Path(REAL) / name))
    for each in open_source(place, key="data.path", cache=Path(tempfile.gettempdir(), "dpo-hashes")).rows():
        try:
            examples.append(to_example(each))
        except BadRowError as error:
            problems.append(f"{each.source}: {error}")
    return examples, problems


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPO_TEST_DATA is not set")
def test_real_hh_rlhf() -> None:
    examples, problems = real("hh_harmless.jsonl.gz")
    assert problems == [f"hh_harmless.jsonl.gz, line {line}: chosen is empty" for line in (87, 517, 926, 1104)]
    assert len(examples) == 1152
    assert [turn["role"] for turn in examples[0].prompt] == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPO_TEST_DATA is not set")
def test_real_sharegpt() -> None:
    examples, problems = real("dpo_en_demo.json")
    assert (len(examples), problems) == (298, [])
