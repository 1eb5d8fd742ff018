"""Samples: what a prompt's answer depends on, and that it is a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import tokenizers
from helpers.families import FAMILIES, VOCABULARY, build
from transformers import PreTrainedModel

from dpo_cli.data.types import Tokens
from dpo_cli.evaluation.generation import _Draws, prompt_seed, sample

ENDS = [1]
LONGEST = 12


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build(FAMILIES["llama"](), "sdpa", torch.float32)


def prompts_of(*lengths: int) -> list[Tokens]:
    pick = np.random.default_rng(0)
    return [pick.integers(2, VOCABULARY, length, dtype=np.int32) for length in lengths]


def answers(model: PreTrainedModel, prompts: Sequence[Tokens], **changes: object) -> list[list[int]]:
    settings = {"temperature": 1.0, "seed": 0, "precision": "fp32", "max_new_tokens": LONGEST, **changes}
    found = sample(model, tokenizers.quickstart(), prompts, ends=ENDS, **settings)
    return [answer.tolist() for answer in found]


def test_an_answer_depends_on_its_own_prompt_alone(model: PreTrainedModel) -> None:
    """Not on the prompts beside it, their number, their order or their lengths."""
    prompts = prompts_of(5, 9, 5, 2, 14, 7, 7, 3)
    together = answers(model, prompts)
    assert len({tuple(answer) for answer in together}) == len(prompts)
    for batch_size in (1, 3):
        assert answers(model, prompts, batch_size=batch_size) == together
    assert answers(model, prompts[::-1], batch_size=3) == together[::-1]
    assert answers(model, prompts[2:5]) == together[2:5]
    assert answers(model, [prompts[4]]) == [together[4]]
    torch.manual_seed(7)  # nor on what else was drawn
    assert answers(model, prompts) == together


def test_a_longer_answer_begins_like_a_shorter_one(model: PreTrainedModel) -> None:
    prompts = prompts_of(4, 8)
    assert answers(model, prompts, max_new_tokens=4) == [answer[:4] for answer in answers(model, prompts)]


def test_other_seeds_draw_otherwise(model: PreTrainedModel) -> None:
    prompts = prompts_of(4, 8)
    first, second = answers(model, prompts), answers(model, prompts, seed=1)
    assert all(a != b for a, b in zip(first, second, strict=True))
    seeds = {prompt_seed(seed, prompt) for seed in (0, 1) for prompt in [*prompts, prompts[0][:3]]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_greedy_is_the_likeliest_token_after_token(model: PreTrainedModel) -> None:
    (prompt,) = prompts_of(6)
    ids = prompt.tolist()
    with torch.no_grad():
        while len(ids) < 6 + LONGEST and ids[-1] not in ENDS:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert answers(model, [prompt], temperature=0.0) == [ids[6:]]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_are_of_the_distribution(temperature: float) -> None:
    """Numbers that lie evenly in [0, 1) fall on each token as often as it is likely, and never on an impossible one."""
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 3.0, 2.0, -torch.inf])
    count = 4000
    uniform = (torch.arange(count, dtype=torch.float64) / count)[:, None]
    scores = _Draws(uniform, temperature)(torch.empty(count, 0), logits.expand(count, -1))
    assert (torch.isfinite(scores).sum(dim=-1) == 1).all()
    found = torch.bincount(scores.argmax(dim=-1), minlength=6).double()
    assert (found - count * (logits.double() / temperature).softmax(dim=-1)).abs().max() <= 1
    assert found[[0, 2, 5]].sum() == 0
