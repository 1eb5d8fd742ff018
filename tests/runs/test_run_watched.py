"""What watches a run: trackers that never answer, limits that end it early, alerts."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs import Place, assert_same_bits, evaluations, metrics, record, saved, updates, weights, write_rows
from helpers.wandb_server import KEY, serving

from dpo_cli.tracking import progress


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
def test_a_tracker_that_never_answers_costs_nothing_and_gets_it_all_later(
    place: Place, whole: Path, silent: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = {"tracker.mode": "online", "tracker.seconds_at_end": 1, "tracker.project": "p"}
    start = time.monotonic()
    ended = place.try_run(run, changes, variables={"WANDB_BASE_URL": silent, "WANDB_API_KEY": KEY})
    seconds = time.monotonic() - start
    assert ended.code == 0, ended.err
    assert metrics(run) == metrics(whole)
    assert_same_bits(weights(run), weights(whole))
    lines = len(metrics(run))
    assert f"{lines} lines of metrics.jsonl were not sent; `dpo sync {run}` sends them" in ended.err
    # Not its 90 seconds' patience, and no update waited. What is left of the bound is for a busy machine.
    assert seconds < record(run)["seconds"] + 20
    spent = [sum(1 / json.loads(line)["pairs_per_second"] for line in open_updates(each)) for each in (run, whole)]
    assert spent[0] < 3 * spent[1] + 0.5
    with serving() as server:
        sent = place.dpo("sync", {}, str(run), variables=server.environment)
        assert sent.code == 0, sent.err
        assert f"{lines} lines of metrics sent to Weights & Biases, {server.url}" in sent.out
        name = str(progress.load(run, "wandb").run_id)
        assert server.steps(name, "loss") == [line["step"] for line in updates(run)]
        assert server.steps(name, "eval/loss") == [line["step"] for line in evaluations(run)]
        again = place.dpo("sync", {}, str(run), variables=server.environment)
        assert "has everything" in again.out
        assert len(server.history[name]) == lines
    for path in run.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def open_updates(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if "pairs_per_second" in line]


def test_a_limit_ends_a_run_at_the_same_update_whether_it_was_stopped_before_or_not(
    place: Place, whole: Path, tmp_path: Path
) -> None:
    """Held-out answers are taken the wrong way round, so that the chosen ones fall: from where they began, which was
    measured before the stop."""
    rows = [json.loads(line) for line in place.held_out.read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    run = tmp_path / "run"
    changes = {"data.eval": write_rows(tmp_path / "swapped.jsonl", swapped), "train.stop.displacement": 1.0}
    cut = place.try_run(run, changes, fault="micro-batch:3.1=term")
    assert cut.code == 75, cut.err
    ended = place.try_run(run, {**changes, "resume": "auto"})
    assert ended.code == 0, ended.err
    found = record(run)
    assert (found["status"], found["updates"], found["planned"]) == ("done", 4, 12)
    assert found["stopped_early"]["step"] == 4
    start, end = (line["eval/logps/chosen"] for line in evaluations(run))
    assert start - end > 1.0
    assert f"fell from {start:.4g} to {end:.4g} nats" in found["stopped_early"]["reason"]
    assert "after update 4: stopped-early: held-out chosen answers' log-prob fell from" in ended.err
    assert found["alerts"][-1]["name"] == "stopped-early"
    assert updates(run) == updates(whole)[:4]
    final, then = weights(run), saved(run, 4)
    assert_same_bits(final, {name: then[f"model.{name}"] for name in final})


def test_samples_that_drift_are_warned_of_while_it_trains(place: Place, tmp_path: Path) -> None:
    """At a learning rate that breaks the model; each alarm once, with the numbers of metrics.jsonl."""
    run = tmp_path / "run"
    changes = {"optim.lr": 0.3, "train.max_steps": 2, "train.eval_every": None}
    changes |= {"train.sample_every": 1, "eval.samples": 3}
    ended = place.try_run(run, {**changes, "eval.max_new_tokens": 12})
    assert ended.code == 0, ended.err
    sampled = {line["step"]: line for line in metrics(run) if "samples/length" in line}
    assert list(sampled) == [0, 1, 2]
    alerts = {alert["name"]: alert for alert in record(run)["alerts"]}
    assert "far-from-reference" in alerts
    step, text = (alerts["far-from-reference"][name] for name in ("step", "text"))
    assert f"sampled answers are {sampled[step]['samples/kl_per_token']:.2f} nats per token away" in text
    assert ended.err.count("far-from-reference") == 1
