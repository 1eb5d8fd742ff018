"""How fast training is on a GPU, after a check that its numbers are right there. No network, no data, ten minutes.

    python scripts/bench_gpu.py --out results.json
    python scripts/bench_gpu.py --device cpu --models tiny      # the whole script on a small model

First, log-probs and gradients of small models are compared with plain float32 forward passes, one sequence at a time,
in fp32 and bf16; if they disagree, nothing is measured. Then models of random weights and the shape of SmolLM2-135M,
Llama-3.2-1B and Llama-3.1-8B train with DPO on random tokens of UltraFeedback's shape (prompt 121, answers 288 each,
in the median), through the parts that ``dpo train`` is made of. Every model has a process of its own, so that one that
doesn't fit says so and the others are measured.

mfu counts necessary work (docs/design.md), against the data sheet's peak and against a matrix product measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_gpu_cases import CASES

CHECK = "check"
_MINUTES = 9.5


def main() -> None:
    options = arguments()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.child:
        child(options)
        return
    started = time.monotonic()
    report: dict[str, Any] = {"arguments": sys.argv[1:], "models": []}
    report["check"] = found = run_child(options, CHECK, started)
    if "device" not in found:
        sys.exit(f"nothing was measured: {found['why_not']}\n{found.get('traceback', '')}")
    print(f"{found['device']}; {found['versions']}\nchecked: {found['checked']}", flush=True)
    for name in options.models:
        report["models"].append(measured(options, name, started))
        if options.out:
            options.out.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(table(report))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_names, default=_names("135m,1b,8b-lora,8b"), help=", ".join(CASES))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--budgets", type=_numbers, help="tokens per micro-batch to try in training, rising")
    parser.add_argument("--reference-budgets", type=_numbers, help="the same for the reference pass")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs per update")
    parser.add_argument("--seconds", type=float, default=12.0, help="to measure each budget, if that is 2 updates")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="for everything")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, default=_MINUTES * 60, help=argparse.SUPPRESS)  # seconds, for a child
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise argparse.ArgumentTypeError(f"no such model: {', '.join(unknown)}; expected some of {', '.join(CASES)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def child(options: argparse.Namespace) -> None:
    """One check or one model with one optimizer, in this process; a JSON file of what came of it."""
    options.deadline = time.monotonic() + options.left
    from dpo_cli.quiet import quieten

    quieten()
    if options.child == CHECK:
        from bench_gpu_check import check as work
    else:
        from bench_gpu_measure import measure as work
    try:
        result = work(options)
    except Exception as error:  # it is the result: the other rows still come
        kind, lines = type(error).__name__, str(error).strip().splitlines() or [""]
        foreseen = kind in ("DpoError", "CheckFailed")
        result = {"why_not": lines[0]} if foreseen else {"why_not": f"{kind}: {lines[0]}"}
        if not foreseen:
            result["traceback"] = traceback.format_exc()
    options.out.write_text(json.dumps(result), encoding="utf-8")


def run_child(options: argparse.Namespace, which: str, started: float) -> dict[str, Any]:
    """A child's result; ``why_not`` where it has none."""
    left = options.minutes * 60 - (time.monotonic() - started)
    if left < 5:
        return {"why_not": "no time was left"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "result.json")
        passed = ["--device", options.device, "--precision", options.precision, "--batch-size", options.batch_size]
        passed += ["--seconds", options.seconds, "--out", out, "--child", which, "--left", left]
        for name in ("budgets", "reference_budgets"):
            if numbers := getattr(options, name):
                passed += [f"--{name.replace('_', '-')}", ",".join(map(str, numbers))]
        command = [sys.executable, __file__, *map(str, passed)]
        try:
            ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return {"why_not": f"not done in the {left:.0f} s that were left"}
        result = dict(json.loads(out.read_text(encoding="utf-8"))) if out.exists() else {}
    if result:
        return result
    lines = ended.stderr.strip().splitlines() or ["nothing was said"]
    killed = "it was killed (by the system, where memory runs out)"
    return {"why_not": killed if ended.returncode < 0 else lines[-1], "traceback": "\n".join(lines[-30:])}


def measured(options: argparse.Namespace, name: str, started: float) -> dict[str, Any]:
    """A model's row: the first of its setups that runs, and why those before it don't."""
    passed_over = []
    for number, setup in enumerate(CASES[name].setups):
        print(f"{name}: {setup.label} ...", flush=True)
        row = run_child(options, f"{name}:{number}", started)
        if "why_not" not in row:
            return {"model": name, **row, "passed_over": passed_over}
        passed_over.append(row | {"setup": setup.label})
        print(f"{name}: not measured: {row['why_not']}", flush=True)
    return {"model": name, "passed_over": passed_over}


def table(report: Mapping[str, Any]) -> str:
    """The results for people."""
    names = "model|optimizer|budget|s/update|pairs/s|with reference|reference pairs/s|mfu|mfu measured|GiB"
    head = tuple(names.split("|"))
    lines, notes = [head], []
    for row in report["models"]:
        notes += [f"{row['model']}, {no['setup']}, not measured: {no['why_not']}" for no in row["passed_over"]]
        if "best" not in row:
            lines.append((row["model"], "not measured", *[""] * (len(head) - 2)))
            continue
        best, reference = row["best"], row["reference"]
        numbers = (
            f"{best['token_budget']}",
            f"{best['seconds_per_update']:.2f}",
            f"{best['pairs_per_second']:.2f}",
            f"{row['pairs_per_second_with_reference']:.2f}",
            f"{reference['pairs_per_second']:.2f}",
            f"{best['mfu']:.3f}" if best["mfu"] is not None else "?",
            f"{best['mfu_measured']:.3f}",
            f"{best['peak_gib']:.1f}",
        )
        lines.append((row["model"], row["setup"], *numbers))
        notes.append(f"{row['model']}: attention through {row['attention']}; first loss {row['first_loss']:.4f}")
        tried = [f"{one['token_budget']}: {_outcome(one)}" for one in row["training"]]
        notes.append(f"{row['model']}: pairs/s by token budget: {', '.join(tried)}")
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    check = report["check"]
    sheet = "unknown" if check["peak"] is None else f"{check['peak'] / 1e12:.1f}"
    peaks = f"peak TFLOP/s: {sheet} by the data sheet, {check['peak_measured'] / 1e12:.1f} measured"
    return "\n".join(["", f"{check['device']}; {peaks}", *rows, "", *notes])


def _outcome(tried: Mapping[str, Any]) -> str:
    if "why_not" in tried:
        return str(tried["why_not"])
    return f"{tried['pairs_per_second']:.2f}" + (" (the first update alone)" if tried["warm_up"] else "")


if __name__ == "__main__":
    main()
