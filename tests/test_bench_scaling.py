"""scripts/bench_scaling.py: that it runs, and what its points say."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.scripts import load_script

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_scaling.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    patch = pytest.MonkeyPatch()
    patch.setattr("dpo_cli.quiet.quieten", lambda: None)  # what the script does to its process is not for this one
    patch.setattr("dpo_cli.allocator.keep_freed_memory", lambda: True)
    patch.setattr("dpo_cli.allocator.bound_kernel_caches", lambda: None)
    module = load_script("bench_scaling")
    patch.undo()
    return module


@pytest.mark.slow
def test_the_base_is_on_every_axis_and_the_model_axis_is_as_large_as_it_says(bench: ModuleType) -> None:
    for axes, base in ((bench.AXES, bench.Shape()), (bench.QUICK, bench.QUICK_BASE)):
        assert all(any(bench.replace(base, **change) == base for change in axis.measured) for axis in axes.values())
    sizes = [bench.costs_of(bench.Shape(**change), "fp32").weights for change in bench.AXES["model"].measured]
    assert sizes[0] == pytest.approx(5e6, rel=0.05)
    assert sizes[-1] == pytest.approx(500e6, rel=0.05)


@pytest.mark.slow
def test_it_measures_predicts_and_draws(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--quick", "--axis", "pairs,model", "--out", str(tmp_path), "--page", str(tmp_path / "page.md")]
    ended = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "scaling.json").read_text())
    assert set(report["axes"]) == {"pairs", "model"}
    for axis in report["axes"].values():
        assert [point["precision"] for point in axis["points"]] == ["fp32"] * 3 + ["bf16"] * 3
        for number, point in enumerate(axis["points"]):
            assert point["update_seconds_at_peak"] > point["reference_seconds_at_peak"] > 0
            if number % 3 == 2:  # beyond what is measured
                assert "update_seconds" not in point
                # Without bfloat16 units a large product, which is the peak, is slower for its size than small ones.
                least = point["update_seconds_at_peak"] if point["precision"] == "fp32" else 0
                assert point["update_seconds_expected"] > least
                continue
            assert point["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy is its own reference
            assert min(point["update_seconds"], point["reference_seconds"]) > 0
            assert point["peak_memory"] > point["memory_before"] > 0
    assert {path.name for path in (tmp_path / "img").iterdir()} == {"scaling-pairs.svg", "scaling-model.svg"}
    assert ended.stdout == (tmp_path / "scaling.md").read_text()
    page = (tmp_path / "page.md").read_text()
    assert re.findall(r"!\[(.*)\]\((.*)\)\n\n\| (.*?) \|", page) == [
        (axis["title"], f"img/scaling-{name}.svg", axis["title"]) for name, axis in report["axes"].items()
    ]
    assert re.sub(r"^(# How cost grows|!.*)\n\n", "", page, flags=re.MULTILINE) == ended.stdout
    argv = ["bench_scaling.py", "--read", str(tmp_path / "scaling.json"), "--out", str(tmp_path / "again")]
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    assert (tmp_path / "again" / "scaling.md").read_text() == ended.stdout


def test_a_wrong_axis_is_named(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_scaling.py", "--axis", "prompt,lengths"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "'lengths': expected some of pairs, prompt, answer, answers, vocabulary, model" in capsys.readouterr().err
