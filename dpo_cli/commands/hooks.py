"""What a training run does between updates: metrics, held-out preferences, samples, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpo_cli import distributed, faults
from dpo_cli.commands.parts import Reference, Scorer
from dpo_cli.commands.public import without_signatures
from dpo_cli.commands.report import append_samples
from dpo_cli.commands.rows import Rows
from dpo_cli.commands.sampling import sample_answers
from dpo_cli.commands.saving import RolledBack, Saver
from dpo_cli.config import TrainConfig
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import DpoError, NumericsError, Preempted, StorageError
from dpo_cli.evaluation import measures
from dpo_cli.evaluation.alarms import of_preferences, of_sampling
from dpo_cli.evaluation.intervals import Bootstrap
from dpo_cli.evaluation.preferences import evaluate_preferences
from dpo_cli.evaluation.samples import Samples
from dpo_cli.evaluation.scores import Comparisons, Scores
from dpo_cli.metric_names import lower_is_better
from dpo_cli.objective import LossState, Objective
from dpo_cli.run_folder import RunRecord
from dpo_cli.stopping import StopRequest
from dpo_cli.tracking import progress
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.metrics_file import JsonLines
from dpo_cli.tracking.trackers import Tracker, wandb_mode
from dpo_cli.training.checkpoint import Checkpoint, TrainingState
from dpo_cli.training.early_stop import Limits, reached
from dpo_cli.training.guards import Spikes
from dpo_cli.training.loop import Window
from dpo_cli.training.step import Update

_SHOWN = 20
"""Of the updates passed over, as many are described in ``run.json``."""
_RESAMPLES = 200
"""For the intervals of alarms: enough to tell trouble from chance, at each evaluation."""


def open_file(run_dir: Path, resumed: Checkpoint | None, console: Console) -> JsonLines | None:
    """Where this rank's metrics go: nowhere but on the first rank."""
    if distributed.rank() != 0:
        return None
    # A run that starts anew may have been cut off here before its first checkpoint: nothing of that stays.
    after = -1 if resumed is None else resumed.state.step
    return JsonLines(run_dir / "metrics.jsonl", resume_after=after, warn=console.warn)


def is_of(found: Checkpoint, run_dir: Path) -> bool:
    """Whether a checkpoint lies in a run's own folder."""
    return found.folder.resolve().is_relative_to(run_dir.resolve())


def tracker_names(config: TrainConfig) -> list[str]:
    """The trackers of a run, but for Weights & Biases where it is not set up."""
    tracker = config.tracker
    if tracker.mode == "disabled":
        return []
    usable = {"none": False, "wandb": wandb_mode(tracker.mode) != "disabled"}
    return [name for name in (tracker.name, *tracker.also) if usable.get(name, True)]


def start_trackers(config: TrainConfig, run_dir: Path, resumed: Checkpoint | None, console: Console) -> list[Tracker]:
    """Trackers that follow this run's files: of the first rank alone."""
    if distributed.rank() != 0:
        return []
    names = tracker_names(config)
    if resumed is None or not is_of(resumed, run_dir):
        # What begins anew, or from another run's checkpoint, is a run of its own to trackers as well.
        for name in names:
            progress.forget(run_dir, name)
    return [start_tracker(name, config, run_dir, console) for name in names]


def start_tracker(name: str, config: TrainConfig, run_dir: Path, console: Console, mode: str | None = None) -> Tracker:
    """One of them.

    Args:
        name: of the tracker.
        config: of the run.
        run_dir: its folder.
        console: for what the tracker says.
        mode: ``online`` or ``offline``; None = as configured.
    """
    return Tracker(
        name,
        run_dir,
        project=config.tracker.project,
        run_name=config.tracker.run_name or run_dir.resolve().name,
        group=config.tracker.group,
        config=without_signatures(config.model_dump(mode="json")),
        mode=mode or (wandb_mode(config.tracker.mode) if name == "wandb" else "online"),
        say=console.say,
        warn=console.warn,
    )


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
    record: RunRecord
    file: JsonLines | None
    """``metrics.jsonl``, on the first rank."""
    console: Console
    stop: StopRequest
    window: Window
    """What happened since the newest line of metrics."""
    spikes: Spikes = field(default_factory=Spikes)
    skipped: list[int] = field(default_factory=list)
    """Updates that were passed over."""
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
    planned: int = 0
    """Updates of the whole run."""
    measured: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """What evaluations and samplings have measured, by updates done."""
    stopped: str | None = None
    """Why the run ends early."""
    samples: Samples | None = None
    """The newest."""
    saver: Saver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = Saver(self.run_dir, self.engine, self.config.train.keep_last)

    @property
    def first(self) -> bool:
        """Whether this rank writes."""
        return distributed.rank() == 0

    def updating(self, index: int) -> AbstractContextManager[None]:
        """Around every update, and nothing else: an adapter's dropout is on, and is this update's."""
        noise = self.scorer.policy.noise
        return nullcontext() if noise is None else noise.of(index)

    def updated(self, step: int, update: Update) -> None:
        """After every update: its loss is looked at, the loss's state is kept for checkpoints, and a reference that
        follows moves.

        Raises:
            RolledBack: if that loss has the run go back.
        """
        self.loss_state = update.state
        self._follow(step)
        text, goes_back = self.spikes.look(update.loss), self.config.train.on_spike == "rollback"
        if goes_back:  # which all ranks must do alike; an alert is the first rank's alone, and need not be agreed on
            text = distributed.from_first(text)
        if text:
            self.alert(step, "loss-spike", text)
        if text and goes_back:
            self._roll_back(step)

    def passed_over(self, step: int, problem: str) -> None:
        """After an update that could not be made.

        Raises:
            NumericsError: if it is one too many in a row.
        """
        self._follow(step)
        self._pass_over([*self.skipped, step], step, problem)
        limit = self.config.train.nonfinite_limit
        if self.skipped[-limit:] == list(range(step - limit + 1, step + 1)):
            in_a_row = f", as were the {limit - 1} before it" if limit > 1 else ""
            raise NumericsError(f"update {step}: {problem}{in_a_row}. Lower optim.lr, or look at these rows")
        self.console.warn(f"update {step} is passed over: {problem}")

    def _pass_over(self, skipped: list[int], step: int, why: str) -> None:
        """Note which updates are not made."""
        self.skipped[:] = skipped
        last = [*_passed_over_in(self.record.values), {"step": step, "why": why}][-_SHOWN:]
        self.record.update(passed_over={"count": len(skipped), "last": last})

    def _follow(self, step: int) -> None:
        """A reference that moves takes a step after the policy."""
        moves = self.config.reference
        if moves.update_every is not None and step % moves.update_every == 0:
            assert moves.update_mix is not None
            self.reference.follow(self.engine.weights(), moves.update_mix)

    def go_on(self, step: int) -> None:
        """Take up what was known after ``step`` updates, before a run was stopped."""
        kept = [] if self.file is None else self.file.kept
        for _, values in kept:
            self.latest.update(values)
        found = [(done, values) for done, values in kept if any(_is_measured(name) for name in values)]
        self.measured = list(distributed.from_first(found))
        self._forget_after(step)
        self._decide(step)

    def _forget_after(self, step: int) -> None:
        """Alerts, and updates passed over, that will come again."""
        known = self.record.values
        alerts = known.get("alerts") or []
        known["alerts"] = [alert for alert in alerts if _is_said(alert, "name") and alert["step"] <= step]
        last = [noted for noted in _passed_over_in(known) if noted["step"] <= step]
        if self.skipped or last:
            known["passed_over"] = {"count": len(self.skipped), "last": last}

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of metrics."""
        self.latest.update(metrics)
        if self.file is not None:
            self.file.log(step, metrics)

    def _measure(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of what an evaluation or a sampling measured; a limit may be reached."""
        self.track(step, metrics)
        self.measured.append((step, dict(metrics)))
        self._decide(step)

    def _has(self, step: int, name: str) -> bool:
        return any(done == step and name in values for done, values in self.measured)

    def _decide(self, step: int) -> None:
        """Whether to end early. Ranks may have rounded otherwise, and must decide alike."""
        limits = Limits(**self.config.train.stop.model_dump())
        self.stopped = distributed.from_first(reached(self.measured, limits) if step else None)

    def is_enough(self, step: int) -> bool:
        """Whether the run ends here although there are more updates."""
        if self.stopped is not None:
            self.record.update(stopped_early={"step": step, "reason": self.stopped})
            self.alert(step, "stopped-early", self.stopped)
        return self.stopped is not None

    def alert(self, step: int, name: str, text: str) -> None:
        """Something that a person should see: on the screen, in ``run.json`` and at the trackers; once in a run."""
        alerts = self.record.values.get("alerts") or []
        if all(alert["name"] != name for alert in alerts):
            self.console.warn(f"after update {step}: {name}: {text}")
            self.record.update(alerts=[*alerts, {"step": step, "name": name, "text": text}])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of training metrics."""
        self.track(step, metrics)
        accuracy = metrics.get("rewards/accuracies")
        note = f"loss {metrics['loss']:.4f}" if "loss" in metrics else ""  # none if all were passed over
        note += "" if accuracy is None else f"  accuracy {accuracy:.2f}"
        self.advance(step - self.logged, note)
        self.logged = step

    def evaluate(self, step: int) -> None:
        """Held-out preferences, if rows are held out."""
        groups = self.rows.data.held_out
        if not groups or self._has(step, "eval/loss"):
            return
        scores = Scores(groups, reference=self.objective.reference is not None)
        faults.reached("evaluation", step)
        with self.console.phase("evaluate", len(groups), "rows") as advance:
            metrics = evaluate_preferences(
                self.engine,
                replace(self.objective, groups=groups, mismatched=self.rows.mismatched_held_out),
                lengths=self.scorer.room(groups, self.rows.mismatched_held_out),
                token_budget=self.token_budget,
                advance=advance,
                keep=scores,
            )
        self._measure(step, {f"eval/{name}": value for name, value in metrics.items()})
        self.console.say(
            f"held out after {step} update{'s' * (step != 1)}: "
            + ", ".join(f"{label} {metrics[name]:.4f}" for name, label in _SAID.items() if name in metrics)
        )
        if not math.isfinite(metrics["loss"]):
            raise NumericsError(
                f"the held-out loss after update {step} is not finite: the model is spoilt, or it has no number for "
                f"one of the rows from {groups[0].source} to {groups[-1].source}. Lower optim.lr, or look at these rows"
            )
        self._look_for_trouble(step, scores.comparisons())

    def _look_for_trouble(self, step: int, found: Comparisons) -> None:
        """What the held-out comparisons say that a person should know now."""
        if not step or not len(found):
            return
        bootstrap = Bootstrap(_RESAMPLES, self.config.seed)
        alarms = of_preferences(
            measures.preferences(found, bootstrap),
            measures.baselines(found, bootstrap),
            measures.length(found, bootstrap),
            measures.shifts(found, bootstrap),
        )
        for alarm in alarms:
            # At first no run knows more than length.
            if alarm.name != "no-better-than-length" or 2 * step >= self.planned:
                self.alert(step, alarm.name, alarm.text)

    def _choose_best(self, step: int) -> None:
        """Remember the best of what is saved, by ``train.keep_best``."""
        wanted, saved_every = self.config.train.keep_best, self.config.train.save_every
        if wanted is None or not saved_every or step % saved_every:
            return
        values = {name: value for done, found in self.measured if done == step for name, value in found.items()}
        name = wanted if wanted in values else f"eval/{wanted}"
        if values and name not in values and name.startswith("eval/") and "eval/loss" in values:
            known = ", ".join(each.removeprefix("eval/") for each in values)
            raise DpoError(f"train.keep_best={wanted}: with these rows there is no such metric, only {known}")
        if name in values:
            sign = -1 if lower_is_better(name) else 1
            if not self.best or sign * values[name] > sign * self.best["value"]:
                self.best = {"step": step, "value": values[name]}
                self.record.update(best={"metric": name, **self.best})

    def save(self, step: int) -> None:
        """A checkpoint.

        Raises:
            StorageError: if it can't be written and the run is to stop then; earlier ones are as they were.
        """
        self._choose_best(step)
        problem = self._save(step)
        if problem is None:
            return
        if self.config.train.on_failed_save == "stop":
            raise StorageError(f"{problem}: make room and go on with resume=auto")
        self.console.warn(f"{problem}; training goes on without it (train.on_failed_save)")

    def _save(self, step: int) -> str | None:
        """A checkpoint; returns why it could not be written, on all ranks alike."""
        if self.file is not None:
            self.file.settle()  # a checkpoint's metrics are to be on the disk when it is
        moved = None if self.config.reference.update_every is None else self.reference.live
        return self.saver.save(self._state(step), None if moved is None else moved.weights())

    def _state(self, step: int) -> TrainingState:
        """What the loop is doing after this update. All ranks must call it."""
        return TrainingState(
            step,
            self.fingerprint,
            dict(self.settings),
            best=self.best,
            loss=self.loss_state,
            pending=distributed.sums(self.window.sums.values),
            passed_over=self.skipped,
            recent=self.spikes.recent,
        )

    def _roll_back(self, step: int) -> None:
        """Have the run go on with the weights of its last checkpoint, if there is one.

        Raises:
            RolledBack: as that can only be done from outside the loop.
        """
        made, problems = self.saver.go_back(self._state(step))
        for problem in problems:
            self.console.warn(f"update {step}: {problem}")
        if made is None:
            self.console.warn(f"update {step}: training goes on without going back")
            return
        gone = sorted(set(made.state.passed_over) - set(self.skipped))
        text = f"going on with the weights of update {gone[0] - 1}; updates {gone[0]} to {step} are passed over"
        self._pass_over(made.state.passed_over, step, text)
        self.console.warn(f"update {step}: {text}")
        raise RolledBack(made)

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

    def sample(self, step: int) -> Samples | None:
        """Answers to held-out prompts, with their true reward where one is known; None if none are wanted."""
        if not self.config.eval.samples or not self.rows.data.held_out:
            return None
        if self.samples is not None and self._has(step, "samples/length"):
            return self.samples
        samples, metrics = sample_answers(
            self.config.eval,
            self.rows,
            self.scorer,
            self.engine,
            self.reference if step else None,  # at first the policy is the reference
            seed=self.config.seed,
            token_budget=self.token_budget,
            console=self.console,
            name=f"sample after update {step}" if step else "sample before",
            gathered=self.engine.gathered(),
        )
        self._measure(step, metrics)
        self.samples = samples
        if self.first:
            append_samples(self.run_dir, samples, step)
        self._look_for_drift(step)
        return samples

    def _look_for_drift(self, step: int) -> None:
        """What the sampled answers say that a person should know now, beside those before the first update."""
        for alarm in of_sampling(self.measured, step) if step else ():
            self.alert(step, alarm.name, alarm.text)


def _passed_over_in(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a record says of updates that were passed over."""
    known = record.get("passed_over")
    last = known.get("last") if isinstance(known, dict) else None
    return [noted for noted in last if _is_said(noted, "why")] if isinstance(last, list) else []


def _is_said(values: Any, what: str) -> bool:
    """Whether a record, perhaps a stranger's, says of an event what is needed to go on with it."""
    return isinstance(values, dict) and isinstance(values.get("step"), int) and isinstance(values.get(what), str)


def _is_measured(name: str) -> bool:
    return name.startswith(("eval/", "samples/"))
