"""What a report warns of: each thing where it is so, and not where it is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.run_folders import config, record

from dpo_cli.evaluation import alarms
from dpo_cli.reporting.findings import ADVICE, about, findings
from dpo_cli.reporting.runs import Run, Series, Status

NAN = float("nan")


def run(name: str = "a run", status: str = "done", curves: dict[str, list[float]] | None = None, **changes: Any) -> Run:
    held = {"eval/rewards/margins": [0.0, 1.0]}
    metrics = {
        key: Series(np.arange(len(values)) * 10, np.array(values, dtype=np.float64))
        for key, values in (held | (curves or {})).items()
    }
    samples = changes.pop("samples", [])
    return Run(Path(name), name, config(), record(status, **changes), metrics, samples, {}, Status(status))


def said(one: Run) -> dict[str, str]:
    return {each.name: f"{each.level}: {each.detail}" for each in about(one)}


def sampled(*by_step: list[float]) -> list[dict[str, Any]]:
    return [{"step": 10 * n, "true_reward": value} for n, values in enumerate(by_step) for value in values]


def test_a_good_run_has_nothing_to_be_said_of() -> None:
    good = {
        "logps/chosen": [-50.0, -49.0],
        "eval/loss": [0.69, 0.4],
        "eval/rewards/accuracies": [0.5, 0.9],
        "samples/length": [10.0, 11.0],
    }
    assert said(run(curves=good, samples=sampled([0.1, 0.2], [0.8, 0.9]))) == {}


@pytest.mark.parametrize(
    ("one", "name", "expected"),
    [
        (run(status="failed"), "failed", "error: after update 10"),
        (run(status="preempted", planned=99), "preempted", "warning: after update 10 of 99"),
        (run(status="running"), "running", "note: after update 10"),
        (run(curves={"loss": [1.0, NAN, NAN, 0.9]}), "not-finite", "error: loss at 2 of 4, first at update 10"),
        (
            run(curves={"eval/logps/chosen": [-50.0, -56.0], "eval/logps/rejected": [-50.0, -90.0]}),
            "displacement",
            "warning: log-prob of chosen answers from -50 to -56 nats (-12%); rejected from -50 to -90",
        ),
        (
            run(curves={"logps/chosen": [-50.0, -52.0]}),
            "displacement",
            "note: log-prob of chosen answers from -50 to -52",
        ),
        (
            run(samples=sampled([0.5, 0.6], [0.8, 0.82], [0.3, 0.32])),
            "over-optimised",
            "warning: true reward of samples from 0.81 after update 10 to 0.31 after 20",
        ),
        (
            run(curves={"eval/loss": [0.69, 0.5, 0.6]}),
            "over-fitted",
            "warning: held-out loss from 0.5 after update 10 to 0.6",
        ),
        (
            run(curves={"eval/rewards/accuracies": [0.5, 0.9, 0.8]}),
            "over-fitted",
            "warning: held-out accuracy from 0.900 after update 10 to 0.800",
        ),
        (run(curves={"samples/length": [10.0, 12.5]}), "longer-answers", "warning: from 10 to 12.5 tokens (+25%)"),
        (
            run(
                starts=[
                    {"update": 0, "after": None},
                    {"update": 40, "after": "preempted"},
                    {"update": 80, "after": "running"},
                ]
            ),
            "resumed",
            "note: 2 times, from update 40, 80",
        ),
        (run(attention="plain (asked for)"), "slow-attention", "note: plain (asked for)"),
        (run(attention="groups through x; one call for each answer: y"), "slow-attention", "warning: groups through x"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_each(one: Run, name: str, expected: str) -> None:
    found = said(one)
    assert list(found) == [name]
    assert found[name].startswith(expected)


@pytest.mark.parametrize(
    "one",
    [
        run(curves={"logps/chosen": [-50.0, -50.4]}),  # under 1 %
        run(curves={"eval/loss": [0.69, 0.5, 0.505]}),  # under 2 %
        run(curves={"eval/rewards/accuracies": [0.5, 0.9, 0.87]}),  # under two standard errors, of 512 rows
        run(samples=sampled([0.0, 1.0], [0.1, 0.8])),
        run(curves={"samples/length": [10.0, 11.9]}),
    ],
)
def test_what_may_be_chance_is_not_said(one: Run) -> None:
    assert said(one) == {}


def test_single_updates_do_not_make_a_displacement() -> None:
    """The last batch may be anything: the first and the last tenth of the run are compared."""
    quiet = [-50.0] * 99
    assert said(run(curves={"logps/chosen": [*quiet, -54.0]})) == {}
    (said_of_it,) = said(run(curves={"logps/chosen": [*quiet[:90], *[-60.0] * 10]})).values()
    assert "from -50 to -60 nats (-20%)" in said_of_it


def test_rows() -> None:
    data = record()["data"]
    data["train"]["rows"]["bad"] = 7
    data["train"]["prompts_held_out"] = 2
    data["train"]["tokenized"]["answers_truncated"] = 1500
    data["held_out"] = {"groups": 9, "rows": {"read": 10}, "tokenized": {"dropped_too_long": 1}}
    assert said(run(data=data)) == {
        "rows-left-out": "warning: 7 unusable of 8,200 training rows; 2 whose prompt is held out of 8,200 training "
        "rows; 1 too long of 10 held-out rows",
        "rows-cut": "warning: 1,500 answers of 8,200 training rows",
    }


def test_without_evaluation() -> None:
    one = run()
    del one.metrics["eval/rewards/margins"]
    one.metrics["loss"] = Series(np.array([1]), np.array([1.0]))
    assert said(one) == {"nothing-held-out": "note: there is no evaluation in this run"}


def test_of_many_runs_each_thing_is_said_once_and_the_worst_first() -> None:
    spoilt = {"loss": [1.0, NAN]}
    runs = [run("a", curves={"samples/length": [1.0, 2.0]}), run("b", "failed", spoilt), run("c", curves=spoilt)]
    found = findings(runs)
    assert [(each.name, [name for name, _ in each.details]) for each in found] == [
        ("failed", ["b"]),
        ("not-finite", ["b", "c"]),
        ("longer-answers", ["a"]),
    ]
    assert all(each.advice == ADVICE[each.name] for each in found)


def test_what_training_and_dpo_eval_said_is_said_once() -> None:
    """Alarms of one name are one, and what the numbers of the report say already is not repeated."""
    alerts = [
        {"step": 4, "name": "length-bias", "text": "prefers longer ones"},
        {"step": 8, "name": "longer-answers", "text": "12 tokens, before training 7"},
        {"step": 9, "name": "stopped-early", "text": "too far"},
    ]
    one = run(alerts=alerts, curves={"samples/length": [7.0, 12.0]})
    told = {"alarms": [{"name": "length-bias", "text": "again"}, {"name": "repetition", "text": "30%"}, 7, {"name": 1}]}
    found = said(replace(one, evaluation=told))
    assert found["length-bias"] == "warning: after update 4: prefers longer ones"
    assert found["repetition"] == "warning: dpo eval: 30%"
    assert found["stopped-early"] == "note: after update 9: too far"
    assert found["longer-answers"] == "warning: from 7 to 12 tokens (+71%)"
    assert [each.name for each in about(one)].count("longer-answers") == 1
    displaced = {"alerts": [{"step": 4, "name": "likelihood-displacement", "text": "fell"}]}
    assert "likelihood-displacement" not in said(run(curves={"eval/logps/chosen": [-10.0, -20.0]}, **displaced))
    assert said(run(curves={"eval/logps/chosen": [-10.0, -10.5]}, **displaced))["likelihood-displacement"]


def test_every_alarm_has_its_place_among_the_findings() -> None:
    source = Path(alarms.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'Alarm\(\s*"([\w-]+)"', source))
    assert len(names) == 9
    assert names - set(ADVICE) == set()
    # One of a later version is shown too, after the others.
    later = [{"step": 1, "name": "unheard-of", "text": "new"}, {"step": 1, "name": "repetition", "text": "old"}]
    assert [finding.name for finding in findings([run(alerts=later)])] == ["repetition", "unheard-of"]
