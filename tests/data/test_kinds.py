"""What rows say, fitted to what a loss counts; and answers to other prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.data.formats import BadRowError, Columns, Reading, to_example
from dpo_cli.data.kinds import WrongKindError, fit, mismatch
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example, Group, Kind, Pair
from dpo_cli.errors import DataError


def example(columns: Columns | None = None, **values: Any) -> Example:
    return to_example(Row("a.jsonl, line 1", values), Reading(says=columns or Columns()))


PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
RANKED = {"prompt": "Q", "completions": ["a", "b", "c"]}


# -- rows that are no plain pairs


def test_scores_and_ranks_are_one_ranking() -> None:
    by_score = example(**RANKED, scores=[1, 7.5, 1])
    assert by_score == example(**RANKED, ranks=[2, 1, 2])
    assert (by_score.prompt, by_score.answers, by_score.ranks) == ("Q", ["a", "b", "c"], (1, 0, 1))
    assert by_score.pairs == (Pair(1, 0), Pair(1, 2))  # equal scores are not compared


def test_every_better_answer_meets_every_worse_one() -> None:
    found = example(prompt="Q", completions=["a", "b", "c", "d"], scores=[3, 1, 4, 1])
    expected = {(0, 1), (0, 3), (2, 0), (2, 1), (2, 3)}
    assert {(pair.winner, pair.loser) for pair in found.pairs} == expected
    assert found.ranks == (1, 2, 0, 2)


def test_completions_may_be_messages() -> None:
    said = [{"role": "assistant", "content": "a"}]
    found = example(prompt=[{"role": "user", "content": "Q"}], completions=[said, "b"], scores=[0, 1])
    assert found.answers == [said, [{"role": "assistant", "content": "b"}]]
    assert found.prompt == [{"role": "user", "content": "Q"}]


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_one_answer_with_a_label(label: bool) -> None:
    found = example(prompt="Q", completion="A", label=label)
    assert found == Example("Q", ["A"], (), "a.jsonl, line 1", labels=(bool(label),))
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    whole = example(messages=turns, label=label)
    assert (whole.prompt, whole.answers, whole.labels) == (turns[:1], [turns[1:]], (bool(label),))


def test_columns_are_read_where_they_are_named() -> None:
    columns = Columns(weight="w", margin="m", label_prob="p")
    assert example(columns, **PAIR, w=2, m=-0.5, p=0.9).pairs == (Pair(0, 1, 2.0, -0.5, 0.9),)
    assert example(**PAIR, weight=2, margin=3, label_prob=0.1).pairs == (Pair(0, 1),)
    difference = Columns(margin=("good", "bad"))
    assert example(difference, **PAIR, good=4, bad=2.5).pairs == (Pair(0, 1, margin=1.5),)
    per_answer = Columns(margin="scores", weight="w")
    assert example(per_answer, **RANKED, scores=[1, 7.5, 0], w=3).pairs == (
        Pair(0, 2, 3.0, 1.0),
        Pair(1, 0, 3.0, 6.5),
        Pair(1, 2, 3.0, 7.5),
    )


BAD: list[tuple[Columns, dict[str, Any], str]] = [
    (Columns(), {"prompt": "Q", "completions": []}, "completions: expected a list of at least one, found none"),
    (Columns(), {"prompt": "Q", "completions": "a"}, "completions: expected a list of at least one, found str"),
    (Columns(), {"prompt": "Q", "completions": ["a", None]}, "completions, number 2: found null"),
    (Columns(), RANKED, "no column scores or ranks beside completions"),
    (Columns(), {**RANKED, "scores": [1, 2]}, "scores: expected 3 finite numbers, one per answer, found 2"),
    (Columns(), {**RANKED, "scores": [1, 2, "3"]}, "scores, number 3: found str"),
    (Columns(), {**RANKED, "scores": [1, 2, True]}, "scores, number 3: found bool"),
    (
        Columns(),
        {**RANKED, "scores": [1, 2, float("nan")]},
        "scores: expected 3 finite numbers, one per answer, found 3",
    ),
    (
        Columns(),
        {"prompt": "Q", "completions": ["a", "b", "a"], "scores": [1, 2, 3]},
        "completions, answer 1 and completions, answer 3 are the same",
    ),
    (Columns(), {"prompt": "Q", "completion": "A", "label": "yes"}, "label: expected true or false, found 'yes'"),
    (
        Columns(),
        {"prompt": "Q", "completion": "A", "label": None},
        "no shape has the columns completion, prompt: the nearest, judged, lacks label; data.columns says where a "
        "field is, and docs/data.md lists the shapes",
    ),
    (Columns(), {"prompt": "Q", "completion": " ", "label": True}, "completion is empty"),
    (Columns(weight="w"), PAIR, "w: expected a number, found no such column"),
    (Columns(weight="w"), {**PAIR, "w": -1}, "w: expected a weight that is not negative, found -1"),
    (Columns(weight="w"), {**PAIR, "w": True}, "w: expected a number, found True"),
    (Columns(label_prob="p"), {**PAIR, "p": 1.5}, "p: expected a probability, found 1.5"),
    (Columns(margin="m"), {**PAIR, "m": None}, "m: expected a number, found None"),
    (
        Columns(margin="m"),
        {**RANKED, "scores": [1, 2, 3], "m": 4},
        "m: expected a list with a number per answer, as this row has 3",
    ),
    (
        Columns(margin="m"),
        {**RANKED, "scores": [1, 2, 3], "m": [1, 2]},
        "m: expected 3 finite numbers, one per answer, found 2",
    ),
    (
        Columns(margin="m"),
        {**RANKED, "scores": [1, 2, 3], "m": [1, 2, float("nan")]},
        "m: expected 3 finite numbers, one per answer, found 3",
    ),
    (
        Columns(margin="m"),
        {"prompt": "Q", "completion": "A", "label": True},
        "m: a margin or probability is of a comparison, and this row has one answer",
    ),
    (
        Columns(label_prob="p"),
        {**RANKED, "scores": [1, 2, 3]},
        "p: a probability is of one comparison, and this row has several",
    ),
]


@pytest.mark.parametrize(("columns", "values", "message"), BAD)
def test_bad_rows_say_what_was_found(columns: Columns, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError) as error:
        example(columns, **values)
    assert str(error.value) == message


def test_chosen_and_rejected_are_a_pair_whatever_else_there_is() -> None:
    for more in ({"completion": "x", "label": True}, {"completions": ["x", "y"], "scores": [1, 2]}):
        assert example(**PAIR, **more) == example(**PAIR)


def test_null_is_no_column() -> None:
    """Tables of mixed shapes fill up with it."""
    assert example(**PAIR, completions=None, label=None) == example(**PAIR)
    judged = {"prompt": "Q", "completion": "A", "label": True}
    assert example(**judged, chosen=None, rejected=None, completions=None) == example(**judged)
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert example(messages=turns, completion=None, label=True) == example(messages=turns, label=True)


# -- kinds


def test_a_pair_is_also_two_labels_and_a_ranking() -> None:
    pair = Example("Q", ["bad", "good"], (Pair(1, 0, 2.0),), "row 1")
    assert fit("pairs", pair) == pair
    judged, ranked = fit("answers", pair), fit("rankings", pair)
    assert judged is not None
    assert ranked is not None
    assert (judged.labels, judged.weight, judged.pairs) == ((False, True), 2.0, pair.pairs)
    assert (ranked.ranks, ranked.weight) == ((1, 0), 2.0)


def test_rows_that_prefer_nothing_are_nothing() -> None:
    ties = example(**RANKED, scores=[1, 1, 1])
    real = example(**RANKED, scores=[1, 2, 1])
    assert fit("answers", example(prompt="Q", completions=["a", "b"], scores=[1, 1])) is None
    for kind in get_args(Kind)[::2]:
        assert fit(kind, ties) is None
        assert fit(kind, real) == real


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("pairs", {"prompt": "Q", "completion": "A", "label": True}, "take loss=kto, bco or apo_zero_unpaired"),
        ("answers", {**RANKED, "scores": [3, 2, 1]}, "rankings of several answers don't say which are good"),
        ("rankings", {"prompt": "Q", "completion": "A", "label": True}, "expected completions with scores or ranks"),
    ],
)
def test_rows_of_another_kind_say_what_is_needed(kind: Any, row: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongKindError, match=words):
        fit(kind, example(**row))


# -- answers to other prompts


def group(prompt: int, *answers: int) -> Group:
    ids = tuple(np.array([answer] * 5, np.int32) for answer in answers)
    return Group(np.array([prompt, 0], np.int32), ids, (), f"row {answers[0]}")


@given(prompts=st.lists(st.integers(0, 3), min_size=2, max_size=12), seed=st.integers(0, 5))
def test_mismatched_answers_are_of_other_prompts(prompts: list[int], seed: int) -> None:
    groups = [group(prompt, 10 + number) for number, prompt in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(DataError, match="rows have the same prompt: take more rows"):
            mismatch(groups, seed, 100)
        return
    found = mismatch(groups, seed, 100)
    assert [item.prompt_ids.tolist() for item in found] == [item.prompt_ids.tolist() for item in groups]
    for own, other in zip(groups, found, strict=True):
        owner = groups[int(other.answers[0][0]) - 10]
        assert owner.prompt_ids.tolist() != own.prompt_ids.tolist()
    assert [item.answers[0].tolist() for item in mismatch(groups, seed, 100)] == [
        item.answers[0].tolist() for item in found
    ]


def test_with_different_prompts_every_answer_is_used_once() -> None:
    groups = [group(number, 10 + number) for number in range(20)]
    one, other = (mismatch(groups, seed, 100) for seed in (0, 1))
    assert sorted(int(item.answers[0][0]) for item in one) == list(range(10, 30))
    assert [int(item.answers[0][0]) for item in one] != [int(item.answers[0][0]) for item in other]


def test_good_and_bad_answers_take_part() -> None:
    groups = [group(number, 100 + number, 200 + number) for number in range(40)]
    kinds = [int(item.answers[0][0]) // 100 for item in mismatch(groups, 0, 100)]
    assert 8 < kinds.count(1) < 32


def test_mismatched_answers_are_cut_to_fit() -> None:
    assert [len(item.answers[0]) for item in mismatch([group(0, 1), group(1, 2)], 0, 4)] == [2, 2]
    assert [len(item.answers[0]) for item in mismatch([group(0, 1), group(1, 2)], 0, 2)] == [1, 1]


def test_mismatched_answers_keep_which_tokens_are_scored() -> None:
    one = replace(
        group(0, 1), answers=(np.array([7, 8, 9, 6], np.int32),), scored=(np.array([True, False, False, True]),)
    )
    other = group(1, 2)
    (_, borrowed) = mismatch([one, other], 0, 100)
    assert (borrowed.answers[0].tolist(), borrowed.scored[0].tolist()) == ([7, 8, 9, 6], [True, False, False, True])
    (_, borrowed) = mismatch([one, other], 0, len(other.prompt_ids) + 3)
    assert (borrowed.answers[0].tolist(), borrowed.scored) == ([7], ())
    unscored = replace(one, scored=(np.array([False, False, False, True]),))
    (_, borrowed) = mismatch([unscored, other], 0, len(other.prompt_ids) + 3)
    assert (borrowed.answers[0].tolist(), borrowed.scored) == ([7, 8, 9], ())
