"""Try what a run survives, trial by trial, and say so in a table.

    python scripts/faults.py PART [--out FOLDER] [--only N]

The parts are ``kills``, ``signals``, ``caches`` and ``soak``. Each trial's outcome is kept in FOLDER/PART.jsonl as soon
as it is known; the same command goes on with those that are not there yet. Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.caches import killed_pass, started_at_once  # noqa: E402
from helpers.soak import soak  # noqa: E402
from helpers.trials import (  # noqa: E402
    TWO,
    Ground,
    ended_at,
    ground,
    killed_at,
    killed_at_random,
    passed_over_at,
    rolled_back_at,
    stopped_at,
)

Trial = Callable[[Ground, Path], str]

LORA = {"model/adapter": "lora", "model.adapter.dropout": 0.2}
KILL_POINTS = ("micro-batch:2.1", "update:5", "micro-batch:7.2", "before-rename:4", "evaluation:8")
"""In the middle of epoch 0; between epochs; between two micro-batches of epoch 1; while saving; while evaluating."""
HANG = {**TWO, "launch.hang_timeout": 15.0}


def kills() -> Iterator[tuple[str, Trial]]:
    for seed in range(50):
        changes = {} if seed % 5 < 3 else TWO
        kind = "SIGKILL at a random moment, " + ("1 process" if not changes else "2 processes, ZeRO 2")
        yield kind, partial(killed_at_random, seed=seed, changes=changes)
    for point in ("start", "load", "reference", "chunk", "mid-save", "after-rename", "delete", "final"):
        yield "SIGKILL at a named point, 1 process", partial(killed_at, where=point, changes={})
    for stage in range(4):
        for what, more in (("all weights", {}), ("LoRA", LORA)):
            for point in KILL_POINTS:
                changes = {**TWO, "engine.zero_stage": stage, **more}
                yield (
                    f"SIGKILL at a named point, ZeRO {stage}, {what}",
                    partial(killed_at, where=point, changes=changes),
                )


def signals() -> Iterator[tuple[str, Trial]]:
    phases = ("start", "load", "reference", "micro-batch:5.1", "evaluation:4", "mid-save:4")
    for number, phase in enumerate(phases):
        for other, signal in enumerate(("term", "int", "usr1", "usr2")):
            to = ("", "-parent", "-group")[(number + other) % 3]
            rank = 0 if phase.startswith("mid-save") else 1
            yield (
                f"{signal.upper()} in phase {phase.partition(':')[0]}",
                partial(stopped_at, fault=f"{phase}@{rank}={signal}{to}", changes=TWO),
            )
    for point in ("load", "micro-batch:3.1", "evaluation:4", "mid-save:4"):
        rank = 0 if point.startswith("mid-save") else 1
        for action, code, says in (
            ("raise", 70, f"dpo: that was rank {rank}"),
            ("refuse", 2, "dpo: refused at"),
            ("kill", 70, f"dpo: rank {rank} was ended by SIGKILL"),
        ):
            yield (
                f"one rank: {action}",
                partial(ended_at, fault=f"{point}@{rank}={action}", changes=TWO, code=code, says=says),
            )
    for point in ("micro-batch:3.1", "evaluation:4"):
        for action, says in (
            ("stop", "rank 1 was stopped by a signal"),
            ("hang", "rank 1 is the one that the others wait for"),
        ):
            yield (
                f"one rank: {action}",
                partial(ended_at, fault=f"{point}@1={action}", changes=HANG, code=70, says=says),
            )
    for changes in ({}, TWO, {**TWO, "engine.zero_stage": 3}):
        yield "a spike of the loss", partial(rolled_back_at, fault="micro-batch:115.1=spike", changes=changes)
    for stage in range(4):
        for action in ("nan", "nan-gradient"):
            yield (
                f"one rank: {action}",
                partial(
                    passed_over_at, fault=f"micro-batch:5.1@1={action}", changes={**TWO, "engine.zero_stage": stage}
                ),
            )


def caches() -> Iterator[tuple[str, Trial]]:
    for seed in range(20):
        yield "SIGKILL of a reference pass, again and again", partial(killed_pass, seed=seed)
    for seed in range(20):
        yield "4 processes start at once on one cache", partial(started_at_once, seed=seed)


def soaks() -> Iterator[tuple[str, Trial]]:
    yield "10,000 updates", partial(soak, updates=10_000)


PARTS = {"kills": kills, "signals": signals, "caches": caches, "soak": soaks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults")
    parser.add_argument("--only", type=int, help="trials to make at most, spread over all")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / f"{chosen.part}.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    trials = list(enumerate(PARTS[chosen.part]()))
    if chosen.only:
        trials = trials[:: max(1, len(trials) // chosen.only)]
    done = {outcome["trial"] for outcome in known if outcome["survived"]}
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        on = ground(Path(root, "ground")) if any(number not in done for number, _ in trials) else None
        for number, (kind, trial) in trials:
            if number in done or on is None:
                continue
            folder = Path(root, f"trial-{number}")
            folder.mkdir()
            outcome = {"trial": number, "kind": kind, **_outcome(trial, on, folder)}
            known.append(outcome)
            with file.open("a") as out:
                out.write(json.dumps(outcome) + "\n")
            print(f"{number:4} {kind}: {outcome['said'] if outcome['survived'] else 'FAILED'}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    latest = {outcome["trial"]: outcome for outcome in known}
    print(table(list(latest.values())))
    return 0 if all(outcome["survived"] for outcome in latest.values()) else 1


def _outcome(trial: Trial, on: Ground, folder: Path) -> dict[str, object]:
    began = time.monotonic()
    try:
        said, survived = trial(on, folder), True
    except Exception:
        said, survived = traceback.format_exc(), False
        print(said, file=sys.stderr)
    return {"said": said, "survived": survived, "seconds": round(time.monotonic() - began, 1)}


def table(outcomes: list[dict[str, object]]) -> str:
    """Trials and those survived, by kind; and where the kills at random moments came."""
    tried = Counter(str(outcome["kind"]) for outcome in outcomes)
    survived = Counter(str(outcome["kind"]) for outcome in outcomes if outcome["survived"])
    lines = ["| what goes wrong | trials | survived |", "|---|---:|---:|"]
    lines += [f"| {kind} | {count} | {survived[kind]} |" for kind, count in tried.items()]
    where = Counter(str(o["said"]) for o in outcomes if o["survived"] and "random" in str(o["kind"]))
    if where:
        lines += ["", "Killed at random moments: " + ", ".join(f"{count} {w}" for w, count in where.most_common())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
