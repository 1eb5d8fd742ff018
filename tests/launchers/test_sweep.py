"""Jobs side by side, each on its share of the machine; points that Optuna draws."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers.configs import composed, with_changes
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from dpo_cli import launch, sweep, sweep_view
from dpo_cli.compose import run_command
from dpo_cli.config import TrainConfig
from dpo_cli.config_launch import SlurmConfig
from dpo_cli.errors import DpoError, Preempted
from dpo_cli.launchers import slurm
from dpo_cli.launchers.apart import Ended
from dpo_cli.sweep import Sweep

GIVEN = ["model.path=m", "data.path=rows.jsonl", "data.eval=0.1", "train.eval_every=10"]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.0)
    yield
    GlobalHydra.instance().clear()


class Jobs:
    """Jobs that last as long as they are told to, and what they were given."""

    def __init__(self) -> None:
        self.started: list[tuple[TrainConfig, dict[str, str], Path | None]] = []
        self.running = self.most = 0
        self.codes: dict[int, int] = {}
        self.looks = 2
        self.longer: dict[int, int] = {}
        """Looks of some jobs, by number."""

    def metric(self, config: TrainConfig) -> float:
        """Best at 0.2."""
        return 1.0 - abs(config.loss.beta - 0.2)

    def end(self, config: TrainConfig, code: int) -> None:
        run_dir = Path(str(config.run_dir))
        run_dir.mkdir(parents=True, exist_ok=True)
        status = {0: "done", 75: "preempted"}.get(code, "failed")
        final = {"eval/rewards/accuracies": self.metric(config), "eval/loss": config.loss.beta}
        OmegaConf.save(OmegaConf.create(config.model_dump(mode="json")), run_dir / "config.yaml")
        (run_dir / "run.json").write_text(json.dumps({"status": status, "final": final}))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    all_jobs = Jobs()

    class Fake:
        process = None

        def __init__(self, command: str, config: TrainConfig, environment: dict[str, str], log: Path | None) -> None:
            self.number, self.config, self.looks, self.stopped = len(all_jobs.started), config, 0, False
            all_jobs.started.append((config, environment, log))
            all_jobs.running += 1
            all_jobs.most = max(all_jobs.most, all_jobs.running)

        def stop(self) -> None:
            self.stopped = True

        def ended(self) -> Ended | None:
            self.looks += 1
            lines = [{"step": 0, "eval/rewards/accuracies": 0.5}]
            lines += [
                {"step": 10 * n, "eval/rewards/accuracies": all_jobs.metric(self.config)} for n in range(1, self.looks)
            ]
            run_dir = Path(str(self.config.run_dir))
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            if not self.stopped and self.looks < all_jobs.longer.get(self.number, all_jobs.looks):
                return None
            all_jobs.running -= 1
            code = 75 if self.stopped else all_jobs.codes.get(self.number, 0)
            all_jobs.end(self.config, code)
            return Ended(code, "dpo: it went wrong" if code else "")

    monkeypatch.setattr(sweep, "Apart", Fake)
    return all_jobs


@pytest.fixture(scope="module")
def base() -> TrainConfig:
    """What GIVEN comes to; composed once, as Hydra takes its time."""
    found: list[TrainConfig] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run_once", lambda command, config: found.append(config) or 0)
        assert run_command("train", GIVEN) == 0
    return found[0]


def run_grid(base: TrainConfig, betas: Sequence[float], parallel: int = 1, run_dir: str = "all") -> int:
    found = Sweep([f"loss.beta={','.join(map(str, betas))}", f"run_dir={run_dir}"])
    for beta in betas:
        found.add(with_changes(base, [f"loss.beta={beta}"]), [f"loss.beta={beta}", f"run_dir={run_dir}"])
    found.run(found.grid, parallel)
    return found.finish()


def test_no_more_run_at_a_time_than_were_asked_for(
    jobs: Jobs, base: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.codes = {1: 76}
    betas = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert run_grid(base, betas, 2) == 76
    assert jobs.most == 2
    assert [config.loss.beta for config, _, _ in jobs.started] == betas
    assert {str(log) for _, _, log in jobs.started} == {f"all/loss.beta=0.{n}.log" for n in range(1, 6)}
    said = capsys.readouterr()
    assert "loss.beta=0.2: failed with exit code 76" in said.err
    assert said.out.count("done") == 4
    # Again: only what is missing.
    jobs.codes = {}
    assert run_grid(base, betas, 2) == 0
    assert [config.loss.beta for config, _, _ in jobs.started[5:]] == [0.2]


def test_the_table_has_the_order_of_the_points_whichever_ended_first(
    jobs: Jobs, base: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.longer = {0: 9}
    assert run_grid(base, [0.1, 0.2, 0.3], 2) == 0
    said = capsys.readouterr()
    ended = re.findall(r"^(loss\.beta=\S+): done", said.err, re.MULTILINE)
    assert ended[-1] == "loss.beta=0.1"
    assert re.findall(r"^ (loss\.beta=\S+) ", said.out, re.MULTILINE) == [f"loss.beta=0.{n}" for n in (1, 2, 3)]
    assert "ref. tokens" not in said.out  # none was computed


def test_one_at_a_time_speaks_on_the_screen(jobs: Jobs, base: TrainConfig) -> None:
    assert run_grid(base, [0.1, 0.2]) == 0
    assert jobs.most == 1
    assert [log for _, _, log in jobs.started] == [None, None]
    assert [environment for _, environment, _ in jobs.started] == [{"DPO_SWEEP": "1"}] * 2


def test_gpus_and_cores_are_shared_out(jobs: Jobs, base: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "devices", lambda none: 4)
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert run_grid(base, [0.1, 0.2], 2) == 0
    given = [environment for _, environment, _ in jobs.started]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in given] == ["4,5", "6,7"]
    assert [own["OMP_NUM_THREADS"] for own in given] == ["4", "4"]  # 16 cores, 2 jobs of 2 processes
    with pytest.raises(DpoError, match=r"sweep.parallel=5: there are 4 GPUs"):
        run_grid(base, [0.1, 0.2], 5, "other")


def test_a_job_that_was_stopped_ends_the_sweep(jobs: Jobs, base: TrainConfig) -> None:
    jobs.codes = {0: 75}
    with pytest.raises(Preempted, match="the same command goes on"):
        run_grid(base, [0.1, 0.2, 0.3])
    assert len(jobs.started) == 1


def test_each_point_is_submitted_to_slurm(
    jobs: Jobs, base: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep.slurm, "submit", lambda command, config: slurm.Job(Path("job.sh"), "%j.log", "12"))
    on_slurm = base.model_copy(update={"launch": SlurmConfig.model_construct(name="slurm")})
    assert run_grid(on_slurm, [0.1, 0.2]) == 0
    assert jobs.started == []
    assert capsys.readouterr().out.count("job 12") == 2


# -- what is shown, and what is best


def test_a_terminal_has_a_live_table(
    jobs: Jobs, base: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sweep_view, "_SECONDS_BETWEEN_LOOKS", 0.0)
    jobs.codes, jobs.looks = {1: 76}, 4
    assert run_grid(base, [0.1, 0.2, 0.3]) == 76
    assert [log for _, _, log in jobs.started] == [Path(f"all/loss.beta=0.{n}.log") for n in (1, 2, 3)]
    said = capsys.readouterr()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.err)
    assert "1 running, 2 waiting" in text
    assert re.search(r"beta=0\.1 +running +20 ", text)
    assert "dpo: it went wrong\n" in text  # above the table, at once
    assert "loss.beta=0.2: failed with exit code 76\n" in text
    assert text.index("failed with exit code 76") < text.index("1 running, 1 done, 1 failed")
    assert "failed  beta=0.2: it went wrong" in text
    assert "job 1, in" not in text  # the table says it
    assert said.out.count("done") == 2  # in the table at the end


def test_where_nobody_watches_there_is_no_table(
    jobs: Jobs, base: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_view, "_SECONDS_BETWEEN_LOOKS", 0.0)
    for terminal in ("0", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        monkeypatch.setenv("TERM", "dumb")
        assert run_grid(base, [0.1, 0.2], run_dir=terminal) == 0
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(",")[0] for line in lines] == [
            *("loss.beta=0.1: job 1", "loss.beta=0.1: done", "loss.beta=0.2: job 2", "loss.beta=0.2: done"),
        ]


@pytest.mark.parametrize(
    ("words", "metric", "best"),
    [
        ([], "eval/rewards/accuracies", 0.2),
        (["sweep.metric=eval/loss"], "eval/loss", 0.1),
        (["sweep.metric=eval/loss", "sweep.direction=maximize"], "eval/loss", 0.5),
        (["sweep.metric=eval/rewards/accuracies", "sweep.direction=minimize"], "eval/rewards/accuracies", 0.5),
    ],
)
def test_the_best_of_a_grid_is_by_the_metric_that_was_asked_for(
    words: list[str], metric: str, best: float, jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracy is best at 0.2, the loss least at 0.1."""
    assert train("loss.beta=0.1,0.2,0.5", "run_dir=all", *words) == 0
    label = {"eval/loss": "held-out loss", "eval/rewards/accuracies": "held-out accuracy"}[metric]
    assert f"Best by {metric}: beta={best}," in capsys.readouterr().out
    assert f"Best by {label}: beta={best}," in Path("all/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("direction", ["auto", "maximize"])
def test_a_smart_sweep_is_after_the_metric_that_was_asked_for(
    direction: str, jobs: Jobs, base: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    best = smart(
        base, "sweep.sampler=random", "sweep.trials=5", "sweep.metric=eval/loss", f"sweep.direction={direction}"
    )
    betas = [config.loss.beta for config, _, _ in jobs.started]
    expected = max(betas) if direction == "maximize" else min(betas)
    assert best.startswith("best eval/loss: ")
    assert f"(loss.beta={expected!r})" in best
    assert f"Best by eval/loss: beta={expected:g}," in capsys.readouterr().out


@pytest.mark.parametrize("sampler", [[], ["sweep.sampler=random"]])
def test_a_metric_that_no_run_would_have_is_refused_before_any_starts(sampler: list[str], jobs: Jobs) -> None:
    if sampler:
        pytest.importorskip("optuna")
    with pytest.raises(
        DpoError, match=r"sweep.metric=eval/los is no metric of these runs: expected one of eval/loss, "
    ):
        train("loss.beta=0.1,0.2", "sweep.metric=eval/los", *sampler)
    assert jobs.started == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.metric=loss/dpo"], "is no metric of these runs"),  # there is but one loss
        (["sweep.metric=eval/loss", "data.eval=null", "train.eval_every=null"], "needs held-out rows: give data.eval"),
        (["sweep.metric=samples/kl"], "needs sampled answers: give eval.samples"),
        (["sweep.metric=samples/true_reward", "eval.samples=4"], "is no metric of these runs"),
        (["sweep.metric=samples/kl", "eval.samples=4", "eval.temperature=0.5"], "is no metric of these runs"),
    ],
)
def test_what_a_metric_lacks_is_said(words: list[str], says: str) -> None:
    with pytest.raises(DpoError, match=re.escape(f"{words[0]} {says}")):
        Sweep(["loss.beta=1,2"]).go_by(composed("train", [*GIVEN, *words]))


def test_metrics_that_a_run_would_have_are_taken(jobs: Jobs, base: TrainConfig) -> None:
    evaluated = {"samples": 4, "true_reward": "quickstart"}
    config = base.model_copy(update={"eval": base.eval.model_copy(update=evaluated)})
    for metric in ("eval/rewards/margins", "samples/true_reward", "samples/kl", "loss", "grad_norm"):
        told = config.sweep.model_copy(update={"metric": metric})
        Sweep(["loss.beta=1,2"]).go_by(config.model_copy(update={"sweep": told}))


def test_the_metric_makes_no_other_grid_and_another_smart_sweep() -> None:
    def folder(*words: str) -> Path:
        return Sweep(["loss.beta=1,2", *words]).folder

    told = ("sweep.metric=eval/loss", "sweep.direction=maximize")
    assert folder(*told) == folder("sweep.report=false") == folder()
    assert folder(*told, "sweep.sampler=tpe") != folder("sweep.sampler=tpe")


def test_seeds_are_one_setting_with_an_interval(
    jobs: Jobs, base: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "metric", lambda config: config.loss.beta + 0.02 * config.seed)
    found = Sweep(["loss.beta=0.1,0.3", "seed=0,1,2"])
    for beta, seed in product((0.1, 0.3), range(3)):
        words = [f"loss.beta={beta}", f"seed={seed}"]
        found.add(with_changes(base, words[:1]).model_copy(update={"seed": seed}), words)
    found.run(found.grid, 1)
    assert found.finish() == 0
    # The standard deviation is 0.02; Student's t with 2 degrees of freedom is 4.303.
    half = 4.303 * 0.02 / 3**0.5
    assert f"beta=0.3, 0.32 ± {half:.2g} (95 % interval over 3 seeds). Next: beta=0.1" in capsys.readouterr().out


def test_a_report_that_fails_is_no_failure_of_the_sweep(
    jobs: Jobs, base: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("all/report.html").mkdir(parents=True)  # where the page would be
    assert run_grid(base, [0.1, 0.2]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "report" in line]
    assert line.startswith("the report could not be written (IsADirectoryError: ")
    assert line.endswith("; dpo report all tries again")
    assert "Best by eval/rewards/accuracies: beta=0.2," in said.out
    assert not list(Path("all/report.html").iterdir())


def test_a_report_can_be_left_out(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("loss.beta=0.1,0.2", "run_dir=all", "sweep.report=false") == 0
    assert "in one page: dpo report all\n" in capsys.readouterr().out
    assert not Path("all/report.html").exists()


# -- smart sweeps


def smart(base: TrainConfig, *words: str) -> str:
    """Run one; returns what it says of the best."""
    pytest.importorskip("optuna")
    from dpo_cli.smart_sweep import Trials

    words = ("loss.beta=interval(0.01, 1.0)", "run_dir=smart", *words)
    found = Sweep(words)
    trials = Trials(words, found, lambda point: with_changes(base, point))
    found.run(trials, trials.settings.parallel)
    assert found.finish(trials.best()) == 0
    return trials.best()


def test_optuna_finds_the_best_of_a_line(jobs: Jobs, base: TrainConfig) -> None:
    best = smart(base, "sweep.sampler=tpe", "sweep.trials=15")
    betas = [config.loss.beta for config, _, _ in jobs.started]
    assert len(set(betas)) == 15
    assert min(abs(beta - 0.2) for beta in betas) < 0.05
    assert f"(loss.beta={min(betas, key=lambda beta: abs(beta - 0.2))!r})" in best


def test_a_smart_sweep_goes_on_with_its_study(jobs: Jobs, base: TrainConfig) -> None:
    words = ("sweep.sampler=random", "sweep.trials=5")
    jobs.codes = {2: 75}
    with pytest.raises(Preempted):
        smart(base, *words)
    stopped = jobs.started[-1][0]
    jobs.codes = {}
    smart(base, *words)
    assert len(jobs.started) == 6
    assert jobs.started[3][0].loss.beta == stopped.loss.beta  # the one that was stopped, in its own folder
    assert jobs.started[3][0].run_dir == stopped.run_dir
    assert len({config.loss.beta for config, _, _ in jobs.started}) == 5
    smart(base, *words)
    assert len(jobs.started) == 6


def test_bad_runs_are_stopped(jobs: Jobs, base: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """They have evaluations at 10, 20, ... like the others, and are worse than half of them there."""
    jobs.looks = 6
    smart(base, "sweep.sampler=random", "sweep.trials=12", "sweep.prune=true", "sweep.warmup_trials=3")
    said = capsys.readouterr()
    pruned = [line.partition(":")[0] for line in said.err.splitlines() if "does worse than half" in line]
    assert 0 < len(pruned) < 12
    metrics = [jobs.metric(config) for config, _, _ in jobs.started]
    numbers = [int(name.partition(",")[0]) for name in pruned]
    assert min(numbers) >= 3
    for number in numbers:
        earlier = sorted(metrics[n] for n in range(number) if n not in numbers)
        assert metrics[number] < earlier[len(earlier) // 2]


def train(*words: str) -> int:
    return run_command("train", ["-m", *GIVEN, *words])


def test_hydras_name_for_it_means_ours(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    assert train("hydra/sweeper=optuna", "sweep.trials=1", "loss.beta=interval(0.1, 0.2)", "loss=dpo,ipo") == 0
    (config,) = [config for config, _, _ in jobs.started]
    assert 0.1 <= config.loss.beta <= 0.2
    assert "in trial 0 (loss.beta=" in capsys.readouterr().out
    assert len(list(Path("runs").glob("sweep-train-*/optuna.jsonl"))) == 1


def test_a_range_has_no_points() -> None:
    with pytest.raises(DpoError, match=r"loss.beta=interval\(0.1,0.2\) has no points.*sweep.sampler=tpe"):
        train("loss.beta=interval(0.1,0.2)")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.sampler=tpe", "loss.beta=interval(1, 0.1)"], "expected interval"),
        (["sweep.sampler=tpe", "loss.beta=tag(log, interval(0, 0.1))"], "above 0"),
        (["sweep.sampler=tpe", "loss.beta=0.1"], "needs something to draw"),
        (["sweep.sampler=tpe", "loss.beta=0.1,0.2", "launch=slurm", "launch.submit=false"], "waits for its runs"),
        (["sweep.sampler=tpe", "loss.beta=0.1,0.2", "data.eval=null", "train.eval_every=null"], "needs held-out rows"),
    ],
)
def test_what_can_not_be_drawn_is_said(words: list[str], says: str, jobs: Jobs) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(DpoError, match=says):
        train(*words)
    assert jobs.started == []


def test_a_range_is_whole_where_it_is_written_so() -> None:
    pytest.importorskip("optuna")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from dpo_cli.smart_sweep import _distribution

    expected: dict[str, Any] = {
        "a=interval(0.1, 2)": FloatDistribution(0.1, 2.0),
        "a=tag(log, interval(1e-6, 1e-4))": FloatDistribution(1e-6, 1e-4, log=True),
        "a=int(interval(1, 8))": IntDistribution(1, 8),
        "a=range(8, 33, 8)": IntDistribution(8, 32, step=8),
        "a=dpo,ipo": CategoricalDistribution(["dpo", "ipo"]),
        "a=choice(1, 2.5)": CategoricalDistribution(["1", "2.5"]),
    }
    for text, distribution in expected.items():
        assert _distribution(OverridesParser.create().parse_override(text)) == distribution, text
