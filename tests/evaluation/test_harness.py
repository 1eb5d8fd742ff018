"""Standard tasks through lm-evaluation-harness, where it is installed, on a task whose answers are known."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import tokenizers
from helpers.runs import llama
from transformers import AutoModelForCausalLM, PreTrainedModel

from dpo_cli.errors import DpoError
from dpo_cli.evaluation.harness import run_tasks
from dpo_cli.model.policy import Policy

TASK = """\
task: two_words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(llama(), dtype=torch.float32).eval()


def test_without_the_harness_it_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    policy = Policy(model(), precision="fp32", groups=False)
    with pytest.raises(DpoError, match="pip install 'dpo-cli\\[harness\\]'"):
        run_tasks(policy, tokenizers.quickstart(), ["a"], shots=None, limit=None)


def test_a_task_is_scored_by_the_models_own_log_probs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = ["apple", "bell", "cloud", "drum", "eagle", "fox", "garden", "hat"]
    rows = [{"question": f"{a} {b}", "choices": [a, b], "label": n % 2} for n, (a, b) in enumerate(pairwise(words))]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "two_words.yaml").write_text(TASK.replace("FILE", str(file)))
    tokenizer, own = tokenizers.quickstart(), model()

    def logp(question: str, choice: str) -> float:
        before = tokenizer(question, add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"{question} {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = own(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return sum(float(logits[place - 1, whole[place]]) for place in range(len(before), len(whole)))

    right = []
    for row in rows:
        first, second = (logp(row["question"], choice) for choice in row["choices"])
        right.append((second > first) == bool(row["label"]))
    policy = Policy(own, precision="fp32", groups=False)
    found = run_tasks(policy, tokenizer, ["two_words"], shots=None, limit=None, folder=tmp_path / "tasks")
    assert found["two_words"]["acc"]["value"] == pytest.approx(sum(right) / len(rows))
    assert found["two_words"]["acc"]["error"] > 0
    with pytest.raises(DpoError, match="has no task nothing"):
        run_tasks(policy, tokenizer, ["nothing"], shots=None, limit=None)
