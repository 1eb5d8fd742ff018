"""Sampled answers and the drift they show, before and after ``dpo train``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from numpy.typing import NDArray
from torch import Tensor

from dpo_cli.commands.parts import Reference, Scorer
from dpo_cli.commands.rows import Rows
from dpo_cli.config import EvalConfig
from dpo_cli.data.collate import FlatBatch
from dpo_cli.data.types import Group
from dpo_cli.evaluation.generation import sample
from dpo_cli.evaluation.samples import Samples, draw
from dpo_cli.model.score import score_all
from dpo_cli.tracking.console import Console


def sample_answers(
    settings: EvalConfig,
    rows: Rows,
    scorer: Scorer,
    policy: Callable[[FlatBatch], Tensor],
    reference: Reference | None,
    *,
    seed: int,
    token_budget: int,
    console: Console,
    name: str,
    gathered: AbstractContextManager[None] | None = None,
) -> tuple[Samples, dict[str, float]]:
    """Answer held-out prompts; the answers, and what they measure.

    All ranks must call it.

    Args:
        settings: how many, how long, how warm, judged by what.
        rows: the held-out ones are answered.
        scorer: holds the model that generates.
        policy: the same model as it gives log-probs: itself, or the engine around it.
        reference: to measure the KL to; None where there is none, or where the policy is the reference.
        seed: of the samples.
        token_budget: per micro-batch.
        console: told of the phase.
        name: of the phase, for people.
        gathered: in which the model can generate; None = as it is.
    """
    with console.phase(name, settings.samples, "prompts") as advance, gathered or nullcontext():
        answering = partial(
            sample,
            scorer.loaded.model,
            rows.tokenizer,
            ends=rows.data.ends,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed,
            precision=scorer.policy.precision,
            advance=advance,
        )
        held_out = rows.data.held_out
        samples = draw(answering, rows.tokenizer, held_out, count=settings.samples, true_reward=settings.true_reward)
    mine = theirs = None
    if settings.temperature == 1.0:  # else these are no samples of the policy itself
        scored = partial(score_answers, samples, lengths=scorer.lengths, token_budget=token_budget)
        mine = scored(policy, share=scorer.policy.groups)
        if reference is not None:
            other = reference.policy()
            theirs = scored(other, share=other.groups)
    return samples, samples.metrics(mine, theirs, ends=rows.data.ends)


def score_answers(
    samples: Samples,
    model: Callable[[FlatBatch], Tensor],
    *,
    share: bool,
    lengths: Callable[[Group], int],
    token_budget: int,
) -> list[NDArray]:
    """Token log-probs of each answer under a model: see ``score_all``."""
    scored = score_all(model, samples.groups, share=share, lengths=lengths, token_budget=token_budget)
    return [answers[0] for answers in scored]
