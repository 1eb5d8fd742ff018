"""``dpo eval``: held-out preferences, samples and drift of a finished run, or of any model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpo_cli import distributed
from dpo_cli.commands.contestant import other_model
from dpo_cli.commands.evaluate_name import evaluation_name
from dpo_cli.commands.evaluate_view import into_card, show, show_generations
from dpo_cli.commands.generations import Generations, check_can_generate, generate, write_generations
from dpo_cli.commands.parts import Reference, Scorer, Setup, resolve_precision, resolve_token_budget
from dpo_cli.commands.places import policy_files
from dpo_cli.commands.resume import load_weights
from dpo_cli.commands.revisions import check_revisions
from dpo_cli.commands.row_facts import row_facts
from dpo_cli.commands.rows import Rows, describe_rows, held_out_place, load_rows
from dpo_cli.commands.writable import check_writable
from dpo_cli.config import DataConfig, EvaluateConfig
from dpo_cli.data.collate import FlatBatch
from dpo_cli.data.load import Data
from dpo_cli.data.types import Group
from dpo_cli.errors import CheckpointError, DataError, DpoError
from dpo_cli.evaluation import measures
from dpo_cli.evaluation.alarms import Alarm, of_preferences
from dpo_cli.evaluation.harness import check_harness, run_tasks
from dpo_cli.evaluation.intervals import Bootstrap, plain
from dpo_cli.evaluation.paired import compare, shared
from dpo_cli.evaluation.preferences import evaluate_preferences
from dpo_cli.evaluation.rewardbench import rewardbench, rewardbench2
from dpo_cli.evaluation.scores import Comparisons, Scores
from dpo_cli.evaluation.slices import slice_table, slices_of
from dpo_cli.losses import Loss, make_loss
from dpo_cli.model.files import find_files
from dpo_cli.objective import Objective
from dpo_cli.run_folder import write_json
from dpo_cli.tracking.console import Console
from dpo_cli.training import checkpoint

VERSION = 1
"""Of eval.json's schema: docs/evaluation.md."""


def run(config: EvaluateConfig) -> None:
    """Evaluate. All ranks of a run call it alike.

    Raises:
        DpoError: for what the user can mend.
    """
    console = Console(silent=os.environ.get("RANK", "0") != "0")
    if output := config.output or config.run:
        check_writable(Path(output), "output", "name another folder with output=FOLDER")
    loss = make_loss(config.loss.settings())
    rows = _rows(config, loss, console)
    distributed.start()
    try:
        found, alarms, generations = _evaluate(config, loss, rows, console)
    finally:
        distributed.stop()
    if console.silent:
        return
    name = f"{config.run or config.model.path}" + ("" if config.step is None else f", step {config.step}")
    title = f"{name}: {len(rows.data.held_out):,} rows"
    show(console, title, found, alarms)
    if generations is not None:
        show_generations(console, generations.rows(), found)
    if output is None:
        console.say("nothing is written: output=FOLDER keeps it as eval.json")
        return
    Path(output).mkdir(parents=True, exist_ok=True)
    of_what = evaluation_name(config)
    file = Path(output, f"eval{of_what}.json")
    said = [alarm._asdict() for alarm in alarms]
    values = {"version": VERSION, "config": config.model_dump(mode="json"), **plain(found), "alarms": said}
    write_json(file, values)
    if generations is not None:
        called = Path(config.run or config.model.path).name
        write_generations(Path(output), f"{called}{of_what}", of_what, generations)
    console.result(f"written to {file}")
    if config.run is not None and output == config.run and not of_what:
        place = config.data.eval if isinstance(config.data.eval, str) else config.data.path
        rows_of = f"{len(rows.data.held_out):,} held-out rows" + (f" of {Path(place).name}" if place else "")
        into_card(Path(config.run, "final", "README.md"), rows_of, found, alarms)


def _data(data: DataConfig) -> DataConfig:
    """Where the rows to evaluate are, as if they were to be trained on."""
    if not isinstance(data.eval, str):
        return data
    path, split = held_out_place(data)  # of its own: the rows that were trained on need not be read
    return data.model_copy(update={"path": path, "mix": None, "split": split, "eval": None})


def _rows(config: EvaluateConfig, loss: Loss, console: Console) -> Rows:
    """The rows to evaluate, as held-out rows: a run's own, or those that data.path names."""
    data = _data(config.data)
    check_revisions(config.model_copy(update={"data": data}), loss.kind)
    rows = load_rows(config.model, data, loss, config.seed, console)
    given = data.eval is None
    groups = rows.data.train if given else rows.data.held_out
    mismatched = rows.mismatched if given else rows.mismatched_held_out
    return Rows(rows.tokenizer, Data([], groups, rows.data.ends, rows.data.counts), [], mismatched)


@dataclass(frozen=True)
class _Scored:
    """A model with what it says of the rows."""

    scorer: Scorer
    reference: Reference | None
    metrics: dict[str, float]
    scores: Scores
    budget: int


def _evaluate(
    config: EvaluateConfig, loss: Loss, rows: Rows, console: Console
) -> tuple[dict[str, Any], list[Alarm], Generations | None]:
    bootstrap = Bootstrap(config.resamples, config.seed)
    # What may be missing is looked for before anything takes long.
    groups = rows.data.held_out
    facts = row_facts(_data(config.data), loss.kind, _columns(config), {group.source for group in groups})
    other = None if config.against is None else _other(config, console)
    check_parts(config)
    scored = _score(config, loss, rows, console)
    generations = None
    if config.eval.samples:
        generations = generate(
            config,
            rows,
            scored.scorer,
            scored.reference,
            budget=scored.budget,
            bootstrap=bootstrap,
            console=console,
        )
    tasks = _tasks(config, rows, scored, console) if config.eval.tasks else {}
    metrics, scores = scored.metrics, scored.scores
    del scored  # a second model may need the room of the first
    comparisons = scores.comparisons()
    found: dict[str, Any] = {
        "rows": _counts(groups, comparisons),
        "intervals": {"level": bootstrap.level, "resamples": bootstrap.resamples, "over": "prompts"},
        "metrics": metrics | ({} if generations is None else generations.metrics),
        **({} if generations is None else generations.found),
        **({"tasks": tasks} if tasks else {}),
    }
    alarms: list[Alarm] = [] if generations is None else generations.alarms
    if len(comparisons) > 0:
        found |= _preferences(comparisons, groups, facts, bootstrap)
        alarms = of_preferences(found["preferences"], found["baselines"], found["length"], found["shifts"]) + alarms
    else:
        console.say("the rows have no comparisons (they are judged one by one): no accuracy, calibration or slices")
    if config.benchmark is not None:
        found["benchmark"] = _benchmark(config.benchmark, groups, comparisons, scores, facts)
    if other is not None:
        found["against"] = _against(other, groups, comparisons, bootstrap, console)
    return found, alarms, generations


def check_parts(config: EvaluateConfig) -> None:
    """Whether what generates, judges or asks is there.

    Raises:
        DpoError: it is not.
    """
    check_can_generate(config)
    if config.eval.tasks:
        check_harness()
        if distributed.world_size() > 1:
            raise DpoError("eval.tasks are run by one process: launch.num_processes=1")


def _tasks(config: EvaluateConfig, rows: Rows, scored: _Scored, console: Console) -> dict[str, Any]:
    """Standard tasks, of the model and of its reference."""
    models = {"policy": scored.scorer.policy}
    if scored.reference is not None:
        models["reference"] = scored.reference.policy()
    found: dict[str, Any] = {}
    for name, policy in models.items():
        with console.phase(f"tasks, {name}"):
            scores = run_tasks(
                policy,
                rows.tokenizer,
                config.eval.tasks,
                shots=config.eval.shots,
                limit=config.eval.task_limit,
            )
        for task, values in scores.items():
            found.setdefault(task, {})[name] = values
    return found


def _score(config: EvaluateConfig, loss: Loss, rows: Rows, console: Console) -> _Scored:
    """Load the model and its reference, and score the rows."""
    console.say(describe_rows(rows, loss.kind))
    precision = str(distributed.from_first(resolve_precision(config.precision, config.reference.cache_dir)))
    budget = resolve_token_budget(config.tokens_per_micro_batch)
    setup = Setup(config.model, config.reference, rows, precision, budget, console, config.seed)
    scorer = load_scored(setup, config.run, config.step)
    scorer.policy.eval()
    console.say(f"{precision} on {distributed.device()}; attention: {scorer.attention}")
    reference = None
    if config.run is not None or config.reference.path is not None:
        # A loss without one has its drift measured as well.
        needed = loss.needs_reference or config.reference.mode != "none"
        reference = setup.make_reference(groups=scorer.policy.groups, scorer=None, needed=needed)
    if reference is not None and reference.lookup is not None:
        console.say(f"reference: {config.reference.path or config.model.path} ({reference.counts})")
        if config.reference.update_every is not None:
            console.warn(
                "the run's reference moved while it was trained; this one is as it was before the first update"
            )
    elif loss.needs_reference:
        console.say("no reference (reference.path): rewards are beta x log-prob of the answer, and there is no loss")
    metrics, scores = _measure(loss, rows, scorer, reference, budget, console)
    return _Scored(scorer, reference, metrics, scores, budget)


def _measure(
    loss: Loss, rows: Rows, scorer: Scorer, reference: Reference | None, budget: int, console: Console
) -> tuple[dict[str, float], Scores]:
    groups = rows.data.held_out
    lookup = None if reference is None else reference.lookup
    scores = Scores(groups, reference=lookup is not None)
    if reference is None and loss.needs_reference:
        lookup = _no_reference
    objective = Objective(groups, loss, lookup, scorer.policy.groups, rows.mismatched_held_out)
    with console.phase("evaluate", len(groups), "rows") as advance:
        metrics = evaluate_preferences(
            scorer.policy,
            objective,
            lengths=scorer.room(groups, rows.mismatched_held_out),
            token_budget=budget,
            advance=advance,
            keep=scores,
        )
    if lookup is _no_reference:
        metrics = {name: value for name, value in metrics.items() if not name.startswith("loss")}
    return metrics, scores


def _columns(config: EvaluateConfig) -> list[str] | None:
    """Of the rows, to be looked at."""
    named = None if config.slices == "auto" else list(config.slices)
    if config.benchmark is None:
        return named
    return list(dict.fromkeys([*(named or []), "subset", "id"]))


def _counts(groups: Any, comparisons: Comparisons) -> dict[str, int]:
    return {
        "rows": len(groups),
        "comparisons": len(comparisons),
        "prompts": len(np.unique(comparisons.prompts)),
        "ties": int((comparisons.margins == 0).sum()),
    }


def _preferences(found: Comparisons, groups: Any, facts: Any, bootstrap: Bootstrap) -> dict[str, Any]:
    """All that is measured on comparisons."""
    ways = {name: way for name, way in slices_of(found, groups, facts).items() if name != "id"}
    return {
        "preferences": {**measures.preferences(found, bootstrap), "bins": measures.bins(found)},
        "baselines": measures.baselines(found, bootstrap),
        "length": measures.length(found, bootstrap),
        "shifts": measures.shifts(found, bootstrap),
        "slices": slice_table(found, ways, bootstrap),
    }


def _benchmark(name: str, groups: Any, comparisons: Comparisons, scores: Scores, facts: Any) -> dict[str, Any]:
    """RewardBench's own score.

    Raises:
        DataError: rows that are not RewardBench's.
    """

    def said(group: Group, column: str) -> str:
        value = facts.get(group.source, {}).get(column)
        if value is None:
            raise DataError(
                f"benchmark={name}: {group.source} has no column {column}: expected the benchmark's own rows"
            )
        return str(value)

    if name == "rewardbench":
        subsets = [said(groups[index], "subset") for index in comparisons.groups]
        return {"name": "RewardBench", **rewardbench(comparisons.margins, subsets)}
    correct = []
    for group in groups:
        good = sorted({pair.winner for pair in group.pairs})
        if good != list(range(len(good))):
            raise DataError(
                f"benchmark={name}: {group.source}: expected the correct answers first (shape rewardbench2)"
            )
        correct.append(len(good))
    subsets, ids = ([said(group, column) for group in groups] for column in ("subset", "id"))
    return {"name": "RewardBench 2", **rewardbench2(scores.rewards(), correct, subsets, ids)}


def _other(config: EvaluateConfig, console: Console) -> tuple[EvaluateConfig, Rows]:
    """The model that ``against`` names, and the rows as it reads them.

    Raises:
        DpoError: there is no such model.
    """
    try:
        other = other_model(config)
        if other.run is None:
            policy_files(other.model)
        return other, _rows(other, make_loss(other.loss.settings()), console)
    except DpoError as error:
        said = str(error).removeprefix(f"model.path={config.against}: ")
        raise DpoError(f"against={config.against}: {said}") from error


def _against(
    contestant: tuple[EvaluateConfig, Rows], groups: Any, first: Comparisons, bootstrap: Bootstrap, console: Console
) -> dict[str, Any]:
    """The other model on the same rows, and the difference."""
    config, rows = contestant
    console.say(f"against {config.against}")
    second = _score(config, make_loss(config.loss.settings()), rows, console).scores.comparisons()
    mine, theirs = shared(_keys(groups), _keys(rows.data.held_out))
    left_out = len(first) - len(mine)
    if not len(mine):
        raise DataError(
            f"against={config.against}: no comparison in common: was it of other rows, or of another shape?"
        )
    if left_out:
        console.warn(f"{left_out:,} comparisons are not the other model's as well, and left out")
    compared = compare(first.select(mine), second.select(theirs), bootstrap)
    return {"model": config.against, "comparisons": len(mine), "left_out": left_out, **compared}


def _keys(groups: Any) -> list[tuple[str, int, int]]:
    """What a comparison is called in any run: a row, and two of its answers."""
    return [(group.source, pair.winner, pair.loser) for group in groups for pair in group.pairs]


def load_scored(setup: Setup, run: str | None, step: int | None) -> Scorer:
    """The model to be looked at: that of ``model.path``; or a run's: ``final/``, or else its newest checkpoint over the
    model it started from, or the checkpoint of a step.

    Raises:
        CheckpointError: the run has no such model.
    """
    if run is None:
        return setup.load_policy()
    run_dir = Path(run)
    if step is not None:
        found: checkpoint.Checkpoint | None = checkpoint.read(checkpoint.folder_of(run_dir / "checkpoints", step))
    elif (run_dir / "final").is_dir():
        return setup.load(find_files(str(run_dir / "final"), None, quantization=setup.model.adapter.quantization))
    else:
        found, _ = checkpoint.find(run_dir)
    if found is None:
        raise CheckpointError(f"run={run_dir}: it has neither final/ nor a valid checkpoint; let the run go on first")
    why = "the run is not finished: evaluating" if step is None else "the model of"
    setup.console.say(f"{why} {found.folder}")
    scorer = setup.load_policy()
    load_weights(scorer.policy, found)
    return scorer


def _no_reference(batch: FlatBatch) -> Tensor:
    return torch.zeros(len(batch.answer_tokens))
