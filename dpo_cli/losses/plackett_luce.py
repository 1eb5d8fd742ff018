"""The Plackett-Luce loss of DPO, for rankings of any number of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_cli.losses.views import Rankings


def plackett_luce(rankings: Rankings, *, beta: float) -> Tensor:
    """DPO under Plackett-Luce (Rafailov et al. 2023, appendix A.3, eq. 20).

    The sum over places of ``logsumexp(s of this and all worse answers) - s of this one``, with ``s = beta x``
    log-ratio, summed over tokens. Answers with equal places are not compared: each is held against itself and the
    strictly worse ones. Two answers: DPO. ln K! at policy = reference without ties.

    Args:
        rankings: R rankings, with a reference.
        beta: as DPO's.

    Returns:
        ``[R]``
    """
    score = beta * rankings.answers.ratio
    same = rankings.ranking[:, None] == rankings.ranking[None, :]
    worse = same & (rankings.ranks[None, :] > rankings.ranks[:, None])
    itself = torch.eye(len(score), dtype=torch.bool, device=score.device)
    # An answer with none worse stands alone in its sum, and adds exactly 0.
    against = score.expand(len(score), -1).masked_fill(~(worse | itself), -torch.inf)
    terms = torch.logsumexp(against, dim=1) - score
    return terms.new_zeros(rankings.count).index_add(0, rankings.ranking, terms)
