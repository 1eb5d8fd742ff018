"""Reward-aware Preference Optimization: how much better counts, not only which."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.views import Pairs

# Adler et al. 2024 (Nemotron-4 340B, section 3.3.2) with the distances of NeMo-Aligner. ``margin`` is the true
# reward's gap; log-ratios are summed over tokens. No distance is 0 at policy = reference unless the gap is.


def rpo_sq(pairs: Pairs, *, beta: float, eta: float) -> Tensor:
    """``(beta h - eta gap)^2``: ``[B]``."""
    return (beta * pairs.gap - eta * pairs.margin).square()


def rpo_bwd_kl(pairs: Pairs, *, beta: float, eta: float) -> Tensor:
    """``KL(sigmoid(eta gap) || sigmoid(beta h))`` of two coins: ``[B]``.

    The labels' entropy aside this is DPO with soft labels; with a large ``eta`` it is DPO.
    """
    return _coins(eta * pairs.margin, beta * pairs.gap)


def rpo_fwd_kl(pairs: Pairs, *, beta: float, eta: float) -> Tensor:
    """``KL(sigmoid(beta h) || sigmoid(eta gap))`` of two coins: ``[B]``.

    NeMo-Aligner's names are from the policy's point of view: forward is the policy's preference first.
    """
    return _coins(beta * pairs.gap, eta * pairs.margin)


def _coins(left: Tensor, right: Tensor) -> Tensor:
    """KL(sigmoid(left) || sigmoid(right))."""
    heads = torch.sigmoid(left) * (logsigmoid(left) - logsigmoid(right))
    return heads + torch.sigmoid(-left) * (logsigmoid(-left) - logsigmoid(-right))
