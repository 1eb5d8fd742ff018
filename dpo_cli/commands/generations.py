"""Sampled answers in ``dpo eval``: the model's and the reference's side by side, how far they drift, and who wins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpo_cli import distributed
from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.parts import Reference, Scorer
from dpo_cli.commands.places import policy_files, reference_place
from dpo_cli.commands.questions import Question, ask, read_questions, write_answers
from dpo_cli.commands.rows import Rows
from dpo_cli.commands.sampling import score_answers
from dpo_cli.config import EvaluateConfig
from dpo_cli.config_judges import EndpointConfig, RewardModelConfig
from dpo_cli.data.types import Tokens
from dpo_cli.errors import DpoError
from dpo_cli.evaluation.alarms import Alarm, of_drift
from dpo_cli.evaluation.drift import sample_measures
from dpo_cli.evaluation.endpoint import Endpoint
from dpo_cli.evaluation.generation import sample
from dpo_cli.evaluation.intervals import Bootstrap
from dpo_cli.evaluation.reward_model import check_reward_model, reward_model
from dpo_cli.evaluation.samples import Samples, draw
from dpo_cli.evaluation.vllm_generation import check_installed, sample_with_vllm
from dpo_cli.evaluation.winrate import Judge, judge_pairs, win_rate
from dpo_cli.model.files import ModelFiles, find_files
from dpo_cli.model.policy import Policy
from dpo_cli.tracking.console import Console
from dpo_cli.whole_folder import write_file


@dataclass(frozen=True)
class Generations:
    """What sampled answers show."""

    policy: Samples
    reference: Samples | None
    metrics: dict[str, float]
    """As in training: ``samples/...``."""
    found: dict[str, Any]
    """``drift`` and ``win_rate`` of eval.json."""
    alarms: list[Alarm]
    questions: Sequence[Question]
    """A benchmark's, if these are answered and no held-out prompts."""
    said: list[list[list[str]]]
    """By model, question and turn: the answers to those."""

    def rows(self) -> list[dict[str, Any]]:
        """For ``generations.jsonl``."""
        others = [None] * len(self.policy.answers) if self.reference is None else self.reference.answers
        return [
            {"prompt": question, "policy": answer, "reference": other}
            for question, answer, other in zip(self.policy.questions, self.policy.answers, others, strict=True)
        ]


def check_can_generate(config: EvaluateConfig) -> None:
    """Whether questions, the judge or its key, and what generates are there.

    Raises:
        DpoError: they are not.
    """
    if config.eval.generator == "vllm":
        check_installed()
        _files(config)
        if distributed.world_size() > 1:
            raise DpoError("eval.generator=vllm is run by one process: launch.num_processes=1")
    if config.prompts is not None:
        read_questions(config)
    if isinstance(config.judge, EndpointConfig):
        _key(config.judge)
    if isinstance(config.judge, RewardModelConfig):
        check_reward_model(config.judge.path)


def generate(
    config: EvaluateConfig,
    rows: Rows,
    scorer: Scorer,
    reference: Reference | None,
    *,
    budget: int,
    bootstrap: Bootstrap,
    console: Console,
) -> Generations:
    """Answer held-out prompts, by the model and by the reference, and compare. All ranks must call it.

    Args:
        config: says how many answers, how long, judged by whom.
        rows: the held-out ones are answered.
        scorer: the model.
        reference: None = there is none.
        budget: tokens per micro-batch.
        bootstrap: over prompts.
        console: told of the phases.
    """
    other = None if reference is None else reference.policy()
    questions = [] if config.prompts is None else read_questions(config)
    files, other_files = _files(config)
    mine, said = _answer(config, rows, scorer.policy, files, questions, "sample", console)
    theirs, other_said = (
        (None, [])
        if other is None
        else _answer(config, rows, other, other_files, questions, "sample the reference", console)
    )
    ends, found = rows.data.ends, dict[str, Any]()
    sides: dict[str, dict[str, float]] = {}
    for name, samples, model, under in (("policy", mine, scorer.policy, other), ("reference", theirs, other, None)):
        if samples is None:
            continue
        own = reference_logps = None
        if config.eval.temperature == 1.0:  # else these are no samples of the models themselves
            assert model is not None
            scored = partial(score_answers, samples, lengths=scorer.lengths, token_budget=budget)
            own = scored(model, share=model.groups)
            reference_logps = None if under is None else scored(under, share=under.groups)
            drift = sample_measures(samples.tokens, own, reference_logps, ends=ends, bootstrap=bootstrap)
            found.setdefault("drift", {})[name] = drift | samples.true_reward(bootstrap)
        sides[name] = samples.metrics(own, reference_logps, ends=ends)
    if config.judge.name != "none":
        assert theirs is not None  # config.py sees to it
        found["win_rate"] = _win_rate(config, mine, theirs, bootstrap, console)
    plain = {side: {name.removeprefix("samples/"): value for name, value in sides[side].items()} for side in sides}
    alarms = of_drift(plain["policy"], plain.get("reference"), found.get("win_rate", {}).get("win_rate"))
    return Generations(mine, theirs, sides["policy"], found, alarms, questions, [said, other_said])


def _files(config: EvaluateConfig) -> tuple[ModelFiles | None, ModelFiles | None]:
    """What vLLM opens for the model and for its reference; None for what it isn't asked for.

    Raises:
        DpoError: for what it can't open.
    """
    if config.eval.generator != "vllm":
        return None, None
    if config.run is None:
        files = policy_files(config.model)
    elif config.step is None and Path(config.run, "final").is_dir():
        files = find_files(str(Path(config.run, "final")), None, quantization=config.model.adapter.quantization)
    else:
        raise DpoError(
            f"eval.generator=vllm opens no checkpoints, and run={config.run} has no final/ or another step is asked "
            "for: expected a finished run without step, or eval.generator=hf"
        )
    compared = config.run is not None or config.reference.path is not None
    reference = reference_place(config.reference, config.model) if compared else None
    for found in (files, reference):
        if found is not None and (found.adapter or found.quantization):
            raise DpoError(
                f"eval.generator=vllm opens plain weights alone, and this is {found}: merge it first (dpo merge), or "
                "eval.generator=hf"
            )
    return files, reference


def _answer(
    config: EvaluateConfig,
    rows: Rows,
    policy: Policy,
    files: ModelFiles | None,
    questions: Sequence[Question],
    name: str,
    console: Console,
) -> tuple[Samples, list[list[str]]]:
    """Answers to the questions, or, where there are none, to held-out prompts; by vLLM, if there are files for it."""
    settings = config.eval
    policy.eval()
    with console.phase(name, None if questions else settings.samples, "prompts") as advance:
        of_model: Callable[..., list[Tokens]] = (
            partial(sample, policy.model, rows.tokenizer)
            if files is None
            else partial(sample_with_vllm, files.path, files.revision)
        )
        answering = partial(
            of_model,
            ends=rows.data.ends,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=config.seed,
            precision=policy.precision,
            advance=advance,
        )
        if not questions:
            held_out = rows.data.held_out
            found = draw(answering, rows.tokenizer, held_out, count=settings.samples, true_reward=settings.true_reward)
            return found, []

        def answers(prompts: list[Tokens]) -> list[Tokens]:
            return list(distributed.from_first(answering(prompts)))  # whatever the ranks' rounding

        return ask(questions, config, rows.tokenizer, rows.data.ends, answers)


def _win_rate(
    config: EvaluateConfig, mine: Samples, theirs: Samples, bootstrap: Bootstrap, console: Console
) -> dict[str, Any]:
    """Judged by the first rank, for all."""
    found = None
    if distributed.rank() == 0:
        with console.phase(f"judge by {config.judge.name}", None, "verdicts") as advance:
            judge = _judge(config, advance)
            verdicts = judge_pairs(judge, mine.questions, mine.answers, theirs.answers)
        lengths = np.array([[len(a), len(b)] for a, b in zip(mine.answers, theirs.answers, strict=True)])
        found = {"judge": config.judge.model_dump(mode="json"), **win_rate(verdicts, lengths, bootstrap)}
    return dict(distributed.from_first(found))


def _judge(config: EvaluateConfig, advance: Any) -> Judge:
    judge = config.judge
    if isinstance(judge, RewardModelConfig):
        return reward_model(judge.path, advance)
    assert isinstance(judge, EndpointConfig)
    return Endpoint(
        url=judge.url,
        model=judge.model,
        key=_key(judge),
        cache=cache_folder(judge.cache_dir) / "verdicts",
        retries=judge.retries,
        timeout=judge.timeout,
        parallel=judge.parallel,
        max_tokens=judge.max_tokens,
        advance=advance,
    )


def _key(judge: EndpointConfig) -> str | None:
    """Of the endpoint, from the environment.

    Raises:
        DpoError: it is not there.
    """
    key = None if judge.key_variable is None else os.environ.get(judge.key_variable, "").strip()
    if judge.key_variable is not None and not key:
        raise DpoError(
            f"judge=openai: the environment variable {judge.key_variable} is not set; set it, or "
            "judge.key_variable=null for an endpoint that needs no key"
        )
    if key is not None and not (key.isascii() and key.isprintable()):  # httpx would say all of it
        raise DpoError(f"judge=openai: {judge.key_variable} holds letters that no HTTP header can have")
    return key


def write_generations(folder: Path, model: str, suffix: str, found: Generations) -> None:
    """``generations.jsonl``, and a benchmark's answers in its own format; all of a file or none of it.

    Args:
        folder: to write into.
        model: as it is called in a benchmark's format.
        suffix: of the files' names.
        found: the answers.
    """
    path = folder / f"generations{suffix}.jsonl"
    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows()))
    for name, said in zip(("policy", "reference"), found.said, strict=True):
        if said:
            called = model if name == "policy" else f"{model}-reference"
            write_answers(folder, f"answers_{name}{suffix}", called, found.questions, said)
