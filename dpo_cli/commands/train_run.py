"""One rank's part of ``dpo train`` in a run's folder, from a model on disk to a trained one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli import distributed
from dpo_cli.commands.auto_checkpointing import Decision, decide, room_here
from dpo_cli.commands.card import about, model_card, text_hash
from dpo_cli.commands.hooks import RunHooks, is_of, open_file, start_trackers
from dpo_cli.commands.parts import Reference, Scorer, Setup, resolve_token_budget
from dpo_cli.commands.places import policy_files, reference_place
from dpo_cli.commands.resume import load_weights, update_settings
from dpo_cli.commands.revisions import commits_of
from dpo_cli.commands.rows import Rows
from dpo_cli.commands.saving import RolledBack
from dpo_cli.config import TrainConfig
from dpo_cli.data.collate import collate
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group
from dpo_cli.engine.engine import Engine
from dpo_cli.engine.frozen import Frozen
from dpo_cli.engine.offload import check_offload
from dpo_cli.engine.optimizers import check_optimizer
from dpo_cli.engine.schedule import learning_rate
from dpo_cli.engine.settings import resolve_stage
from dpo_cli.errors import CheckpointError, DpoError, ExitCode, NumericsError
from dpo_cli.evaluation.samples import Samples
from dpo_cli.losses import Loss, Sums
from dpo_cli.model.checkpointing import checkpoint_layers
from dpo_cli.model.files import understood
from dpo_cli.model.flops import FlopsModel, count_weights, peak_flops
from dpo_cli.model.load import LoadedModel
from dpo_cli.model.quantize import check_stage
from dpo_cli.objective import Objective
from dpo_cli.run_folder import RunRecord
from dpo_cli.stopping import StopRequest
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.trackers import Tracker, finish
from dpo_cli.training.checkpoint import Checkpoint
from dpo_cli.training.checkpoint import folders as checkpoint_folders
from dpo_cli.training.export import export, export_adapter, rehearse
from dpo_cli.training.guards import (
    Spikes,
    check_finite,
    check_zero_margin,
    drawn,
    looked_at,
    only_finite,
    zero_margin_gap,
)
from dpo_cli.training.loop import Rhythm, Window, Work, fit, memory
from dpo_cli.whole_folder import write_file


@dataclass
class Run:
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
        """Everything, in order; returns the answers sampled before and after, if there are both.

        Raises:
            RolledBack: if it is to go on from another checkpoint; nothing of it is held any more.
        """
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
        if resumed is not None:
            hooks.skipped = list(resumed.state.passed_over)
        hooks.go_on(0 if resumed is None else resumed.state.step)
        trackers = start_trackers(config, self.run_dir, resumed, self.console)
        try:
            before, after = self._train(hooks, plan, resumed, work, started, trackers)
        except RolledBack:
            _let_go(engine, reference)
            raise
        _let_go(engine, reference)
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
                after = self._finish(hooks, plan, self._fit(hooks, plan, resumed, work), started)
            exit_code = int(ExitCode.DONE)
        except NumericsError as error:
            exit_code = int(error.exit_code)
            raise NumericsError(f"{error}. {_last_good(hooks.run_dir)}") from None
        except DpoError as error:
            exit_code = int(error.exit_code)
            raise
        except RolledBack:
            exit_code = int(ExitCode.PREEMPTED)
            raise
        finally:
            if hooks.file is not None:
                hooks.file.close()
            finish(trackers, exit_code, seconds=self.config.tracker.seconds_at_end, warn=self.console.warn)
        return before, after

    def _finish(self, hooks: RunHooks, plan: Plan, updates: int, started: float) -> Samples | None:
        """After the last update: the model is written before anything that could still go wrong."""
        groups = hooks.objective.groups
        some = [groups[index] for index in looked_at(plan[updates - 1].groups, len(groups), self.config.seed)]
        check_finite(hooks.engine, some, hooks.objective, hooks.scorer.lengths, hooks.token_budget)
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
            engine.set_moments(resumed.moments(), resumed.updates, engine(some).sum() * 0.0)
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
            hooks.spikes = Spikes(resumed.state.recent)
            hooks.saver.newest = start if is_of(resumed, self.run_dir) else None
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
                passed_over=hooks.skipped,
            )

    def _write_card(self, text: str) -> None:
        write_file(self.run_dir / "final" / "README.md", text)
        self.record.update(card=text_hash(text))

    def _card(self, hooks: RunHooks, updates: int) -> str:
        settings = self.config.model_dump(mode="json")
        return model_card(settings, {**self.record.values, "final": hooks.latest, "updates": updates})

    def _export(self, hooks: RunHooks, updates: int) -> None:
        loaded, tokenizer = hooks.scorer.loaded, self.rows.tokenizer
        weights = only_finite((name.removeprefix("model."), tensor) for name, tensor in hooks.engine.weights())
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


def _let_go(engine: Engine, reference: Reference) -> None:
    """Of DeepSpeed's hooks and buffers."""
    engine.destroy()
    if isinstance(reference.live, Frozen):
        reference.live.destroy()


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
