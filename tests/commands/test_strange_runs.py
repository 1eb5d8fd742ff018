"""Run folders that somebody else made: whatever is in them, it is named, and nothing hangs or breaks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.run_folders import make_run
from omegaconf import OmegaConf
from safetensors.torch import save_file

from dpo_cli.cli import main
from dpo_cli.commands.make_report import defaults_of
from dpo_cli.commands.report import append_samples, show_outcome, show_samples
from dpo_cli.compose import _for_this_machine, _run_config
from dpo_cli.errors import DpoError
from dpo_cli.evaluation.samples import Samples
from dpo_cli.tracking.console import Console
from dpo_cli.training import checkpoint

DEEP = "[" * 100_000 + "]" * 100_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text) and None


def added(**values: object) -> Callable[[Path], None]:
    """To run.json."""

    def spoil(run: Path) -> None:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, **values}))

    return spoil


def pipe(name: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return spoil


def folder(name: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return spoil


STRANGE = {
    "lists in lists as a record": (written("run.json", DEEP), "run.json could not be read"),
    "lists in lists as a step": (written("metrics.jsonl", f'{{"step": {DEEP}}}'), "1 line could not be read"),
    "a step beyond all numbers": (written("metrics.jsonl", '{"step": 1e999}'), "1 line could not be read"),
    "a step of 30 digits": (written("metrics.jsonl", f'{{"step": {"9" * 30}}}'), "1 line could not be read"),
    "a value of 400 digits": (written("metrics.jsonl", f'{{"step": 1, "loss": {"9" * 400}}}'), "1 line could not be"),
    "a configuration that holds itself": (written("config.yaml", "a: &a {b: *a}"), "config.yaml could not be read"),
    "ten lines for a billion values": (written("config.yaml", BOMB), "config.yaml could not be read"),
    "lists in lists as a configuration": (written("config.yaml", f"a: {DEEP[:20_000]}"), "config.yaml could not be"),
    "no mapping for the model": (written("config.yaml", "model: 3\nloss: [1]"), "config.yaml: model is not what a run"),
    "no mapping for the rows": (added(data="x", final=5), "run.json: data is not what a run writes"),
    "no mapping for a side": (added(data={"train": 5}), "run.json: data.train is not what a run writes"),
    "starts that are none": (added(starts=[1], alerts={}), "run.json: starts is not what a run writes"),
    "a result of 400 digits": (added(final={"eval/loss": 10**400}), ""),
    "a pipe for metrics": (pipe("metrics.jsonl"), "metrics.jsonl could not be read"),
    "a pipe for a configuration": (pipe("config.yaml"), "config.yaml could not be read"),
    "a folder for a record": (folder("run.json"), "run.json could not be read"),
    "a folder for metrics": (folder("metrics.jsonl"), "metrics.jsonl could not be read"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_strange_in_a_run_is_named(name: str, tmp_path: Path) -> None:
    spoil, says = STRANGE[name]
    run = make_run(tmp_path / "run", steps=8)
    spoil(run)
    assert main(["report", str(run)]) == 0
    assert says in (run / "report.html").read_text()
    assert main(["runs", str(run)]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
def test_a_pipe_does_not_stop_the_doctor(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=8)
    pipe(name)(run)
    assert main(["doctor", str(run)]) == 2


def test_a_pipe_does_not_stop_who_looks_for_a_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints" / "step-3"
    place.mkdir(parents=True)
    os.mkfifo(place / "manifest.json")
    (place / "state.json").write_text("{}")
    found, problems = checkpoint.find(tmp_path)
    assert found is None
    assert "is not a complete checkpoint" in problems[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {}", "it has no data, loss, reference, eval, launch, launch.name, train, train.precision"),
        (BOMB, "is not a run's configuration"),
        ("- 1", "is not a run's configuration"),
        ("a: &a {b: *a}", "is not a run's configuration"),
    ],
)
def test_a_run_without_a_configuration_is_not_evaluated(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert main(["eval", f"run={tmp_path}"]) == 2
    assert says in capsys.readouterr().err


def test_a_strangers_configuration_is_told_nothing_of_the_environment(tmp_path: Path) -> None:
    sections = {name: {} for name in ("model", "loss", "reference", "eval")}
    train = {"precision": "fp32", "tokens_per_micro_batch": 8}
    url = "http://evil.example/${oc.env:HOME}"
    values = {**sections, "data": {"eval": url, "mix": [url]}, "train": train, "launch": {"name": "local"}, "seed": 0}
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    ran = OmegaConf.create(_run_config(tmp_path / "config.yaml"))
    assert OmegaConf.to_container(ran, resolve=True) == values


def test_a_strangers_run_does_not_say_how_many_processes_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for said, taken in ((1, 1), (8, 8), (9, "auto"), (10**6, "auto"), ("auto", "auto")):
        assert _for_this_machine({"name": "local", "num_processes": said}) == {"name": "local", "num_processes": taken}


def test_the_other_model_of_an_evaluation_may_be_strange_too(tmp_path: Path) -> None:
    from helpers.configs import composed

    from dpo_cli.commands.contestant import other_model

    (tmp_path / "config.yaml").write_text(BOMB)
    with pytest.raises(DpoError, match="is not a configuration"):
        other_model(composed("eval", ["model.path=a", "data.path=b.jsonl", f"against={tmp_path}"]))


def test_a_run_whose_metrics_were_deleted_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final = {"eval/loss": 0.5, "pairs_per_second": 3.0, "memory/rss_gib": 1.0}
    show_outcome(Console(), tmp_path, {"final": final, "updates": 4, "seconds": 2.0})
    assert "4 updates in 2 s" in capsys.readouterr().out


def answered(question: str, answer: str) -> Samples:
    return Samples([question], [answer], [], None)


def test_an_answer_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    strange = "a\u2028b\u0085c\x1cd"
    for step in (0, 2, 2):
        append_samples(tmp_path, answered("[INST] q [/INST]", f"{strange} {step}"), step)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_bytes().splitlines()]
    assert [(line["step"], line["answer"]) for line in lines] == [(0, f"{strange} 0"), (2, f"{strange} 2")]
    (tmp_path / "samples.jsonl").write_bytes(b"\xff\n")  # damaged: left as it is
    append_samples(tmp_path, answered("q", "a"), 4)
    assert (tmp_path / "samples.jsonl").read_bytes().startswith(b'\xff\n{"step": 4,')


def test_prompts_and_answers_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    samples = answered("[INST] sort [/INST]", "[/bold]\x1b[2J")
    show_samples(Console(), samples, samples)
    out = capsys.readouterr().out
    assert "[/INST]" in out
    assert "[/bold]\\x1b[2J" in out


@pytest.mark.parametrize("name", ["../../evil", "dpo,ipo", "${oc.env:HOME}", "[dpo]", 5, None])
def test_a_choice_of_a_strangers_run_is_not_composed(name: object) -> None:
    assert defaults_of({"loss": {"name": name}, "optim": {"name": "adamw"}}, lambda *_: pytest.fail("composed")) is None


def test_the_doctor_of_a_strange_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=4)
    (run / "final" / "config.json").write_text("{}")
    (run / ".[red]\x1b[31m").touch()
    for name in ("model.safetensors", "more.safetensors"):
        save_file({"w": torch.ones(3)}, run / "final" / name)
    assert main(["doctor", str(run)]) == 0
    (run / "final" / "config.json").write_text(DEEP)
    assert main(["doctor", str(run)]) == 2
    (run / "final" / "config.json").write_text("{}")
    (run / "final" / "more.safetensors").unlink()
    os.mkfifo(run / "final" / "more.safetensors")
    assert main(["doctor", str(run)]) == 2
    added(status="failed", error="\x1b[2J\x1b]0;title\x07")(run)
    assert main(["doctor", str(run)]) == 2
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "more.safetensors is no ordinary file" in said
    assert ".[red]\\x1b[31m" in said
