"""``dpo runs``: how runs stand, what differs, and that cleaning never removes what somebody may need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.run_folders import make_run, make_sweep, write_lines
from helpers.unprivileged import permissions_count

from dpo_cli.commands.list_runs import listed, plan_cleaning, run
from dpo_cli.errors import DpoError
from dpo_cli.reporting.runs import find_runs, size_of
from dpo_cli.run_folder import this_process
from dpo_cli.training import checkpoint
from dpo_cli.training.checkpoint import TrainingState


def with_checkpoints(folder: Path, steps: range, best: int | None = None, **changes) -> Path:
    make_run(folder, steps=4, samples=0, **changes)
    for step in steps:
        state = TrainingState(step, "rows", {}, best={} if best is None else {"step": best, "value": 0.5})
        checkpoint.write(folder / "checkpoints", state, [("w", torch.ones(4))], [("w/m", torch.ones(4))], first=True)
    return folder


def left(folder: Path) -> list[int]:
    return [int(each.name[5:]) for each in checkpoint.folders(folder / "checkpoints")]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the list


def test_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", steps=4, samples=0)
    make_run(
        tmp_path / "b", steps=4, samples=0, status="failed", error="NumericsError: [red]bad[/red]\x1b[2J", planned=400
    )
    write_lines(tmp_path / "a" / "metrics.jsonl", [
        {"step": 0, "eval/rewards/accuracies": 0.5},
        {"step": 2, "eval/rewards/accuracies": 0.75},
        {"step": 3, "eval/rewards/accuracies": None},
        {"step": 4, "eval/rewards/accuracies": 0.625},
    ])  # fmt: skip
    first, second = listed(find_runs([tmp_path]))
    assert (first.run, first.status, first.updates, first.planned) == ("a", "done", 4, 4)
    assert (first.metric, first.best, first.best_update) == ("eval/rewards/accuracies", 0.75, 2)
    assert first.bytes == size_of(tmp_path / "a")
    assert (second.status, second.planned, second.loss) == ("failed", 400, "dpo")
    run([str(tmp_path)])
    text = capsys.readouterr().out
    for words in ("0.75 @2", "4/400", "NumericsError: [red]bad[/red]\\x1b[2J", "best: eval/rewards/accuracies"):
        assert words in text
    assert "\x1b" not in text
    run([str(tmp_path), "--json", "--metric", "eval/loss"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["a", "b"]
    assert rows[0]["best"] is None
    assert rows[1]["best"] == min(
        json.loads(line).get("eval/loss", 9.0) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    )


def test_a_folder_that_nobody_else_may_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", steps=4, samples=0)
    closed, half = make_run(tmp_path / "b", steps=4, samples=0), make_run(tmp_path / "c", steps=4, samples=0)
    closed.chmod(0)
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        (half / name).chmod(0)
    with permissions_count():
        run([str(tmp_path)])
        run([str(tmp_path), "--json"])
    closed.chmod(0o755)
    out, err = capsys.readouterr()
    listed = json.loads(out[out.index("[") :])
    assert [(line["run"], line["status"]) for line in listed] == [("a", "done"), ("c", "broken")]
    assert f"{closed} can't be looked into (Permission denied): left out" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["."], "holds no run"),
        (["runs", "--metric", "x"], "--metric x: no run has it"),
        (["runs", "--nonsense"], "dpo runs --help"),
        (["diff", "runs"], "dpo runs diff --help"),
        (["diff", "runs/a", "nowhere"], "nowhere: expected a run's folder"),
        (["clean", "runs", "--keep", "1"], "expected a number from 2"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    if words != ["."]:
        make_run(tmp_path / "runs" / "a", steps=1, samples=0)
    with pytest.raises(DpoError, match=says):
        run(words)


def test_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path, 2, steps=1, samples=0)
    first, second = find_runs([tmp_path])
    run(["diff", str(first), str(second / "config.yaml"), "--json"])
    assert json.loads(capsys.readouterr().out) == {"loss.beta": {"a": "0.1", "b": "0.3"}}
    run(["diff", str(first), str(second)])
    assert "loss.beta" in capsys.readouterr().out
    run(["diff", str(first), str(first)])
    assert capsys.readouterr().out.startswith("the same")


# -- cleaning


def test_old_checkpoints_go_but_the_newest_and_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_checkpoints(tmp_path / "run", range(1, 8), best=3)
    before = everything(folder)
    run(["clean", str(tmp_path), "--dry-run"])
    assert everything(folder) == before
    assert "4 checkpoints" in capsys.readouterr().out
    size = size_of(folder)
    plan = plan_cleaning(folder, 2)
    run(["clean", str(tmp_path), "--yes"])
    assert left(folder) == [3, 6, 7]
    assert size - size_of(folder) == plan.bytes > 0
    assert everything(folder) == {name: held for name, held in before.items() if (folder / name).exists()}
    assert "freed" in capsys.readouterr().out
    run(["clean", str(tmp_path), "--yes"])
    assert left(folder) == [3, 6, 7]
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_as_many_stay_as_are_asked_for(tmp_path: Path, keep: int) -> None:
    folder = with_checkpoints(tmp_path / "run", range(1, 6))
    run(["clean", str(folder), "--yes", "--keep", str(keep)])
    assert left(folder) == list(range(6 - keep, 6))


def test_nothing_goes_while_the_newest_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_checkpoints(tmp_path / "run", range(1, 6))
    weights = checkpoint.folder_of(folder / "checkpoints", 5) / "weights.safetensors"
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    run(["clean", str(folder), "--yes"])
    assert left(folder) == [1, 2, 3, 4, 5]
    assert "its newest checkpoint is damaged" in capsys.readouterr().out


def test_nothing_goes_of_a_run_that_may_be_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = with_checkpoints(tmp_path / "a", range(1, 6), status="running")
    elsewhere = {**this_process(), "space": "another machine"}
    unseen = with_checkpoints(tmp_path / "b", range(1, 6), status="running", process=elsewhere)
    killed = with_checkpoints(tmp_path / "c", range(1, 6), status="running", process={**this_process(), "began": "0"})
    run(["clean", str(tmp_path), "--yes"])
    assert left(running) == left(unseen) == [1, 2, 3, 4, 5]
    assert left(killed) == [4, 5]
    assert capsys.readouterr().out.count("it may be running") == 2


@pytest.mark.parametrize(("answer", "stays"), [("y", [4, 5]), ("", [1, 2, 3, 4, 5]), (None, [1, 2, 3, 4, 5])])
def test_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, stays: list[int]) -> None:
    folder = with_checkpoints(tmp_path / "run", range(1, 6))
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if answer is None:
        with pytest.raises(DpoError, match="say --yes"):
            run(["clean", str(folder)])
    else:
        run(["clean", str(folder)])
    assert left(folder) == stays
