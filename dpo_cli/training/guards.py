"""Checks that keep a run from training on garbage."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dpo_cli import liveness
from dpo_cli.data.collate import collate
from dpo_cli.data.plan import share_out
from dpo_cli.data.types import Group
from dpo_cli.distributed import data_rank, data_ranks, sums
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import NumericsError
from dpo_cli.losses import AnswerLogps
from dpo_cli.objective import Objective

_LEAST, _MOST = 4, 8
"""Groups that a run is checked on at its start."""
_MOST_AT_END = 32
_SPOILT = "the model is spoilt, and not written. Lower optim.lr, or look at the rows of the last updates"


class Spikes:
    """Losses of updates that are far above those of the last 100.

    Far is six standard deviations above their mean. As losses of small batches have heavy tails, that alone would be
    said of good runs too: it is more than twice the largest of them as well, and 0.1 above the mean.
    """

    window = 100

    def __init__(self, recent: Iterable[float] = ()) -> None:
        """
        Args:
            recent: losses of the updates before, as ``recent`` gave them.
        """
        self._recent = deque(recent, maxlen=self.window)

    @property
    def recent(self) -> list[float]:
        """Of the last 100 updates, the oldest first."""
        return list(self._recent)

    def look(self, loss: float) -> str | None:
        """Take in an update's loss; a line if it is a spike. Nothing is said before the window is full."""
        text = None
        if len(self._recent) == self.window:
            mean, spread, largest = statistics.fmean(self._recent), statistics.pstdev(self._recent), max(self._recent)
            if loss > mean + max(6 * spread, 0.1) and loss > largest + abs(largest):
                text = (
                    f"this update's loss is {loss:.4g}; those of the {self.window} before it were {mean:.4g} on "
                    f"average, with a standard deviation of {spread:.2g}, and {largest:.4g} at most. Look at its rows, "
                    "or lower optim.lr"
                )
        self._recent.append(loss)
        return text


def drawn(groups: Sequence[Group], lengths: Callable[[Group], int], budget: int, seed: int) -> list[Group]:
    """From 4 to 8 groups to be checked, from all over the rows: stored log-probs may be wrong of any of them.

    Args:
        groups: all.
        lengths: tokens of one in a micro-batch.
        budget: tokens of all; above 4, no more are drawn than fit.
        seed: of the draw.
    """
    found = [groups[int(number)] for number in np.random.default_rng(seed).permutation(len(groups))[:_MOST]]
    fit = sum(total <= budget for total in accumulate(map(lengths, found)))
    return found[: max(_LEAST, fit)]


def zero_margin_gap(engine: Engine, groups: Sequence[Group], objective: Objective) -> tuple[float, float]:
    """How far the loss is from its value at policy = reference, and how far rounding alone may take it.

    All ranks must call it, with the same groups.

    Args:
        engine: around the policy.
        groups: a few; each is one forward pass.
        objective: a loss with a reference.

    Returns:
        The gap of the mean loss, and the larger of two: the gap that log-ratios as noisy as the policy's own
        log-probs can make (those are computed in two different batches, one group at a time, twice over, and all
        together), and the gap that float32 itself can make, by the loss's slope at each token.
    """
    with torch.no_grad():
        batch, logps = objective.look(engine, groups)
        assert logps.reference is not None
        rows = range(sum(group.count(objective.loss.kind) for group in groups))
        # In float64: where a loss has a large constant, float32 rounds what is looked for away, or blows it up.
        logps = replace(logps, policy=logps.policy.double(), reference=logps.reference.double())
        assert logps.reference is not None
        preferences = objective.preferences(batch, logps, rows)
        zero = replace(logps, policy=logps.reference)
        gathered = {"batch": objective.loss.gather(zero, preferences, "batch").double()}
        gathered["mismatched"] = gathered["batch"].new_zeros(1, objective.loss.columns("mismatched"))
        contexts, _ = objective.loss.contexts(gathered, {})

        def losses(of: AnswerLogps) -> Tensor:
            return objective.loss(of, preferences, contexts).losses.double()

        gap = float((losses(logps) - losses(zero)).mean())
        # Alone, and twice: a single group alone would be the batch it is compared with.
        twice = [objective.look(engine, [group, group])[1].policy for group in groups]
        alone = torch.cat([tokens[: len(tokens) // 2] for tokens in twice])
        noisy = replace(logps, policy=logps.reference + (alone - logps.policy))
        noise = float((losses(noisy) - losses(zero)).abs().max())
    tokens = logps.reference.clone().requires_grad_()
    losses(replace(zero, policy=tokens)).mean().backward()
    assert tokens.grad is not None
    rounding = tokens.grad * tokens.detach().abs().clamp(min=1.0) * torch.finfo(torch.float32).eps
    return gap, max(noise, float(rounding.norm()))


def looked_at(last: Sequence[int], count: int, seed: int) -> list[int]:
    """Groups whose log-probs must be finite after the last update: of that update, and as many from all over.

    At most 32 of each, so that it costs no more than another update, which has a backward pass as well; and 4 at
    least from all over, if there are.

    Args:
        last: groups of the last update.
        count: of all groups.
        seed: of the draw.
    """
    of_update = list(last[:_MOST_AT_END])
    wanted = max(_LEAST, len(of_update))
    draw = np.random.default_rng(seed).choice(count, min(count, len(of_update) + wanted), replace=False)
    return of_update + [index for index in draw.tolist() if index not in of_update][:wanted]


def check_finite(
    engine: Engine, groups: Sequence[Group], objective: Objective, lengths: Callable[[Group], int], token_budget: int
) -> None:
    """Refuse a model whose log-probs went bad in the last update, which no later loss would show.

    All ranks must call it, with the same groups, of which each scores its share.

    Args:
        engine: around the policy.
        groups: to look at.
        objective: says whether they may share prompts.
        lengths: tokens that a group takes in a micro-batch.
        token_budget: per micro-batch.

    Raises:
        NumericsError: on all ranks alike, naming the rows of micro-batches with such a log-prob.
    """
    sizes = [lengths(group) for group in groups]
    ranks = share_out(range(len(groups)), sizes, sizes, data_ranks(), token_budget, padded=not objective.share)
    bad = [0.0] * len(groups)
    for members in ranks[data_rank()]:
        liveness.beat()
        with torch.no_grad():  # a filler is run like any other: under ZeRO 3 every rank must take part
            logps = engine(collate([groups[index] for index in members or (0,)], share=objective.share))
        if not bool(torch.isfinite(logps).all()):
            for index in members:
                bad[index] = 1.0
    rows = [group.source for group, is_bad in zip(groups, sums(bad), strict=True) if is_bad]
    if rows:
        more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
        raise NumericsError(
            f"after the last update log-probs are not finite, of some of {'; '.join(rows[:10])}{more}: {_SPOILT}"
        )


def only_finite(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Trained weights as they are written: all of them, which rows that are looked at need not touch.

    All ranks have whole weights, and so all end alike.

    Raises:
        NumericsError: at the first that is no number, or infinite.
    """
    for name, tensor in weights:
        # Both are NaN if any number is; unlike isfinite, it takes no memory of the tensor's size.
        if tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor))):
            raise NumericsError(f"weights are not finite after the last update, of {name}: {_SPOILT}")
        yield name, tensor


def check_zero_margin(gap: float, noise: float, *, must_be_zero: bool) -> str:
    """A line for the user about what ``zero_margin_gap`` found.

    Raises:
        NumericsError: if the policy should be the reference and its loss says otherwise.
    """
    allowed = max(1e-6, 4 * noise)
    if must_be_zero and not abs(gap) <= allowed:
        raise NumericsError(
            f"before training the policy is the reference, but the loss is {gap:+.2e} off its value at zero margin "
            f"(allowed: {allowed:.1e}): the two are not computed alike. Remove the reference's log-probs to have them "
            "computed again, or try model.attention=plain; if that does not help it is a bug"
        )
    why = "policy = reference" if must_be_zero else "the policy is not the reference"
    return f"loss at the start: {gap:+.1e} from its value at zero margin ({why})"
