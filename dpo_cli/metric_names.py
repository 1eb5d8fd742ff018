"""The names of what a run measures; nothing heavy is imported to know them."""

from __future__ import annotations

from collections.abc import Iterable

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
"""Of every loss, over the comparisons that the rows make: also those of rankings and of judged pairs."""
LOGPS = ("logps/chosen", "logps/rejected")
_OF_UPDATES = (
    *("grad_norm", "lr", "epoch", "passed_over", "pairs_per_second", "tokens_per_second", "mfu"),
    *("memory/rss_gib", "memory/gpu_gib"),
)
_LOWER_IS_BETTER = {
    *("loss", "kl", "kl_error", "kl_per_token", "perplexity", "grad_norm", "memory", "seconds", "ece", "brier"),
    *("repetition", "unfinished", "passed_over"),
}


def of_loss(terms: Iterable[str]) -> tuple[str, ...]:
    """What a loss measures, on training and held-out rows alike.

    Args:
        terms: the names of the losses that it sums; one, mostly.
    """
    parts = [f"loss/{name}" for name in terms]
    return ("loss", *(parts if len(parts) > 1 else ()), *REWARDS, *LOGPS)


def of_samples(*, true_reward: bool, kl: bool) -> tuple[str, ...]:
    """What sampled answers measure.

    Args:
        true_reward: whether one is known.
        kl: whether the samples are the policy's own, and there is a reference.
    """
    names = ["length", "repetition", "unfinished", *(["true_reward"] if true_reward else [])]
    names += ["entropy", "kl", "kl_error", "kl_per_token"] if kl else []
    return tuple(f"samples/{name}" for name in names)


def of_run(loss: Iterable[str], held_out: bool, samples: Iterable[str]) -> tuple[str, ...]:
    """Every metric that a run may end with.

    Args:
        loss: of its loss.
        held_out: whether rows are held out.
        samples: of its samples; empty = none are drawn.
    """
    names = tuple(loss)
    return (*(f"eval/{name}" for name in names if held_out), *samples, *names, *_OF_UPDATES)


def lower_is_better(metric: str) -> bool:
    """Whether less of it is better."""
    return not _LOWER_IS_BETTER.isdisjoint(metric.split("/"))
