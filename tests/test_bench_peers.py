"""scripts/bench_peers.py: whom it gives which rows in which order, what it counts, and what its table says."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.scripts import load_script
from parity.trl_runs import make_model

from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group, Pair
from dpo_cli.model.flops import FlopsModel


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("bench_peers")


def test_batches_are_exactly_full(bench: ModuleType) -> None:
    """Each row goes into the first batch with room; one that fits into none is left out."""
    counts = [4, 4, 13, 6, 4, 6]
    assert bench.fill_batches(counts, 12, 2) == [0, 1, 4, 3, 5]
    with pytest.raises(SystemExit, match="1 batches of 12 lacking; lower --pairs"):
        bench.fill_batches(counts, 12, 3)


@pytest.mark.parametrize("counts", [[1] * 8, [6, 6, 5, 4, 3, 3, 3, 6]])
def test_dpo_comes_to_the_rows_in_trls_order(bench: ModuleType, counts: list[int]) -> None:
    """Of a file with a comparison a row and of one with several a row alike."""
    batch = 4 if counts == [1] * 8 else 12
    rows = [{"row": number, "count": count} for number, count in enumerate(counts)]
    file = bench.as_in_file(rows)
    assert file != rows
    ones, found = [1] * len(file), [row["count"] for row in file]
    more = {"seed": bench.SEED, "epochs": 1, "max_steps": None, "world_size": 1, "token_budget": 3}
    plan = Plan(ones, ones, found, batch_size=batch, **more)
    steps = [plan[number] for number in range(len(plan))]
    assert [file[place]["row"] for step in steps for place in step.groups] == list(range(len(rows)))
    assert [step.comparisons for step in steps] == [batch] * (sum(counts) // batch)


def test_grouped_and_separate_operations(bench: ModuleType) -> None:
    """By tokens run: the prompt once for all answers, or once for each comparison; the last token is never run."""
    answers = tuple(np.array(ids, dtype=np.int32) for ids in ([5, 1, 2], [6, 3], [7, 4, 4, 4]))
    group = Group(np.arange(10, dtype=np.int32), answers, (Pair(2, 0), Pair(2, 1), Pair(0, 1)), "", ranks=(1, 2, 0))
    singles = bench.separate(group)
    assert [[len(answer) for answer in single.answers] for single in singles] == [[4, 3], [4, 2], [3, 2]]
    assert {single.pairs for single in singles} == {(Pair(0, 1),)}
    forward = FlopsModel(per_token=1.0, per_prediction=0.0, per_pair=0.0)
    update = FlopsModel(per_token=3.0, per_prediction=0.0, per_pair=0.0)
    grouped = bench.operations(forward, update, [group])
    assert (grouped.reference, grouped.training, grouped.both) == (16.0, 48.0, 64.0)
    assert bench.operations(forward, update, singles).reference == (10 + 5) + (10 + 4) + (10 + 3)


def measured(bench: ModuleType, reference: float | None, updates: list[float], losses: list[float], rss: float) -> Any:
    return bench.Measured(reference, updates, losses, rss, {})


def prepared(bench: ModuleType) -> Any:
    need, apart = bench.Operations(10e9, 30e9), bench.Operations(20e9, 90e9)
    return bench.Prepared(4, 8, Path("grouped"), Path("pairs"), Path("tokens"), need, apart)


def test_the_table(bench: ModuleType) -> None:
    runs = {
        "dpo": [
            measured(bench, 2.0, [2.0, 2.0], [0.7, 0.6], 5.0),
            measured(bench, 4.0, [3.0, 3.0], [0.7, 0.6], 5.5),
            measured(bench, 3.0, [9.0, 9.0], [0.7, 0.6], 5.0),
        ],
        "trl": [measured(bench, 6.0, [4.0, 5.0], [0.7, 0.60005], 11.0)],
        "shipped": [measured(bench, None, [20.0, 20.0], [0.7, 0.599], 22.0)],
    }
    block = bench.summary("ranked", "fp32", prepared(bench), 20e9, runs)
    assert json.loads(json.dumps(block)) == block
    lines = bench.markdown([block]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("ranked", "dpo", "fp32", "3.0", "6.0", "10.0", "0.80", "0.25", "0.20", "5.5", "0.0e+00")
    ]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == [
        *("ranked", "shipped", "fp32", "in both", "in both", "40.0", "0.20", "in both", "0.05", "22.0", "1.0e-03")
    ]
    assert lines[6:] == [
        "- ranked, fp32: trl over dpo: seconds: reference 2.00, training 1.50, both 1.50; peak memory 2.00.",
        "  - training: 0.50 of the FLOP ratio 3.00 of separate pairs over grouped answers.",
        "  - both: 0.55 of the FLOP ratio 2.75 of separate pairs over grouped answers.",
        "- ranked, fp32: shipped over dpo: seconds: both 4.00; peak memory 4.00.",
        "  - both: 1.45 of the FLOP ratio 2.75 of separate pairs over grouped answers.",
    ]
    assert bench.complaints([block]) == [
        "ranked, fp32: the losses of shipped and dpo differ by up to 1.0e-03, expected 1e-04 at most: they did not do "
        "the same work"
    ]
    assert bench.complaints([{**block, "precision": "bf16"}]) == []


def test_losses_that_are_no_numbers_are_not_the_same(bench: ModuleType) -> None:
    runs = {"dpo": [measured(bench, 1.0, [1.0] * 2, [0.7, 0.6], 5.0)]}
    runs["trl"] = [measured(bench, 1.0, [1.0] * 2, [0.7, float("nan")], 5.0)]
    assert len(bench.complaints([bench.summary("hh", "fp32", prepared(bench), 1e9, runs)])) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--work", "hh,ultra"], "'ultra': expected some of hh,ranked,dpo_en"),
        (["--pairs", "20"], "--pairs 20: expected whole batches of 8 for hh; see --batch"),
        (["--data", "nowhere"], "--data nowhere: expected a folder"),
    ],
)
def test_options_that_are_refused(
    bench: ModuleType, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.read_options(["--model", str(tmp_path), "--data", str(tmp_path), *words])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_from_rows_to_the_table(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny model on ranked rows, through ``dpo`` both ways and trl, in the environment that runs this."""
    model = make_model(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    words = ["sort", "yes", "the quick fox.", "no, 7", "zebra acorn"]
    rows = [
        {"prompt": f"{words[n % 5]} {n}", "completions": [f"{word} {n}" for word in words[:4]], "scores": scores}
        for n, scores in enumerate([[4, 3, 2, 1], [1, 1, 2, 2], [0, 3, 0, 9], [7, 7, 7, 7], [1, 4, 2, 2], [1, 2, 3, 4]])
    ]
    with gzip.open(data / bench.WORKS["ranked"].file, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    before = sorted(data.iterdir())
    options = ["--work", "ranked", "--precision", "fp32", "--pairs", "20", "--batch", "10", "--threads", "1"]
    where = ["--model", model, "--data", data, "--environment", sys.prefix, "--out", tmp_path / "out.json"]
    bench.main([*options, *map(str, where)])
    (block,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    assert [row["what"] for row in block["rows"]] == [
        *("dpo, answers grouped", "dpo, separate pairs", "trl, best settings")
    ]
    losses = [row["repeats"][0]["losses"] for row in block["rows"]]
    assert [len(each) for each in losses] == [2] * 3
    assert abs(losses[0][1] - losses[0][0]) > 10 * max(row["loss_difference"] for row in block["rows"])
    assert block["flop_ratio"]["training"] > 1.5
    assert all(0 < row["mfu_both"] < 1 for row in block["rows"])
    assert sorted(data.iterdir()) == before
    assert capsys.readouterr().out.endswith((tmp_path / "out.md").read_text(encoding="utf-8"))
