"""One model with one optimizer: the reference pass and training, by the parts that ``dpo train`` is made of."""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from bench_gpu_cases import CASES, Setup
from bench_gpu_check import measured_peak
from transformers import AutoModelForCausalLM, LlamaConfig

from dpo_cli import distributed
from dpo_cli.data.collate import flat_length
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group, Pair
from dpo_cli.engine.engine import Engine
from dpo_cli.engine.optimizers import check_optimizer
from dpo_cli.errors import DpoError
from dpo_cli.losses import Sums, make_loss
from dpo_cli.model.adapters import AsReference, NewAdapter, add_adapter, hold_in_bfloat16
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.dropout import Noise
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.flops import FlopsModel, count_weights, peak_flops
from dpo_cli.model.policy import Policy
from dpo_cli.model.probe import choose, compare
from dpo_cli.model.score import score
from dpo_cli.objective import Objective
from dpo_cli.reference.compute import fill
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.training.loop import Rhythm, Window, Work, fit, memory
from dpo_cli.training.step import Update

_PROMPT, _ANSWER = 121, 288
"""Tokens: the medians of UltraFeedback."""
_SPARE = 3e9
"""Bytes beside weights and moments without which it is no use to begin."""
_FEWEST, _MOST = 2, 40
"""Updates to measure."""
_RESERVE = 15.0
"""Seconds before the end at which no update begins."""
_LORA = NewAdapter(kind="lora", r=16, alpha=32, dropout=0.05, target_modules="all-linear")
_ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
_HYPER: dict[str, dict[str, Any]] = {"rmsprop": {"alpha": 0.99, "eps": 1e-8}}
"""Those of configs/optim."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """A row of the results.

    Raises:
        DpoError: if it can't run here; torch's OutOfMemoryError as it comes.
    """
    name, _, number = options.child.partition(":")
    case, setup = CASES[name], CASES[name].setups[int(number)]
    config = LlamaConfig(**case.config)
    with torch.device("meta"):
        weights = count_weights(AutoModelForCausalLM.from_config(config))
    distributed.start()
    try:
        where = distributed.device()
        check_room(setup, weights, where)
        check_optimizer(setup.optimizer, setup.zero_stage, where)
        peak = measured_peak(where, options.precision)
        policy, reference, attention = load(config, setup, options.precision)
        groups = random_groups(case.pairs, config.vocab_size)
        with tempfile.TemporaryDirectory() as scratch:
            budgets = options.reference_budgets or case.reference_budgets
            store, scored = reference_pass(reference, groups, Path(scratch), budgets, peak)
            budgets = options.budgets or case.budgets
            tried, first_loss = train(policy, groups, store, setup, options, budgets, peak)
    finally:
        distributed.stop()
    done = [one for one in tried if "why_not" not in one]
    if not done:
        raise DpoError(f"no room for activations, not even with {budgets[0]} tokens a micro-batch")
    best = max(done, key=lambda one: one["pairs_per_second"])
    return {
        "setup": setup.label,
        "weights": weights,
        "attention": attention,
        "batch_size": options.batch_size,
        "first_loss": first_loss,
        "reference": scored,
        "training": tried,
        "best": best,
        "pairs_per_second_with_reference": 1 / (1 / best["pairs_per_second"] + 1 / scored["pairs_per_second"]),
    }


def check_room(setup: Setup, weights: int, where: torch.device) -> None:
    """Refuse what can't fit before minutes are spent on it.

    Raises:
        DpoError: saying what it takes and what there is.
    """
    rooms = {"CPU": (setup.host_bytes, psutil.virtual_memory().available)}
    if where.type == "cuda":
        rooms["GPU"] = (setup.gpu_bytes, torch.cuda.mem_get_info(where)[0])
    for name, (each, there) in rooms.items():
        needed = weights * each + _SPARE
        if each and needed > there:
            raise DpoError(f"needs {needed / 2**30:.0f} GiB of {name} memory, there are {there / 2**30:.0f}")


def random_groups(count: int, vocabulary: int) -> list[Group]:
    """Pairs of UltraFeedback's shape: lengths from half to one and a half of its medians, random tokens."""
    random = np.random.default_rng(0)

    def tokens(median: int) -> Any:
        return random.integers(2, vocabulary, random.integers(median // 2, 3 * median // 2 + 1), dtype=np.int32)

    return [
        Group(tokens(_PROMPT), (tokens(_ANSWER), tokens(_ANSWER)), (Pair(0, 1),), str(number))
        for number in range(count)
    ]


def load(config: LlamaConfig, setup: Setup, precision: str) -> tuple[Policy, Policy, str]:
    """A model of random weights as policy and as reference, and what attention goes through.

    Raises:
        DpoError: if groups don't give the model's own numbers.
    """
    torch.manual_seed(0)
    with distributed.device():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=GROUP_ATTENTION, dtype=torch.float32)
    adapter = None
    if setup.lora:
        if precision == "bf16":
            hold_in_bfloat16(model)
        adapter = add_adapter(model, _LORA, ModelFiles("random"), seed=0)
    found = compare(model, choose(random_groups(16, config.vocab_size), None), precision)
    if not found.right:
        raise DpoError(f"groups don't give the model's own numbers: {found.difference:.2g} nats off")
    attention = " and ".join(found.kernels) + "".join(f" ({reason})" for reason in found.fallbacks)
    policy = Policy(model, precision=precision, groups=True, noise=None if adapter is None else adapter.noise)
    return policy, policy if adapter is None else AsReference(policy, adapter), attention


def reference_pass(
    policy: Policy, groups: Sequence[Group], scratch: Path, budgets: Sequence[int], peak: float
) -> tuple[ReferenceStore, dict[str, Any]]:
    """A full store, and the fastest of the passes with each budget.

    Raises:
        DpoError: if none fits.
    """
    policy.eval()
    score(policy, groups[:8], share=True)  # what is done once and never again
    flops = sum(map(FlopsModel.of(policy.model).forward, groups))
    passes: list[dict[str, Any]] = []
    for budget in budgets:
        fresh_memory()
        store = ReferenceStore(scratch, {"token_budget": budget})
        start = time.perf_counter()
        try:
            fill(store, groups, lambda: policy, token_budget=budget)
        except torch.OutOfMemoryError:
            break
        seconds = time.perf_counter() - start
        passes.append(
            {
                "token_budget": budget,
                "pairs": len(groups),
                "seconds": seconds,
                "pairs_per_second": len(groups) / seconds,
                "tokens_per_second": sum(map(flat_length, groups)) / seconds,
                "mfu_measured": flops / seconds / peak,
                **peak_memory(),
            }
        )
        full = store
    if not passes:
        raise DpoError(f"the reference pass does not fit, not even with {budgets[0]} tokens a micro-batch")
    return full, min(passes, key=lambda one: one["seconds"]) | {"tried": passes}


def train(
    policy: Policy,
    groups: Sequence[Group],
    store: ReferenceStore,
    setup: Setup,
    options: argparse.Namespace,
    budgets: Sequence[int],
    peak: float,
) -> tuple[list[dict[str, Any]], float]:
    """What came of each budget, and the loss of the first update, where the policy is the reference.

    Raises:
        DpoError: if that loss is not ln 2.
    """
    loss = make_loss({"name": "dpo", "beta": 0.1})
    objective = Objective(groups, loss, lambda batch: torch.from_numpy(store.lookup(batch.groups)), share=True)
    flops = FlopsModel.of(policy.model, update=True)
    work = Work(list(map(flat_length, groups)), list(map(flops.forward, groups)), peak)
    policy.train()
    engine = Engine(
        policy,
        optimizer={"name": setup.optimizer, **_HYPER.get(setup.optimizer, _ADAMW)},
        max_grad_norm=1.0,
        zero_stage=setup.zero_stage,
        extra=setup.deepspeed,
        only_trained=setup.lora,
    )
    hooks = _Hooks(policy.noise)
    sheet = peak_flops(distributed.device(), options.precision)
    tried: list[dict[str, Any]] = []
    first_loss: float | None = None
    seconds = 0.0
    for budget in budgets:
        if options.deadline - time.monotonic() < _FEWEST * seconds + _RESERVE:
            tried.append({"token_budget": budget, "why_not": "no time was left"})
            break
        fresh_memory()
        try:
            warm, seconds = updates(engine, objective, work, hooks, options.batch_size, budget, 1)
            if first_loss is None:
                first_loss = warm["loss"]
            there_is_time = (options.deadline - time.monotonic() - _RESERVE) / seconds
            count = int(min(max(round(options.seconds / seconds), _FEWEST), _MOST, there_is_time))
            if count:
                metrics, seconds = updates(engine, objective, work, hooks, options.batch_size, budget, count)
            else:  # better the one that warmed up than none
                metrics, count = warm, 1
        except torch.OutOfMemoryError:
            tried.append({"token_budget": budget, "why_not": "out of memory"})
            break  # a larger one would not fit either, and this engine is in the middle of an update
        tried.append(
            {
                "token_budget": budget,
                "updates": count,
                "warm_up": metrics is warm,
                "seconds_per_update": (seconds := seconds / count),
                **{name: metrics[name] for name in ("pairs_per_second", "tokens_per_second", "loss", "grad_norm")},
                "mfu_measured": metrics["mfu"],
                "mfu": None if sheet is None else metrics["mfu"] * peak / sheet,
                **peak_memory(),
            }
        )
    if first_loss is not None and not abs(first_loss - math.log(2)) < 0.02:
        raise DpoError(f"the first loss is {first_loss:.4f}, and not ln 2 as where the policy is the reference")
    return tried, math.nan if first_loss is None else first_loss


def updates(
    engine: Engine, objective: Objective, work: Work, hooks: _Hooks, batch_size: int, budget: int, count: int
) -> tuple[dict[str, float], float]:
    """Some updates as ``dpo train`` makes them: the loop's own metrics of them all, and the seconds they took."""
    plan = Plan(
        work.tokens,
        work.flops,
        [1] * len(work.tokens),
        seed=count,
        batch_size=batch_size,
        epochs=count,
        max_steps=count,
        world_size=1,
        token_budget=budget,
    )
    window = Window(Sums(objective.loss.metric_names))
    start = time.perf_counter()
    fit(
        engine,
        plan,
        objective,
        lambda _: 5e-7,
        hooks,
        start=0,
        rhythm=Rhythm(count, evaluate=None, sample=None, save=None),
        work=work,
        window=window,
        state={},
        passed_over=(),
    )
    return hooks.metrics, time.perf_counter() - start


class _Hooks:
    """Keeps the loop's line of metrics; an adapter's dropout is on, as in training."""

    def __init__(self, noise: Noise | None) -> None:
        self.noise = noise
        self.metrics: dict[str, float] = {}

    def updating(self, index: int) -> AbstractContextManager[None]:
        return nullcontext() if self.noise is None else self.noise.of(index)

    def updated(self, step: int, update: Update) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics = dict(metrics)

    def evaluate(self, step: int) -> None:
        pass

    def sample(self, step: int) -> None:
        pass

    def is_enough(self, step: int) -> bool:
        return False

    def save(self, step: int) -> None:
        pass

    def honour_stop(self, step: int) -> None:
        pass


def fresh_memory() -> None:
    """Nothing left over from the last trial, and peaks counted from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """GiB: of tensors on the GPU since ``fresh_memory`` (on a CPU: of the process), all that was taken from the GPU for
    them, and of the process."""
    now = memory()
    host = now["memory/rss_gib"]
    taken = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else host
    return {"peak_gib": now.get("memory/gpu_gib", host), "reserved_gib": taken, "host_gib": host}
