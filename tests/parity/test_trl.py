"""The same rows through trl's DPOTrainer and through ``dpo train``: the same tokens, losses, log-probs, gradients."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import dpo, environment
from helpers.families import build
from helpers.tokenizers import quickstart
from transformers import AutoTokenizer, LlamaConfig

import dpo_cli.quickstart
from dpo_cli.data.collate import flat_length
from dpo_cli.data.load import fingerprint, load_data
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group

REAL_DATA, REAL_MODEL = os.environ.get("DPO_TEST_DATA", ""), os.environ.get("DPO_TEST_MODEL", "")
TOKENIZER = Path(dpo_cli.quickstart.__file__).parent / "assets" / "model"
WORKER = Path(__file__).parent / "trl_worker.py"
TOLERANCE = 1e-4
SAME_NAMES = (
    "loss",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "grad_norm",
)
ROWS, BATCH, EPOCHS, SEED = 16, 4, 2, 3


@dataclass
class Case:
    """One training, to be done by both."""

    rows: list[dict[str, Any]]
    text: str
    trl: dict[str, Any]
    """DPOConfig arguments beside those all cases share."""
    ours: list[str] = field(default_factory=list)
    model: Path | None = None
    chat_template: str | None = None
    """For trl, where the tokenizer's own would make it train on other tokens than we do."""
    trl_rows: list[dict[str, Any]] | None = None
    """Where trl can't read the shape that we read."""
    batch: int = BATCH
    epochs: int = EPOCHS
    lr: float = 1e-3
    budget: int = 350
    """Tokens per micro-batch of ours."""


@dataclass
class Both:
    """What came of it."""

    ours: list[dict[str, float]]
    trl: list[dict[str, float]]
    groups: list[Group]
    order: list[int]
    trl_tokens: list[dict[str, list[int]]]
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the quickstart's tokenizer, its weights large enough for answers to matter."""
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
    folder = tmp_path_factory.mktemp("tiny")
    build(config, "sdpa", torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def cases(tiny: Path) -> dict[str, Case]:
    return {
        # All four pairs at once there; several micro-batches of a few groups here.
        "messages": Case(message_rows(), "auto", {"per_device_train_batch_size": BATCH}),
        "text": Case(
            text_rows(), "plain", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": BATCH // 2}
        ),
        # trl's `sigmoid` ignores label_smoothing. Its `aot` is conservative DPO when there is nothing to sort, that is
        # with one pair per forward pass.
        "smoothed": Case(
            message_rows(),
            "auto",
            {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": BATCH,
                "loss_type": "aot",
                "label_smoothing": 0.2,
            },
            ["loss.label_smoothing=0.2", "optim.betas=[0.8,0.95]"],
        ),
    }


@pytest.fixture(scope="module")
def both(cases: dict[str, Case], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    for case in cases.values():
        case.model = tiny
    cases["smoothed"].trl |= {"adam_beta1": 0.8, "adam_beta2": 0.95}
    return run_both(cases, tmp_path_factory.mktemp("both"))


def run_both(cases: dict[str, Case], folder: Path) -> dict[str, Both]:
    jobs, prepared = [], {}
    for name, case in cases.items():
        path = folder / f"{name}.jsonl"
        write_rows(path, case.rows)
        groups = our_groups(case, path)
        order = our_order(groups, case)
        assert len(order) == case.epochs * len(case.rows), "an update is as many rows for trl as for us"
        ordered = folder / f"{name}-trl.jsonl"
        trl_rows = case.trl_rows or case.rows
        write_rows(ordered, [trl_rows[index] for index in order])
        prepared[name] = (path, groups, order)
        shared = {"learning_rate": case.lr, "lr_scheduler_type": "linear", "warmup_steps": 0, "max_grad_norm": 1.0}
        shared |= {"beta": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0}
        jobs.append(
            {
                "model": str(case.model),
                "rows": str(ordered),
                "chat_template": case.chat_template,
                "arguments": {**shared, **case.trl},
            }
        )
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    worker = subprocess.run(
        [sys.executable, str(WORKER), str(folder / "jobs.json"), str(folder / "out.json")],
        cwd=folder,
        env=environment(folder, HF_HOME=str(folder / "hf"), TQDM_DISABLE="1"),
        capture_output=True,
        text=True,
    )
    assert worker.returncode == 0, worker.stderr
    results = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    both = {}
    for (name, case), result in zip(cases.items(), results, strict=True):
        path, groups, order = prepared[name]
        lines, data = train_ours(case, path, folder / name)
        both[name] = Both(lines, result["updates"], groups, order, result["tokens"], data)
    return both


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def our_groups(case: Case, path: Path) -> list[Group]:
    @contextmanager
    def silent(name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
        yield lambda units: None

    return load_data(
        path=str(path),
        split="train",
        subset=None,
        revision=None,
        held_out=None,
        limit=None,
        text=case.text,
        max_length=2048,
        max_prompt_length=None,
        on_too_long="raise",
        on_bad_row="raise",
        seed=SEED,
        tokenizer=AutoTokenizer.from_pretrained(case.model),
        phase=silent,
    ).train


def our_order(groups: list[Group], case: Case) -> list[int]:
    """Rows in the order in which our run comes to them, in updates of several micro-batches of several pairs."""
    plan = Plan(
        [flat_length(group) for group in groups],
        [1.0] * len(groups),
        [1] * len(groups),
        seed=SEED,
        batch_size=case.batch,
        epochs=case.epochs,
        max_steps=None,
        world_size=1,
        token_budget=case.budget,
    )
    sizes = [len(micro_batch) for step in range(len(plan)) for micro_batch in plan[step].ranks[0]]
    assert len(sizes) > len(plan)
    assert max(sizes) > 1
    return [index for step in range(len(plan)) for index in plan[step].groups]


def train_ours(case: Case, path: Path, run_dir: Path) -> tuple[list[dict[str, float]], str]:
    job = dpo(
        "train",
        f"model.path={case.model}",
        f"data.path={path}",
        f"data.text={case.text}",
        f"seed={SEED}",
        f"run_dir={run_dir}",
        f"optim.lr={case.lr}",
        "optim.schedule=linear",
        "optim.warmup_ratio=0",
        "train.precision=fp32",
        f"train.batch_size={case.batch}",
        f"train.epochs={case.epochs}",
        f"train.tokens_per_micro_batch={case.budget}",
        *case.ours,
        cwd=path.parent,
    )
    assert job.returncode == 0, job.stderr
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    return [line for line in lines if "loss" in line], record["data"]["fingerprint"]


def check_tokens(both: Both) -> None:
    """trl trained on the very tokens that we trained on, the end of each answer included."""
    assert both.fingerprint == fingerprint(both.groups)
    for index, theirs in zip(both.order, both.trl_tokens, strict=True):
        group = both.groups[index]
        ((chosen, rejected, *_),) = group.pairs
        assert theirs["prompt"] == group.prompt_ids.tolist()
        assert theirs["chosen"] == group.answers[chosen].tolist()
        assert theirs["rejected"] == group.answers[rejected].tolist()


def check_updates(both: Both, *, relative: float = 0.0) -> None:
    assert len(both.ours) == len(both.trl)
    for number, (ours, theirs) in enumerate(zip(both.ours, both.trl, strict=True), start=1):
        for name in SAME_NAMES:
            assert ours[name] == pytest.approx(theirs[name], abs=TOLERANCE, rel=relative), f"update {number}, {name}"
        assert ours["lr"] == pytest.approx(theirs["learning_rate"], rel=1e-9)
        assert ours["epoch"] * both.trl[-1]["epoch"] == pytest.approx(theirs["epoch"] * both.ours[-1]["epoch"])


CASES = ["messages", "text", "smoothed"]


@pytest.mark.parametrize("name", CASES)
def test_trl_trains_on_our_tokens(name: str, both: dict[str, Both]) -> None:
    check_tokens(both[name])


@pytest.mark.parametrize("name", CASES)
def test_every_update_is_trls(name: str, both: dict[str, Both]) -> None:
    check_updates(both[name])


@pytest.mark.parametrize("name", CASES)
def test_the_comparison_means_something(name: str, both: dict[str, Both]) -> None:
    """Updates move the numbers by far more than the tolerance, and clipping is at work."""
    ours = both[name].ours
    assert len(ours) == EPOCHS * ROWS // BATCH
    assert max(abs(update["rewards/margins"]) for update in ours) > 1000 * TOLERANCE
    assert max(update["grad_norm"] for update in ours) > 1.0
    assert any(len(group.answers[0]) != len(group.answers[1]) for group in both[name].groups)
    assert any(group.answers[0][0] == group.answers[1][0] for group in both[name].groups)


@pytest.mark.parametrize("name", CASES)
def test_a_tie_is_half_right_here_and_wrong_there(name: str, both: dict[str, Both]) -> None:
    """The one metric that differs, and only where policy = reference: at the first update all margins are 0."""
    first, *others = zip(both[name].ours, both[name].trl, strict=True)
    assert (first[0]["rewards/accuracies"], first[1]["rewards/accuracies"]) == (0.5, 0.0)
    for ours, theirs in others:
        assert ours["rewards/accuracies"] == theirs["rewards/accuracies"]


def test_label_smoothing_changes_the_run(both: dict[str, Both]) -> None:
    """So that the smoothed case is not the plain one under another name: trl's sigmoid would ignore the smoothing."""
    last = both["messages"].ours[-1], both["smoothed"].ours[-1]
    assert abs(last[0]["loss"] - last[1]["loss"]) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not (REAL_DATA and REAL_MODEL), reason="DPO_TEST_DATA and DPO_TEST_MODEL are not set")
def test_a_real_model_on_real_preferences(tmp_path: Path) -> None:
    """SmolLM2-135M on hh-rlhf dialogues. Its template puts a newline after the end of a turn; trl would train on
    that newline as the last token of an answer, we end at <|im_end|>. So trl's copy of the template ends there too."""
    with gzip.open(Path(REAL_DATA) / "hh_harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) < 1200][:8]
    template = (Path(REAL_MODEL) / "chat_template.jinja").read_text(encoding="utf-8")
    ending = "+ '<|im_end|>' + '\n'}}{% endfor %}"
    assert template.count(ending) == 1
    until_the_end = "+ '<|im_end|>'}}{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
    case = Case(
        rows,
        "auto",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        model=Path(REAL_MODEL),
        chat_template=template.replace(ending, until_the_end),
        trl_rows=[from_hh(row) for row in rows],
        epochs=1,
        lr=5e-6,
        budget=600,
    )
    both = run_both({"smollm2": case}, tmp_path)["smollm2"]
    assert len(both.ours) == 2
    check_tokens(both)
    check_updates(both)


def from_hh(row: dict[str, str]) -> dict[str, Any]:
    """hh-rlhf's text as messages, parsed here anew."""

    def turns(text: str) -> list[dict[str, str]]:
        _, *parts = re.split(r"\n\n(Human|Assistant): ?", text)
        roles = {"Human": "user", "Assistant": "assistant"}
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]

    chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
    assert chosen[:-1] == rejected[:-1]
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
