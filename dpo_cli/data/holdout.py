"""Held-out data by prompt: a prompt is in training or held out, never both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpo_cli.data.store import Keys
from dpo_cli.errors import DataError


def hold_out(prompts: Keys, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: all those of some prompts.

    Which prompts these are depends on their content, the fraction and the seed alone, not on the order of rows, and
    few change when rows are added.

    Args:
        prompts: of each row; at least two different ones.
        fraction: of the prompts, between 0 and 1; at least one prompt is held out and at least one is not.
        seed: another seed holds out other prompts.

    Raises:
        DataError: fewer than two prompts.
    """
    different = np.unique(prompts)
    if len(different) < 2:
        raise DataError(
            f"data.eval={fraction}: holding out prompts takes at least 2 different ones, found {len(different)}"
        )
    drawn = different[np.argsort(_scattered(different, seed), kind="stable")]
    held = drawn[: min(max(1, round(fraction * len(drawn))), len(drawn) - 1)]
    return np.isin(prompts, held)


def overlap(train: Keys, held_out: Keys) -> NDArray[np.bool_]:
    """Which training rows have a prompt that is held out.

    Raises:
        DataError: all of them.
    """
    both = np.isin(train, held_out)
    if both.all():
        raise DataError(f"nothing is left to train on: the prompts of all {len(train)} rows are in data.eval too")
    return both


def _scattered(keys: Keys, seed: int) -> NDArray[np.uint64]:
    """A number per key that looks random, and is another with another seed (splitmix64, Steele et al. 2014)."""
    state = keys.astype(np.uint64) ^ np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
