"""A guard against doing more than is needed: passes, tokens, logits, multiplications and bytes, counted exactly.

What grows here grows on every machine, so a change that makes these numbers larger must say why, and one that makes
them smaller should put the new ones down.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import loss_cases, runs, tokenizers
from helpers.configs import composed
from helpers.families import build
from helpers.process_group import one_process_group
from helpers.work import Meter, Work, held_by, metered
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from dpo_cli import liveness
from dpo_cli.commands import hooks, parts, train, train_run
from dpo_cli.data.collate import collate, flat_length
from dpo_cli.data.kinds import mismatch
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group, Pair
from dpo_cli.engine.engine import Engine
from dpo_cli.losses import Sums
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.flops import FlopsModel
from dpo_cli.model.logprobs import _ROWS
from dpo_cli.model.policy import Policy
from dpo_cli.model.score import score
from dpo_cli.objective import Objective
from dpo_cli.training import loop
from dpo_cli.training.step import train_step

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts what is held in a CPU's memory")

LAYERS, HIDDEN, INNER, HEADS, VOCABULARY = 2, 64, 128, 4, 2048
PROMPT, ANSWERS = 10, (5, 7, 6, 8)


@pytest.fixture(scope="module", autouse=True)
def _one_process_group() -> Iterator[None]:
    with one_process_group():
        yield


def policy(*, groups: bool = True) -> Policy:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return Policy(build(config, GROUP_ATTENTION if groups else "sdpa", torch.float32), precision="fp32", groups=groups)


def engine_around(module: Policy) -> Engine:
    adamw = {"name": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    return Engine(module, optimizer=adamw, max_grad_norm=1.0, zero_stage=0, extra={})


def group(seed: int, answers: tuple[int, ...], prompt: int = PROMPT, **said: Any) -> Group:
    """Answers of these lengths, no two with the same first token; the first is preferred to each other."""
    random = np.random.default_rng(seed)

    def tokens(length: int, first: int) -> Any:
        return np.concatenate(([first], random.integers(20, VOCABULARY, length - 1))).astype(np.int32)

    pairs = tuple(Pair(0, other) for other in range(1, len(answers)))
    given = tuple(tokens(length, 2 + number) for number, length in enumerate(answers))
    return Group(tokens(prompt, seed + 2), given, pairs, f"row {seed}", **said)


# -- one forward pass

# An answer's last token is no input, and the end of the prompt predicts the first token of every answer.
FORWARD = {
    "a pair": ([ANSWERS[:2]], True, Work(1, 0, PROMPT + 4 + 6, 1 + 4 + 6)),
    "a pair, apart": ([ANSWERS[:2]], False, Work(1, 0, 2 * (PROMPT + 6), 2 * 7)),
    "four answers": ([ANSWERS], True, Work(1, 0, PROMPT + 4 + 6 + 5 + 7, 1 + 4 + 6 + 5 + 7)),
    "four answers as three pairs": (
        [ANSWERS[:2], (5, 6), (5, 8)],
        True,
        Work(1, 0, 3 * (PROMPT + 4) + 6 + 5 + 7, 3 * (1 + 4) + 6 + 5 + 7),
    ),
    "four answers, apart": ([ANSWERS], False, Work(1, 0, 4 * (PROMPT + 7), 4 * 8)),
}


@pytest.mark.parametrize("case", FORWARD)
def test_a_prompt_is_run_once_and_logits_are_made_where_tokens_are_predicted(case: str) -> None:
    lengths, share, expected = FORWARD[case]
    batch = collate([group(seed, answers) for seed, answers in enumerate(lengths)], share=share)
    with metered(LAYERS) as meter, torch.no_grad():
        policy(groups=share)(batch)
    assert meter.found == {"elsewhere": expected}


def test_what_answers_share_is_run_once_and_unscored_tokens_have_no_logits() -> None:
    plain = group(0, (6, 9))
    begun = [np.concatenate((plain.answers[0][:3], answer[3:])) for answer in plain.answers]
    scored = tuple(np.arange(len(answer)) >= len(answer) - 2 for answer in begun)
    with metered(LAYERS) as meter, torch.no_grad():
        policy()(collate([Group(plain.prompt_ids, tuple(begun), plain.pairs, "begin alike")]))
        policy()(collate([Group(plain.prompt_ids, tuple(begun), plain.pairs, "two scored", scored=scored)]))
    # Three tokens are shared: 2 + 5 positions follow them, without the last of each answer.
    assert meter.found == {"elsewhere": Work(2, 0, 2 * (PROMPT + 3 + 2 + 5), (1 + 3 + 2 + 5) + 2 * 2)}


# -- one update


def update_of(engine: Engine, name: str, groups: list[Group], token_budget: int) -> Any:
    """A function that makes one update on all the groups."""
    loss = loss_cases.loss(name)
    mismatched = mismatch(groups, 0, 100) if loss.columns("mismatched") else []
    reference = (lambda batch: torch.full([len(batch.answer)], -4.0)) if loss.needs_reference else None
    objective = Objective(groups, loss, reference, share=True, mismatched=mismatched)
    lengths = [flat_length(one) for one in groups]
    counts = [one.count(loss.kind) for one in groups]
    plan = Plan(
        lengths,
        lengths,
        counts,
        seed=0,
        batch_size=sum(counts),
        epochs=1,
        max_steps=None,
        world_size=1,
        token_budget=token_budget,
    )
    assert len(plan) == 1
    return lambda: train_step(engine, plan[0], objective, 1e-4, Sums(loss.metric_names), {})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = engine_around(policy())
    yield made
    made.destroy()


# Five pairs of 20 tokens and 11 rows, two in a micro-batch: 2 + 2 + 1.
UPDATE = Work(3, 3, 5 * 20, 5 * 11)
# KTO's KL is of each prompt with one answer to another prompt; here all answers have 7 tokens.
LOSSES = {
    "dpo": {"update": UPDATE},
    "simpo": {"update": UPDATE},
    "orpo": {"update": UPDATE},
    "bco_pair": {"update": UPDATE, "batch-wide": Work(3, 0, 5 * 20, 5 * 11)},
    "aot": {"update": UPDATE, "batch-wide": Work(3, 0, 5 * 20, 5 * 11)},
    "kto": {
        "update": Work(3, 3, 5 * (PROMPT + 6 + 6), 5 * (1 + 6 + 6)),
        "batch-wide": Work(3, 0, 5 * (PROMPT + 6), 5 * (1 + 6)),
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_update_is_one_forward_and_one_backward_pass_for_each_micro_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said: dict[str, Any] = {"labels": (True, False)} if name == "kto" else {}
    groups = [group(seed, (7, 7) if name == "kto" else (5, 7), **said) for seed in range(5)]
    with metered(LAYERS) as meter:
        monkeypatch.setattr(Objective, "contexts", meter.during("batch-wide", Objective.contexts))
        meter.during("update", update_of(engine, name, groups, token_budget=45))()
    assert meter.found == LOSSES[name]


def test_an_updates_matrix_products_are_the_necessary_ones(engine: Engine) -> None:
    """Six FLOPs for each weight and token, the head's for rows alone; attention's in blocks of queries."""
    groups = [group(seed, ANSWERS[:2]) for seed in range(5)]
    with FlopCounterMode(display=False) as counter:
        update_of(engine, "dpo", groups, token_budget=45)()
    necessary = FlopsModel.of(engine._module.model, update=True)
    # The prompt and the first answer are one block of 14 queries that see 14 keys, the other answer is one of 6.
    seen = 14 * 14 + 6 * (PROMPT + 6)
    expected = 20 * necessary.per_token + 11 * necessary.per_prediction + seen * necessary.per_pair
    assert counter.get_total_flops() == 5 * expected


# -- memory

FLOAT = 4
MEMORY_PAIRS, MEMORY_PROMPT, MEMORY_ANSWER = 8, 40, 81
TOKENS = MEMORY_PAIRS * (MEMORY_PROMPT + 2 * (MEMORY_ANSWER - 1))
ROWS = MEMORY_PAIRS * (1 + 2 * (MEMORY_ANSWER - 1))
LOGITS = ROWS * VOCABULARY * FLOAT
PIECE = _ROWS * VOCABULARY * FLOAT
"""Of the logits, which are gone through in pieces."""
ACTIVATIONS = (
    LAYERS
    * FLOAT
    * (
        # Of each token: 6 x hidden of residuals and norms; queries, keys, values (half as many heads) and attention;
        # 4 x MLP.
        TOKENS * (9 * HIDDEN + 4 * INNER)
        # Of each pair, the probabilities: prompt and first answer are two blocks of 60 queries, the other two of 40.
        + MEMORY_PAIRS * HEADS * (60 * 60 + 60 * 120 + 40 * 80 + 40 * 120)
    )
)


def memory_groups(count: int) -> list[Group]:
    return [group(seed, (MEMORY_ANSWER, MEMORY_ANSWER), prompt=MEMORY_PROMPT) for seed in range(count)]


def test_an_update_holds_activations_the_logits_once_and_one_gradient() -> None:
    module = policy()
    weights = FLOAT * sum(parameter.numel() for parameter in module.parameters())
    engine = engine_around(module)
    # Two micro-batches, so that the first one's gradient is there beside the second's activations.
    update = update_of(engine, "dpo", memory_groups(2 * MEMORY_PAIRS), token_budget=TOKENS)
    peak, left = held_by(update)
    engine.destroy()
    # The logits' own gradient lies where they lay; two pieces of it are made at a time.
    assert peak == pytest.approx(weights + ACTIVATIONS + LOGITS + 2 * PIECE, rel=0.05)
    # The two moments stay, with a count of updates for each parameter; gradients don't.
    assert left == 2 * weights + FLOAT * len(list(module.parameters()))


def test_the_end_of_an_update_holds_one_gradient() -> None:
    module = policy()
    weights = FLOAT * sum(parameter.numel() for parameter in module.parameters())
    engine = engine_around(module)
    update = update_of(engine, "dpo", [group(0, (2, 2), prompt=1)], token_budget=TOKENS)
    update()  # makes the moments
    peak, left = held_by(update)
    engine.destroy()
    # No second gradient for summing or clipping, nothing that the optimizer makes on its way.
    assert peak == pytest.approx(weights, rel=0.05)
    assert left == 0


def test_scoring_holds_the_logits_once_and_no_activations() -> None:
    module = policy()
    groups = memory_groups(MEMORY_PAIRS)
    peak, left = held_by(lambda: score(module, groups, share=True))
    # The hidden states are gone when logsumexp makes a copy of a piece.
    assert peak == pytest.approx(LOGITS + PIECE, rel=0.05)
    assert left == 0


# -- whole runs

EPOCHS = 2


class Runs:
    """``dpo train`` in this process, and what each part of it did."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root, self._patch = root, patch
        runs.make_model(root / "model", runs.llama(), tokenizers.quickstart())
        rows = runs.make_rows(10)
        runs.write_rows(root / "train.jsonl", rows[:8])
        runs.write_rows(root / "held-out.jsonl", rows[8:])
        patch.setenv("DPO_CACHE", str(root / "cache"))
        self.groups: list[Group] = []
        """Of the newest run: its training rows, then those held out."""

    def __call__(self, name: str, *overrides: str) -> dict[str, Work]:
        root = self._root
        words = [
            *(f"model.path={root / 'model'}", f"data.path={root / 'train.jsonl'}", f"run_dir={root / name}"),
            *(f"data.eval={root / 'held-out.jsonl'}", "data.workers=1", "tracker.mode=disabled"),
            *("train.precision=fp32", "train.batch_size=4", f"train.epochs={EPOCHS}"),
            "train.tokens_per_micro_batch=1024",
            "train.activation_checkpointing=none",  # choosing runs layers on tensors without content
        ]
        with metered(LAYERS) as meter, self._patch.context() as patch:
            self._watch(meter, patch)
            train.run(composed("train", [*words, *overrides]))
        return meter.found

    def _watch(self, meter: Meter, patch: pytest.MonkeyPatch) -> None:
        def making_plan(run: Any, *args: Any) -> Any:
            self.groups = [*run.rows.data.train, *run.rows.data.held_out]
            return plan(run, *args)

        plan = train_run.Run._plan
        patch.setattr(train_run.Run, "_plan", making_plan)
        # Half a second, for a speed that isn't read.
        patch.setattr(train_run, "peak_flops", lambda device, precision: None)
        for phase, module, function in (
            ("groups are right", parts, "compare"),
            ("reference", parts, "fill"),
            ("loss is right", train_run, "zero_margin_gap"),
            ("update", loop, "train_step"),
            ("held out", hooks, "evaluate_preferences"),
            ("weights are finite", train_run, "check_finite"),
        ):
            patch.setattr(module, function, meter.during(phase, getattr(module, function)))


def work_on(groups: list[Group], *, passes: int = 1, times: int = 1, backwards: int = 0) -> Work:
    """In ``passes`` micro-batches, all of it ``times`` over: each prompt once, none of the last tokens."""
    starts = [_same_start(one) for one in groups]
    extra = [sum(len(answer) - 1 - start for answer in one.answers) for one, start in zip(groups, starts, strict=True)]
    tokens = sum(len(one.prompt_ids) for one in groups) + sum(starts) + sum(extra)
    return Work(passes, backwards, times * tokens, times * (len(groups) + sum(starts) + sum(extra)))


def _same_start(one: Group) -> int:
    first, second = (answer.tolist() for answer in one.answers)
    shortest = min(len(first), len(second)) - 1
    return next((place for place in range(shortest) if first[place] != second[place]), shortest)


def test_a_whole_run_does_what_it_must_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runs(tmp_path, monkeypatch)
    found = run("first")
    groups = run.groups
    training, held_out = groups[:8], groups[8:]
    shortest = sorted(groups, key=lambda one: len(one.prompt_ids) + max(map(len, one.answers)))[:2]
    in_rows = sum(len(one.answers) for one in shortest)
    longest = max(len(one.prompt_ids) + max(map(len, one.answers)) - 1 for one in shortest)
    probe = work_on(shortest, passes=3, times=2)
    checks = {
        # A quarter of the rows, at most three: twice in groups, of which once with one row of logits; once as padded
        # sequences, with logits in the columns that any of them predicts in.
        "groups are right": Work(3, 0, probe.tokens + in_rows * longest, found["groups are right"].rows),
        # Eight rows: all together, then each twice over.
        "loss is right": work_on(training, passes=9, times=3),
    }
    columns = {
        len(one.prompt_ids) - 1 + place for one in shortest for answer in one.answers for place in range(len(answer))
    }
    assert found["groups are right"].rows == probe.rows // 2 + 1 + in_rows * len(columns)
    expected = {
        **checks,
        "reference": work_on(groups),  # once, however many epochs
        "held out": work_on(held_out, passes=2, times=2),  # before and after
        "update": work_on(training, passes=2 * EPOCHS, times=EPOCHS, backwards=2 * EPOCHS),
        "weights are finite": work_on(training),  # the rows of the last update, and as many others
    }
    assert found == expected
    # Another loss, seed and batch size: no row goes through the reference again.
    again = run("again", "loss=ipo", "seed=1", "train.batch_size=8")
    expected["update"] = work_on(training, passes=EPOCHS, times=EPOCHS, backwards=EPOCHS)
    assert again == {phase: work for phase, work in expected.items() if phase != "reference"}
    # Without a reference there is nothing to compute, nor to be equal to at the start.
    without = run("without", "loss=simpo", f"reference.cache_dir={tmp_path / 'another'}")
    without.pop("groups are right")
    assert without.keys() == {"held out", "update", "weights are finite"}


def test_signs_of_life_say_how_long_updates_and_evaluations_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update and each batch of an evaluation is measured, and nothing else is."""
    with (tmp_path / "alive-0").open("wb") as file:
        signs = liveness._Signs(tmp_path, file.fileno())
        monkeypatch.setattr(liveness, "_signs", signs)
        Runs(tmp_path, monkeypatch)("first")
    assert {what: len(times) for what, times in signs.known.items()} == {
        "update": 2 * EPOCHS,
        "batch of an evaluation": 2,
    }
    assert liveness.place_of_stacks(tmp_path) == tmp_path / "first"
