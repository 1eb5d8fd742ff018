"""How far sampled answers have drifted: from the reference, in length, in variety."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dpo_cli.data.types import Tokens
from dpo_cli.evaluation.intervals import Bootstrap, Estimate

NGRAM = 4


def sample_measures(
    answers: Sequence[Tokens],
    logps: Sequence[NDArray],
    reference: Sequence[NDArray] | None,
    *,
    ends: Collection[int],
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """What answers sampled at temperature 1 say of the model that gave them.

    ``length``: tokens. ``entropy``: nats per token, the mean of -log pi of the sampled tokens. ``repetition``: of all
    4-grams of tokens, those that stood in the same answer before. ``unfinished``: answers that came to no end. With a
    reference, ``kl``: of an answer, the mean of log pi - log pi_ref, which is unbiased, and ``kl_per_token``.

    Args:
        answers: ``[A]`` token ids each, one per prompt.
        logps: ``[A]`` each: their log-probs under the model that gave them, in nats.
        reference: the same under the reference.
        ends: tokens that end an answer.
        bootstrap: over the answers.
    """
    repeats = [repeated(answer) for answer in answers]
    columns = {
        "count": np.ones(len(answers)),
        "tokens": np.array([len(answer) for answer in answers], dtype=np.float64),
        "surprise": np.array([-each.astype(np.float64).sum() for each in logps]),
        "repeated": np.array([count for count, _ in repeats], dtype=np.float64),
        "ngrams": np.array([total for _, total in repeats], dtype=np.float64),
        "unfinished": np.array([float(int(answer[-1]) not in ends) for answer in answers]),
    }
    if reference is not None:
        ratios = [(mine.astype(np.float64) - theirs).sum() for mine, theirs in zip(logps, reference, strict=True)]
        columns["ratio"] = np.array(ratios)

    def measures(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
        found = {
            "length": sums["tokens"] / sums["count"],
            "entropy": sums["surprise"] / sums["tokens"],
            "repetition": sums["repeated"] / np.maximum(sums["ngrams"], 1),
            "unfinished": sums["unfinished"] / sums["count"],
        }
        if reference is not None:
            found |= {"kl": sums["ratio"] / sums["count"], "kl_per_token": sums["ratio"] / sums["tokens"]}
        return found

    return bootstrap(columns, np.arange(len(answers)), measures)


def repeated(answer: Tokens) -> tuple[int, int]:
    """How many of an answer's 4-grams stood in it before, and how many it has."""
    grams = [tuple(answer[start : start + NGRAM].tolist()) for start in range(len(answer) - NGRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)
