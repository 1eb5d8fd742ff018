"""Groups laid end to end in one row of tokens, each shared token once.

One group becomes a trunk and K branches::

    [ prompt + first tokens that all answers share ][ rest of answer 0 ][ rest of answer 1 ] ...
      trunk                                           branch 0            branch 1

Every branch goes on from the trunk: its positions start after it, and it sees the trunk and itself. The last
token of an answer predicts nothing, so it is a target but never an input. Tokens of an answer that are not scored
(``Group.scored``) are inputs but never targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def stretches(self) -> Iterator[tuple[slice, slice]]:
        """Positions that attend to each other causally, end to end, each with those before them: a trunk, or none.

        The trunk and the first branch are one plain causal sequence; every further branch goes on from the trunk.
        """
        trunk = slice(self.start, self.start + self.trunk)
        end = trunk.stop + self.branches[0]
        yield slice(self.start, end), slice(self.start, self.start)
        for branch in filter(None, self.branches[1:]):
            yield slice(end, end + branch), trunk
            end += branch


@dataclass(frozen=True)
class FlatBatch:
    """Several groups as one row of T tokens, and what is to be predicted from it. All arrays are int64."""

    input_ids: np.ndarray
    """``[T]``"""
    position_ids: np.ndarray
    """``[T]``"""
    layouts: tuple[Layout, ...]
    rows: np.ndarray
    """``[R]``: positions that predict at least one scored token, ascending."""
    token_rows: np.ndarray
    """``[N]``: for each predicted token, an index into ``rows`` (the end of a trunk predicts K tokens)."""
    targets: np.ndarray
    """``[N]``: the token ids predicted."""
    answer_tokens: np.ndarray
    """``[M]``: for each scored token of each answer in order, an index into ``[N]``; shared ones stand often."""
    answer: np.ndarray
    """``[M]``: the answer each token belongs to, counted through the batch."""
    prompt_tokens: np.ndarray
    """``[Q]``: for each predicted token of a prompt, an index into ``[N]``; empty unless asked for."""
    prompt_answer: np.ndarray
    """``[Q]``: the answer whose prompt it is of; a shared prompt stands once per answer."""
    preferences: dict[str, np.ndarray | None]
    """What is preferred in the batch, by answer index: the fields of ``losses.Preferences`` but ``rows``."""
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


def preference_arrays(groups: Sequence[Group]) -> dict[str, np.ndarray | None]:
    """What is preferred in groups that lie end to end, by answer index: see ``losses.Preferences``."""
    sizes = [len(group.answers) for group in groups]
    firsts = np.cumsum(sizes) - sizes
    pairs = [(first, pair) for first, group in zip(firsts, groups, strict=True) for pair in group.pairs]
    judged = [(first, group) for first, group in zip(firsts, groups, strict=True) if group.labels]
    ranked = [(first, group) for first, group in zip(firsts, groups, strict=True) if group.ranks]
    probs = [pair.label_prob for _, pair in pairs]
    return {
        "winners": np.array([first + pair.winner for first, pair in pairs], dtype=np.int64),
        "losers": np.array([first + pair.loser for first, pair in pairs], dtype=np.int64),
        "weights": np.array([pair.weight for _, pair in pairs], dtype=np.float64),
        "margins": np.array([pair.margin for _, pair in pairs], dtype=np.float64),
        "label_probs": np.array(probs, dtype=np.float64) if probs and None not in probs else None,
        "labelled": _int64([first + np.arange(len(group.labels)) for first, group in judged]),
        "labels": np.array([label for _, group in judged for label in group.labels], dtype=bool),
        "label_weights": np.repeat([group.weight for _, group in judged], [len(group.labels) for _, group in judged]),
        "ranked": _int64([first + np.arange(len(group.ranks)) for first, group in ranked]),
        "ranks": np.array([rank for _, group in ranked for rank in group.ranks], dtype=np.int64),
        "ranking": np.repeat(np.arange(len(ranked)), [len(group.ranks) for _, group in ranked]),
        "ranking_weights": np.array([group.weight for _, group in ranked], dtype=np.float64),
    }


def collate(groups: Sequence[Group], *, share: bool = True, predict_prompts: bool = False) -> FlatBatch:
    """Lay groups end to end.

    Args:
        groups: at least one.
        share: run each prompt once for all its answers. Without, every answer is a sequence of its own, prompt
            included, and has a Layout of its own (no branch 1); results come in the same order either way.
        predict_prompts: predict the prompts' tokens too, all but the first of each.
    """
    parts = list(groups) if share else split_answers(groups)
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    layouts: list[Layout] = []
    predicting: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    answer_tokens: list[np.ndarray] = []
    lengths: list[int] = []
    start = tokens = 0
    for part in parts:
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
    prompt_tokens, prompt_answer = _int64([]), _int64([])
    if predict_prompts:  # after all answers' tokens
        predicting += [
            layout.start + np.arange(len(p.prompt_ids) - 1) for p, layout in zip(parts, layouts, strict=True)
        ]
        targets += [part.prompt_ids[1:] for part in parts]
        prompt_tokens, prompt_answer = _owners_of_prompts(parts, tokens)
    predicted = _Predicted(_int64(predicting), _int64(targets), _int64(answer_tokens), prompt_tokens)
    answer = np.repeat(np.arange(len(lengths)), lengths)
    if any(group.scored for group in groups):
        scored = np.concatenate([mask for group in groups for mask in masks(group)])
        predicted, answer = predicted.only(scored), answer[scored]
    rows, token_rows = np.unique(predicted.positions, return_inverse=True)
    return FlatBatch(
        input_ids=_int64(ids),
        position_ids=_int64(positions),
        layouts=tuple(layouts),
        rows=rows,
        token_rows=token_rows,
        targets=predicted.targets,
        answer_tokens=predicted.answer_tokens,
        answer=answer,
        prompt_tokens=predicted.prompt_tokens,
        prompt_answer=prompt_answer,
        preferences=preference_arrays(groups),
        groups=tuple(groups),
    )


@dataclass(frozen=True, slots=True)
class _Predicted:
    """What is predicted, and whose it is: see ``FlatBatch``."""

    positions: np.ndarray
    """``[N]``"""
    targets: np.ndarray
    answer_tokens: np.ndarray
    prompt_tokens: np.ndarray

    def only(self, scored: np.ndarray) -> _Predicted:
        """Without what predicts neither a scored token of an answer nor a prompt's; ``scored`` is of all answers'
        tokens."""
        kept = np.zeros(len(self.targets), dtype=bool)
        kept[self.answer_tokens[scored]] = True
        kept[self.prompt_tokens] = True
        place = np.cumsum(kept) - 1
        return _Predicted(
            self.positions[kept], self.targets[kept], place[self.answer_tokens[scored]], place[self.prompt_tokens]
        )


def masks(group: Group) -> Sequence[np.ndarray]:
    """For each answer ``[A_k]``, whether a token is scored."""
    return group.scored or [np.ones(len(answer), dtype=bool) for answer in group.answers]


def _owners_of_prompts(parts: Sequence[Group], first: int) -> tuple[np.ndarray, np.ndarray]:
    """For each answer the predicted tokens of its prompt, which are numbered from ``first`` on: token and answer."""
    sizes = [len(part.prompt_ids) - 1 for part in parts]
    starts = first + np.cumsum(sizes) - sizes
    counts = [len(part.answers) for part in parts]
    tokens = [start + np.arange(n) for start, n, k in zip(starts, sizes, counts, strict=True) for _ in range(k)]
    return _int64(tokens), np.repeat(np.arange(sum(counts)), np.repeat(sizes, counts))


def _int64(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
