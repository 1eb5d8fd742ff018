"""The real thing: SmolLM2-135M-Instruct on human preferences and on ShareGPT dialogues, by the shipped recipes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from helpers.command import dpo
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA, MODEL = os.environ.get("DPO_TEST_DATA", ""), os.environ.get("DPO_TEST_MODEL", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.skipif(not (DATA and MODEL), reason="DPO_TEST_DATA and DPO_TEST_MODEL are not set"),
]


@pytest.mark.parametrize(
    ("recipe", "file", "wanted", "held_out"),
    # auto: bf16, but where the CPU has no units for it: there it would take a hundred times as long.
    [("smollm2_hh", "hh_harmless.jsonl.gz", "fp32", 0.005), ("smollm2_chat", "dpo_en_demo.json", "auto", 0.01)],
)
def test_a_recipe_trains_evaluates_and_leaves_a_model(
    recipe: str, file: str, wanted: str, held_out: float, tmp_path: Path
) -> None:
    small = [
        "data.limit=8",
        "data.max_length=160",
        "train.batch_size=4",
        "train.eval_every=null",
        "optim.warmup_ratio=0",
    ]
    words = [
        f"+experiment={recipe}",
        f"model.path={MODEL}",
        f"data.path={DATA}/{file}",
        f"data.eval={held_out}",
        *small,
    ]
    ended = dpo("train", *words, f"train.precision={wanted}", "run_dir=run", cwd=tmp_path, timeout=550)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    precision = record["precision"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, second = (line for line in lines if "loss" in line)
    # At the start the policy is the reference; in bfloat16 the same products in another batch are rounded otherwise.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 0.02)
    assert second["loss"] != first["loss"]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5 if precision == "fp32" else 0.2)
    assert 0 < first["mfu"] < 1.2
    assert record["status"] == "done"
    # hh_harmless has four empty answers; the recipe leaves such rows out.
    assert record["data"]["train"]["rows"]["bad"] == (4 if recipe == "smollm2_hh" else 0)

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model = AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert answer.shape[1] > ids["input_ids"].shape[1]

    evaluated = dpo("eval", "run=run", cwd=tmp_path, timeout=300)
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((run / "eval.json").read_text())["metrics"]
    tolerance = 1e-5 if precision == "fp32" else 0.05
    for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert metrics[name] == pytest.approx(lines[-1][f"eval/{name}"], abs=tolerance), name
