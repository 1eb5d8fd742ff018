"""Held-out preferences: the loss, rewards and accuracy on rows that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dpo_cli import liveness
from dpo_cli.data.plan import share_out
from dpo_cli.distributed import data_rank, data_ranks, sums
from dpo_cli.evaluation.scores import Scores
from dpo_cli.losses import Sums
from dpo_cli.objective import Objective, Policy, rows_of


def evaluate_preferences(
    policy: Policy,
    objective: Objective,
    *,
    lengths: Sequence[int],
    token_budget: int,
    advance: Callable[[int], None] = lambda groups: None,
    keep: Scores | None = None,
) -> dict[str, float]:
    """Means over all comparisons of the objective's groups. All ranks must call it.

    A loss with statistics over a global batch takes all the groups as one.

    Args:
        policy: gives log-probs of a batch.
        objective: the loss as in training, on held-out groups: all of them, on every rank.
        lengths: tokens each group takes in a micro-batch.
        token_budget: per micro-batch.
        advance: told how many groups this rank has done since the last time.
        keep: of the same groups, to be filled with the numbers behind the means.
    """
    order = range(len(objective.groups))
    ranks = share_out(order, lengths, lengths, data_ranks(), token_budget, padded=not objective.share)
    contexts, _ = objective.contexts(policy, ranks[data_rank()], order, {})
    rows = rows_of(order, objective.count)
    totals = Sums(objective.loss.metric_names)
    for members in ranks[data_rank()]:
        with liveness.once_more("batch of an evaluation"):
            # A filler is run like any other, as under ZeRO 3 every rank must take part; it counts nothing.
            with torch.no_grad():
                batch, logps = objective.look(policy, [objective.groups[index] for index in members or (0,)])
            if members:
                preferences = objective.preferences(batch, logps, [row for index in members for row in rows[index]])
                metrics = objective.loss(logps, preferences, contexts).metrics
                totals.add(metrics)
                if keep is not None:
                    own = [metrics[f"rewards/{side}"] for side in ("chosen", "rejected")]
                    keep.add(members, logps, objective.loss, own if objective.loss.kind != "answers" else ())
                advance(len(members) * data_ranks())  # the other ranks do about as many
    if keep is not None:
        keep.gather()
    return totals.means(sums)
