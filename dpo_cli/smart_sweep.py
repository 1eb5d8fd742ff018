"""Smart sweeps: Optuna draws each point of ranges on the command line, and may stop runs that do badly.

    dpo train -m sweep.sampler=tpe 'optim.lr=tag(log, interval(1e-6, 1e-4))' 'loss.beta=interval(0.01, 0.5)'

Ranges are written as Hydra has them. The study is a file in the sweep's folder, so the same command goes on with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from dpo_cli.config import TrainConfig
from dpo_cli.config_launch import SlurmConfig
from dpo_cli.config_sweep import SweepConfig
from dpo_cli.errors import ConfigError, DpoError
from dpo_cli.metric_names import lower_is_better
from dpo_cli.overrides import apart
from dpo_cli.run_folder import read
from dpo_cli.sweep import Point, Sweep

if TYPE_CHECKING:
    import optuna


def is_smart(words: Sequence[str]) -> bool:
    """Whether a command line asks for a smart sweep."""
    return any(re.match(r"\+*sweep\.sampler=(?!null$)", word) for word in words)


def without_plugin(word: str) -> str:
    """``hydra/sweeper=optuna``, which is Hydra's plugin for an Optuna of long ago, as our own."""
    return "sweep.sampler=tpe" if word == "hydra/sweeper=optuna" else word


class Trials:
    """Points that Optuna draws, and what it learns from how they went."""

    learns = True

    def __init__(self, words: Sequence[str], sweep: Sweep, compose: Callable[[Sequence[str]], TrainConfig]) -> None:
        """
        Args:
            words: the command line's, after ``dpo train``; ranges among them.
            sweep: whose folder the runs are in.
            compose: gives the configuration of a command line without ranges.

        Raises:
            DpoError: if there is nothing to draw, or Optuna is not installed.
        """
        try:
            overrides = OverridesParser.create().parse_overrides(apart(words)[1])
        except HydraException as error:
            raise DpoError(" ".join(str(error).split())) from None
        swept = [override for override in overrides if override.is_sweep_override()]
        names = {override.input_line for override in swept}
        self._fixed = [word for word in words if word not in names and word not in ("-m", "--multirun")]
        self._space = {_key(override): _distribution(override) for override in swept}
        if not self._space:
            raise DpoError("a smart sweep needs something to draw: 'loss.beta=interval(0.01, 0.5)', loss=dpo,ipo")
        self._sweep, self._compose = sweep, compose
        first = compose([*self._fixed, *(_word(key, _any_of(of)) for key, of in self._space.items())])
        self.settings: SweepConfig = first.sweep
        self.on_slurm = isinstance(first.launch, SlurmConfig)
        """Whether its runs are jobs of Slurm's."""
        if isinstance(first.launch, SlurmConfig) and not first.launch.submit:
            raise DpoError("launch.submit=false: a smart sweep waits for its runs, and none would run; expected true")
        sweep.go_by(first)
        self._study = _study(sweep.folder, self.settings, first.seed)
        self._metric = self.settings.goal
        self._unfinished = self._left_over()
        self._trials: dict[int, optuna.Trial] = {}
        self._seen: dict[int, int] = {}
        """Evaluations of a running trial that Optuna knows of, by number."""

    def _left_over(self) -> list[optuna.Trial]:
        """Trials that were on their way when the sweep was stopped."""
        import optuna

        left = self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
        return [optuna.Trial(self._study, trial._trial_id) for trial in left]

    def draw(self) -> Point | None:
        """One that was stopped, or a new one.

        Raises:
            ConfigError: if what was drawn can't be run; Optuna knows.
        """
        import optuna

        if self._unfinished:
            trial = self._unfinished.pop(0)
        elif len(self._study.get_trials(deepcopy=False)) < self.settings.trials:
            trial = self._study.ask(self._space)
        else:
            return None
        values = [_word(key, trial.params[key]) for key in self._space]
        try:
            config = self._compose([*self._fixed, *values])
        except ConfigError as error:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise ConfigError([f"trial {trial.number} ({', '.join(values)}): {error}"]) from None
        self._trials[trial.number] = trial
        short = ",".join(_short(key, trial.params[key]) for key in self._space)
        name = re.sub(r"[^\w.,=+-]+", "_", f"{trial.number:03},{short}")
        return self._sweep.point(config, name, trial.number)

    def left(self) -> int:
        """Those that were stopped, and those to be drawn."""
        return len(self._unfinished) + max(0, self.settings.trials - len(self._study.get_trials(deepcopy=False)))

    def is_hopeless(self, point: Point) -> bool:
        """Whether the run is worse than the median of those before it at the same update."""
        if not self.settings.prune:
            return False
        trial = self._trials[point.number]
        found = _evaluations(point.run_dir, self._metric)
        for step, value in found[self._seen.get(point.number, 0) :]:
            trial.report(value, step)
        if len(found) == self._seen.get(point.number, 0):
            return False
        self._seen[point.number] = len(found)
        return bool(trial.should_prune())

    def ended(self, point: Point, exit_code: int) -> None:
        """Tell Optuna the metric, or that there is none."""
        import optuna

        state = optuna.trial.TrialState
        trial = self._trials.pop(point.number)
        if exit_code:
            hopeless = read(point.run_dir).get("status") == "preempted"
            self._study.tell(trial, state=state.PRUNED if hopeless else state.FAIL)
            return
        value = read(point.run_dir).get("final", {}).get(self._metric)
        if value is None:
            self._study.tell(trial, state=state.FAIL)
            known = ", ".join(sorted(read(point.run_dir).get("final", {})))
            raise DpoError(f"sweep.metric={self._metric}: {point.run_dir} has no such metric; it has {known}")
        self._study.tell(trial, float(value))

    def best(self) -> str:
        """The best run, for people."""
        try:
            trial = self._study.best_trial
        except ValueError:
            return "no run has ended well"
        values = " ".join(_word(key, trial.params[key]) for key in self._space)
        return f"best {self._metric}: {trial.value:.6g} in trial {trial.number} ({values})"


def _study(folder: Path, settings: SweepConfig, seed: int) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise DpoError("sweep.sampler needs Optuna: pip install 'dpo-cli[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    direction = settings.direction
    if direction == "auto":
        direction = "minimize" if lower_is_better(settings.goal) else "maximize"
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "optuna.jsonl"))),
        study_name=f"{settings.goal} {direction}",
        direction=direction,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.warmup_trials),
    )
    # A sampler that begins again from one seed would draw again what it has drawn.
    seed = seed + len(study.get_trials(deepcopy=False))
    study.sampler = (
        optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if settings.sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    return study


def _distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """What Hydra's range means to Optuna.

    Raises:
        DpoError: if it has no end.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError:
        raise DpoError("sweep.sampler needs Optuna: pip install 'dpo-cli[optuna]'") from None
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if low is None or high is None or not low < high or (log and low <= 0):
            raise DpoError(f"{override.input_line}: expected interval(LOW, HIGH), above 0 where it is logarithmic")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep) and all(isinstance(x, int) for x in (value.start, value.stop, value.step)):
        numbers = list(override.sweep_iterator())
        return IntDistribution(min(numbers), max(numbers), step=abs(int(value.step)))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _any_of(distribution: Any) -> Any:
    """Some value of a distribution."""
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def _key(override: Override) -> str:
    return str(override.input_line.partition("=")[0])


def _word(key: str, value: Any) -> str:
    """As the command line has it, to the last digit."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}={value!r}"


def _short(key: str, value: Any) -> str:
    return f"{key.lstrip('+')}={value:.3g}" if isinstance(value, float) else f"{key.lstrip('+')}={value}"


def _evaluations(run_dir: Path, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric so far, after the start, where all runs are the same."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: dict[int, float] = {}
    for line in lines:
        try:
            values: Mapping[str, Any] = json.loads(line)
        except ValueError:  # it is being written
            continue
        if values.get(metric) is not None and values.get("step", 0) > 0:
            found[int(values["step"])] = float(values[metric])
    return sorted(found.items())
