"""A row's mask is its own, wherever the row is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.families import awkward_groups
from torch import Tensor

from dpo_cli.data.collate import collate
from dpo_cli.data.types import Group
from dpo_cli.errors import DpoError
from dpo_cli.model.dropout import GroupDropout, Noise

WIDTH, P = 64, 0.25


def masked(groups: list[Group], *, update: int = 0, seed: int = 0, layer: str = "a", share: bool = True) -> Tensor:
    """Ones through the dropout, as ``[rows, tokens, WIDTH]``."""
    noise = Noise(seed)
    batch = collate(groups, share=share)
    with noise.of(update):
        noise.look_at(batch, share=share)
        rows = (1, len(batch.input_ids))
        if not share:
            rows = (len(batch.layouts), max(layout.end - layout.start for layout in batch.layouts))
        return GroupDropout(P, noise, layer)(torch.ones(*rows, WIDTH))


def test_a_group_has_the_same_mask_alone_and_in_company() -> None:
    groups = awkward_groups()
    layouts = collate(groups).layouts
    together = masked(groups)
    backwards = masked(groups[::-1])
    for group, layout, other in zip(groups, layouts, collate(groups[::-1]).layouts[::-1], strict=True):
        own = masked([group])
        assert torch.equal(together[:, layout.start : layout.end], own)
        assert torch.equal(backwards[:, other.start : other.end], own)


def test_rows_of_their_own_have_the_masks_of_the_group() -> None:
    """A prompt's mask is the same before each of its answers, as if it had been run once."""
    groups = awkward_groups()
    apart = masked(groups, share=False)
    row = 0
    for group in groups:
        flat = masked([group])[0]
        batch = collate([group])
        (layout,) = batch.layouts
        start = layout.trunk
        for branch in layout.branches:
            expected = torch.cat((flat[: layout.trunk], flat[start : start + branch]))
            assert torch.equal(apart[row, : len(expected)], expected)
            start += branch
            row += 1


def test_masks_differ_by_seed_update_layer_and_group() -> None:
    group, other = awkward_groups()[:2]
    usual = masked([group])
    assert torch.equal(usual, masked([group]))
    for changed in (masked([group], update=1), masked([group], seed=1), masked([group], layer="b")):
        assert 0.2 < float((usual != changed).double().mean()) < 0.6
    length = min(usual.shape[1], masked([other]).shape[1])
    assert not torch.equal(usual[:, :length], masked([other])[:, :length])
    assert not torch.equal(usual[0, 0], usual[0, 1])


def test_a_share_is_dropped_and_the_mean_kept() -> None:
    long = Group(np.arange(500, dtype=np.int32), (np.arange(5, dtype=np.int32),), (), "long")
    values = masked([long])
    assert sorted(values.unique().tolist()) == pytest.approx([0.0, 1 / (1 - P)])
    assert float((values == 0).double().mean()) == pytest.approx(P, abs=0.01)


def test_nothing_is_dropped_but_in_updates() -> None:
    noise = Noise(0)
    ones = torch.ones(1, 7, WIDTH)
    assert GroupDropout(P, noise, "a")(ones) is ones
    with noise.of(3):
        pass
    assert GroupDropout(P, noise, "a")(ones) is ones


def test_a_layer_that_sees_other_tokens_is_an_error() -> None:
    """Of a mixture of experts, say: each sees the tokens that were sent to it."""
    noise = Noise(0)
    with noise.of(0):
        noise.look_at(collate(awkward_groups()), share=True)
        with pytest.raises(DpoError, match=r"experts\.3.*dropout=0"):
            GroupDropout(P, noise, "experts.3")(torch.ones(5, WIDTH))
