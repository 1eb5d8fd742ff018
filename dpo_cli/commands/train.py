"""``dpo train``: rows, model, reference, updates, and what came of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli import distributed
from dpo_cli.commands.auto_checkpointing import Decision, decide, room_here
from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.card import about, model_card, text_hash
from dpo_cli.commands.hooks import RunHooks, is_of, open_file, start_trackers, tracker_names
from dpo_cli.commands.parts import Reference, Scorer, Setup, resolve_precision, resolve_token_budget
from dpo_cli.commands.places import policy_files, reference_place
from dpo_cli.commands.report import config_yaml, show_outcome, show_samples
from dpo_cli.commands.resume import check_same_run, find_checkpoint, load_weights, precision_of, update_settings
from dpo_cli.commands.revisions import check_revisions, commits_of
from dpo_cli.commands.rows import Rows, describe_rows, load_rows
from dpo_cli.commands.writable import check_writable
from dpo_cli.config import TrainConfig
from dpo_cli.data.collate import collate
from dpo_cli.data.load import fingerprint
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group
from dpo_cli.engine.engine import Engine
from dpo_cli.engine.frozen import Frozen
from dpo_cli.engine.offload import check_offload
from dpo_cli.engine.optimizers import check_optimizer
from dpo_cli.engine.schedule import learning_rate
from dpo_cli.engine.settings import deepspeed_config, resolve_stage
from dpo_cli.errors import CheckpointError, DpoError, ExitCode, NumericsError
from dpo_cli.evaluation.samples import Samples
from dpo_cli.losses import Loss, Sums, make_loss
from dpo_cli.metric_names import of_samples
from dpo_cli.model.checkpointing import checkpoint_layers
from dpo_cli.model.files import understood
from dpo_cli.model.flops import FlopsModel, count_weights, peak_flops
from dpo_cli.model.load import LoadedModel
from dpo_cli.model.quantize import check_stage
from dpo_cli.objective import Objective
from dpo_cli.reference.fingerprint import reference_files
from dpo_cli.run_folder import RunRecord, check_free, differing_versions, held, identity, new_run_dir, this_process
from dpo_cli.secret import hide
from dpo_cli.stopping import StopRequest, stop_on_signals
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.trackers import Tracker, check_usable, finish
from dpo_cli.training.checkpoint import Checkpoint
from dpo_cli.training.checkpoint import folders as checkpoint_folders
from dpo_cli.training.export import export, export_adapter, rehearse
from dpo_cli.training.guards import check_finite, check_zero_margin, drawn, zero_margin_gap
from dpo_cli.training.loop import Rhythm, Window, Work, fit, memory
from dpo_cli.whole_folder import leftovers, write_file

_CHECKED_GROUPS = 4
"""Rows whose log-probs must be finite after the last update."""


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
    precision_before = None
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
        check_same_run(resumed.state, data, update_settings(config, precision, files))
    run_dir = Path(distributed.from_first(str(_make_folder(config)) if first else ""))
    if made:
        _hold(run_dir, first, folder)
    if first:
        for leftover in leftovers(run_dir):
            leftover.unlink(missing_ok=True)
        write_file(run_dir / "config.yaml", config_yaml(config, run_dir))
    record = RunRecord(run_dir, writes=first)
    begun = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    start = {"at": begun, "update": resumed.state.step if resumed else 0, "after": record.values.get("status")}
    record.update(starts=[*(record.values.get("starts") or []), start], process=this_process())
    if resumed is not None and (other := differing_versions(record.values.get("versions") or {})):
        console.warn(
            f"the run goes on under other versions than before: {other}; it is the run it was, but not to the bit"
        )
    record.update(status="running", started=begun, error=None, **identity())
    record.update(data={**rows.data.counts, "fingerprint": data}, precision=precision)
    console.say(describe_rows(rows, loss.kind))
    try:
        samples = _Run(config, loss, rows, data, precision, run_dir, record, console, stop).go(resumed, started)
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


@dataclass
class _Run:
    """One rank's part of a run, from a model on disk to a trained one."""

    config: TrainConfig
    loss: Loss
    rows: Rows
    data: str
    """Fingerprint of the training rows."""
    precision: str
    run_dir: Path
    record: RunRecord
    console: Console
    stop: StopRequest

    def go(self, resumed: Checkpoint | None, started: float) -> tuple[Samples, Samples] | None:
        """Everything, in order; returns the answers sampled before and after, if there are both."""
        config = self.config
        room = room_here()
        check_optimizer(config.optim.name, self._zero_stage(), distributed.device())
        check_offload(config.engine.deepspeed, self._zero_stage())
        check_stage(config.model.adapter.quantization, self._zero_stage())
        budget = resolve_token_budget(config.train.tokens_per_micro_batch)
        setup = Setup(
            config.model,
            config.reference,
            self.rows,
            self.precision,
            budget,
            self.console,
            config.seed,
            shard=config.engine.deepspeed if self._zero_stage() == 3 else None,
        )
        scorer = setup.load_policy()
        self._check_can_be_saved(scorer.loaded)
        reference = self._reference(setup, scorer)
        objective = Objective(
            groups=self.rows.data.train,
            loss=self.loss,
            reference=reference.lookup,
            share=scorer.policy.groups,
            mismatched=self.rows.mismatched,
        )
        work = self._work(scorer)
        plan = self._plan(work, scorer, budget)
        self.record.update(planned=len(plan))
        engine = self._engine(scorer, resumed, self._checkpointing(scorer, plan, room))
        if resumed is not None and config.reference.update_every is not None:
            reference.follow(resumed.reference().items(), 1.0)
        some = drawn(objective.groups, scorer.lengths, budget, config.seed)
        self._check_start(engine, objective, some, must_be_zero=resumed is None and config.reference.path is None)
        hooks = RunHooks(
            config,
            self.run_dir,
            self.rows,
            scorer,
            engine,
            reference,
            objective,
            budget,
            self.data,
            update_settings(config, self.precision, reference.identity["files"]),
            self.record,
            open_file(self.run_dir, resumed, self.console),
            self.console,
            self.stop,
            Window(Sums(self.loss.metric_names)),
            planned=len(plan),
        )
        hooks.go_on(0 if resumed is None else resumed.state.step)
        trackers = start_trackers(config, self.run_dir, resumed, self.console)
        before, after = self._train(hooks, plan, resumed, work, started, trackers)
        engine.destroy()
        if isinstance(reference.live, Frozen):
            reference.live.destroy()
        return None if before is None or after is None else (before, after)

    def _check_can_be_saved(self, loaded: LoadedModel) -> None:
        """
        Raises:
            DpoError: on all ranks alike, if what the run ends with can't be written.
        """
        problem = None
        if distributed.rank() == 0:
            try:
                with understood(f"model.path={self.config.model.path}: what is trained from it could not be saved"):
                    rehearse(
                        self.run_dir / ".rehearsal",
                        loaded.model if loaded.adapter is None else None,
                        self.rows.tokenizer,
                        dropout=loaded.dropout,
                        ends=self.rows.data.ends,
                    )
            except DpoError as error:
                problem = str(error)
        if problem := distributed.from_first(problem):
            raise DpoError(problem)

    def _reference(self, setup: Setup, scorer: Scorer) -> Reference:
        needed = self.loss.needs_reference
        wanted = self.config.reference.sharded
        sharded = self._zero_stage() == 3 if wanted == "auto" else wanted
        shard = self.config.engine.deepspeed if sharded else None
        reference = setup.make_reference(groups=scorer.policy.groups, scorer=scorer, needed=needed, shard=shard)
        if self.config.reference.update_every is not None:
            reference.check_can_follow(scorer.policy)
        self._describe(scorer, reference)
        return reference

    def _train(
        self,
        hooks: RunHooks,
        plan: Plan,
        resumed: Checkpoint | None,
        work: Work,
        started: float,
        trackers: list[Tracker],
    ) -> tuple[Samples | None, Samples | None]:
        """All updates, and what is measured around them; returns the answers sampled before and after."""
        exit_code = int(ExitCode.INTERNAL)
        try:
            before = None
            if resumed is None:
                hooks.evaluate(0)
                before = hooks.sample(0)
            with self.stop.waiting():
                after = self._finish(hooks, self._fit(hooks, plan, resumed, work), started)
            exit_code = int(ExitCode.DONE)
        except NumericsError as error:
            exit_code = int(error.exit_code)
            raise NumericsError(f"{error}. {_last_good(hooks.run_dir)}") from None
        except DpoError as error:
            exit_code = int(error.exit_code)
            raise
        finally:
            if hooks.file is not None:
                hooks.file.close()
            finish(trackers, exit_code, seconds=self.config.tracker.seconds_at_end, warn=self.console.warn)
        return before, after

    def _finish(self, hooks: RunHooks, updates: int, started: float) -> Samples | None:
        """After the last update: the model is written before anything that could still go wrong."""
        check_finite(hooks.engine, hooks.objective.groups[:_CHECKED_GROUPS], hooks.objective)
        hooks.evaluate(updates)
        hooks.honour_stop(updates)
        self._export(hooks, updates)
        hooks.honour_stop(updates)
        samples = hooks.sample(updates)
        final = {**hooks.latest, **memory()}
        if hooks.first and samples is not None:
            self._write_card(self._card(hooks, updates))
        seconds = round(time.monotonic() - started, 3)
        self.record.update(status="done", exit_code=0, updates=updates, final=final, seconds=seconds)
        return samples

    def _describe(self, scorer: Scorer, reference: Reference) -> None:
        """Say what is trained against what, on the screen and in the record."""
        config, say, counts = self.config, self.console.say, reference.counts
        millions = count_weights(scorer.loaded.model) / 1e6
        files = policy_files(config.model)
        say(f"model: {files}, {millions:,.1f} million weights, {self.precision} on {distributed.device()}")
        if scorer.loaded.adapter is not None:
            say(f"adapter: {scorer.loaded.adapter}; nothing else is trained")
        if scorer.loaded.dropout:
            say(f"dropout: off ({', '.join(f'{k} was {v}' for k, v in scorer.loaded.dropout.items())})")
        say(f"attention: {scorer.attention}")
        commits = {**self.rows.data.commits, **commits_of(files)}
        if reference.lookup is None:
            say(f"reference: none, as loss={config.loss.name} needs none")
        else:
            place = reference_place(config.reference, config.model)
            commits |= commits_of(place)
            say(f"reference: {place}, {_source(reference)}")
        self.record.update(
            about=about(config, scorer.loaded.adapter),
            commits=commits,
            attention=scorer.attention,
            reference={
                "identity": reference.identity,
                "store": str(reference.store) if reference.store else None,
                "tokens_computed": counts.tokens_computed,
                "tokens_read": counts.tokens_read,
                "seconds": round(counts.seconds, 3),
            },
        )

    def _work(self, scorer: Scorer) -> Work:
        flops = FlopsModel.of(scorer.loaded.model, update=True)
        train = self.rows.data.train
        return Work(
            tokens=[scorer.lengths(group) for group in train],
            flops=[flops.forward(group) for group in train],
            peak=peak_flops(distributed.device(), self.precision),
        )

    def _plan(self, work: Work, scorer: Scorer, budget: int) -> Plan:
        settings = self.config.train
        comparisons = [group.count(self.loss.kind) for group in self.rows.data.train]
        plan = Plan(
            scorer.room(self.rows.data.train, self.rows.mismatched),
            work.flops,
            comparisons,
            seed=self.config.seed,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            world_size=distributed.data_ranks(),
            token_budget=budget,
            padded=not scorer.policy.groups,
        )
        last = plan[len(plan) - 1].comparisons
        smaller = f" (the last of each epoch smaller: {last})" if last < settings.batch_size else ""
        count, shared_by = distributed.world_size(), distributed.sequence_size()
        processes = "1 process" if count == 1 else f"{count} processes"
        if shared_by > 1:
            processes += f", {shared_by} to a row"
        self.console.say(
            f"training: {len(plan)} update{'s' * (len(plan) != 1)} of {settings.batch_size} {self.loss.kind}{smaller}, "
            f"{processes}, ZeRO {self._zero_stage()}, {budget} tokens a micro-batch"
        )
        return plan

    def _zero_stage(self) -> int:
        return resolve_stage(self.config.engine.zero_stage, distributed.world_size())

    def _checkpointing(self, scorer: Scorer, plan: Plan, room: float | None) -> str:
        """What layers keep, said and recorded."""
        wanted: str = self.config.train.activation_checkpointing
        if wanted != "auto":
            self.record.update(activation_checkpointing={"kind": wanted})
            return wanted
        groups = self.rows.data.train
        decision = None
        if distributed.rank() == 0:
            decision = decide(self.config, self.loss, scorer, groups, plan, precision=self.precision, room=room)
        found: Decision = distributed.from_first(decision)
        self.record.update(
            activation_checkpointing={"kind": found.kind, "estimated": found.estimated, "room": found.room}
        )
        self.console.say(f"activation checkpointing: {found.said}")
        if not found.fits:
            self.console.warn("this run may not fit into memory: `dpo plan` with the same arguments says what would")
        return found.kind

    def _engine(self, scorer: Scorer, resumed: Checkpoint | None, checkpointing: str) -> Engine:
        """The policy with its starting weights, under DeepSpeed."""
        optim, policy = self.config.optim, scorer.policy
        if scorer.release is not None:
            scorer.release()
        if resumed is not None:
            load_weights(policy, resumed)
        checkpoint_layers(policy.model, checkpointing)
        policy.train()
        engine = Engine(
            policy,
            optimizer=optim.settings(),
            max_grad_norm=optim.max_grad_norm,
            zero_stage=self._zero_stage(),
            extra=self.config.engine.deepspeed,
            only_trained=scorer.loaded.adapter is not None,
        )
        if resumed is not None:
            some = collate([min(self.rows.data.train, key=scorer.lengths)], share=policy.groups)
            engine.set_moments(resumed.moments(), resumed.state.step, engine(some).sum() * 0.0)
        return engine

    def _check_start(self, engine: Engine, objective: Objective, some: Sequence[Group], *, must_be_zero: bool) -> None:
        if objective.reference is None:
            return  # there is no policy = reference to be at
        gap, noise = zero_margin_gap(engine, some, objective)
        self.record.update(zero_margin={"gap": gap, "noise": noise})
        self.console.say(check_zero_margin(gap, noise, must_be_zero=must_be_zero))

    def _fit(self, hooks: RunHooks, plan: Plan, resumed: Checkpoint | None, work: Work) -> int:
        optim, settings = self.config.optim, self.config.train
        start = 0 if resumed is None else resumed.state.step
        hooks.logged = start
        if resumed is not None:
            hooks.best, hooks.loss_state = resumed.state.best, resumed.state.loss
            hooks.saved = start if is_of(resumed, self.run_dir) else None
            if resumed.state.pending and hooks.first:
                if len(resumed.state.pending) != len(hooks.window.sums.values):
                    raise CheckpointError(f"{resumed.folder}: its sums are not of this loss's metrics")
                hooks.window.sums.values = resumed.state.pending

        def rate(index: int) -> float:
            return learning_rate(
                index,
                len(plan),
                peak=optim.lr,
                schedule=optim.schedule,
                warmup_ratio=optim.warmup_ratio,
                warmup_steps=optim.warmup_steps,
                min_lr_ratio=optim.min_lr_ratio,
            )

        rhythm = Rhythm(settings.log_every, settings.eval_every, settings.sample_every, settings.save_every)
        with self.console.phase("train", len(plan) - start, "updates") as hooks.advance:
            return fit(
                hooks.engine,
                plan,
                hooks.objective,
                rate,
                hooks,
                start=start,
                rhythm=rhythm,
                work=work,
                window=hooks.window,
                state=hooks.loss_state,
            )

    def _write_card(self, text: str) -> None:
        write_file(self.run_dir / "final" / "README.md", text)
        self.record.update(card=text_hash(text))

    def _card(self, hooks: RunHooks, updates: int) -> str:
        settings = self.config.model_dump(mode="json")
        return model_card(settings, {**self.record.values, "final": hooks.latest, "updates": updates})

    def _export(self, hooks: RunHooks, updates: int) -> None:
        loaded, tokenizer = hooks.scorer.loaded, self.rows.tokenizer
        weights = ((name.removeprefix("model."), tensor) for name, tensor in hooks.engine.weights())
        folder, card = self.run_dir / "final", self._card(hooks, updates)
        with self.console.phase("save final/"):
            if loaded.adapter is not None:
                export_adapter(folder, loaded.adapter, tokenizer, weights, card=card, first=hooks.first)
            else:
                export(
                    folder,
                    loaded.model,
                    tokenizer,
                    weights,
                    dropout=loaded.dropout,
                    card=card,
                    ends=self.rows.data.ends,
                    first=hooks.first,
                )
        self.record.update(card=text_hash(card))


def _last_good(run_dir: Path) -> str:
    """What there is to go back to."""
    folders = checkpoint_folders(run_dir / "checkpoints")
    return f"The last checkpoint is {folders[-1]}" if folders else "There is no checkpoint yet"


def _source(reference: Reference) -> str:
    """Where the reference's log-probs come from, for people."""
    if reference.store:
        return f"log-probs in {reference.store} ({reference.counts})"
    if isinstance(reference.live, Frozen):
        return "a second model in memory" + (" shared out over the processes" if reference.live.sharded else "")
    second = "a second adapter in its place" if reference.live else "its adapter switched off"
    return f"the model in memory with {second}"
