"""Every shape: recognised by its columns, read as written out by hand, and never an exception of another kind."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data.formats.shape_rows import ROWS
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.data.formats import SHAPES, BadRowError, Columns, Reading, reading_problems, to_example
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example, Pair
from dpo_cli.errors import DpoError

CASES = [pytest.param(name, *case, id=f"{name}-{n}") for name, cases in ROWS.items() for n, case in enumerate(cases)]


def read(values: dict[str, Any], **reading: Any) -> Example:
    return to_example(Row("rows.jsonl, line 1", values), Reading(**reading))


def problem(values: dict[str, Any], **reading: Any) -> str:
    with pytest.raises(BadRowError) as error:
        read(values, **reading)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_shape_has_a_row() -> None:
    assert list(ROWS) == list(SHAPES)


@pytest.mark.parametrize(("name", "values", "expected"), CASES)
def test_a_row_of_each_shape(name: str, values: dict[str, Any], expected: Example) -> None:
    before = copy.deepcopy(values)
    assert read(values, shape=name) == expected
    if not SHAPES[name].by_name_only:
        assert read(values) == expected
    assert values == before


@pytest.mark.parametrize(("name", "values", "expected"), CASES)
def test_tables_of_text(name: str, values: dict[str, Any], expected: Example) -> None:
    """As in a CSV file: lists and objects as JSON, numbers and truth values as text, absent columns null."""
    as_text = {column: value if isinstance(value, str) else json.dumps(value) for column, value in values.items()} | {
        "another": None
    }
    assert read(as_text, shape=name) == expected


@pytest.mark.parametrize(("name", "values", "expected"), CASES)
def test_columns_of_other_names(name: str, values: dict[str, Any], expected: Example) -> None:
    fields = SHAPES[name].fields
    elsewhere = {f"x.{field}": values[field] for field in fields if field in values}
    others = {column: value for column, value in values.items() if column not in fields}
    columns = {column.removeprefix("x."): column for column in elsewhere}
    assert read(elsewhere | others, columns=columns, shape=name) == expected
    nested = {"deep": [{column.removeprefix("x."): value for column, value in elsewhere.items()}]}
    columns = {column: f"deep.0.{column}" for column in columns}
    assert read(nested | others, columns=columns, shape=name) == expected


# -- which shape


def test_more_columns_go_before_fewer() -> None:
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    assert read({"instruction": "I", "input": "N", "chosen": "a", "rejected": "b"}).prompt == "I\nN"
    assert read({**pair, "messages": "not read"}) == read(pair)


def test_columns_that_fit_several_shapes_are_not_guessed() -> None:
    values = {"prompt": "Q", "question": "R", "chosen": "a", "rejected": "b"}
    assert problem(values) == (
        "the columns fit several shapes: say which, data.shape=prompt_pair (prompt, chosen, rejected) or "
        "data.shape=question_pair (question, chosen, rejected)"
    )
    assert read(values, shape="question_pair").prompt == "R"
    assert read(values, columns={"prompt": "question"}).prompt == "R"
    assert read({**values, "question": None}).prompt == "Q"
    assert "as one of them: question: expected text" in problem({**values, "question": 3})


def test_several_shapes_that_come_out_the_same_are_no_question() -> None:
    """orpo-dpo-mix has whole dialogues, beside prompt and question."""
    dialogues = {"chosen": [*TURNS, says("assistant", "a")], "rejected": [*TURNS, says("assistant", "b")]}
    assert read({**dialogues, "prompt": "Q", "question": "Q"}) == read(dialogues)


def test_one_scored_answer_is_no_preference() -> None:
    row = {"prompt": "Q", "response": "a", "helpfulness": 3, "correctness": 4}
    assert problem(row).startswith("one answer with scores, which says neither")


def test_named_shape_lacks_a_column() -> None:
    assert problem({"prompt": "Q", "chosen": "a"}, shape="shp") == (
        "no column history or human_ref_A or human_ref_B or labels, which data.shape=shp has: found chosen, prompt"
    )


@pytest.mark.parametrize(
    ("shape", "columns", "words"),
    [
        ("hh", {}, "data.shape=hh: there is no such shape; choose auto, prompt_pair, "),
        ("nectr", {}, "data.shape=nectr: there is no such shape; did you mean nectar? There are auto, "),
        ("auto", {"promt": "q"}, "data.columns.promt: no shape has such a field; expected one of answer_0, "),
        (
            "nectar",
            {"chosen": "q"},
            "data.columns.chosen: data.shape=nectar has no such field; expected one of answers,",
        ),
        ("auto", {"prompt": "{a"}, "data.columns.prompt has a brace without its partner: '{a'; expected {column}"),
        ("auto", {"prompt": ""}, "data.columns.prompt is empty: expected a column's name"),
    ],
)
def test_wrong_readings_are_said_before_any_row(shape: str, columns: dict[str, str], words: str) -> None:
    (line,) = reading_problems(shape, columns)
    assert line.startswith(words)
    with pytest.raises(DpoError) as error:
        read({"prompt": "Q"}, shape=shape, columns=columns)
    assert str(error.value) == line


def test_right_readings_have_no_problem() -> None:
    assert reading_problems("auto", {}) == []
    assert reading_problems("auto", {"prompt": "{a.b} {{x}} {c}", "chosen": "c.0.text", "system": "s"}) == []
    assert all(reading_problems(name, dict.fromkeys(SHAPES[name].fields, "x")) == [] for name in SHAPES)


def test_shapes_are_known_without_torch() -> None:
    heavy = "('torch', 'transformers', 'datasets')"
    code = f"import sys, dpo_cli.data.formats; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


# -- columns of other names


def test_text_with_columns_in_braces() -> None:
    values = {"context": "C", "n": 3, "deep": {"q": "Q {n}"}, "chosen": "a", "rejected": "b"}
    found = read(values, columns={"prompt": "{context} {{n}} {n}\n{deep.q}"})
    assert (found.prompt, found.answers) == ("C {n} 3\nQ {n}", ["a", "b"])  # what a column holds is not filled again


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{context.__class__}", "columns.prompt=context.__class__: there is no __class__: context is str"),
        ("{context!r}", "columns.prompt=context!r: there is no context!r: the row's columns are chosen, context, list"),
        ("{list}", "columns.prompt: expected text or a number in list, found list"),
        ("list.7", "columns.prompt=list.7: there is no 7: list is a list of 1"),
        ("list.0.x", "columns.prompt=list.0.x: there is no x: list.0 is an object with y"),
        (
            "missing",
            "columns.prompt=missing: there is no missing: the row's columns are chosen, context, list, rejected",
        ),
    ],
)
def test_columns_that_are_not_there(source: str, words: str) -> None:
    values = {"context": "C", "list": [{"y": 1}], "chosen": "a", "rejected": "b"}
    assert problem(values, columns={"prompt": source}).startswith(words)


# -- what is said beside


TWO = {"question": "Q", "answer_0": "a", "score_0": 1, "answer_1": "b", "score_1": 2.5}


def test_columns_beside_answers_of_which_either_may_win() -> None:
    said = Columns(weight="w", margin=("score_0", "score_1"), label_prob="p")
    assert read({**TWO, "w": "2", "p": "0.75"}, says=said).pairs == (Pair(1, 0, 2.0, 1.5, 0.75),)
    flipped = {**TWO, "score_0": 4, "w": 2, "p": 1}
    assert read(flipped, says=said).pairs == (Pair(0, 1, 2.0, 1.5, 1.0),)


@pytest.mark.parametrize("strength", [-2, 2])
def test_strength_as_margin_is_never_negative(strength: int) -> None:
    row = {"prompt": "Q", "response_1": "a", "response_2": "b", "preference_strength": strength}
    (pair,) = read(row, says=Columns(margin="preference_strength")).pairs
    assert (pair.winner, pair.margin) == (int(strength > 0), 2.0)


# -- arbitrary values

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SCALARS |= st.sampled_from(["system", "tool", "[", '[{"role": "user"}]', "{}", "1e999", "Human: x", 10**400, "\ud83d"])
KEYS = st.text(max_size=3) | st.sampled_from(
    [
        "role",
        "content",
        "from",
        "value",
        "type",
        "text",
        "tool_calls",
        "name",
        "function",
        "arguments",
        "response",
        "rank",
    ]
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
ASIDE = ["system", "tools", "chat_template_kwargs", "weight", "margin", "label_prob"]
READINGS = st.builds(
    Reading,
    loss_on=st.sampled_from(["last", "differing"]),
    system=st.sampled_from([None, "S"]),
    says=st.sampled_from([Columns(), Columns("weight"), Columns(margin="margin"), Columns(label_prob="label_prob")]),
)


def survives(values: dict[str, Any], reading: Reading) -> None:
    try:
        found = to_example(Row("row 1", values), reading)
    except BadRowError as error:
        message = str(error)
    else:
        is_whole(found)
        return
    assert "\n" not in message
    assert len(message) < 1500


def is_whole(found: Example) -> None:
    json.dumps([found.prompt, found.answers, found.template_args], ensure_ascii=False).encode()
    assert len(found.answers) >= 1
    for answer, scored in zip(found.answers, found.scored or [(0,)] * len(found.answers), strict=True):
        if isinstance(answer, list):
            assert answer[0]["role"] == answer[-1]["role"] == "assistant"
            assert scored
            assert all(answer[turn]["role"] == "assistant" for turn in scored)
    assert bool(found.labels) + bool(found.pairs or found.ranks) == 1


@given(name=st.sampled_from(list(SHAPES)), data=st.data(), reading=READINGS)
def test_any_values_are_an_example_or_a_bad_row(name: str, data: st.DataObject, reading: Reading) -> None:
    columns = [*SHAPES[name].fields, *ASIDE]
    values = {column: data.draw(JSON, label=column) for column in columns}
    survives(values, reading)
    survives(values, Reading(shape=name))


@given(case=st.sampled_from([case.values for case in CASES]), value=JSON, seed=st.integers(0, 10**6), reading=READINGS)
def test_a_real_row_with_one_value_changed(case: Any, value: Any, seed: int, reading: Reading) -> None:
    name, values, _ = case
    changed = mutate(copy.deepcopy(values), value, random.Random(seed))
    survives(changed, reading)
    survives(changed, Reading(shape=name, loss_on=reading.loss_on))


def mutate(values: Any, value: Any, draw: random.Random) -> Any:
    """``values`` with ``value`` in one place, at any depth."""
    if not isinstance(values, dict | list) or not values or draw.random() < 0.2:
        return value if not isinstance(values, dict) or "role" in values else values
    key = draw.choice(list(values)) if isinstance(values, dict) else draw.randrange(len(values))
    values[key] = mutate(values[key], value, draw)
    return values


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TURNS = [says("user", "Q")]


def test_the_table_in_the_docs_names_every_shape() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
    shapes = docs.partition("## Shapes")[2].partition("\n## ")[0]
    listed = [line.split("`")[1] for line in shapes.splitlines() if line.startswith("| `")]
    assert listed == list(SHAPES)
