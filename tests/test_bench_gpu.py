"""scripts/bench_gpu.py without a GPU: its check finds what is wrong, its table says what was not measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.model import attention
from dpo_cli.model.attention_varlen import Found, Kernel, Scoring, Stretches, plain

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))

import bench_gpu  # noqa: E402
import bench_gpu_check  # noqa: E402
import bench_gpu_measure  # noqa: E402
from bench_gpu_cases import CASES  # noqa: E402

CPU = torch.device("cpu")


def right(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
    return plain(query, key, value, stretches, scoring)


def window_forgotten(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
    return plain(query, key, value, stretches, scoring._replace(window=None))


def half_a_gradient(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
    return plain(query, 0.5 * key + 0.5 * key.detach(), value, stretches, scoring)


def noisy_in_bfloat16(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
    out = plain(query, key, value, stretches, scoring)
    return out * (1 + 0.1 * torch.randn_like(out)) if out.dtype == torch.bfloat16 else out


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        pytest.param(right, None, marks=pytest.mark.slow),
        (window_forgotten, "fp32 through a kernel: largest error"),
        (half_a_gradient, "fp32 through a kernel: gradients"),
        pytest.param(noisy_in_bfloat16, "bf16 through a kernel: usual error", marks=pytest.mark.slow),
    ],
)
def test_the_check_finds_a_wrong_kernel(monkeypatch, kernel: Any, complaint: str | None) -> None:
    monkeypatch.setattr(attention, "find_kernel", lambda _: Found(Kernel("a kernel", kernel, softcaps=True)))
    if complaint is None:
        assert "bf16 through a kernel" in bench_gpu_check.check_family("sliding window", CPU)
        return
    with pytest.raises(bench_gpu_check.CheckFailed, match=complaint):
        bench_gpu_check.check_family("sliding window", CPU)


def test_groups_have_ultrafeedbacks_medians() -> None:
    groups = bench_gpu_measure.random_groups(400, 1000)
    assert sorted(len(group.prompt_ids) for group in groups)[200] == pytest.approx(121, rel=0.06)
    lengths = sorted(len(answer) for group in groups for answer in group.answers)
    assert lengths[400] == pytest.approx(288, rel=0.06)
    assert (lengths[0], lengths[-1]) == (144, 432)


def test_what_can_not_fit_is_said_before_it_is_tried() -> None:
    offloaded = CASES["8b"].setups[1]
    with pytest.raises(DpoError, match=r"^needs [\d,]+ GiB of CPU memory, there are \d+$"):
        bench_gpu_measure.check_room(offloaded, 10**12, CPU)
    bench_gpu_measure.check_room(offloaded, 1000, CPU)


def test_the_next_setup_is_tried_and_every_reason_is_in_the_table(monkeypatch) -> None:
    options = argparse.Namespace(minutes=1.0)
    best = {
        "token_budget": 2048,
        "seconds_per_update": 2.0,
        "pairs_per_second": 32.0,
        "peak_gib": 70.0,
        "warm_up": True,
    }
    best |= {"mfu": None, "mfu_measured": 0.5}
    row = {
        "setup": "AdamW in CPU memory, ZeRO 2",
        "attention": "SDPA",
        "first_loss": 0.6931,
        "reference": {"pairs_per_second": 96.0},
        "training": [best, {"token_budget": 4096, "why_not": "out of memory"}],
        "best": best,
        "pairs_per_second_with_reference": 24.0,
    }
    answers = {"8b:0": {"why_not": "needs 93 GiB of GPU memory, there are 78"}, "8b:1": row}
    monkeypatch.setattr(
        bench_gpu, "run_child", lambda _, which, __: answers.get(which, {"why_not": "no time was left"})
    )
    models = [bench_gpu.measured(options, name, 0.0) for name in ("8b", "1b")]
    check = {"device": "a GPU", "peak": None, "peak_measured": 7e14}
    lines = bench_gpu.table({"check": check, "models": models}).splitlines()
    assert lines[1] == "a GPU; peak TFLOP/s: unknown by the data sheet, 700.0 measured"
    assert " ".join(lines[3].split()) == "8b AdamW in CPU memory, ZeRO 2 2048 2.00 32.00 24.00 96.00 ? 0.500 70.0"
    assert lines[4].split() == ["1b", "not", "measured"]
    assert lines[6:] == [
        "8b, adamw_8bit, not measured: needs 93 GiB of GPU memory, there are 78",
        "8b: attention through SDPA; first loss 0.6931",
        "8b: pairs/s by token budget: 2048: 32.00 (the first update alone), 4096: out of memory",
        "1b, AdamW, float32 moments, not measured: no time was left",
    ]


def test_a_child_that_fails_says_why(monkeypatch, tmp_path: Path) -> None:
    options = argparse.Namespace(child="tiny:0", left=60.0, out=tmp_path / "out.json")

    def fails(_: argparse.Namespace) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    monkeypatch.setattr(bench_gpu_measure, "measure", fails)
    bench_gpu.child(options)
    found = json.loads(options.out.read_text())
    assert found["why_not"] == "OutOfMemoryError: CUDA out of memory. Tried"
    assert "in fails" in found["traceback"]


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    words = ["--device", "cpu", "--models", "tiny", "--batch-size", "8", "--seconds", "0.1", "--out", str(out)]
    ended = subprocess.run([sys.executable, str(SCRIPTS / "bench_gpu.py"), *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads(out.read_text())["models"]
    assert row["first_loss"] == pytest.approx(0.693147, abs=1e-3)
    assert [one["token_budget"] for one in row["training"]] == [1024, 2048]
    assert 0 < row["pairs_per_second_with_reference"] < row["best"]["pairs_per_second"]
    assert "tiny: attention through blocks" in ended.stdout
