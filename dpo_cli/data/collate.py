"""Groups laid end to end in one row of tokens, each shared token once.

One group becomes a trunk and K branches::

    [ prompt + first tokens that all answers share ][ rest of answer 0 ][ rest of answer 1 ] ...
      trunk                                           branch 0            branch 1

Every branch goes on from the trunk: its positions start after it, and it sees the trunk and itself. The last
token of an answer predicts nothing, so it is a target but never an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dpo_cli.data.types import Group, Tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """One group's place in the row."""

    start: int
    trunk: int
    """Tokens in the trunk."""
    branches: tuple[int, ...]
    """Tokens in each branch; may be 0 (an answer of one token)."""

    @property
    def end(self) -> int:
        return self.start + self.trunk + sum(self.branches)


@dataclass(frozen=True)
class FlatBatch:
    """Several groups as one row of T tokens, and what is to be predicted from it. All arrays are int64."""

    input_ids: np.ndarray
    """``[T]``"""
    position_ids: np.ndarray
    """``[T]``"""
    layouts: tuple[Layout, ...]
    rows: np.ndarray
    """``[R]``: positions that predict at least one answer token, ascending."""
    token_rows: np.ndarray
    """``[N]``: for each predicted token, an index into ``rows`` (the end of a trunk predicts K tokens)."""
    targets: np.ndarray
    """``[N]``: the token ids predicted."""
    answer_tokens: np.ndarray
    """``[M]``: for each token of each answer in order, an index into ``[N]``; shared tokens stand several times."""
    answer: np.ndarray
    """``[M]``: the answer each token belongs to, counted through the batch."""
    winners: np.ndarray
    """``[B]``: answer indices."""
    losers: np.ndarray
    """``[B]``"""
    groups: tuple[Group, ...] = field(repr=False)
    """The groups themselves, for looking up their reference log-probs."""


def shared_prefix(answers: Sequence[Tokens]) -> int:
    """How many first tokens all answers share, leaving at least one token of each to its own branch.

    That last restriction keeps one rule for what predicts what: the end of the trunk predicts the first token of
    every branch.
    """
    if len(answers) == 1:
        return 0
    limit = min(len(answer) for answer in answers) - 1
    first = answers[0][:limit]
    same = np.ones(limit, dtype=bool)
    for answer in answers[1:]:
        same &= first == answer[:limit]
    differing = np.flatnonzero(~same)
    return int(differing[0]) if len(differing) else limit


def flat_length(group: Group, *, share: bool = True) -> int:
    """Tokens the group takes in a micro-batch; ``share`` as in ``collate``.

    Without sharing, answers are rows of one length: the padding of the shorter ones is counted.
    """
    if not share:
        return len(group.answers) * max(flat_length(part) for part in split_answers([group]))
    shared = shared_prefix(group.answers)
    return len(group.prompt_ids) + shared + sum(len(answer) - 1 - shared for answer in group.answers)


def split_answers(groups: Sequence[Group]) -> list[Group]:
    """One group per answer, without its preferences: what a model that can't do groups is given."""
    return [Group(group.prompt_ids, (answer,), (), group.source) for group in groups for answer in group.answers]


def collate(groups: Sequence[Group], *, share: bool = True) -> FlatBatch:
    """Lay groups end to end.

    Args:
        groups: at least one.
        share: run each prompt once for all its answers. Without, every answer is a sequence of its own, prompt
            included, and has a Layout of its own (no branch 1); results come in the same order either way.
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    layouts: list[Layout] = []
    predicting: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    answer_tokens: list[np.ndarray] = []
    lengths: list[int] = []
    winners: list[int] = []
    losers: list[int] = []
    start = tokens = 0
    for group in groups:
        first_answer = len(lengths)
        winners += [first_answer + winner for winner, _ in group.pairs]
        losers += [first_answer + loser for _, loser in group.pairs]
        for part in [group] if share else split_answers([group]):
            shared = shared_prefix(part.answers)
            trunk = len(part.prompt_ids) + shared
            ids += [part.prompt_ids, part.answers[0][:shared]]
            positions.append(np.arange(trunk))
            # Shared tokens: each predicted once, by the trunk's positions from the prompt's last one on.
            predicting.append(start + len(part.prompt_ids) - 1 + np.arange(shared))
            targets.append(part.answers[0][:shared])
            shared_tokens = tokens + np.arange(shared)
            tokens += shared
            branch_start = start + trunk
            branches: list[int] = []
            for answer in part.answers:
                branch = len(answer) - shared - 1
                ids.append(answer[shared:-1])
                positions.append(trunk + np.arange(branch))
                predicting += [np.array([start + trunk - 1]), branch_start + np.arange(branch)]
                targets.append(answer[shared:])
                answer_tokens += [shared_tokens, tokens + np.arange(branch + 1)]
                lengths.append(len(answer))
                tokens += branch + 1
                branches.append(branch)
                branch_start += branch
            layouts.append(Layout(start, trunk, tuple(branches)))
            start = branch_start
    rows, token_rows = np.unique(np.concatenate(predicting), return_inverse=True)
    return FlatBatch(
        input_ids=_int64(ids),
        position_ids=_int64(positions),
        layouts=tuple(layouts),
        rows=rows,
        token_rows=token_rows,
        targets=_int64(targets),
        answer_tokens=_int64(answer_tokens),
        answer=np.repeat(np.arange(len(lengths)), lengths),
        winners=np.array(winners, dtype=np.int64),
        losers=np.array(losers, dtype=np.int64),
        groups=tuple(groups),
    )


def _int64(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64)
