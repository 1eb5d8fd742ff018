"""What numbers of an evaluation mean trouble, said in words with the numbers that say so.

The thresholds are ours: differences that are large beside what good runs show (docs/evaluation.md). Of comparisons they
count only where the interval leaves little doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    policy: Mapping[str, float],
    before: Mapping[str, float] | None,
    win_rate: Estimate | None = None,
    *,
    whose: str = "the reference's",
) -> list[Alarm]:
    """From sampled answers; what was not measured of both sides raises no alarm.

    Args:
        policy: what the model's answers measure: see ``drift.sample_means``; and ``true_reward``, where one is known.
        before: the same of the answers that they are compared with; None = there are none.
        win_rate: against those.
        whose: answers these are, as words before a number.
    """
    found = []
    both = {name: (value, before[name]) for name, value in policy.items() if before and name in before}
    if (far := policy.get("kl_per_token", 0.0)) > FAR:
        found += _of_distance(far, both.get("true_reward"), win_rate, whose)
    if "length" in both:
        now, then = both["length"]
        if now > LONGER_ANSWERS * then:
            text = f"sampled answers have {now:.1f} tokens, {whose} {then:.1f}: length may be what was learnt"
            found.append(Alarm("longer-answers", text))
    if "repetition" in both:
        now, then = both["repetition"]
        if now - then > REPETITION:
            text = f"{now:.0%} of the sampled answers' 4-grams repeat an earlier one, {whose} {then:.0%}"
            found.append(Alarm("repetition", f"{text}: over-optimisation often begins so"))
    if "entropy" in both:
        now, then = both["entropy"]
        if now < ENTROPY * then:
            text = f"entropy is {now:.2f} nats per token, {whose} {then:.2f}: answers to a prompt have become alike"
            found.append(Alarm("entropy-collapse", text))
    return found


def of_sampling(measured: Sequence[tuple[int, Mapping[str, float]]], step: int) -> list[Alarm]:
    """From a run's metrics so far: its samples after ``step`` updates beside those before the first.

    Args:
        measured: updates done, and what was measured then, as ``samples/...`` and by other names.
        step: what to look at.
    """
    now, before = (
        {
            name.removeprefix("samples/"): value
            for done, values in measured
            if done == when
            for name, value in values.items()
            if name.startswith("samples/")
        }
        for when in (step, 0)
    )
    return of_drift(now, before, whose="before training")


def _of_distance(
    far: float, true_rewards: tuple[float, float] | None, win_rate: Estimate | None, whose: str
) -> list[Alarm]:
    """Of a model that is far from its reference, by what is known of its answers' quality."""
    where = f"sampled answers are {far:.2f} nats per token away from the reference"
    if true_rewards is not None and true_rewards[0] <= true_rewards[1]:
        worse = f"their true reward is {true_rewards[0]:.2f}, {whose} {true_rewards[1]:.2f}"
    elif win_rate is not None and win_rate.low <= 0.5:
        worse = f"they are not shown to be better (win rate {_share(win_rate)})"
    elif true_rewards is None and win_rate is None:
        text = f"{where}, and nothing that was measured says whether they are better"
        return [Alarm("far-from-reference", f"{text}: read them, have them judged in dpo eval, or take more beta")]
    else:
        return []
    return [Alarm("over-optimised", f"{where}, and {worse}: stop earlier, or take more beta")]


def _share(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
