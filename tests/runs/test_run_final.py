"""What a run leaves is a plain model that gives the numbers that were logged."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tokenizers
from helpers.runs import (
    DROPOUT,
    Place,
    assert_same_curve,
    distance,
    evaluations,
    llama,
    make_model,
    record,
    updates,
    weights,
    write_rows,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dpo_cli.metric_names import of_loss, of_run, of_samples

BETA = 0.1


def answer_logp(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], side: str) -> float:
    """log pi(answer | prompt), from text, one sequence at a time, without anything of ours."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
    assert whole.startswith(prompt)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(whole[len(prompt) :].rstrip("\n"), add_special_tokens=False)["input_ids"]
    assert answer[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1].double()
    return float(logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum())


def score(final: Path, start: Path, rows: Path) -> dict[str, float]:
    """DPO's metrics over rows, from their definitions."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (final, start))
    tokenizer = AutoTokenizer.from_pretrained(final)
    reference.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    found: dict[str, list[float]] = {}
    for row in map(json.loads, rows.read_text().splitlines()):
        logps = {side: answer_logp(policy, tokenizer, row, side) for side in ("chosen", "rejected")}
        reward = {side: BETA * (logps[side] - answer_logp(reference, tokenizer, row, side)) for side in logps}
        margin = reward["chosen"] - reward["rejected"]
        values = {
            "loss": math.log1p(math.exp(-margin)),
            "rewards/chosen": reward["chosen"],
            "rewards/rejected": reward["rejected"],
            "rewards/accuracies": float(margin > 0),
            "rewards/margins": margin,
            "logps/chosen": logps["chosen"],
            "logps/rejected": logps["rejected"],
        }
        for name, value in values.items():
            found.setdefault(f"eval/{name}", []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def generate(folder: Path, text: str = "Say so") -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert output.shape[1] > prompt["input_ids"].shape[1]
    return str(tokenizer.decode(output[0]))


def assert_plain(folder: Path) -> None:
    """Nothing in the folder knows of us."""
    config = (folder / "config.json").read_text()
    assert "dpo" not in config
    assert "attn_implementation" not in config


def test_final_is_a_plain_model_that_gives_the_logged_numbers(place: Place, whole: Path) -> None:
    final = whole / "final"
    assert_plain(final)
    config = json.loads((final / "config.json").read_text())
    assert config["attention_dropout"] == DROPOUT
    assert generate(final)
    logged = evaluations(whole)[-1]
    found = score(final, place.model, place.held_out)
    for name, value in found.items():
        assert logged[name] == pytest.approx(value, abs=1e-5, rel=1e-6), name
    assert {name: record(whole)["final"][name] for name in found} == {name: logged[name] for name in found}


def test_dpo_eval_of_the_run_gives_the_logged_numbers(place: Place, whole: Path, tmp_path: Path) -> None:
    ended = place.dpo("eval", {"run": whole, "output": tmp_path / "out", "against": place.model})
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "out" / "eval.json").read_text())
    found = written["metrics"]
    logged = {name.removeprefix("eval/"): value for name, value in evaluations(whole)[-1].items() if name != "step"}
    assert found == pytest.approx(logged, abs=1e-6)

    # The same as measures on comparisons, and against the model as it was, whose rewards are all 0.
    measured = {name: value["value"] for name, value in written["preferences"].items() if name != "bins"}
    assert measured["accuracy"] == pytest.approx(logged["rewards/accuracies"])
    assert measured["margin"] == pytest.approx(logged["rewards/margins"], abs=1e-6)
    assert measured["log_loss"] == pytest.approx(logged["loss"], abs=1e-6)
    assert written["rows"] == {"rows": 5, "comparisons": 5, "prompts": 5, "ties": 0}
    assert {part["value"] for part in written["slices"]["turns"]} == {"1 user turn", "2 user turns"}
    assert sum(part["comparisons"] for part in written["slices"]["turns"]) == 5
    against = written["against"]
    assert against["comparisons"] == 5
    assert against["accuracy"]["value"] == pytest.approx(logged["rewards/accuracies"] - 0.5)
    assert against["log_loss"]["value"] == pytest.approx(logged["loss"] - math.log(2), abs=1e-6)
    assert not (whole / "eval.json").exists()


@pytest.mark.slow
def test_dpo_eval_of_an_unfinished_run_takes_its_newest_checkpoint(place: Place, stopped: Path, tmp_path: Path) -> None:
    ended = place.dpo("eval", {"run": stopped, "output": tmp_path / "out"})
    assert ended.code == 0, ended.err
    assert "step-7" in ended.err
    assert not (stopped / "eval.json").exists()
    found = json.loads((tmp_path / "out" / "eval.json").read_text())["metrics"]
    assert abs(found["rewards/margins"]) > 0


def gpt2() -> GPT2Config:
    tokenizer = tokenizers.quickstart()
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def mixtral() -> PretrainedConfig:
    tokenizer = tokenizers.quickstart()
    return MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dropout"),
    [
        (lambda: llama(tie_word_embeddings=True), {"attention_dropout": DROPOUT}),
        (gpt2, {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}),
        (mixtral, {}),  # experts: other names on disk than in memory
    ],
    ids=["tied", "gpt2", "mixtral"],
)
def test_other_models_end_to_end(place: Place, tmp_path: Path, config: Any, dropout: dict[str, float]) -> None:
    """Tied embeddings, learnt positions, biases: by groups and plainly, on one process and on two under ZeRO 3."""
    model = make_model(tmp_path / "model", config(), tokenizers.quickstart())
    # A small eps blows rounding up where gradients are near it: in some biases, and in GPT-2's of keys, which have no
    # other gradient.
    changes = {"model.path": model, "train.max_steps": 2, "train.eval_every": None, "optim.eps": 1e-2, "optim.lr": 1e-2}
    by_groups, plainly = (
        place.run(tmp_path / attention, {**changes, "model.attention": attention}) for attention in ("groups", "plain")
    )
    assert_same_curve(plainly, by_groups, 1e-5)
    sharded = {
        "launch.num_processes": 2,
        "engine.zero_stage": 3,
        "engine.deepspeed": "{zero_optimization:{stage3_param_persistence_threshold:0}}",
    }
    assert_same_curve(place.run(tmp_path / "sharded", {**changes, **sharded}), by_groups, 1e-5)
    assert updates(by_groups)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for run_dir in (by_groups, plainly, tmp_path / "sharded"):
        final = run_dir / "final"
        assert_plain(final)
        saved_config = json.loads((final / "config.json").read_text())
        assert {name: saved_config[name] for name in dropout} == dropout
        assert weights(run_dir).keys() == load_file(model / "model.safetensors").keys()
        assert distance(weights(run_dir), load_file(model / "model.safetensors")) > 1e-4
        found = score(final, model, place.held_out)
        logged = evaluations(run_dir)[-1]
        for name, value in found.items():
            assert logged[name] == pytest.approx(value, abs=1e-5, rel=1e-6), name
    generate(by_groups / "final")


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_base_model_is_given_a_chat_template(place: Place, tmp_path: Path, tied: bool) -> None:
    base = tokenizers.without_bos()
    size = len(base)
    config = llama(vocab_size=size, eos_token_id=base.eos_token_id, pad_token_id=None, tie_word_embeddings=tied)
    model = make_model(tmp_path / "model", config, base)
    assert not AutoTokenizer.from_pretrained(model).chat_template
    rows = [
        {"prompt": f"{number}: say", "chosen": f"{'so ' * (number % 3 + 1)}so", "rejected": f"no {number}"}
        for number in range(9)
    ]
    changes = {
        "model.path": model,
        "data.path": write_rows(tmp_path / "text.jsonl", rows[:6]),
        "data.eval": write_rows(tmp_path / "other.jsonl", rows[6:]),
        "train.max_steps": 3,
        "train.eval_every": None,
    }
    ended = place.try_run(tmp_path / "refused", {**changes, "data.text": "chat"})
    assert ended.code == 2
    assert "model.chat_template" in ended.err.splitlines()[-1]
    assert not (tmp_path / "refused").exists()

    run_dir = place.run(tmp_path / "run", {**changes, "model.chat_template": "chatml"})
    assert updates(run_dir)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "final")
    assert len(tokenizer) == size + 2
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template
    assert tokenizer("<|im_start|>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    trained = AutoModelForCausalLM.from_pretrained(run_dir / "final")
    assert trained.get_input_embeddings().weight.shape[0] == size + 2
    assert trained.get_output_embeddings().weight.shape[0] == size + 2
    assert trained.config.vocab_size == size + 2
    assert "<|im_start|>assistant" in generate(run_dir / "final")
    # The end of a turn is what generation stops at.
    ends = trained.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])

    ended = place.dpo("eval", {"run": run_dir})
    assert ended.code == 0, ended.err
    found = json.loads((run_dir / "eval.json").read_text())["metrics"]
    logged = {name.removeprefix("eval/"): value for name, value in evaluations(run_dir)[-1].items() if name != "step"}
    assert found == pytest.approx(logged, abs=1e-6)


@pytest.mark.slow
def test_samples_of_two_sharded_processes_are_those_of_one(place: Place, tmp_path: Path) -> None:
    """Answers end at different times; under ZeRO 3 no process may wait for another one's next token."""
    changes = {"train.max_steps": 2, "train.eval_every": None, "eval.samples": 5, "eval.max_new_tokens": 12}
    sharded = {
        "launch.num_processes": 2,
        "engine.zero_stage": 3,
        "engine.deepspeed": "{zero_optimization:{stage3_param_persistence_threshold:0}}",
    }
    alone, both = place.run(tmp_path / "1", changes), place.run(tmp_path / "2", {**changes, **sharded})
    assert (alone / "samples.jsonl").read_text() == (both / "samples.jsonl").read_text()
    final = [record(run)["final"] for run in (alone, both)]
    assert final[1]["samples/kl"] == pytest.approx(final[0]["samples/kl"], abs=1e-4)
    assert "samples/kl" in final[0]
    known = set(of_run(of_loss(["dpo"]), True, of_samples(true_reward=False, kl=True)))
    assert set(final[0]) - known == set()
    assert known - set(final[0]) <= {"memory/gpu_gib", "mfu", "passed_over"}
    warm = place.run(tmp_path / "3", {**changes, "eval.temperature": 0.5})
    assert "samples/kl" not in record(warm)["final"]  # at another temperature they are no samples of the policy


@pytest.mark.slow
def test_what_no_row_was_held_out_for_is_not_evaluated(place: Place, tmp_path: Path) -> None:
    run_dir = place.run(tmp_path / "run", {"data.eval": None, "train.eval_every": None, "train.max_steps": 1})
    assert distance(weights(run_dir), load_file(place.model / "model.safetensors")) > 1e-5  # one update does something
    ended = place.dpo("eval", {"run": run_dir})
    assert ended.code == 2
    assert "held no rows out" in ended.err.splitlines()[-1]
    assert place.dpo("eval", {"run": run_dir, "data.path": place.held_out}).code == 0
