"""Groups laid end to end: read back, they must be the groups again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.data.collate import FlatBatch, Layout, collate, flat_length, shared_prefix, split_answers
from dpo_cli.data.types import Group, Pair


def compared(batch: FlatBatch) -> list[tuple[int, int]]:
    winners, losers = (batch.preferences[name].tolist() for name in ("winners", "losers"))
    return list(zip(winners, losers, strict=True))


def group(prompt: list[int], *answers: list[int], pairs: tuple[tuple[int, int], ...] = ()) -> Group:
    arrays = tuple(np.array(answer, dtype=np.int32) for answer in answers)
    return Group(np.array(prompt, dtype=np.int32), arrays, tuple(Pair(*pair) for pair in pairs), "a row")


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)  # few ids, so that first tokens are often shared


@st.composite
def some_group(draw) -> Group:
    answers = draw(st.lists(TOKENS, min_size=1, max_size=4))
    index = st.integers(0, len(answers) - 1)
    pairs = draw(st.lists(st.tuples(index, index), max_size=4))
    return group(draw(TOKENS), *answers, pairs=tuple(pairs))


GROUPS = st.lists(some_group(), min_size=1, max_size=5)


def context(batch: FlatBatch, row: int) -> list[int]:
    """The ids that the model sees at ``row``, itself included: its trunk's, then its own branch's."""
    layout = next(layout for layout in batch.layouts if layout.start <= row < layout.end)
    trunk_end = layout.start + layout.trunk
    if row < trunk_end:
        return batch.input_ids[layout.start : row + 1].tolist()
    start = trunk_end
    for branch in layout.branches:
        if row < start + branch:
            return [*batch.input_ids[layout.start : trunk_end], *batch.input_ids[start : row + 1]]
        start += branch
    raise AssertionError(f"row {row} is in no branch")


@given(groups=GROUPS, share=st.booleans())
def test_every_answer_token_is_predicted_from_its_prompt_and_what_precedes_it(groups, share: bool) -> None:
    batch = collate(groups, share=share)
    answers = [(g.prompt_ids, answer) for g in groups for answer in g.answers]
    expected = [
        ([*prompt.tolist(), *answer[:i].tolist()], int(answer[i]), number)
        for number, (prompt, answer) in enumerate(answers)
        for i in range(len(answer))
    ]
    found = [
        (context(batch, int(batch.rows[batch.token_rows[token]])), int(batch.targets[token]), int(number))
        for token, number in zip(batch.answer_tokens, batch.answer, strict=True)
    ]
    assert found == expected
    assert len(set(batch.answer.tolist())) == len(answers)


@st.composite
def some_masked_group(draw) -> Group:
    made = draw(some_group())
    masks = [
        np.array([*draw(st.lists(st.booleans(), min_size=n, max_size=n)), True]) for n in map(_before, made.answers)
    ]
    return replace(made, scored=tuple(masks))


def _before(answer: np.ndarray) -> int:
    return len(answer) - 1


MASKED = st.lists(some_group() | some_masked_group(), min_size=1, max_size=5)


@given(groups=MASKED, share=st.booleans())
def test_only_scored_tokens_are_predicted_and_from_all_that_precedes_them(groups, share: bool) -> None:
    batch = collate(groups, share=share)
    answers = [
        (g, answer, mask) for g in groups for answer, mask in zip(g.answers, g.scored or [None] * 4, strict=False)
    ]
    expected = [
        ([*g.prompt_ids.tolist(), *answer[:i].tolist()], int(answer[i]), number)
        for number, (g, answer, mask) in enumerate(answers)
        for i in range(len(answer))
        if mask is None or mask[i]
    ]
    found = [
        (context(batch, int(batch.rows[batch.token_rows[token]])), int(batch.targets[token]), int(number))
        for token, number in zip(batch.answer_tokens, batch.answer, strict=True)
    ]
    assert found == expected
    assert set(batch.answer_tokens.tolist()) == set(range(len(batch.targets)))
    assert sorted(set(batch.token_rows.tolist())) == list(range(len(batch.rows)))
    assert len(batch.input_ids) == len(collate([replace(g, scored=()) for g in groups], share=share).input_ids)


@given(groups=GROUPS, share=st.booleans())
def test_a_mask_of_all_is_no_mask(groups, share: bool) -> None:
    masked = [replace(g, scored=tuple(np.ones(len(answer), dtype=bool) for answer in g.answers)) for g in groups]
    one, other = (
        {name: value for name, value in vars(collate(some, share=share)).items() if isinstance(value, np.ndarray)}
        for some in (groups, masked)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)


@given(groups=GROUPS, share=st.booleans())
def test_a_position_is_the_number_of_tokens_seen_before(groups, share: bool) -> None:
    batch = collate(groups, share=share)
    assert [len(context(batch, row)) - 1 for row in range(len(batch.input_ids))] == batch.position_ids.tolist()


@given(groups=GROUPS, share=st.booleans())
def test_rows_are_exactly_those_that_predict(groups, share: bool) -> None:
    batch = collate(groups, share=share)
    assert (np.diff(batch.rows) > 0).all()
    assert sorted(set(batch.token_rows.tolist())) == list(range(len(batch.rows)))
    # Every predicted token is some answer's, and only shared ones are several answers'.
    assert set(batch.answer_tokens.tolist()) == set(range(len(batch.targets)))


@given(groups=GROUPS, share=st.booleans())
def test_preferences_are_counted_through_the_batch(groups, share: bool) -> None:
    batch = collate(groups, share=share)
    expected, offset = [], 0
    for g in groups:
        expected += [(offset + winner, offset + loser) for winner, loser, *_ in g.pairs]
        offset += len(g.answers)
    assert compared(batch) == expected


@given(groups=GROUPS)
def test_flat_length_is_what_a_group_takes(groups) -> None:
    batch = collate(groups)
    assert len(batch.input_ids) == sum(flat_length(g) for g in groups)
    assert [layout.end - layout.start for layout in batch.layouts] == [flat_length(g) for g in groups]


@pytest.mark.parametrize(
    ("answers", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # one token is left to each
        ([[1, 2], [1, 2, 3]], 1),
        ([[1], [1, 2, 3]], 0),
        ([[5, 2], [6, 2]], 0),
        ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 9, 3, 4]], 1),
        ([[1, 2, 3]], 0),
    ],
)
def test_shared_prefix(answers: list[list[int]], shared: int) -> None:
    assert shared_prefix([np.array(answer, dtype=np.int32) for answer in answers]) == shared


def test_a_pair_by_hand() -> None:
    batch = collate([group([1, 2], [3, 4, 5], [3, 6], pairs=((1, 0),))])
    assert batch.input_ids.tolist() == [1, 2, 3, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 3]
    assert batch.layouts == (Layout(0, 3, (1, 0)),)
    assert batch.rows.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [3, 4, 5, 6]
    assert batch.token_rows.tolist() == [0, 1, 2, 1]
    assert batch.answer_tokens.tolist() == [0, 1, 2, 0, 3]
    assert batch.answer.tolist() == [0, 0, 0, 1, 1]
    assert compared(batch) == [(1, 0)]


def test_every_index_array_is_int64() -> None:
    batch = collate([group([1], [2], pairs=()), group([1, 2], [3, 4], [5], pairs=((0, 1),))])
    arrays = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.int64)}
    assert len(arrays) >= 9


def test_split_answers_keeps_prompts_and_drops_preferences() -> None:
    parts = split_answers([group([1, 2], [3], [4, 5], pairs=((0, 1),)), group([6], [7])])
    assert [(p.prompt_ids.tolist(), [a.tolist() for a in p.answers], p.pairs) for p in parts] == [
        ([1, 2], [[3]], ()),
        ([1, 2], [[4, 5]], ()),
        ([6], [[7]], ()),
    ]
