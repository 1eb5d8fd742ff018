"""From what rows say to what a loss counts: comparisons, judged answers, or rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpo_cli.data.types import Example, Group, Kind, Tokens
from dpo_cli.errors import DataError

_WANTED = {
    "pairs": "the loss compares answers: expected chosen and rejected, or scored completions; for answers that are "
    "judged one by one take loss=kto, bco or apo_zero_unpaired",
    "answers": "the loss judges answers one by one: expected a label, or chosen and rejected; rankings of several "
    "answers don't say which are good",
    "rankings": "the loss ranks answers: expected completions with scores or ranks, or chosen and rejected",
}


class WrongKindError(ValueError):
    """A row says nothing of the kind that the loss counts. The message says what would."""

    finding = "bad-rows"


def fit(kind: Kind, example: Example) -> Example | None:
    """The example with preferences of one kind; None if it prefers nothing.

    Comparisons come from rankings as well (each better answer against each worse one), labels from the two answers
    of a comparison, a ranking of two from a comparison. Equal scores give no comparison.

    Args:
        kind: what the loss counts.
        example: from a row.

    Raises:
        WrongKindError: it can't be of that kind.
    """
    fitted = _fit(kind, example)
    if fitted is None and not (example.ranks and not example.pairs):
        raise WrongKindError(_WANTED[kind])
    return fitted if fitted is not None and (fitted.pairs or kind == "answers") else None


def _fit(kind: Kind, example: Example) -> Example | None:
    two = len(example.answers) == 2 and len(example.pairs) == 1
    match kind:
        case "pairs":
            return None if example.labels else example
        case "answers" if two:
            good = example.pairs[0].winner
            return replace(example, labels=(good == 0, good == 1), ranks=(), weight=example.pairs[0].weight)
        case "answers":
            return example if example.labels else None
        case "rankings" if two and not example.ranks:
            winner = example.pairs[0].winner
            return replace(example, ranks=(winner, 1 - winner), weight=example.pairs[0].weight)
        case "rankings":
            return example if example.ranks else None


def mismatch(groups: Sequence[Group], seed: int, max_length: int, name: str = "data") -> list[Group]:
    """For each group its prompt with an answer to another prompt, for estimating a KL (KTO).

    Any of the other prompt's answers, good or bad. Which it is follows from the groups and the seed alone, not from
    batches or epochs, so that reference log-probs of it are computed once.

    Args:
        groups: with at least two different prompts.
        seed: another seed gives other answers.
        max_length: of prompt + answer; a longer answer is cut, but not below one token.
        name: of the data, for a message.

    Raises:
        DataError: if all prompts are the same.
    """
    random = np.random.default_rng([seed, len(groups)])
    order = random.permutation(len(groups)).tolist()
    found: list[Group] = []
    partners: dict[int, Group] = {}
    for place, index in enumerate(order):
        others = (groups[order[(place + step) % len(order)]] for step in range(1, len(order)))
        partner = next((other for other in others if not _same_prompt(other, groups[index])), None)
        if partner is None:
            raise DataError(
                f"{name}: the loss needs answers to other prompts, and all {len(groups)} rows have the same prompt: "
                "take more rows"
            )
        partners[index] = partner
    for index, group in enumerate(groups):
        partner = partners[index]
        number = int(random.integers(len(partner.answers)))
        room = max(1, max_length - len(group.prompt_ids))
        answer, scored = _start(partner, number, room)
        source = f"{group.source} with an answer of {partner.source}"
        found.append(Group(group.prompt_ids, (answer,), (), source, labels=(True,), scored=scored))
    return found


def _start(group: Group, number: int, length: int) -> tuple[Tokens, tuple[NDArray[np.bool_], ...]]:
    """An answer's first tokens up to the last that is scored; where none of them is, all of them count."""
    answer = group.answers[number][:length]
    scored = group.scored[number][:length] if group.scored else np.ones(len(answer), dtype=bool)
    if scored.all() or not scored.any():
        return answer, ()
    end = int(np.flatnonzero(scored)[-1]) + 1
    return answer[:end], () if scored[:end].all() else (scored[:end],)


def _same_prompt(one: Group, other: Group) -> bool:
    return np.array_equal(one.prompt_ids, other.prompt_ids)
