"""Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from dpo_cli.errors import ExitCode
from dpo_cli.tracking.backends import Run
from dpo_cli.tracking.progress import finite

_STEP = "train/step"
_NEW_ID = secrets.token_hex(4)
"""Of this process's run, however often it takes to reach the server."""


class WandB:
    """One run. wandb counts its own steps, one for each call; curves are drawn over ``train/step``."""

    def __init__(self, run: Run) -> None:
        self.run_id = run.run_id or _NEW_ID
        self._folder = run.folder
        self._run = wandb.init(
            mode=run.mode,  # type: ignore[arg-type]
            project=run.project,
            name=run.name,
            group=run.group,
            job_type="train",
            dir=run.folder,
            config=dict(run.config),
            id=self.run_id,
            resume="allow",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_stats_pid=run.process
            ),
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)
        self.where = str(self._run.url) if run.mode == "online" else str(run.folder / "wandb")
        self._known: dict[str, Any] = dict(self._run.summary) if self._run.resumed else {}

    def has(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        newest = self._known.get(_STEP)
        if newest is None:
            return False if self._run.resumed else None
        return step < newest or (step == newest and all(self._known.get(n) == v for n, v in metrics.items()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({_STEP: step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        names = [name for name in rows[0] if name != "step"]
        table = wandb.Table(columns=names, data=[[row.get(name) for name in names] for row in rows])
        self._run.log({_STEP: step, "samples": table})

    def alert(self, title: str, text: str) -> None:
        self._run.alert(title=title, text=text, level="WARN", wait_duration=0)

    def finish(self, record: Mapping[str, Any], exit_code: int) -> None:
        self._run.summary.update(finite(record.get("final") or {}))
        self._run.summary.update(
            {name: record[name] for name in ("updates", "seconds", "best", "stopped_early") if record.get(name)}
        )
        final = self._folder / "final"
        if exit_code == 0 and final.is_dir():
            model = wandb.Artifact(f"model-{self.run_id}", type="model", metadata={"card": record.get("card")})
            # Where it lies, not what it is: weights stay here, and are not read again to be hashed.
            model.add_reference(final.resolve().as_uri(), checksum=False)
            self._run.log_artifact(model)
        if exit_code == ExitCode.PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
