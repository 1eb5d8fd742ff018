"""No prompt is on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_cli.data.holdout import check_overlap, hold_out
from dpo_cli.data.types import Example, Pair
from dpo_cli.errors import DataError


def examples(prompts: list[int]) -> list[Example]:
    return [
        Example(f"Q{prompt}", [f"A{row}", "-"], (Pair(0, 1),), f"row {row}")
        for row, prompt in enumerate(prompts, start=1)
    ]


def prompts(side: list[Example]) -> set[str]:
    return {str(example.prompt) for example in side}


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=2).filter(lambda prompts: len(set(prompts)) > 1),
    st.floats(0.001, 0.999),
    st.integers(0, 5),
)
def test_sides_share_no_prompt_and_keep_every_row_in_order(rows: list[int], fraction: float, seed: int) -> None:
    everything = examples(rows)
    train, held = hold_out(everything, fraction, seed)
    assert not prompts(train) & prompts(held)
    assert train == [example for example in everything if example in train]
    assert held == [example for example in everything if example in held]
    assert len(train) + len(held) == len(everything)
    total = len(set(rows))
    assert len(prompts(held)) == min(max(1, round(fraction * total)), total - 1)


def test_choice_depends_on_content_and_seed_not_on_order() -> None:
    everything = examples(list(range(100)))
    _, held = hold_out(everything, 0.2, seed=0)
    _, held_of_reversed = hold_out(everything[::-1], 0.2, seed=0)
    _, held_by_other_seed = hold_out(everything, 0.2, seed=1)
    assert prompts(held) == prompts(held_of_reversed)
    assert prompts(held) != prompts(held_by_other_seed)
    # What was held out once stays so: in another process, on another machine.
    assert sorted(prompts(hold_out(examples([1, 2, 3, 4, 5, 6]), 0.5, seed=7)[1])) == ["Q1", "Q3", "Q5"]


def test_one_prompt_is_too_few() -> None:
    with pytest.raises(
        DataError, match=r"^data.eval=0.5: holding out prompts takes at least 2 different ones, found 1$"
    ):
        hold_out(examples([1, 1, 1]), 0.5, seed=0)


def test_overlap_leaves_training_only() -> None:
    train, held = examples([1, 2, 3, 2]), examples([2, 4])
    kept, dropped = check_overlap(train, held)
    assert [example.source for example in kept] == ["row 1", "row 3"]
    assert dropped == 2


def test_overlap_sees_a_text_prompt_in_its_user_turn() -> None:
    turn = Example([{"role": "user", "content": "Q2"}], [[{"role": "assistant", "content": "A"}]], (), "row 1")
    assert check_overlap(examples([1, 2]), [turn])[1] == 1


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(DataError, match="nothing is left to train on: the prompts of all 2 rows"):
        check_overlap(examples([1, 1]), examples([1]))
