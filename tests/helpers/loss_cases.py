"""Answers and preferences out of plain lists, for losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from dpo_cli.compose import config_folder
from dpo_cli.data.collate import preference_arrays
from dpo_cli.data.types import Group, Pair
from dpo_cli.losses import AnswerLogps, Loss, Preferences, make_loss

PAIRWISE = [
    *("dpo", "robust", "ipo", "hinge", "slic", "exo", "nca", "bco_pair", "sppo", "aot", "aot_unpaired", "apo_zero"),
    *(
        "apo_down",
        "discopop",
        "dpo_norm",
        "simpo",
        "alphapo",
        "cpo",
        "orpo",
        "rpo_bwd_kl",
        "rpo_fwd_kl",
        "rpo_sq",
        "sft",
    ),
]
JUDGED = ["kto", "bco", "apo_zero_unpaired"]
RANKED = ["plackett_luce"]
CPU = torch.device("cpu")
Tokens = Sequence[Sequence[float]]


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """A loss's keys with their defaults and ``changes``."""
    defaults = OmegaConf.to_container(OmegaConf.load(config_folder() / "loss" / f"{name}.yaml"))
    assert changes.keys() <= defaults.keys(), (name, changes)
    return {**defaults, **changes}


def loss(name: str, **changes: Any) -> Loss:
    return make_loss(settings(name, **changes))


def logps_of(policy: Tokens, reference: Tokens | None, dtype: torch.dtype = torch.float64, **more: Any) -> AnswerLogps:
    """From one list of token log-probs per answer."""
    numbers = [number for number, tokens in enumerate(policy) for _ in tokens]
    return AnswerLogps(
        policy=torch.tensor([x for tokens in policy for x in tokens], dtype=dtype),
        reference=None if reference is None else torch.tensor([x for t in reference for x in t], dtype=dtype),
        answer=torch.tensor(numbers),
        count=len(policy),
        **more,
    )


def preferences_of(
    *pairs: tuple[Any, ...],
    labels: Sequence[bool] = (),
    ranks: Sequence[int] = (),
    rows: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Preferences:
    """Among the answers of one group; pairs may have a weight, a margin and a label's probability as well."""
    comparisons = tuple(Pair(*pair) for pair in pairs)
    group = Group(np.zeros(1, np.int32), (), comparisons, "a row", labels=tuple(labels), ranks=tuple(ranks))
    count = len(pairs) or len(labels) or 1
    arrays = {**preference_arrays([group]), "rows": np.array(range(count) if rows is None else rows)}
    return Preferences.of(arrays, CPU, dtype)


def losses_of(
    which: Loss,
    logps: AnswerLogps,
    preferences: Preferences,
    *,
    mismatched: AnswerLogps | None = None,
    state: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Of a batch that is a whole global batch."""
    gathered = {"batch": which.gather(logps, preferences, "batch").double()}
    if mismatched is not None:
        judged = preferences_of(labels=[True] * mismatched.count)
        gathered["mismatched"] = which.gather(mismatched, judged, "mismatched").double()
    contexts, _ = which.contexts(gathered, state or {})
    return which(logps, preferences, contexts).losses


def random_answers(seed: int = 0, count: int = 5) -> tuple[list[list[float]], list[list[float]]]:
    """Of unequal lengths, under a policy and a reference some way off."""
    random = np.random.default_rng(seed)
    lengths = [3, 1, 7, 4, 12, 2, 5, 9, 6, 8][:count]
    policy = [(-random.exponential(3.0, n)).tolist() for n in lengths]
    return policy, [(np.array(tokens) + random.normal(0, 1.0, len(tokens))).tolist() for tokens in policy]
