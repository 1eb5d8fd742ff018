"""What a training run does between updates: metrics, held-out preferences, samples, checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpo_cli import distributed, faults
from dpo_cli.commands.parts import Reference, Scorer
from dpo_cli.commands.report import append_samples
from dpo_cli.commands.rows import Rows
from dpo_cli.commands.sampling import sample_answers
from dpo_cli.config import TrainConfig
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import CheckpointError, DpoError, NumericsError, Preempted, StorageError
from dpo_cli.evaluation.preferences import evaluate_preferences
from dpo_cli.evaluation.samples import Samples
from dpo_cli.objective import LossState, Objective
from dpo_cli.stopping import StopRequest
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.trackers import JsonLines, Tracker, WandB, wandb_mode
from dpo_cli.training import checkpoint
from dpo_cli.training.checkpoint import Checkpoint, TrainingState
from dpo_cli.training.loop import Window


def open_trackers(config: TrainConfig, run_dir: Path, resumed: Checkpoint | None, console: Console) -> list[Tracker]:
    """Where this rank's metrics go: nowhere but on the first rank."""
    if distributed.rank() != 0:
        return []
    # A run that starts anew may have been cut off here before its first checkpoint: nothing of that stays.
    after = -1 if resumed is None else resumed.state.step
    trackers: list[Tracker] = [JsonLines(run_dir / "metrics.jsonl", resume_after=after, warn=console.warn)]
    mode = wandb_mode(config.tracker.mode)
    if mode != "disabled":
        trackers.append(
            WandB(
                mode=mode,
                project=config.tracker.project,
                name=config.tracker.run_name or run_dir.name,
                group=config.tracker.group,
                folder=run_dir,
                config=config.model_dump(mode="json"),
                # A run that begins from another run's checkpoint is a run of its own.
                run_id=resumed.state.wandb_id if resumed is not None and is_of(resumed, run_dir) else None,
                warn=console.warn,
            )
        )
    return trackers


def is_of(found: Checkpoint, run_dir: Path) -> bool:
    """Whether a checkpoint lies in a run's own folder."""
    return found.folder.resolve().is_relative_to(run_dir.resolve())


_SAID = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
}


@dataclass
class RunHooks:
    """One rank's side of a run between updates; all ranks call its methods alike."""

    config: TrainConfig
    run_dir: Path
    rows: Rows
    scorer: Scorer
    engine: Engine
    reference: Reference
    objective: Objective
    token_budget: int
    fingerprint: str
    """Of the training rows."""
    settings: Mapping[str, Any]
    """What the updates depend on, for checkpoints."""
    trackers: list[Tracker]
    console: Console
    stop: StopRequest
    window: Window
    """What happened since the newest line of metrics."""
    loss_state: LossState = field(default_factory=dict)
    """What the loss remembers."""
    best: dict[str, Any] = field(default_factory=dict)
    """Step and value of the best evaluation by ``train.keep_best``."""
    latest: dict[str, float] = field(default_factory=dict)
    """The newest value of every metric."""
    advance: Callable[..., None] = lambda *_: None
    """Told of updates done."""
    logged: int = 0
    """The update of the newest line of metrics."""
    saved: int | None = None
    """The update after which the newest checkpoint in this run's folder was made."""

    @property
    def first(self) -> bool:
        """Whether this rank writes."""
        return distributed.rank() == 0

    def updating(self, index: int) -> AbstractContextManager[None]:
        """Around every update, and nothing else: an adapter's dropout is on, and is this update's."""
        noise = self.scorer.policy.noise
        return nullcontext() if noise is None else noise.of(index)

    def updated(self, step: int, state: LossState) -> None:
        """After every update: the loss's state is kept for checkpoints, and a reference that follows moves."""
        self.loss_state = state
        moves = self.config.reference
        if moves.update_every is not None and step % moves.update_every == 0:
            assert moves.update_mix is not None
            self.reference.follow(self.engine.weights(), moves.update_mix)

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics to every tracker."""
        self.latest.update(metrics)
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of training metrics."""
        self.track(step, metrics)
        accuracy = metrics.get("rewards/accuracies")
        note = f"loss {metrics['loss']:.4f}" + ("" if accuracy is None else f"  accuracy {accuracy:.2f}")
        self.advance(step - self.logged, note)
        self.logged = step

    def evaluate(self, step: int) -> None:
        """Held-out preferences, if rows are held out."""
        groups = self.rows.data.held_out
        if not groups:
            return
        faults.reached("evaluation", step)
        with self.console.phase("evaluate", len(groups), "rows") as advance:
            metrics = evaluate_preferences(
                self.engine,
                replace(self.objective, groups=groups, mismatched=self.rows.mismatched_held_out),
                lengths=self.scorer.room(groups, self.rows.mismatched_held_out),
                token_budget=self.token_budget,
                advance=advance,
            )
        self.track(step, {f"eval/{name}": value for name, value in metrics.items()})
        self.console.say(
            f"held out after {step} updates: "
            + ", ".join(f"{label} {metrics[name]:.4f}" for name, label in _SAID.items() if name in metrics)
        )
        if not math.isfinite(metrics["loss"]):
            raise NumericsError(
                f"the held-out loss after update {step} is not finite: the model is spoilt, or it has no number for "
                f"one of the rows from {groups[0].source} to {groups[-1].source}. Lower optim.lr, or look at these rows"
            )
        self._keep_best(step, metrics)

    def _keep_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the best evaluation by ``train.keep_best``; only what is saved can be kept."""
        name, saved_every = self.config.train.keep_best, self.config.train.save_every
        if name is not None and name not in metrics:
            raise DpoError(
                f"train.keep_best={name}: with these rows there is no such metric, only {', '.join(metrics)}"
            )
        if name and step and saved_every and step % saved_every == 0:
            sign = -1 if name.split("/")[0] == "loss" else 1
            if not self.best or sign * metrics[name] > sign * self.best["value"]:
                self.best = {"step": step, "value": metrics[name]}

    def save(self, step: int) -> None:
        """A checkpoint.

        Raises:
            StorageError: if it can't be written and the run is to stop then; earlier ones are as they were.
        """
        problem = self._save(step)
        if problem is None:
            return
        if self.config.train.on_failed_save == "stop":
            raise StorageError(f"{problem}: make room and go on with resume=auto")
        self.console.warn(f"{problem}; training goes on without it (train.on_failed_save)")

    def _save(self, step: int) -> str | None:
        """Write a checkpoint, unless the newest is of this very state; returns why not, on all ranks alike."""
        if step == self.saved:
            return None
        folder = self.run_dir / "checkpoints"
        problem = distributed.from_first(self._lack_of_room(folder) if self.first else None)
        if problem is None:
            problem = distributed.from_first(self._write(step, folder))
        if problem is not None:
            return f"the checkpoint of update {step} could not be written ({problem}); earlier ones are as they were"
        self.saved = step
        return None

    def _lack_of_room(self, folder: Path) -> str | None:
        """Seen before anything is gathered: the next checkpoint takes about what the newest does."""
        newest = checkpoint.folders(folder)[-1:]
        needed = int(1.2 * checkpoint.bytes_of(newest[0])) if newest else self.engine.bytes_of_weights()
        free = shutil.disk_usage(self.run_dir).free
        return None if free >= needed else f"it needs {needed:,} bytes, and {free:,} are free in {self.run_dir}"

    def _write(self, step: int, folder: Path) -> str | None:
        for tracker in self.trackers:
            tracker.settle()  # a checkpoint's metrics are to be on the disk when it is
        wandb_id = next((tracker.run_id for tracker in self.trackers if tracker.run_id), None)
        state = TrainingState(
            step,
            self.fingerprint,
            dict(self.settings),
            wandb_id=wandb_id,
            best=self.best,
            loss=self.loss_state,
            pending=distributed.sums(self.window.sums.values),
        )
        moved = None if self.config.reference.update_every is None else self.reference.live
        try:
            checkpoint.write(
                folder,
                state,
                self.engine.weights(),
                self.engine.moments(),
                reference=None if moved is None else moved.weights(),
                first=self.first,
            )
            if self.first:
                keep_last, best_step = self.config.train.keep_last, self.best.get("step")
                checkpoint.clean_up(folder, keep_last=keep_last, best_step=best_step, newest=step)
        except OSError as error:
            free = shutil.disk_usage(self.run_dir).free
            return f"{error.strerror or error}; {free:,} bytes are free in {self.run_dir}"
        except CheckpointError as error:
            return f"it is not what was written: {error}"
        return None

    def honour_stop(self, step: int) -> None:
        """If a signal came to any rank: save, unless that is done, and end.

        Raises:
            Preempted: on all ranks alike.
            StorageError: if the state could not be saved.
        """
        if not distributed.largest([float(self.stop.requested)])[0]:
            return
        if problem := self._save(step):
            raise StorageError(f"stopped by a signal after update {step}, and {problem}")
        raise Preempted(
            f"stopped by a signal after update {step}; its state is saved, and the same command with "
            f"run_dir={self.run_dir} resume=auto goes on"
        )

    def sample(self, step: int, name: str, reference: Reference | None) -> Samples | None:
        """Answers to held-out prompts, with their true reward where one is known; None if none are wanted.

        Args:
            step: updates done.
            name: of the phase, for people.
            reference: to measure the KL to; None where the policy is the reference.
        """
        if not self.config.eval.samples or not self.rows.data.held_out:
            return None
        samples, metrics = sample_answers(
            self.config.eval,
            self.rows,
            self.scorer,
            self.engine,
            reference,
            seed=self.config.seed,
            token_budget=self.token_budget,
            console=self.console,
            name=name,
            gathered=self.engine.gathered(),
        )
        self.track(step, metrics)
        if self.first:
            append_samples(self.run_dir, samples, step)
        return samples
