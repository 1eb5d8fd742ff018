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
    """What answers sampled at temperature 1 say of the model that gave them, with intervals over the answers.

    The measures and arguments are those of ``sample_means``.
    """
    columns = _columns(answers, logps, reference, ends)
    return bootstrap(columns, np.arange(len(answers)), _measures)


def sample_means(
    answers: Sequence[Tokens],
    logps: Sequence[NDArray] | None,
    reference: Sequence[NDArray] | None,
    *,
    ends: Collection[int],
) -> dict[str, float]:
    """What sampled answers say of the model that gave them.

    ``length``: tokens. ``repetition``: of all 4-grams of tokens, those that stood in the same answer before.
    ``unfinished``: answers that came to no end. With log-probs, which must be of samples at temperature 1, ``entropy``:
    nats per token, the mean of -log pi of the sampled tokens. With a reference as well, ``kl``: of an answer, the mean
    of log pi - log pi_ref, which is unbiased, and ``kl_per_token``.

    Args:
        answers: ``[A]`` token ids each, one per prompt.
        logps: ``[A]`` each: their log-probs under the model that gave them, in nats.
        reference: the same under the reference.
        ends: tokens that end an answer.
    """
    sums = {name: column.sum() for name, column in _columns(answers, logps, reference, ends).items()}
    return {name: float(value) for name, value in _measures(sums).items()}


def _columns(
    answers: Sequence[Tokens],
    logps: Sequence[NDArray] | None,
    reference: Sequence[NDArray] | None,
    ends: Collection[int],
) -> dict[str, NDArray]:
    """What is to be summed over answers, ``[A]`` each."""
    repeats = [repeated(answer) for answer in answers]
    columns = {
        "count": np.ones(len(answers)),
        "tokens": np.array([len(answer) for answer in answers], dtype=np.float64),
        "repeated": np.array([count for count, _ in repeats], dtype=np.float64),
        "ngrams": np.array([total for _, total in repeats], dtype=np.float64),
        "unfinished": np.array([float(int(answer[-1]) not in ends) for answer in answers]),
    }
    if logps is not None:
        columns["surprise"] = np.array([-each.astype(np.float64).sum() for each in logps])
        if reference is not None:
            ratios = [(mine.astype(np.float64) - theirs).sum() for mine, theirs in zip(logps, reference, strict=True)]
            columns["ratio"] = np.array(ratios)
    return columns


def _measures(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
    found = {
        "length": sums["tokens"] / sums["count"],
        "repetition": sums["repeated"] / np.maximum(sums["ngrams"], 1),
        "unfinished": sums["unfinished"] / sums["count"],
    }
    if "surprise" in sums:
        found["entropy"] = sums["surprise"] / sums["tokens"]
    if "ratio" in sums:
        found |= {"kl": sums["ratio"] / sums["count"], "kl_per_token": sums["ratio"] / sums["tokens"]}
    return found


def repeated(answer: Tokens) -> tuple[int, int]:
    """How many of an answer's 4-grams stood in it before, and how many it has."""
    grams = [tuple(answer[start : start + NGRAM].tolist()) for start in range(len(answer) - NGRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)
