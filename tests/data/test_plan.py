"""The plan: who is in which update, on which rank, in which micro-batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.data.plan import Plan, pack, share_out, spread

Rows = list[tuple[int, float, int]]
"""(tokens, FLOPs, comparisons) of each group."""

ROWS = st.lists(
    st.tuples(st.integers(1, 200), st.floats(0.1, 1e6), st.integers(1, 6)),
    min_size=1,
    max_size=40,
)
# A fixed data set of 23 groups and 43 comparisons.
FIXED: Rows = [(10 + 7 * i % 50, float(1 + i * i % 19), 1 + i % 3) for i in range(22)] + [(12, 3.0, 1)]


def plan_of(rows: Rows, **options: Any) -> Plan:
    lengths, costs, comparisons = zip(*rows, strict=True)
    defaults = {"seed": 0, "batch_size": 8, "epochs": 1, "max_steps": None, "world_size": 1, "token_budget": 128}
    return Plan(lengths, costs, comparisons, **(defaults | options))


def membership(plan: Plan) -> list[tuple[int, ...]]:
    return [step.groups for step in plan]


@given(rows=ROWS, seed=st.integers(0, 2**32), batch_size=st.integers(1, 20), budget=st.integers(1, 400))
def test_membership_is_the_same_at_any_world_size_and_token_budget(rows, seed, batch_size, budget) -> None:
    common = {"seed": seed, "batch_size": batch_size, "epochs": 2}
    expected = plan_of(rows, **common)
    for world_size in (1, 2, 4):
        plan = plan_of(rows, **common, world_size=world_size, token_budget=budget)
        assert membership(plan) == membership(expected)
        assert [step.epoch for step in plan] == [step.epoch for step in expected]


@given(rows=ROWS, world_size=st.integers(1, 5), batch_size=st.integers(1, 20), budget=st.integers(1, 400))
def test_every_step_is_shared_out_whole(rows, world_size, batch_size, budget) -> None:
    for step in plan_of(rows, world_size=world_size, batch_size=batch_size, token_budget=budget):
        assert len(step.ranks) == world_size
        assert len({len(rank) for rank in step.ranks}) == 1, "ranks must make equally many calls"
        micro_batches = [micro for rank in step.ranks for micro in rank]
        assert sorted(group for micro in micro_batches for group in micro) == sorted(step.groups)
        for micro in micro_batches:
            assert len(micro) <= 1 or sum(rows[group][0] for group in micro) <= budget
        assert any(step.ranks[rank][0] for rank in range(world_size)), "not every first micro-batch is a filler"


@given(rows=ROWS, batch_size=st.integers(1, 20), epochs=st.integers(1, 4))
def test_every_group_is_there_once_per_epoch(rows, batch_size, epochs) -> None:
    plan = plan_of(rows, batch_size=batch_size, epochs=epochs)
    seen: dict[int, list[int]] = {}
    for step in plan:
        # An epoch's last step ends at a whole number.
        seen.setdefault(-int(-step.epoch // 1), []).extend(step.groups)
    assert list(seen) == list(range(1, epochs + 1))
    assert all(sorted(groups) == list(range(len(rows))) for groups in seen.values())
    assert plan[len(plan) - 1].epoch == epochs


@given(rows=ROWS, batch_size=st.integers(1, 20))
def test_whole_groups_fill_a_batch_until_its_size_is_reached(rows, batch_size) -> None:
    steps = list(plan_of(rows, batch_size=batch_size))
    for step in steps:
        counts = [rows[group][2] for group in step.groups]
        assert step.comparisons == sum(counts)
        assert sum(counts[:-1]) < batch_size, "it was full before its last group"
    assert all(step.comparisons >= batch_size for step in steps[:-1])
    assert sum(step.comparisons for step in steps) == sum(row[2] for row in rows)


def test_the_last_partial_batch_of_each_epoch_is_kept() -> None:
    plan = plan_of([(5, 1.0, 1)] * 10, batch_size=4, epochs=2)
    assert [step.comparisons for step in plan] == [4, 4, 2, 4, 4, 2]
    assert [step.epoch for step in plan] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


@pytest.mark.parametrize(("max_steps", "epochs", "steps"), [(None, 3, 9), (4, 3, 4), (9, 3, 9), (100, 3, 9), (1, 1, 1)])
def test_max_steps_ends_a_run(max_steps: int | None, epochs: int, steps: int) -> None:
    rows = [(5, 1.0, 1)] * 10
    plan = plan_of(rows, batch_size=4, epochs=epochs, max_steps=max_steps)
    assert len(plan) == steps
    assert membership(plan) == membership(plan_of(rows, batch_size=4, epochs=epochs))[:steps]


def test_the_order_is_the_seeds_and_the_epochs() -> None:
    first = plan_of(FIXED, seed=1, epochs=2)
    assert membership(first) == membership(plan_of(FIXED, seed=1, epochs=2))
    assert membership(first) != membership(plan_of(FIXED, seed=2, epochs=2))
    flat = [group for step in first for group in step.groups]
    assert flat[: len(FIXED)] != flat[len(FIXED) :]
    # What comes first does not depend on how long the run is.
    assert membership(plan_of(FIXED, seed=1, epochs=1)) == membership(first)[: len(plan_of(FIXED, seed=1))]


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    forwards = list(plan_of(FIXED, world_size=2, epochs=2))
    plan = plan_of(FIXED, world_size=2, epochs=2)
    assert [plan[i] for i in reversed(range(len(plan)))] == forwards[::-1]
    assert plan[3] == forwards[3]
    assert plan_of(FIXED, world_size=2, epochs=2)[3] == forwards[3]


def test_order_of_seed_0_is_fixed() -> None:
    """A change here would silently send resumed runs through other data."""
    plan = plan_of([(5, 1.0, 1)] * 8, batch_size=4, epochs=2)
    assert membership(plan) == [(2, 4, 3, 6), (5, 0, 1, 7), (1, 3, 7, 6), (0, 4, 2, 5)]


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([5, 5, 5], 10, [(0, 1), (2,)]),
        ([5, 5, 5], 15, [(0, 1, 2)]),
        ([5, 5, 5], 4, [(0,), (1,), (2,)]),
        ([3, 9, 6, 1], 10, [(1, 3), (2, 0)]),
        ([4, 30, 4], 8, [(1,), (0, 2)]),
        ([], 8, []),
    ],
)
def test_micro_batches_are_packed_longest_first(lengths: list[int], budget: int, expected) -> None:
    assert pack(range(len(lengths)), lengths, budget) == expected


@pytest.mark.parametrize(
    ("costs", "world_size", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2, [[3, 0], [2, 1]]),
        ([10.0, 1.0, 1.0, 1.0], 2, [[0], [1, 2, 3]]),
        ([1.0], 3, [[0], [], []]),
    ],
)
def test_groups_are_spread_by_cost(costs: list[float], world_size: int, expected) -> None:
    assert spread(range(len(costs)), costs, world_size) == expected


@given(costs=st.lists(st.floats(1, 100), min_size=1, max_size=40), world_size=st.integers(1, 6))
def test_no_rank_has_more_than_the_costliest_group_above_another(costs, world_size) -> None:
    loads = [sum(costs[group] for group in rank) for rank in spread(range(len(costs)), costs, world_size)]
    assert max(loads) - min(loads) <= max(costs) * (1 + 1e-9)


def test_ranks_that_run_short_get_fillers() -> None:
    assert share_out([0, 1, 2], [9, 4, 4], [9.0, 4.0, 4.0], 2, 4) == (((0,), ()), ((1,), (2,)))
    counts = Counter(len(micro) for rank in share_out([0], [3], [1.0], 4, 8) for micro in rank)
    assert counts == {1: 1, 0: 3}


def test_padded_micro_batches_are_bounded_with_their_padding() -> None:
    """One long sequence beside many short ones is a rectangle of all of them at its length."""
    lengths = [8000] + [100] * 80
    packed = pack(range(81), lengths, 16384, padded=True)
    assert sorted(index for members in packed for index in members) == list(range(81))
    assert all(len(members) * max(lengths[i] for i in members) <= 16384 for members in packed)
    assert [len(members) for members in packed] == [2, 79]
    assert len(pack(range(81), lengths, 16384)) == 1
    assert pack([0, 1], [8, 8], 4, padded=True) == [(0,), (1,)]  # longer than the budget: alone
