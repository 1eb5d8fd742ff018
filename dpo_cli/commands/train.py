"""``dpo train``: what can be refused early, rows, and the run's folder with its record; ``train_run.py`` trains."""

from __future__ import annotations

import gc
import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from dpo_cli import distributed, liveness
from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.hooks import tracker_names
from dpo_cli.commands.parts import resolve_precision
from dpo_cli.commands.places import reference_place
from dpo_cli.commands.report import config_yaml, show_outcome, show_samples
from dpo_cli.commands.resume import check_same_run, find_checkpoint, precision_of, update_settings
from dpo_cli.commands.revisions import check_revisions
from dpo_cli.commands.rows import Rows, describe_rows, load_rows
from dpo_cli.commands.saving import RolledBack
from dpo_cli.commands.train_run import Run
from dpo_cli.commands.writable import check_writable
from dpo_cli.config import TrainConfig
from dpo_cli.data.load import fingerprint
from dpo_cli.engine.settings import deepspeed_config
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.evaluation.samples import Samples
from dpo_cli.losses import Loss, make_loss
from dpo_cli.metric_names import of_samples
from dpo_cli.reference.fingerprint import reference_files
from dpo_cli.run_folder import RunRecord, check_free, differing_versions, held, identity, new_run_dir, this_process
from dpo_cli.secret import hide
from dpo_cli.stopping import StopRequest, stop_on_signals
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.trackers import check_usable
from dpo_cli.training.checkpoint import Checkpoint
from dpo_cli.whole_folder import leftovers, write_file


def run(config: TrainConfig) -> None:
    """Train. One process is one rank; all ranks of a run call it alike.

    Raises:
        DpoError: for what the user can mend; the run's folder is not made before the rows are known to be good.
    """
    started = time.monotonic()
    console = Console(silent=os.environ.get("RANK", "0") != "0")
    _check_folder(config)
    loss = make_loss(config.loss.settings())
    check_usable(tracker_names(config))
    _check_measured(config, loss)
    deepspeed_config(zero_stage=0, max_grad_norm=None, extra=config.engine.deepspeed)  # refuses what conflicts, early
    distributed.check_sequence_parallel(config.engine.sequence_parallel)
    with stop_on_signals() as stop:
        check_revisions(config, loss.kind)
        rows = load_rows(config.model, config.data, loss, config.seed, console)
        distributed.start(config.engine.sequence_parallel)
        try:
            with ExitStack() as folder:
                _in_folder(config, loss, rows, console, stop, started, folder)
        finally:
            distributed.stop()


def _check_folder(config: TrainConfig) -> None:
    """Refuse a run's folder that is taken, or can't be written to.

    Raises:
        DpoError: naming it.
    """
    run_dir = Path(config.run_dir or "runs")
    for folder in (run_dir, run_dir / "checkpoints"):
        check_writable(folder, "run_dir", "choose another folder, or have its owner let you write there")
    if config.run_dir is not None and not _goes_on_in(run_dir, config.resume):
        check_free(run_dir)
    if config.run_dir is not None and os.path.ismount((run_dir / "final").resolve()):
        raise DpoError(
            f"run_dir: {run_dir / 'final'} is a mount point, and is to be replaced as a whole: mount {run_dir}"
        )


def _check_measured(config: TrainConfig, loss: Loss) -> None:
    """Refuse to go by a metric that the run won't measure.

    Raises:
        DpoError: naming those that it will.
    """
    train = config.train
    known = [*loss.metric_names]
    if train.sample_every is not None:
        known += of_samples(true_reward=config.eval.true_reward is not None, kl=config.eval.temperature == 1.0)
    if train.keep_best is not None and train.keep_best.removeprefix("eval/") not in known:
        raise DpoError(f"train.keep_best={train.keep_best}: expected one of {', '.join(known)}")
    for name, metric in (("plateau", "rewards/margins"), ("displacement", "logps/chosen")):
        if getattr(train.stop, name) is not None and metric not in known:
            raise DpoError(f"train.stop.{name} goes by {metric}, which loss={config.loss.name} does not measure")


def _goes_on_in(run_dir: Path, resume: str) -> bool:
    """Whether a run goes on in its own folder; from a checkpoint elsewhere it begins a new one."""
    return resume == "auto" or (resume != "none" and Path(resume).resolve().is_relative_to(run_dir.resolve()))


def _in_folder(
    config: TrainConfig,
    loss: Loss,
    rows: Rows,
    console: Console,
    stop: StopRequest,
    started: float,
    folder: ExitStack,
) -> None:
    """Train in the run's folder, which is held until ``folder`` closes, and keep its record."""
    first = distributed.rank() == 0
    known = None if config.run_dir is None else Path(config.run_dir)
    made = known is None or not known.exists()
    if not made:
        _hold(known, first, folder)
    if known is not None and config.resume == "auto" and RunRecord(known).values.get("status") == "done":
        console.result(f"{known} is finished; nothing is left to do")
        return
    precision_before, forced = None, []
    data = fingerprint(rows.data.train)
    resumed = None if known is None else find_checkpoint(config.resume, known, console)
    if resumed is not None:
        precision_before = precision_of(resumed)
    precision = str(
        distributed.from_first(resolve_precision(config.train.precision, config.reference.cache_dir, precision_before))
    )
    if resumed is not None:
        files = reference_files(
            reference_place(config.reference, config.model), cache_folder(config.reference.cache_dir)
        )
        forced = check_same_run(
            resumed.state, data, update_settings(config, precision, files), may_differ=config.resume_force
        )
        for change in forced:
            console.warn(f"resume_force: {change}; from here on it is another run than the one that was begun")
    run_dir = Path(distributed.from_first(str(_make_folder(config)) if first else ""))
    if made:
        _hold(run_dir, first, folder)
    if first:
        liveness.put_stacks_in(run_dir)
        for leftover in leftovers(run_dir):
            leftover.unlink(missing_ok=True)
        write_file(run_dir / "config.yaml", config_yaml(config, run_dir))
    record = RunRecord(run_dir, writes=first)
    begun = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    start = {"at": begun, "update": resumed.state.step if resumed else 0, "after": record.values.get("status")}
    if forced:
        start["forced"] = forced
    record.update(starts=[*(record.values.get("starts") or []), start], process=this_process())
    if resumed is not None and (other := differing_versions(record.values.get("versions") or {})):
        console.warn(
            f"the run goes on under other versions than before: {other}; it is the run it was, but not to the bit"
        )
    record.update(status="running", started=begun, error=None, **identity())
    record.update(data={**rows.data.counts, "fingerprint": data}, precision=precision)
    console.say(describe_rows(rows, loss.kind))
    try:
        samples = _to_the_end(
            Run(config, loss, rows, data, precision, run_dir, record, console, stop), resumed, started
        )
    except BaseException as error:
        code = int(error.exit_code if isinstance(error, DpoError) else ExitCode.INTERNAL)
        status = "preempted" if code == ExitCode.PREEMPTED else "failed"
        with suppress(OSError):  # on a full disk it can't, and what went wrong first is what matters
            record.update(status=status, exit_code=code, error=hide(f"{type(error).__name__}: {error}"))
        if first and code == ExitCode.USAGE and config.resume == "none" and not (run_dir / "metrics.jsonl").exists():
            _leave_no_trace(run_dir, made)
        raise
    if "DPO_SWEEP" not in os.environ:  # the sweep's own table follows
        if samples is not None:
            show_samples(console, *samples)
        show_outcome(console, run_dir, record.values)


def _hold(run_dir: Path | None, first: bool, folder: ExitStack) -> None:
    """Hold the run's folder on the first rank.

    Raises:
        DpoError: on all ranks alike, if another run is at work in it.
    """
    problem = None
    if first:
        assert run_dir is not None
        try:
            folder.enter_context(held(run_dir))
        except DpoError as error:
            problem = str(error)
    if problem := distributed.from_first(problem):
        raise DpoError(problem)


def _to_the_end(run: Run, resumed: Checkpoint | None, started: float) -> tuple[Samples, Samples] | None:
    """All of a run, also one that goes back to an older state; returns what ``Run.go`` does."""
    while True:
        try:
            return run.go(resumed, started)
        except RolledBack as back:
            resumed = back.checkpoint
        gc.collect()  # the engine's memory, which the next one needs


def _leave_no_trace(run_dir: Path, made: bool) -> None:
    """The folder as it was, so that the same command, put right, is not refused because of it."""
    for name in ("config.yaml", "run.json"):
        (run_dir / name).unlink(missing_ok=True)
    if made:
        run_dir.rmdir()


def _make_folder(config: TrainConfig) -> Path:
    if config.run_dir is None:
        return new_run_dir(config.loss.name)
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    return Path(config.run_dir)
