"""``dpo eval``: held-out preferences, samples and drift of a finished run, or of any model."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from dpo_cli import distributed
from dpo_cli.commands.parts import Reference, Scorer, Setup, resolve_precision, resolve_token_budget
from dpo_cli.commands.resume import load_weights
from dpo_cli.commands.rows import Rows, describe_rows, held_out_place, load_rows
from dpo_cli.commands.sampling import sample_answers
from dpo_cli.config import EvaluateConfig
from dpo_cli.data.collate import FlatBatch
from dpo_cli.data.load import Data
from dpo_cli.errors import CheckpointError
from dpo_cli.evaluation.preferences import evaluate_preferences
from dpo_cli.losses import Loss, make_loss
from dpo_cli.model.files import find_files
from dpo_cli.objective import Objective
from dpo_cli.run_folder import write_json
from dpo_cli.tracking.console import Console
from dpo_cli.training import checkpoint


def run(config: EvaluateConfig) -> None:
    """Evaluate. All ranks of a run call it alike.

    Raises:
        DpoError: for what the user can mend.
    """
    console = Console(silent=os.environ.get("RANK", "0") != "0")
    loss = make_loss(config.loss.settings())
    rows = _rows(config, loss, console)
    distributed.start()
    try:
        metrics = _evaluate(config, loss, rows, console)
    finally:
        distributed.stop()
    table = Table(title=f"{config.run or config.model.path}: {len(rows.data.held_out):,} rows", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console.table(table)
    output = config.output or config.run
    if output is not None and not console.silent:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_json(Path(output, "eval.json"), {"config": config.model_dump(mode="json"), "metrics": metrics})
        console.result(f"written to {Path(output, 'eval.json')}")


def _rows(config: EvaluateConfig, loss: Loss, console: Console) -> Rows:
    """The rows to evaluate, as held-out rows: a run's own, or those that data.path names."""
    data = config.data
    if isinstance(data.eval, str):  # of its own: the rows that were trained on need not be read
        path, split = held_out_place(data)
        data = data.model_copy(update={"path": path, "mix": None, "split": split, "eval": None})
    rows = load_rows(config.model, data, loss, config.seed, console)
    given = data.eval is None
    groups = rows.data.train if given else rows.data.held_out
    mismatched = rows.mismatched if given else rows.mismatched_held_out
    return Rows(rows.tokenizer, Data([], groups, rows.data.ends, rows.data.counts), [], mismatched)


def _evaluate(config: EvaluateConfig, loss: Loss, rows: Rows, console: Console) -> dict[str, float]:
    console.say(describe_rows(rows, loss.kind))
    precision = str(distributed.from_first(resolve_precision(config.precision, config.reference.cache_dir)))
    budget = resolve_token_budget(config.tokens_per_micro_batch)
    setup = Setup(config.model, config.reference, rows, precision, budget, console, config.seed)
    scorer = setup.load_policy() if config.run is None else _trained(setup, Path(config.run))
    scorer.policy.eval()
    console.say(f"{precision} on {distributed.device()}; attention: {scorer.attention}")
    reference = None
    if config.run is not None or config.reference.path is not None:
        reference = setup.make_reference(groups=scorer.policy.groups, scorer=None, needed=loss.needs_reference)
    if loss.needs_reference and reference is not None:
        console.say(f"reference: {config.reference.path or config.model.path} ({reference.counts})")
        if config.reference.update_every is not None:
            console.warn(
                "the run's reference moved while it was trained; this one is as it was before the first update"
            )
    elif loss.needs_reference:
        console.say("no reference (reference.path): rewards are beta x log-prob of the answer, and there is no loss")
    metrics = _preferences(loss, rows, scorer, reference, budget, console)
    if not config.eval.samples:
        return metrics
    _, measured = sample_answers(
        config.eval,
        rows,
        scorer,
        scorer.policy,
        reference,
        seed=config.seed,
        token_budget=budget,
        console=console,
        name="sample",
    )
    return metrics | measured


def _preferences(
    loss: Loss, rows: Rows, scorer: Scorer, reference: Reference | None, budget: int, console: Console
) -> dict[str, float]:
    groups = rows.data.held_out
    lookup = None if reference is None else reference.lookup
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
        )
    if lookup is _no_reference:
        metrics = {name: value for name, value in metrics.items() if not name.startswith("loss")}
    return metrics


def _trained(setup: Setup, run_dir: Path) -> Scorer:
    """The run's model: ``final/``, or else its newest checkpoint over the model it started from."""
    if (run_dir / "final").is_dir():
        return setup.load(find_files(str(run_dir / "final"), None, quantization=setup.model.adapter.quantization))
    found, _ = checkpoint.find(run_dir)
    if found is None:
        raise CheckpointError(f"run={run_dir}: it has neither final/ nor a valid checkpoint; let the run go on first")
    setup.console.say(f"the run is not finished: evaluating {found.folder}")
    scorer = setup.load_policy()
    load_weights(scorer.policy, found)
    return scorer


def _no_reference(batch: FlatBatch) -> Tensor:
    return torch.zeros(len(batch.answer_tokens))
