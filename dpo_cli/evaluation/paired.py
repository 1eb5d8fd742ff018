"""Two models on the same comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpo_cli.evaluation.intervals import Bootstrap
from dpo_cli.evaluation.measures import means_of, right
from dpo_cli.evaluation.scores import Comparisons

_PERMUTATIONS = 9999


def compare(first: Comparisons, second: Comparisons, bootstrap: Bootstrap) -> dict[str, Any]:
    """How the first model differs from the second on the same comparisons, row by row.

    ``accuracy`` and ``log_loss``: the first's less the second's, with an interval; ``first_only`` and ``second_only``:
    comparisons that one alone gets right (a tie is not right); ``p_value`` of there being no difference in accuracy,
    two-sided, by ``test``: ``mcnemar``, the exact binomial test on those comparisons, where every prompt has one
    comparison, or else ``permutation``, swapping the two models at random prompt by prompt, as comparisons of one
    prompt are not independent.

    Args:
        first: of the model itself.
        second: of the other: the same comparisons in the same order.
        bootstrap: over the first's prompts.
    """
    correct = [right(each.margins) for each in (first, second)]
    losses = [np.logaddexp(0.0, -each.margins) for each in (first, second)]
    columns = {"count": np.ones(len(first)), "accuracy": correct[0] - correct[1], "log_loss": losses[0] - losses[1]}
    found: dict[str, Any] = dict(bootstrap(columns, first.prompts, means_of("accuracy", "log_loss")))
    found["first_only"] = int(((correct[0] == 1) & (correct[1] != 1)).sum())
    found["second_only"] = int(((correct[1] == 1) & (correct[0] != 1)).sum())
    alone = len(np.unique(first.prompts)) == len(first) and not any((each == 0.5).any() for each in correct)
    found["test"] = "mcnemar" if alone else "permutation"
    found["p_value"] = (
        _mcnemar(found["first_only"], found["second_only"])
        if alone
        else _permutation(correct[0] - correct[1], first.prompts, bootstrap.seed)
    )
    return found


def _mcnemar(first_only: int, second_only: int) -> float:
    total = first_only + second_only
    return float(stats.binomtest(first_only, total, 0.5).pvalue) if total else 1.0


def _permutation(difference: NDArray, prompts: NDArray, seed: int) -> float:
    """Of differences that sum to nothing, when each prompt's may as well have the other sign."""
    _, place = np.unique(prompts, return_inverse=True)
    sums = np.bincount(place, weights=difference)
    sums = sums[sums != 0]  # the others have no sign to change
    if not len(sums):
        return 1.0
    result = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        lambda one, other, axis=-1: (one - other).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def shared(first: list[tuple[str, int, int]], second: list[tuple[str, int, int]]) -> tuple[NDArray, NDArray]:
    """Where the comparisons that both have stand in each, in the first's order: row, winner and loser name one."""
    places = {key: place for place, key in enumerate(second)}
    both = [(place, places[key]) for place, key in enumerate(first) if key in places]
    table = np.array(both, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
