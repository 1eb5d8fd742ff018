"""Necessary FLOPs against counts by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, MIXTURES, VOCABULARY, awkward_groups, build, masked_groups
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.types import Group
from dpo_cli.model import flops
from dpo_cli.model.flops import FlopsModel, peak_flops

# Of helpers.families: hidden 32, inner 48, 2 layers, 4 query heads, 2 key heads, head size 8 (or 16).
ATTENTION = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32)
MLP = 2 * 3 * 32 * 48
HEAD = 32 * VOCABULARY
BY_HAND = {
    "llama": (ATTENTION + MLP, 4 * 2 * 4 * 8),
    "llama-tied": (ATTENTION + MLP, 4 * 2 * 4 * 8),
    # Head size 16: 64 x 32 queries, 32 x 32 keys and values each, 64 x 32 output.
    "qwen3": (2 * (32 * 64 + 2 * 32 * 32 + 64 * 32) + MLP, 4 * 2 * 4 * 16),
    # One fused projection, an MLP of two matrices four times as wide; position embeddings are looked up.
    "gpt2": (2 * (32 * 96 + 32 * 32 + 2 * 32 * 128), 4 * 2 * 4 * 8),
    # Two of four experts, and the router.
    "mixtral": (ATTENTION + 2 * MLP + 2 * 4 * 32, 4 * 2 * 4 * 8),
    "qwen3-moe": (2 * (32 * 64 + 2 * 32 * 32 + 64 * 32) + 2 * 2 * 3 * 32 * 24 + 2 * 4 * 32, 4 * 2 * 4 * 16),
}


@pytest.mark.parametrize("family", BY_HAND)
def test_a_models_flops_are_the_hand_count(family: str) -> None:
    model = build((FAMILIES | MIXTURES)[family](), "eager", torch.float32)
    flops = FlopsModel.of(model)
    matrices, pair = BY_HAND[family]
    assert (flops.per_token, flops.per_prediction, flops.per_pair) == (2 * matrices, 2 * HEAD, pair)


def visible_pairs(batch: FlatBatch) -> int:
    """Queries and keys visible to them, counted one by one."""
    count = 0
    for layout in batch.layouts:
        branch_of = [-1] * layout.trunk + [i for i, n in enumerate(layout.branches) for _ in range(n)]
        for query, branch in enumerate(branch_of):
            count += sum(branch_of[key] in (-1, branch) for key in range(query + 1))
    return count


GROUPS = [*awkward_groups(), *masked_groups()]


@pytest.mark.parametrize("group", GROUPS, ids=[group.source for group in GROUPS])
def test_tokens_predictions_and_pairs_are_the_brute_force_count(group: Group) -> None:
    batch = collate([group])
    assert FlopsModel(1, 0, 0).forward(group) == len(batch.input_ids)
    assert FlopsModel(0, 1, 0).forward(group) == len(batch.targets)
    assert FlopsModel(0, 0, 1).forward(group) == visible_pairs(batch)
    assert FlopsModel(3, 100, 7).forward(group) == (
        3 * len(batch.input_ids) + 100 * len(batch.targets) + 7 * visible_pairs(batch)
    )


@pytest.mark.parametrize("group", GROUPS, ids=[group.source for group in GROUPS])
def test_what_nothing_reads_is_not_counted(group: Group) -> None:
    batch = collate([group])
    unread = sorted(set(range(len(batch.input_ids))) - set(batch.rows.tolist()))
    assert FlopsModel(0, 0, 0, unread_per_token=-1).forward(group) == len(unread)
    # A position sees as many keys as its number says, itself included.
    assert FlopsModel(0, 0, 0, unread_per_pair=-1).forward(group) == sum(batch.position_ids[unread] + 1)


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=7).map(lambda ids: np.array(ids, dtype=np.int32))


@given(prompt=TOKENS, answers=st.lists(TOKENS, min_size=1, max_size=4))
def test_pairs_are_the_brute_force_count_for_any_group(prompt, answers) -> None:
    group = Group(prompt, tuple(answers), (), "a row")
    assert FlopsModel(0, 0, 1).forward(group) == visible_pairs(collate([group]))


def test_peak_of_this_cpu_is_a_plausible_number() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), "fp32") < 1e15


def test_a_cpu_that_is_slow_in_a_format_is_measured_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds, not minutes: without such units a product in bfloat16 is a hundred times slower than in float32."""
    speed, asked = 1e9, []

    def seconds(size: int, dtype: torch.dtype) -> float:
        asked.append(size)
        return 2 * size**3 / (speed if dtype == torch.bfloat16 else 100 * speed)

    monkeypatch.setattr(flops, "_product_seconds", seconds)
    assert peak_flops(torch.device("cpu"), "bf16") == pytest.approx(speed)
    assert asked == [96, 384]
    assert peak_flops(torch.device("cpu"), "fp32") == pytest.approx(100 * speed)
    assert asked[-1] == 1536
