"""The same rows through a trainer of trl's and through ``dpo train``: what tests that compare the two share."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers.command import environment
from helpers.families import build
from helpers.tokenizers import quickstart
from transformers import AutoTokenizer, LlamaConfig

import dpo_cli.quickstart
from dpo_cli.data.build import Recipe
from dpo_cli.data.collate import flat_length
from dpo_cli.data.formats import Columns, Reading
from dpo_cli.data.load import Loader, Part, fingerprint, load_data
from dpo_cli.data.plan import Plan
from dpo_cli.data.sources import Place
from dpo_cli.data.tokenize import Encoding
from dpo_cli.data.types import Group, Kind

TOKENIZER = Path(dpo_cli.quickstart.__file__).parent / "assets" / "model"
HERE = Path(__file__).parent
TOLERANCE = 1e-4
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
LOGPS = ("logps/chosen", "logps/rejected")
SAME_NAMES = ("loss", *LOGPS, *REWARDS, "grad_norm")
ROWS, BATCH, SEED = 16, 4, 3
Update = Mapping[str, float]
"""Metrics of an update."""
WHOLE = {"per_device_train_batch_size": BATCH}
"""For trl: a global batch is one micro-batch."""
SINGLE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH}
"""For trl: every pair is a micro-batch."""


@dataclass
class Case:
    """One training, to be done by both."""

    rows: list[dict[str, Any]]
    text: str
    trl: dict[str, Any]
    """Arguments of trl's configuration beside those all cases share."""
    ours: list[str] = field(default_factory=list)
    trainer: str = "DPO"
    """trl's."""
    kind: Kind = "pairs"
    """What our loss counts."""
    weight: str | None = None
    """Our data.weight."""
    model: Path | None = None
    chat_template: str | None = None
    """For trl, where the tokenizer's own would make it train on other tokens than we do."""
    trl_rows: list[dict[str, Any]] | None = None
    """Where trl can't read the shape that we read."""
    arrange: Callable[[list[Group], list[int]], list[int]] = lambda groups, order: order
    """From our order of the rows to trl's, where it matters inside a batch."""
    names: tuple[str, ...] = SAME_NAMES
    """Metrics that both report."""
    batch: int = BATCH
    epochs: int = 1
    lr: float = 1e-3
    budget: int = 350
    """Tokens per micro-batch of ours."""


@dataclass
class Both:
    """What came of it."""

    ours: list[Update]
    trl: list[Update]
    groups: list[Group]
    order: list[int]
    """Of the rows, as trl came to them."""
    trl_tokens: list[dict[str, Any]]
    fingerprint: str


def words(random: random.Random, low: int, high: int) -> str:
    vocabulary = ["sort", "zebra", "acorn", "yes", "no,", "Ärger", "7", "the", "quick", "fox.", "\nline", "🙂"]
    return " ".join(random.choices(vocabulary, k=random.randint(low, high)))


def answers(random: random.Random) -> tuple[str, str]:
    """Of unequal lengths; every other pair starts alike, so that our shared tokens are at work."""
    common = words(random, 1, 6) + " " if random.random() < 0.5 else ""
    return common + words(random, 1, 4) + " A", common + words(random, 3, 16) + " B"


def message_rows() -> list[dict[str, Any]]:
    random_ = random.Random(0)
    rows = []
    for number in range(ROWS):
        prompt = [{"role": "user", "content": words(random_, 2, 12)}]
        if number % 3 == 0:
            turns = [("user", 5), ("assistant", 9), ("user", 7)]
            prompt = [{"role": role, "content": words(random_, 2, most)} for role, most in turns]
        if number % 4 == 0:
            prompt.insert(0, {"role": "system", "content": words(random_, 3, 8)})
        chosen, rejected = answers(random_)
        rows.append({"prompt": prompt, "chosen": said(chosen), "rejected": said(rejected)})
    return rows


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def text_rows() -> list[dict[str, Any]]:
    """A prompt ends in a colon and an answer starts with a space, where no token spans the boundary."""
    random_ = random.Random(1)
    rows = []
    for _ in range(ROWS):
        chosen, rejected = answers(random_)
        rows.append({"prompt": f"Q: {words(random_, 2, 14)}\nA:", "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return rows


def make_model(folder: Path, scale: float = 1.0) -> Path:
    """A random Llama with the quickstart's tokenizer, its weights x ``scale`` large enough for answers to matter."""
    tokenizer = quickstart()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = build(config, "sdpa", torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of a test run share, as a module's tests may be spread over them."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    return folder


def run_both(cases: Mapping[str, Case], folder: Path) -> dict[str, Both]:
    """Each case trained by trl, all in one process, and by us, each in a process of its own; once for a folder."""
    with FileLock(folder / "lock"):
        prepared = {name: prepare(name, case, folder) for name, case in cases.items()}
        if not (folder / "ran").exists():
            jobs = [trl_job(name, case, folder) for name, case in cases.items()]
            run("trl_worker.py", jobs, folder, folder / "out.json")
            run("dpo_worker.py", [our_words(name, case, folder) for name, case in cases.items()], folder)
            (folder / "ran").touch()
    results = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    both = {}
    for name, result in zip(cases, results, strict=True):
        lines, data = our_results(folder / name)
        both[name] = Both(lines, result["updates"], *prepared[name], result["tokens"], data)
    return both


def prepare(name: str, case: Case, folder: Path) -> tuple[list[Group], list[int]]:
    """Files with a case's rows, in the rows' order for us and in the order of training for trl."""
    write_rows(folder / f"{name}.jsonl", case.rows)
    groups = our_groups(case, folder / f"{name}.jsonl")
    order = case.arrange(groups, our_order(groups, case))
    assert len(order) == case.epochs * len(case.rows), "an update is as many rows for trl as for us"
    trl_rows = case.trl_rows or case.rows
    write_rows(folder / f"{name}-trl.jsonl", [trl_rows[index] for index in order])
    return groups, order


def trl_job(name: str, case: Case, folder: Path) -> dict[str, Any]:
    shared = {"learning_rate": case.lr, "lr_scheduler_type": "linear", "warmup_steps": 0, "max_grad_norm": 1.0}
    shared |= {"beta": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0}
    return {
        "trainer": case.trainer,
        "model": str(case.model),
        "rows": str(folder / f"{name}-trl.jsonl"),
        "chat_template": case.chat_template,
        "arguments": {**shared, **case.trl},
    }


def our_words(name: str, case: Case, folder: Path) -> list[str]:
    return [
        "train",
        *case.ours,
        f"model.path={case.model}",
        f"data.path={folder / name}.jsonl",
        f"data.text={case.text}",
        f"data.weight={case.weight or 'null'}",
        f"seed={SEED}",
        f"run_dir={folder / name}",
        f"optim.lr={case.lr}",
        "optim.schedule=linear",
        "optim.warmup_ratio=0",
        "train.precision=fp32",
        f"train.batch_size={case.batch}",
        f"train.epochs={case.epochs}",
        f"train.tokens_per_micro_batch={case.budget}",
    ]


def run(worker: str, jobs: Sequence[Any], folder: Path, *more: Path) -> None:
    """A process of its own for a worker, with its jobs in a file."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, str(HERE / worker), str(folder / "jobs.json"), *map(str, more)],
        cwd=folder,
        env=environment(folder / "cache", HF_HOME=str(folder / "hf"), TQDM_DISABLE="1"),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]


def our_results(run_dir: Path) -> tuple[list[Update], str]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    return [line for line in lines if "loss" in line], record["data"]["fingerprint"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def our_groups(case: Case, path: Path) -> list[Group]:
    @contextmanager
    def silent(name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
        yield lambda units: None

    recipe = Recipe(
        Reading(says=Columns(weight=case.weight)),
        Encoding(text=case.text, on_too_long="raise"),
        case.kind,
        "raise",
    )
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    loader = Loader(tokenizer, path.with_suffix(".cache"), 1, silent, pytest.fail)
    return list(load_data([Part("data.path", Place(str(path)), recipe)], None, loader, limit=None, seed=SEED).train)


def our_order(groups: list[Group], case: Case) -> list[int]:
    """Rows in the order in which our run comes to them, in updates of several micro-batches of several pairs."""
    plan = Plan(
        [flat_length(group) for group in groups],
        [1.0] * len(groups),
        [group.count(case.kind) for group in groups],
        seed=SEED,
        batch_size=case.batch,
        epochs=case.epochs,
        max_steps=None,
        world_size=1,
        token_budget=case.budget,
    )
    sizes = [len(micro_batch) for step in range(len(plan)) for micro_batch in plan[step].ranks[0]]
    if case.batch > 1:
        assert len(sizes) > len(plan)
        assert max(sizes) > 1
    return [index for step in range(len(plan)) for index in plan[step].groups]


def check_tokens(both: Both) -> None:
    """trl trained on the very tokens that we trained on, the end of each answer included."""
    assert both.fingerprint == fingerprint(both.groups)
    for index, theirs in zip(both.order, both.trl_tokens, strict=True):
        group = both.groups[index]
        numbers = [0] if group.labels else group.pairs[0][:2]
        assert theirs["prompt"] == group.prompt_ids.tolist()
        assert theirs["answers"] == [group.answers[number].tolist() for number in numbers]


def check_updates(both: Both, names: Sequence[str] = SAME_NAMES) -> None:
    check_same(both.ours, both.trl, names)
    for ours, theirs in zip(both.ours, both.trl, strict=True):
        assert ours["lr"] == pytest.approx(theirs["learning_rate"], rel=1e-9)
        assert ours["epoch"] * both.trl[-1]["epoch"] == pytest.approx(theirs["epoch"] * both.ours[-1]["epoch"])


def check_same(ours: Sequence[Update], theirs: Sequence[Update], names: Sequence[str]) -> None:
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True), start=1):
        for name in names:
            assert our[name] == pytest.approx(their[name], rel=0.0, abs=TOLERANCE), f"update {number}, {name}"
