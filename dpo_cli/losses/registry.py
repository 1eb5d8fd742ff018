"""Every loss by name, and what it asks of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dpo_cli.losses.aot import Sorted, aot, aot_unpaired
from dpo_cli.losses.apo import apo_down, apo_zero, apo_zero_unpaired
from dpo_cli.losses.bco import bco
from dpo_cli.losses.bco_pair import bco_pair
from dpo_cli.losses.cpo import cpo
from dpo_cli.losses.discopop import discopop
from dpo_cli.losses.dpo import dpo
from dpo_cli.losses.dpo_norm import dpo_norm
from dpo_cli.losses.exo import exo
from dpo_cli.losses.hinge import hinge
from dpo_cli.losses.ipo import ipo
from dpo_cli.losses.kto import kto
from dpo_cli.losses.nca import nca
from dpo_cli.losses.orpo import orpo
from dpo_cli.losses.plackett_luce import plackett_luce
from dpo_cli.losses.robust import robust
from dpo_cli.losses.rpo import rpo_bwd_kl, rpo_fwd_kl, rpo_sq
from dpo_cli.losses.sft import sft
from dpo_cli.losses.simpo import alpha_reward, alphapo, simpo
from dpo_cli.losses.slic import slic
from dpo_cli.losses.sppo import sppo
from dpo_cli.losses.views import Answers, Judged, Pairs

Kind = Literal["pairs", "answers", "rankings"]
"""What a loss counts: comparisons of two answers, judged answers, or rankings. As ``data.types.Kind``, which losses,
that know no rows, don't import."""
Reward = Callable[[Answers, Mapping[str, Any]], Tensor]
"""The reward of answers that is reported."""
State = dict[str, float]
"""What a loss remembers from update to update; in checkpoints."""


@dataclass(frozen=True)
class Statistics:
    """What a loss must know of the whole global batch before its gradient can be taken."""

    over: Literal["batch", "mismatched"]
    """Of the batch's own comparisons or answers, or of answers to other prompts (KTO)."""
    columns: int
    gather: Callable[[Any], Tensor]
    """From a view (of mismatched answers: ``Judged``) the numbers needed: ``[n, columns]``."""
    find: Callable[[Tensor, State, Mapping[str, Any]], tuple[Any, State]]
    """From all of them ``[n_all, columns]``, the state and the hyperparameters: the view's context, the new state."""


@dataclass(frozen=True)
class Spec:
    """A loss and what it asks for."""

    function: Callable[..., Tensor]
    kind: Kind = "pairs"
    reference: bool = True
    """Whether it needs a reference."""
    reward: Reward = field(default=lambda answers, hyper: hyper["beta"] * answers.ratio)
    columns: frozenset[str] = frozenset({"weight"})
    """Which of the rows' columns weight, margin and label_prob it makes use of."""
    statistics: Statistics | None = None
    smoothing: bool = False
    """Whether a label's probability is one less the label smoothing; else the loss is its expectation over labels."""
    own_labels: bool = False
    """Whether the function reads labels' probabilities itself."""


def _policy_reward(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    return hyper["beta"] * answers.policy  # type: ignore[no-any-return]


def _mean_policy_reward(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    return hyper["beta"] * answers.mean_policy  # type: ignore[no-any-return]


def _mean_ratio_reward(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    return hyper["beta"] * answers.mean_ratio  # type: ignore[no-any-return]


def _ipo_reward(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    ratio = answers.mean_ratio if hyper["normalise"] == "mean" else answers.ratio
    return hyper["beta"] * ratio  # type: ignore[no-any-return]


def _alpha_reward(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    return hyper["beta"] * alpha_reward(answers.mean_policy, hyper["alpha"])  # type: ignore[no-any-return]


def _sequence_logp(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    return answers.policy


def _mean_logp(answers: Answers, hyper: Mapping[str, Any]) -> Tensor:
    return answers.mean_policy


def _running_mean(value: float, state: State) -> tuple[float, State]:
    count = state.get("count", 0.0) + 1.0
    mean = state.get("mean", 0.0) + (value - state.get("mean", 0.0)) / count
    return mean, {"mean": mean, "count": count}


def _kl(values: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[float, State]:
    return max(0.0, float(values.mean())), state


def _pair_shift(values: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[float, State]:
    return _running_mean(hyper["beta"] * float(values.mean()), state)


def _answer_shift(values: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[float, State]:
    ratio, good = values[:, 0], values[:, 1] > 0
    if good.all() or not good.any():  # one side says nothing of the middle: the shift stays where it is
        return state.get("mean", 0.0), state
    return _running_mean(hyper["beta"] * float(ratio[good].mean() + ratio[~good].mean()) / 2, state)


def _sorted(values: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Sorted, State]:
    return Sorted.of(values[:, 0], values[:, 1]), state


def _margins(pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.chosen, pairs.rejected
    policy = chosen.policy - rejected.policy
    # The margin of the log-ratios is the better known of the two: see AnswerLogps.log_ratios.
    return torch.stack((policy, policy - (chosen.ratio - rejected.ratio)), dim=1)


def _pair_ratios(pairs: Pairs) -> Tensor:
    return torch.stack((pairs.chosen.ratio, pairs.rejected.ratio), dim=1)


def _judged_ratios(judged: Judged) -> Tensor:
    ratio = judged.answers.ratio
    return torch.stack((ratio, judged.good.to(ratio)), dim=1)


def _ratios(judged: Judged) -> Tensor:
    return judged.answers.ratio[:, None]


_ALL = frozenset({"weight", "margin", "label_prob"})
_SOFT = frozenset({"weight", "label_prob"})
_GAP = frozenset({"weight", "margin"})

LOSSES: dict[str, Spec] = {
    "dpo": Spec(dpo, columns=_ALL, smoothing=True),
    "robust": Spec(robust, columns=_ALL),
    "ipo": Spec(ipo, columns=_ALL, reward=_ipo_reward),
    "hinge": Spec(hinge, columns=_ALL),
    "slic": Spec(slic, reference=False, columns=_ALL, reward=_sequence_logp),
    "exo": Spec(exo, columns=_ALL, own_labels=True),
    "nca": Spec(nca, columns=_SOFT),
    "bco_pair": Spec(bco_pair, columns=_SOFT, statistics=Statistics("batch", 2, _pair_ratios, _pair_shift)),
    "sppo": Spec(sppo, columns=_SOFT),
    "aot": Spec(aot, columns=frozenset(), statistics=Statistics("batch", 2, _margins, _sorted)),
    "aot_unpaired": Spec(aot_unpaired, columns=frozenset(), statistics=Statistics("batch", 2, _pair_ratios, _sorted)),
    "apo_zero": Spec(apo_zero, columns=_SOFT),
    "apo_down": Spec(apo_down, columns=_SOFT),
    "discopop": Spec(discopop, columns=_ALL),
    "dpo_norm": Spec(dpo_norm, columns=_ALL, reward=_mean_ratio_reward, smoothing=True),
    "simpo": Spec(simpo, reference=False, columns=_ALL, reward=_mean_policy_reward, smoothing=True),
    "alphapo": Spec(alphapo, reference=False, columns=_ALL, reward=_alpha_reward, smoothing=True),
    "cpo": Spec(cpo, reference=False, columns=_ALL, reward=_policy_reward, smoothing=True),
    "orpo": Spec(orpo, reference=False, columns=_SOFT, reward=_mean_policy_reward, own_labels=True),
    "rpo_bwd_kl": Spec(rpo_bwd_kl, columns=_GAP),
    "rpo_fwd_kl": Spec(rpo_fwd_kl, columns=_GAP),
    "rpo_sq": Spec(rpo_sq, columns=_GAP),
    "sft": Spec(sft, reference=False, reward=_mean_logp),
    "kto": Spec(kto, kind="answers", statistics=Statistics("mismatched", 1, _ratios, _kl)),
    "bco": Spec(bco, kind="answers", statistics=Statistics("batch", 2, _judged_ratios, _answer_shift)),
    "apo_zero_unpaired": Spec(apo_zero_unpaired, kind="answers"),
    "plackett_luce": Spec(plackett_luce, kind="rankings"),
}
