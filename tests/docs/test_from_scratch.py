"""The example that writes DPO out makes the updates of `dpo train`; the document's snippet reads its rewards."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.command import dpo, environment
from helpers.runs import metrics, updates
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "docs" / "examples" / "dpo_from_scratch.py"
ASSETS = REPOSITORY / "dpo_cli" / "quickstart" / "assets"
ROWS, HELD_OUT, BATCH, EPOCHS = 40, 16, 16, 2
UPDATES = 6
"""The last batch of each epoch has 8 pairs."""


@dataclass(frozen=True)
class Both:
    """The same training twice."""

    scratch: Path
    printed: list[dict[str, float]]
    run: Path


def first_rows(file: Path, count: int, place: Path) -> Path:
    place.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))
    return place


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("scratch")
    rows = first_rows(ASSETS / "train.jsonl", ROWS, folder / "train.jsonl")
    held_out = first_rows(ASSETS / "eval.jsonl", HELD_OUT, folder / "eval.jsonl")
    words = ["--data", rows, "--batch-size", str(BATCH), "--epochs", str(EPOCHS), "--out", folder / "out"]
    scratch = subprocess.run(
        [sys.executable, EXAMPLE, *words],
        cwd=folder,
        # No GPU, as `dpo train` below is compared in float32 on the CPU.
        env=environment(folder, CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
    )
    assert scratch.returncode == 0, scratch.stderr
    printed = [json.loads(line) for line in scratch.stdout.splitlines() if line.startswith("{")]
    run = dpo(
        "train",
        "+experiment=quickstart",
        f"data.path={rows}",
        f"data.eval={held_out}",
        f"train.batch_size={BATCH}",
        f"train.epochs={EPOCHS}",
        # Several micro-batches an update, where the example has one.
        "train.tokens_per_micro_batch=256",
        "eval.samples=0",
        "eval.true_reward=null",
        f"run_dir={folder / 'run'}",
        cwd=folder,
        variables={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stderr
    return Both(folder / "out", printed, folder / "run")


@pytest.mark.slow
def test_every_update_is_dpo_trains(both: Both) -> None:
    ours = updates(both.run)
    assert len(both.printed) == len(ours) == UPDATES
    for scratch, train in zip(both.printed, ours, strict=True):
        assert scratch["loss"] == pytest.approx(train["loss"], abs=1e-5)
        assert scratch["margin"] == pytest.approx(train["rewards/margins"], abs=1e-5)
        assert scratch["grad_norm"] == pytest.approx(train["grad_norm"], rel=1e-4)
    losses = [update["loss"] for update in ours]
    assert max(losses) - min(losses) > 0.05, "so little happens that the comparison proves nothing"


@pytest.mark.slow
def test_the_weights_at_the_end_are_dpo_trains(both: Both) -> None:
    scratch, train, start = (
        load_file(folder / "model.safetensors") for folder in (both.scratch, both.run / "final", ASSETS / "model")
    )
    assert scratch.keys() == train.keys() == start.keys()
    assert max(float((scratch[name] - train[name]).abs().max()) for name in start) < 1e-5
    assert max(float((start[name] - train[name]).abs().max()) for name in start) > 5e-4


def test_the_example_is_short_and_stands_alone() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 100
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    found = {module.partition(".")[0] for module in modules}
    assert found - set(sys.stdlib_module_names) == {"numpy", "torch", "transformers"}


@pytest.mark.slow
def test_the_snippet_reads_the_rewards_that_training_reports(both: Both, tmp_path: Path) -> None:
    """On the same held-out rows it finds the accuracy and the margin of the run's last evaluation."""
    document = (REPOSITORY / "docs" / "dpo.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    for there, here in (
        ("runs/mine/final", both.run / "final"),
        ("dpo_cli/quickstart/assets/model", ASSETS / "model"),
        ("dpo_cli/quickstart/assets/eval.jsonl", both.run.parent / "eval.jsonl"),
    ):
        assert code.count(f'"{there}"') == 1, there
        code = code.replace(f'"{there}"', f'"{here}"')
    snippet = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert snippet.returncode == 0, snippet.stderr
    (line,) = [line for line in snippet.stdout.splitlines() if line.startswith("accuracy")]
    accuracy, margin = (float(number) for number in re.findall(r"-?\d+\.\d+", line))
    last = [line for line in metrics(both.run) if "eval/loss" in line][-1]
    assert last["step"] == UPDATES
    assert accuracy == pytest.approx(last["eval/rewards/accuracies"], abs=1e-4)
    assert margin == pytest.approx(last["eval/rewards/margins"], abs=1e-3)
    assert abs(margin) > 0.1, "the snippet was tried on a model that has hardly moved"
