"""``dpo score``, RewardBench and judged samples, of a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import tokenizers
from helpers.runs import Place, evaluations, llama, write_rows
from transformers import LlamaForSequenceClassification


@pytest.mark.slow
def test_scored_rows_are_the_rows_with_the_rewards_of_training(place: Place, whole: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in place.held_out.read_text().splitlines()]
    answers = {side: [row[side][0]["content"] for row in rows] for side in ("chosen", "rejected")}
    mixed = [
        *({**row, "note": number} for number, row in enumerate(rows)),
        {"prompt": rows[0]["prompt"], "completions": [answers["chosen"][0], answers["rejected"][0]] * 2},
        {"nothing": "to score"},
        {"prompt": rows[1]["prompt"], "response": answers["rejected"][1]},
    ]
    write_rows(tmp_path / "in.jsonl", mixed)
    out = tmp_path / "out.jsonl"
    ended = place.dpo("score", {"run": whole, "data.path": tmp_path / "in.jsonl", "output": out})
    assert ended.code == 0, ended.err
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    scores = [row.pop("dpo_score") for row in scored]
    assert scored.pop(6) == {**mixed.pop(6), "dpo_score_problem": scored_problem(out, 6)}
    assert scored == mixed
    logged = evaluations(whole)[-1]
    for number, side in enumerate(("chosen", "rejected")):
        mean = sum(each[number]["reward"] for each in scores[:5]) / 5
        assert mean == pytest.approx(logged[f"eval/rewards/{side}"], abs=1e-6)
        logp = sum(each[number]["logp"] for each in scores[:5]) / 5
        assert logp == pytest.approx(logged[f"eval/logps/{side}"], abs=1e-5)
    for each in [*scores[:6], scores[7]]:
        for answer in each:  # beta = 0.1
            assert answer["reward"] == pytest.approx(0.1 * (answer["logp"] - answer["reference_logp"]), abs=1e-6)
            assert answer["reward_per_token"] == pytest.approx(answer["reward"] / answer["tokens"])
    assert [answer["reward"] for answer in scores[5]] == pytest.approx(
        [answer["reward"] for answer in scores[0]] * 2, abs=1e-6
    )
    assert scores[6] is None
    assert scores[7][0]["reward"] == pytest.approx(scores[1][1]["reward"], abs=1e-6)

    before = out.read_bytes()
    ended = place.dpo("score", {"run": whole, "data.path": tmp_path / "in.jsonl", "output": out})
    assert ended.code == 2
    assert "exists" in ended.err
    assert out.read_bytes() == before


def scored_problem(out: Path, row: int) -> str:
    problem = json.loads(out.read_text().splitlines()[row])["dpo_score_problem"]
    assert "line 7" in problem
    return str(problem)


@pytest.mark.slow
def test_rewardbench_2_and_judged_samples(place: Place, whole: Path, tmp_path: Path) -> None:
    """Rows in RewardBench 2's columns; a reward model judges answers to MT-Bench's questions of two turns."""
    words = ["apple", "bell cloud", "drum eagle fox", "garden"]
    rows = [
        {
            "id": name,
            "prompt": f"say {name}",
            "chosen": words[:good],
            "rejected": words[good:],
            "num_correct": good,
            "total_completions": 4,
            "subset": subset,
        }
        for name, good, subset in [
            ("1", 1, "Math"),
            ("2", 1, "Math"),
            ("3", 1, "Focus"),
            ("ref:1", 1, "Ties"),
            ("tied:1", 2, "Ties"),
        ]
    ]
    write_rows(tmp_path / "rb2.jsonl", rows)
    questions = [{"question_id": 81, "category": "writing", "turns": ["say fox", "say it again"]}]
    write_rows(tmp_path / "mt.jsonl", questions)
    torch.manual_seed(1)
    LlamaForSequenceClassification(llama(num_labels=1)).save_pretrained(tmp_path / "rm")
    tokenizers.quickstart().save_pretrained(tmp_path / "rm")
    arguments = {
        "run": whole,
        "data.path": tmp_path / "rb2.jsonl",
        "benchmark": "rewardbench2",
        "output": tmp_path / "out",
        "prompts": tmp_path / "mt.jsonl",
        "eval.samples": 4,
        "eval.max_new_tokens": 6,
        "judge.path": tmp_path / "rm",
    }
    ended = place.dpo("eval", arguments, "judge=reward_model")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["benchmark"]["subsets"]["Math"]["rows"] == 2
    assert set(found["benchmark"]["sections"]) == {"Math", "Focus", "Ties"}
    mean = sum(found["benchmark"]["sections"].values()) / 3
    assert found["benchmark"]["score"] == pytest.approx(mean)
    assert found["win_rate"]["prompts"] == 2  # turns
    assert 0 <= found["win_rate"]["win_rate"]["value"] <= 1
    assert found["drift"]["policy"]["length"]["value"] <= 6
    (answer,) = [json.loads(line) for line in (tmp_path / "out" / "answers_policy.jsonl").read_text().splitlines()]
    assert answer["question_id"] == 81
    assert len(answer["choices"][0]["turns"]) == 2
    side_by_side = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in side_by_side] == ["say fox", "say fox\n\nsay it again"]
    assert [row["policy"] for row in side_by_side] == answer["choices"][0]["turns"]
