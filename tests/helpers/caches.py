"""Trials of caches that several processes share: kills in a reference pass, and starts at the same moment."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np

from dpo_cli.reference.store import Logps, read_chunk
from helpers.runs import Ended, make_rows, write_rows
from helpers.trials import Ground

ROWS = 2100
"""Of a reference pass: three chunks."""
SPOT_CHECKED = 8
"""Rows of a pass that are computed again, alone."""
TOLERANCE = 1e-5
"""Nats that a token may then differ by: other rows in a micro-batch round otherwise."""
STARTERS = 4


def killed_pass(on: Ground, folder: Path, seed: int) -> str:
    """SIGKILL of a reference pass at a random moment, again and again until it is done; and a look at what it has kept.

    Returns:
        How often it was killed, and how far rows that were computed again are off.

    Raises:
        AssertionError: if it is not, byte for byte, what a pass that was never killed has kept; something is left of a
            killed process; or a row computed again is off.
    """
    rows = make_rows(ROWS)
    whole, seconds = _whole_pass(on, rows)
    pick, cache, kills = random.Random(seed), folder / "cache", 0
    while True:
        ended = _pass(on, folder / "rows.jsonl", rows, cache, seconds=pick.uniform(0.2, 0.8) * seconds)
        if ended.code == 0 or kills == 3:
            break
        assert ended.code == -9, ended.err[-2000:]
        kills += 1
    if ended.code != 0:
        ended = _pass(on, folder / "rows.jsonl", rows, cache)
    assert ended.code == 0, ended.err[-2000:]
    found = kept(cache)
    assert found.keys() == whole.keys()
    assert all(found[key].tobytes() == logps.tobytes() for key, logps in whole.items())
    assert [*cache.glob("reference/**/.*"), *cache.glob("tokens/*.new")] == []
    some = pick.sample(rows, SPOT_CHECKED)
    assert _pass(on, folder / "some.jsonl", some, folder / "other").code == 0
    off = max(float(np.abs(found[key] - logps).max()) for key, logps in kept(folder / "other").items())
    assert off < TOLERANCE, off
    return f"{kills} kills; {SPOT_CHECKED} rows computed again are at most {off:.0e} nats off"


def started_at_once(on: Ground, folder: Path, seed: int) -> str:
    """Several processes begin with the same rows and an empty cache; in every second trial one of them is killed first,
    somewhere in its work, with whatever locks it holds.

    Raises:
        AssertionError: if one fails, or not exactly one of them has computed it all.
    """
    rows = make_rows(60, seed)
    write_rows(folder / "rows.jsonl", rows)
    said = "nobody was killed before"
    if seed % 2:
        point = ("load", "reference:1")[seed // 2 % 2]
        ended = on.place.dpo(
            "precompute-ref", _arguments(on, folder / "rows.jsonl"), cache=folder / "cache", fault=f"{point}=kill"
        )
        assert ended.code == -9, ended.err[-2000:]
        said = f"one was killed before, at {point}"
    began = time.monotonic()
    ends = on.place.dpo_at_once(
        STARTERS, "precompute-ref", _arguments(on, folder / "rows.jsonl"), cache=folder / "cache"
    )
    seconds = time.monotonic() - began
    assert [ended.code for ended in ends] == [0] * STARTERS, [ended.err[-1000:] for ended in ends]
    computed = [int(count.replace(",", "")) for ended in ends for count in _COMPUTED.findall(ended.out)]
    assert len(computed) == STARTERS
    assert sum(count > 0 for count in computed) == 1, computed
    tokenised = sum("tokenise data.path" in ended.err.replace("another process to tokenise", "") for ended in ends)
    assert tokenised == (0 if seed % 2 else 1), [ended.err[-1000:] for ended in ends]
    return f"{said}; {seconds:.0f} s"


_COMPUTED = re.compile(r"([\d,]+) tokens computed")


def kept(cache: Path) -> dict[bytes, Logps]:
    """All log-probs of a cache."""
    return {key: logps for chunk in cache.glob("reference/*/chunk-*") for key, logps in read_chunk(chunk).items()}


def _whole_pass(on: Ground, rows: list[dict]) -> tuple[dict[bytes, Logps], float]:
    cache = on.place.root / "whole-pass"
    took = cache.with_suffix(".seconds")
    if not took.exists():
        began = time.monotonic()
        assert _pass(on, on.place.root / "whole-pass.jsonl", rows, cache).code == 0
        took.write_text(str(time.monotonic() - began))
    return kept(cache), float(took.read_text())


def _pass(on: Ground, file: Path, rows: list[dict], cache: Path, seconds: float | None = None) -> Ended:
    if not file.exists():
        write_rows(file, rows)
    return on.place.dpo("precompute-ref", _arguments(on, file), cache=cache, seconds=seconds)


def _arguments(on: Ground, rows: Path) -> dict[str, object]:
    return {"model.path": on.place.model, "data.path": rows, "data.eval": None, "train.precision": "fp32"}
