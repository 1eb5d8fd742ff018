"""Adapters through the real command: one curve whatever way it is computed, and what is left of a run."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import dpo
from helpers.runs import (
    SHARD_ALL,
    Place,
    assert_identical_runs,
    assert_same_bits,
    assert_same_curve,
    distance,
    evaluations,
    record,
    saved,
    updates,
    weights,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

LORA = {"model/adapter": "lora", "train.epochs": 2, "model.adapter.dropout": 0.2}
"""8 updates. Dropout is large, so that a mask in the wrong place shows."""
WEIGHTS = 1e-4
"""Relative: products start at zero, and are still small beside the steps of Adam they consist of. Measured: 4e-5."""
QUANTISED = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed"
)


@pytest.fixture(scope="module")
def lora(place: Place) -> Path:
    """A run that trains an adapter, on one process. Not to be changed."""
    return place.run(place.root / "lora", LORA)


@pytest.fixture(scope="module")
def sft(place: Place, lora: Path) -> Path:
    """An adapter to go on from."""
    return lora / "final"


def test_only_the_adapter_is_trained_and_kept(place: Place, lora: Path) -> None:
    assert abs(record(lora)["zero_margin"]["gap"]) <= 1e-6
    assert updates(lora)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert evaluations(lora)[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert evaluations(lora)[-1]["eval/loss"] < 0.65
    names = saved(lora, 6).keys()
    assert names
    assert all(".lora_" in name for name in names)
    assert not (lora / "final" / "model.safetensors").exists()
    settings = json.loads((lora / "final" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(place.model.resolve())
    assert set(settings["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


@pytest.mark.parametrize("budget", [4096, 1])
def test_micro_batches_of_any_size_give_the_same_run(place: Place, lora: Path, tmp_path: Path, budget: int) -> None:
    assert_same_curve(
        place.run(tmp_path / "run", {**LORA, "train.tokens_per_micro_batch": budget}), lora, 1e-5, WEIGHTS
    )


def test_plain_attention_gives_the_same_run(place: Place, lora: Path, tmp_path: Path) -> None:
    assert_same_curve(place.run(tmp_path / "run", {**LORA, "model.attention": "plain"}), lora, 1e-5, WEIGHTS)


def test_two_processes_that_share_the_model_out_give_the_same_run(place: Place, lora: Path, tmp_path: Path) -> None:
    """With dropout; other stages, without it, are in tests/engine/test_grid.py."""
    changes = {**LORA, "launch.num_processes": 2, "engine.zero_stage": 3, "engine.deepspeed": SHARD_ALL}
    found = place.run(tmp_path / "run", changes)
    assert_same_curve(found, lora, 1e-5, WEIGHTS)
    assert distance(saved(found, 6), saved(lora, 6)) <= WEIGHTS


@pytest.mark.parametrize("changes", [{}, {"launch.num_processes": 2, "engine.zero_stage": 3}])
def test_a_run_that_was_stopped_is_the_run_that_was_not(place: Place, tmp_path: Path, changes: dict) -> None:
    whole = place.run(tmp_path / "whole", {**LORA, **changes})
    fault = "micro-batch:5.1=term"
    ended = place.try_run(tmp_path / "cut", {**LORA, **changes}, fault=fault)
    assert ended.code == 75, ended.err
    assert_identical_runs(place.run(tmp_path / "cut", {**LORA, **changes, "resume": "auto"}), whole)


def test_a_run_does_not_go_on_with_another_adapter(place: Place, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    ended = place.try_run(tmp_path / "run", {**LORA, "model.adapter.r": 4, "resume": "auto"})
    assert ended.code == 2
    assert "adapter.r was 16, now 4" in ended.err


def test_the_curve_is_that_of_a_plain_loop(place: Place, tmp_path: Path) -> None:
    """peft's own wrapper, torch's own AdamW, one sequence at a time, all rows in every batch."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changes = {**LORA, "train.epochs": 6, "train.batch_size": 22, "model.adapter.dropout": 0, "model.adapter.r": 4}
    run_dir = place.run(tmp_path / "run", {**changes, "optim.schedule": "linear", "optim.weight_decay": 0.01})
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    base = AutoModelForCausalLM.from_pretrained(place.model, attn_implementation="eager", attention_dropout=0.0)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = [json.loads(line) for line in place.train.read_text().splitlines()]

    def margins() -> list[torch.Tensor]:
        return [_logp(model, tokenizer, row, "chosen") - _logp(model, tokenizer, row, "rejected") for row in rows]

    with torch.no_grad():
        reference = margins()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.01)
    losses = []
    for update in range(6):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - update / 6)
        pairs = zip(margins(), reference, strict=True)
        loss = -torch.stack([torch.nn.functional.logsigmoid(0.1 * (m - r)) for m, r in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert [line["loss"] for line in updates(run_dir)] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < 0.67
    theirs = {name.replace(".default", ""): p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert distance(weights(run_dir), theirs) <= 1e-3


def _logp(model: torch.nn.Module, tokenizer: Any, row: dict[str, Any], side: str) -> torch.Tensor:
    """log pi(answer | prompt), from text, without anything of ours."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(whole[len(prompt) :].rstrip("\n"), add_special_tokens=False)["input_ids"]
    logits = model(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum()


# -- the reference


def test_a_new_adapter_shares_the_reference_of_a_full_run(place: Place, whole: Path, lora: Path) -> None:
    assert record(lora)["reference"]["identity"] == record(whole)["reference"]["identity"]
    assert record(lora)["reference"]["store"] == record(whole)["reference"]["store"]


@pytest.mark.parametrize(
    "changes", [{}, {"launch.num_processes": 2, "engine.zero_stage": 3, "engine.deepspeed": SHARD_ALL}]
)
def test_the_adapter_switched_off_gives_the_same_run(place: Place, lora: Path, tmp_path: Path, changes: dict) -> None:
    cache = tmp_path / "cache"
    off = place.run(tmp_path / "off", {**LORA, **changes, "reference.mode": "adapter_off"}, cache=cache)
    assert_same_curve(off, lora, 1e-5 if changes else 1e-6, WEIGHTS)
    assert not (cache / "reference").exists()


def test_going_on_from_an_adapter_its_reference_is_that_adapter(place: Place, sft: Path, tmp_path: Path) -> None:
    """Not its base, whose log-probs are others."""
    on = {"train.epochs": 1, "model.path": sft, "train.eval_every": 2}
    cached = place.run(tmp_path / "cached", on)
    assert abs(record(cached)["zero_margin"]["gap"]) <= 1e-6
    first = evaluations(cached)[0]
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "adapter_model.safetensors" in record(cached)["reference"]["identity"]["files"]
    before, after = load_file(sft / "adapter_model.safetensors"), weights(cached)
    assert distance(after, before) > 1e-3
    settings = json.loads((cached / "final" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(place.model.resolve())
    off = place.run(tmp_path / "off", {**on, "reference.mode": "adapter_off"})
    assert_same_curve(off, cached, 1e-6)
    # Named apart from its base, it is the same.
    apart = {"model.path": place.model, "model/adapter": "existing", "model.adapter.path": sft}
    assert_same_bits(weights(place.run(tmp_path / "apart", {**on, **apart})), after)
    # With the base as the reference it would have been another run.
    wrong = place.run(tmp_path / "wrong", {**on, "reference.path": place.model})
    assert evaluations(wrong)[0]["eval/loss"] < 0.65


@pytest.mark.parametrize(
    "changes", [{}, {"launch.num_processes": 2, "engine.zero_stage": 3, "engine.deepspeed": SHARD_ALL}]
)
def test_a_reference_that_moves_is_a_second_adapter(place: Place, tmp_path: Path, changes: dict) -> None:
    """TR-DPO: half way after every second update; stopped and gone on with, it is the same run."""
    moving = {
        **LORA,
        **changes,
        "train.epochs": 1,
        "train.save_every": 1,
        "train.keep_last": 9,
        "model.adapter.dropout": 0,
    }
    moving |= {"reference.mode": "adapter_off", "reference.update_every": 2, "reference.update_mix": 0.5}
    whole = place.run(tmp_path / "whole", moving)
    start = saved(whole, 1).keys()
    moved = load_file(tmp_path / "whole" / "checkpoints" / "step-2" / "reference.safetensors")
    policy = saved(whole, 2)
    assert moved.keys() == {name for name in start if "/" not in name}
    products = [name for name in moved if ".lora_B." in name]
    assert distance({n: moved[n] for n in products}, {n: policy[n] / 2 for n in products}) < 1e-6
    fault = "micro-batch:3.1=term"
    assert place.try_run(tmp_path / "cut", moving, fault=fault).code == 75
    assert_identical_runs(place.run(tmp_path / "cut", {**moving, "resume": "auto"}), whole)


def test_a_reference_that_moves_all_the_way_is_the_policy(place: Place, tmp_path: Path) -> None:
    """Every loss is then that of policy = reference."""
    moving = {**LORA, "train.epochs": 1, "train.eval_every": 1, "model.adapter.dropout": 0}
    moving |= {"reference.mode": "adapter_off", "reference.update_every": 1, "reference.update_mix": 1.0}
    run_dir = place.run(tmp_path / "run", moving)
    losses = [line["loss"] for line in updates(run_dir)] + [line["eval/loss"] for line in evaluations(run_dir)]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-6)
    assert distance(weights(run_dir), weights(run_dir)) == 0
    assert max(float(t.abs().max()) for n, t in weights(run_dir).items() if "lora_B" in n) > 1e-3


# -- kinds


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_other_kinds_train(place: Place, tmp_path: Path, kind: str) -> None:
    run_dir = place.run(tmp_path / kind, {**LORA, "model/adapter": kind, "model.adapter.dropout": 0.0})
    assert abs(record(run_dir)["zero_margin"]["gap"]) <= 1e-6
    assert evaluations(run_dir)[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert updates(run_dir)[-1]["loss"] < 0.65
    assert any("magnitude" in name for name in weights(run_dir)) == (kind == "dora")


@QUANTISED
@pytest.mark.parametrize("kind", ["qlora", "qlora_8bit"])
def test_quantised_bases(place: Place, tmp_path: Path, kind: str) -> None:
    """The reference is the quantised model; at full precision it is another, and the start is not at ln 2."""
    start = {**LORA, "model/adapter": kind}
    run_dir = place.run(tmp_path / kind, start)
    assert evaluations(run_dir)[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert record(run_dir)["reference"]["identity"]["quantization"] == {"qlora": "nf4_double"}.get(kind, "int8")
    assert updates(run_dir)[-1]["loss"] < 0.68
    off = place.run(tmp_path / "off", {**start, "reference.mode": "adapter_off"})
    assert_same_curve(off, run_dir, 1e-3 if kind == "qlora_8bit" else 1e-5)
    ended = place.try_run(tmp_path / "full", {**start, "reference.path": place.model, "train.max_steps": 1})
    assert ended.code == 0, ended.err
    assert abs(record(tmp_path / "full")["zero_margin"]["gap"]) > 1e-5
    assert "the policy is not the reference" in ended.err + ended.out
    refused = place.try_run(tmp_path / "three", {**start, "engine.zero_stage": 3})
    assert refused.code == 2
    assert "engine.zero_stage=3" in refused.err


def test_bf16_holds_frozen_matrices_in_bfloat16_and_follows_fp32(place: Place, whole: Path, tmp_path: Path) -> None:
    start = {**LORA, "model.adapter.dropout": 0}
    exact = place.run(tmp_path / "fp32", start)
    rounded = place.run(tmp_path / "bf16", {**start, "train.precision": "bf16"})
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(updates(rounded), updates(exact), strict=True)]
    assert 0 < max(gaps) <= 5e-3, gaps
    assert {tensor.dtype for tensor in weights(rounded).values()} == {torch.float32}
    # The reference is that of a full run in bf16, to the bit: held in bfloat16 or rounded to it comes to the same.
    full = place.run(tmp_path / "full", {"train.precision": "bf16", "train.max_steps": 1})
    assert record(full)["reference"]["tokens_computed"] == 0
    assert abs(record(full)["zero_margin"]["gap"]) <= 1e-6


# -- what a run leaves


def test_eval_of_a_run_and_of_its_adapter(place: Place, lora: Path, sft: Path, tmp_path: Path) -> None:
    for arguments in (
        {"run": lora, "output": tmp_path / "a"},
        {"model.path": sft, "data.path": place.held_out, "reference.path": place.model, "precision": "fp32"}
        | {"output": tmp_path / "b"},
    ):
        ended = place.dpo("eval", arguments)
        assert ended.code == 0, ended.err
        found = json.loads(Path(str(arguments["output"]), "eval.json").read_text())["metrics"]
        for name, value in found.items():
            assert value == pytest.approx(evaluations(lora)[-1][f"eval/{name}"], abs=1e-5), name


def test_samples_and_their_drift(place: Place, tmp_path: Path) -> None:
    for mode in ("cached", "adapter_off"):
        changes = {**LORA, "train.epochs": 1, "eval.samples": 4, "eval.max_new_tokens": 8, "reference.mode": mode}
        place.run(tmp_path / mode, changes)
    one, other = (record(tmp_path / mode)["final"] for mode in ("cached", "adapter_off"))
    assert one["samples/kl"] == pytest.approx(other["samples/kl"], abs=1e-5)
    assert one["samples/kl"] != 0


def test_the_cards_line_loads_the_adapter_on_its_base(place: Place, lora: Path, tmp_path: Path) -> None:
    """In the log-probs of the folder, loaded as its card says, and of the merged model."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final = lora / "final"
    card = (final / "README.md").read_text()
    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer}
    code = card.split("```python")[1].split("```")[0].replace("THIS_FOLDER", str(final))
    exec("\n".join(line for line in code.splitlines() if "import" not in line), names)
    ids = torch.tensor([names["tokenizer"]("apple bell cloud drum")["input_ids"]])
    with torch.no_grad():
        found = names["model"].eval()(ids).logits.log_softmax(-1)
        merged = AutoPeftModelForCausalLM.from_pretrained(final).merge_and_unload().eval()(ids).logits.log_softmax(-1)
        base = AutoModelForCausalLM.from_pretrained(place.model).eval()(ids).logits.log_softmax(-1)
    assert float((found - merged).abs().max()) < 1e-4
    assert float((found - base).abs().max()) > 1e-2


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model/adapter": "lora", "model.adapter.target_modules": "[query]"}, ["query", "q_proj, up_proj, v_proj"]),
        ({"reference.mode": "adapter_off"}, ["adapter_off", "model/adapter=lora"]),
        ({"model/adapter": "lora", "reference.mode": "live"}, ["reference.mode=adapter_off"]),
        ({"model/adapter": "existing"}, ["model.adapter.path"]),
        ({"model/adapter": "lora", "model.chat_template": "llama3"}, ["tokens more", "model/adapter=none"]),
    ],
)
def test_what_makes_no_sense_is_one_line(place: Place, tmp_path: Path, changes: dict, words: list[str]) -> None:
    ended = place.try_run(tmp_path / "run", changes)
    assert ended.code == 2, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("dpo: ")
    assert all(word in last for word in words), last
    assert not (tmp_path / "run" / "run.json").exists()


def test_adapters_that_can_not_be_gone_on_with(place: Place, sft: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(sft, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    other = shutil.copytree(sft, tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "r": 3}))
    kind = shutil.copytree(sft, tmp_path / "kind")
    (kind / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    for folder, word in ((pickled, "pickles"), (other, "does not fit"), (kind, "IA3")):
        ended = place.try_run(tmp_path / "run", {"model.path": folder})
        assert ended.code == 2, ended.err
        assert word in ended.err.strip().splitlines()[-1]
    ended = place.try_run(tmp_path / "run", {"model.path": sft, "model/adapter": "lora"})
    assert ended.code == 2
    assert "model/adapter=existing" in ended.err


# -- merged


def test_merged_it_is_evaluated_as_the_adapter_was(place: Place, lora: Path, tmp_path: Path) -> None:
    words = [str(lora), str(tmp_path / "merged")]
    job = dpo("merge", *words, cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert f"written to {tmp_path / 'merged'}" in job.stdout
    changes = {"model.path": tmp_path / "merged", "data.path": place.held_out, "reference.path": place.model}
    ended = place.dpo("eval", {**changes, "precision": "fp32", "output": tmp_path / "out"})
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "eval.json").read_text())["metrics"]
    logged = {name.removeprefix("eval/"): value for name, value in evaluations(lora)[-1].items() if name != "step"}
    assert found == pytest.approx(logged, abs=1e-5)
    assert abs(found["rewards/margins"]) > 0.05
    merged, final = (ModelCard.load(folder / "README.md") for folder in (tmp_path / "merged", lora / "final"))
    assert (merged.data.library_name, final.data.library_name) == ("transformers", "peft")
    assert "LoRA of rank 16" in merged.text
    assert str(place.root) not in merged.text + final.text
    again = dpo("merge", *words, cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
