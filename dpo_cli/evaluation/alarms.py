"""What numbers of an evaluation mean trouble, said in words with the numbers that say so.

The thresholds are ours: differences that are large beside what good runs show (docs/evaluation.md), and only where the
interval leaves little doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dpo_cli.evaluation.intervals import Estimate

DISPLACED = 0.1
"""Nats per token by which chosen answers may have lost likelihood."""
OVERCONFIDENT = 0.1
"""Mean confidence less accuracy."""
LENGTH_GAP = 0.2
"""Accuracy where the chosen answer is longer less that where it is shorter, either way."""
LONGER_ANSWERS = 1.5
"""Sampled answers' length over the reference's."""
REPETITION = 0.1
"""Share of repeated 4-grams in sampled answers less the reference's."""
ENTROPY = 0.5
"""Entropy per sampled token over the reference's."""
FAR = 0.2
"""KL to the reference in nats per sampled token, from which on a run should have something to show for it."""

Estimates = Mapping[str, Estimate]


class Alarm(NamedTuple):
    """One thing that is wrong, or may be."""

    name: str
    text: str


def of_preferences(
    measured: Estimates, rules: Mapping[str, Estimates], length: Estimates, shifts: Estimates
) -> list[Alarm]:
    """From measures on comparisons: see ``measures``."""
    found = []
    longer = rules["longer_wins"]
    if longer["gain"].low <= 0:
        found.append(
            Alarm(
                "no-better-than-length",
                f"choosing the longer answer is right in {_share(longer['accuracy'])} of the comparisons, the reward "
                f"in {_share(measured['accuracy'])}: it is not shown to know more than length",
            )
        )
    gap = length["gap"]
    if abs(gap.value) > LENGTH_GAP and (gap.low > 0 or gap.high < 0):
        side, other = ("longer", "shorter") if gap.value > 0 else ("shorter", "longer")
        found.append(
            Alarm(
                "length-bias",
                f"accuracy is {_share(length[f'chosen_{side}'])} where the chosen answer is the {side} one and "
                f"{_share(length[f'chosen_{other}'])} where it is the {other} one: the reward prefers {side} answers",
            )
        )
    if shifts and shifts["chosen"].high < 0 and shifts["chosen"].value < -DISPLACED and measured["margin"].value > 0:
        found.append(
            Alarm(
                "likelihood-displacement",
                f"chosen answers have become less likely than under the reference, by {-shifts['chosen'].value:.2f} "
                f"nats per token (rejected ones by {-shifts['rejected'].value:.2f}): the margin grows because rejected "
                "answers fall faster, and what rises instead is neither; a smaller learning rate, more beta or "
                "loss.sft_weight hold them up",
            )
        )
    if measured["overconfidence"].low > OVERCONFIDENT:
        found.append(
            Alarm(
                "overconfident",
                f"the reward's mean confidence is {_share(measured['confidence'])} and its accuracy "
                f"{_share(measured['accuracy'])}: margins say more than they know",
            )
        )
    return found


def of_drift(
    policy: Mapping[str, float], reference: Mapping[str, float] | None, win_rate: Estimate | None
) -> list[Alarm]:
    """From sampled answers, the policy's and, where there are some, the reference's: see ``drift.sample_measures``."""
    found = []
    far = policy.get("kl_per_token", 0.0)
    if far > FAR and win_rate is not None and win_rate.low <= 0.5:
        found.append(
            Alarm(
                "over-optimised",
                f"the model is {far:.2f} nats per token away from the reference, and its answers are not shown to be "
                f"better (win rate {_share(win_rate)}): stop earlier, or take more beta",
            )
        )
    if reference is None:
        return found
    ratio = policy["length"] / max(reference["length"], 1e-9)
    if ratio > LONGER_ANSWERS:
        found.append(
            Alarm(
                "longer-answers",
                f"sampled answers have {policy['length']:.0f} tokens, the reference's {reference['length']:.0f}: "
                "length may be what was learnt",
            )
        )
    if policy["repetition"] - reference["repetition"] > REPETITION:
        found.append(
            Alarm(
                "repetition",
                f"{policy['repetition']:.0%} of the sampled answers' 4-grams repeat an earlier one, "
                f"{reference['repetition']:.0%} of the reference's: over-optimisation often begins so",
            )
        )
    if policy["entropy"] < ENTROPY * reference["entropy"]:
        found.append(
            Alarm(
                "entropy-collapse",
                f"entropy is {policy['entropy']:.2f} nats per token, the reference's {reference['entropy']:.2f}: "
                "answers to a prompt have become alike",
            )
        )
    return found


def _share(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
