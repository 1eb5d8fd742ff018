"""A smart sweep whose runs are jobs of Slurm's, over programs that stand for Slurm's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.configs import composed, with_changes

from dpo_cli import sweep
from dpo_cli.config import TrainConfig
from dpo_cli.errors import DpoError, Preempted
from dpo_cli.launchers import slurm_jobs
from dpo_cli.launchers.slurm_jobs import Submitted
from dpo_cli.sweep import Sweep

pytest.importorskip("optuna")
GIVEN = ["model.path=m", "data.path=rows.jsonl", "data.eval=0.1", "train.eval_every=10", "launch=slurm"]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the jobs."""
    programs, folder = tmp_path / "bin", tmp_path / "queue"
    programs.mkdir()
    folder.mkdir()
    text = (Path(__file__).parents[1] / "helpers" / "queue_of_slurm.py").read_text()
    for name in ("sbatch", "squeue", "scancel"):
        (programs / name).write_text(f"#!{sys.executable} -SE\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("DPO_TEST_QUEUE", str(folder))
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(slurm_jobs, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(scope="module")
def base() -> TrainConfig:
    found: TrainConfig = composed("train", GIVEN)
    return found


def smart(base: TrainConfig, *words: str) -> tuple[int, str]:
    """Run one with two jobs at a time; its exit code, and what it says of the best run."""
    from dpo_cli.smart_sweep import Trials

    words = ("loss.beta=interval(0.01, 1.0)", "run_dir=smart", "sweep.sampler=random", "sweep.parallel=2", *words)
    found = Sweep(words)
    trials = Trials(words, found, lambda point: with_changes(base, point))
    found.run(trials, trials.settings.parallel, here=not trials.on_slurm)
    return found.finish(trials.best()), trials.best()


def jobs(queue: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(queue.glob("*.job"), key=lambda file: int(file.stem))]


def beta(job: dict) -> float:
    return float(json.loads(Path(job["run_dir"], "slurm", "config.json").read_text())["loss"]["beta"])


def test_its_runs_are_jobs_and_what_came_of_them_is_heard(
    queue: Path, base: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "devices", lambda none: 1)  # a login node's; there are two jobs at a time
    code, best = smart(base, "sweep.trials=5")
    assert code == 0
    betas = [beta(job) for job in jobs(queue)]
    assert len(set(betas)) == 5
    assert f"(loss.beta={min(betas, key=lambda beta: abs(beta - 0.2))!r})" in best
    assert set((queue / "most").read_text().split()) == {"1", "2"}
    assert "job 1, Slurm's 1, in smart/000,loss.beta=" in capsys.readouterr().err


def test_stopped_it_leaves_its_jobs_and_takes_them_up_again(queue: Path, base: TrainConfig) -> None:
    (queue / "signals").touch()
    with pytest.raises(Preempted, match="stopped, and Slurm's jobs 1, 2 stay in its queue; the same command goes on"):
        smart(base, "sweep.trials=3")
    assert [job["on_its_way"] for job in jobs(queue)] == [True, True]
    assert smart(base, "sweep.trials=3")[0] == 0
    assert len(jobs(queue)) == 3
    assert not any(job["on_its_way"] for job in jobs(queue))


def test_a_job_that_fails_is_said(
    queue: Path, base: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with an error of its own, and one that has died before it could say anything."""
    monkeypatch.setenv("DPO_TEST_CODES", json.dumps({"2": 76, "3": None}))
    code, best = smart(base, "sweep.trials=4")
    assert code in (70, 76)
    said = capsys.readouterr()
    assert "failed with exit code 76" in said.err
    assert "failed with exit code 70" in said.err
    assert f"dpo: job 3 failed; its output: {jobs(queue)[2]['run_dir']}/slurm/3.log" in said.err
    assert "best" in best


@pytest.mark.parametrize("running", [True, False])
def test_one_that_does_badly_is_told_to_save_and_end(queue: Path, base: TrainConfig, running: bool) -> None:
    """Or is taken out of the queue, where it waits to go on."""
    job = Submitted(base.model_copy(update={"run_dir": "run", "resume": "auto"}))
    Path("run", "run.json").write_text(json.dumps({"status": "preempted"}))
    if not running:
        (queue / "waiting").touch()
    assert job.ended() is None
    job.stop()
    ended = job.ended()
    assert ended is not None
    assert ended.exit_code == 75


def test_a_controller_that_does_not_answer_ends_nothing(queue: Path, base: TrainConfig, tmp_path: Path) -> None:
    job = Submitted(base.model_copy(update={"run_dir": "run", "resume": "auto"}))
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert job.ended() is None


def test_what_slurm_does_not_take_ends_the_sweep(queue: Path, base: TrainConfig) -> None:
    """And no trial is spent on it."""
    (queue / "refuses").touch()
    with pytest.raises(DpoError, match=r"sbatch did not take .*invalid partition"):
        smart(base, "sweep.trials=2")
    (queue / "refuses").unlink()
    assert smart(base, "sweep.trials=2")[0] == 0
    assert len(jobs(queue)) == 2


def test_nothing_to_wait_for_is_refused(queue: Path, base: TrainConfig) -> None:
    launch = base.launch.model_copy(update={"submit": False})
    with pytest.raises(DpoError, match="none would run"):
        smart(base.model_copy(update={"launch": launch}), "sweep.trials=2")
