"""Runs of the real command on a tiny model, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerBase

from helpers import forks, tokenizers
from helpers.command import RANKS

DROPOUT = 0.1
"""Of the tiny model's attention: to be off in training, and back in what is exported."""
UPDATES = 12
"""Of a run with the usual arguments: 3 epochs of 22 pairs, 6 a batch, the last batch of each 4."""
EPOCH = 4
"""Updates in an epoch."""
SHARD_ALL = "{zero_optimization:{stage3_param_persistence_threshold:0}}"
"""``engine.deepspeed``, or stage 3 would leave parameters as small as these whole on every rank."""
TIMING = {"pairs_per_second", "tokens_per_second", "mfu", "memory/rss_gib"}
"""Metrics that no two runs share."""
_WORDS = ("apple", "bell", "cloud", "drum", "eagle", "fox", "garden", "hat", "island", "jar", "kite", "lamp", "mirror")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A folder with a model, rows and a cache, and the real command run on them."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def train(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def held_out(self) -> Path:
        return self.root / "held-out.jsonl"

    def arguments(self) -> dict[str, object]:
        """The usual arguments of ``dpo train``."""
        return {
            "model.path": self.model,
            "data.path": self.train,
            "data.eval": self.held_out,
            "tracker.mode": "disabled",
            "train.precision": "fp32",
            "train.epochs": UPDATES // EPOCH,
            "train.batch_size": 6,
            "train.tokens_per_micro_batch": 96,
            "train.activation_checkpointing": "none",  # auto takes half a second to find that out
            "train.save_every": 2,
            "train.eval_every": 4,
            "optim.lr": 1e-3,
            "optim.warmup_ratio": 0,
            # Where a gradient is nothing but rounding, a smaller one would blow it up to a full step.
            "optim.eps": 1e-5,
        }

    def dpo(
        self,
        command: str,
        arguments: Mapping[str, object],
        *flags: str,
        fault: str | None = None,
        cache: Path | None = None,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Ended:
        """``dpo_at_once``, of one."""
        (ended,) = self.dpo_at_once(
            1, command, arguments, *flags, fault=fault, cache=cache, cwd=cwd, variables=variables, seconds=seconds
        )
        return ended

    def dpo_at_once(
        self,
        count: int,
        command: str,
        arguments: Mapping[str, object],
        *flags: str,
        fault: str | None = None,
        cache: Path | None = None,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> list[Ended]:
        """Run the command in forks that start together; nothing of them is left running.

        Args:
            count: of forks.
            command: ``train``, ``eval``, ``precompute-ref``.
            arguments: overrides; None = null.
            flags: more words.
            fault: what goes wrong in it, and where, as ``DPO_FAULT`` has it.
            cache: of the reference; None = the place's own.
            cwd: where it is run.
            variables: of the environment.
            seconds: after which all its processes are killed; it then ends with -9.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "DPO", "HF_"))}
        for name in RANKS:
            environment.pop(name, None)
        environment |= {**forks.FIXED, "DPO_CACHE": str(cache or self.root / "cache"), **(variables or {})}
        if fault is not None:
            environment["DPO_FAULT"] = fault
        words = [command, *(f"{key}={'null' if value is None else value}" for key, value in arguments.items()), *flags]
        options = {} if seconds is None else {"timeout": seconds}
        try:
            return [Ended(*said) for said in forks.run_at_once(words, environment, cwd or self.root, count, **options)]
        except TimeoutError as killed:
            if seconds is None:
                raise
            return [Ended(-signal.SIGKILL, "", str(killed))] * count

    def try_run(self, run_dir: Path, changes: Mapping[str, object] | None = None, **options: Any) -> Ended:
        """``dpo train`` with the usual arguments and ``changes``."""
        return self.dpo("train", {**self.arguments(), **(changes or {}), "run_dir": run_dir}, **options)

    def run(self, run_dir: Path, changes: Mapping[str, object] | None = None, **options: Any) -> Path:
        """``try_run`` to a good end."""
        ended = self.try_run(run_dir, changes, **options)
        assert ended.code == 0, ended.err[-3000:]
        assert record(run_dir)["status"] == "done"
        return run_dir


def make_place(root: Path) -> Place:
    """A place with a tiny Llama, 22 rows to train on and 5 held out."""
    place = Place(root)
    make_model(place.model, llama(), tokenizers.quickstart())
    rows = make_rows(27)
    write_rows(place.train, rows[:22])
    write_rows(place.held_out, rows[22:])
    return place


def llama(**changes: Any) -> LlamaConfig:
    tokenizer = tokenizers.quickstart()
    return LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "attention_dropout": DROPOUT,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )


def make_model(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Random weights, large enough to make attention matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Messages of many lengths, some with several turns; some answers share their first words."""
    pick = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(pick.choices(_WORDS, k=pick.randint(low, high)))

    rows = []
    for number in range(count):
        prompt = [{"role": "user", "content": f"{number}: {text(1, 14)}"}]
        if number % 5 == 1:
            prompt = [{"role": "system", "content": text(2, 4)}, *prompt]
        if number % 5 == 2:
            prompt += [{"role": "assistant", "content": text(1, 4)}, {"role": "user", "content": text(1, 6)}]
        start = f"{text(1, 3)} " if number % 3 == 0 else ""
        chosen, rejected = f"{start}{text(1, 9)} so", f"{start}{text(1, 9)} no"
        rows.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- what a run leaves


def record(run_dir: Path) -> dict[str, Any]:
    """``run.json``"""
    return json.loads((run_dir / "run.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def updates(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics of each update, of which every one must be there once, in order."""
    found = [line for line in metrics(run_dir) if "loss" in line]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return found


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Held-out metrics, at each step at most once, in order."""
    found = [line for line in metrics(run_dir) if "eval/loss" in line]
    steps = [line["step"] for line in found]
    assert steps == sorted(set(steps))
    return found


def weights(run_dir: Path) -> dict[str, Tensor]:
    """Of ``final/``: of the model, or of the adapter alone."""
    adapter = run_dir / "final" / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else run_dir / "final" / "model.safetensors")


def saved(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Weights and moments of a checkpoint."""
    folder = run_dir / "checkpoints" / f"step-{step}"
    tensors = load_file(folder / "weights.safetensors")
    return {**tensors, **load_file(folder / "moments.safetensors")}


def steps(run_dir: Path) -> list[int]:
    """Of the checkpoints."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run_dir / "checkpoints").iterdir())


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """When each file and folder was last changed, and to what."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
    }


# -- comparing


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not differing


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its own largest entry."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - tensor).abs().max() / tensor.abs().max()) for name, tensor in expected.items())


def assert_same_curve(found: Path, expected: Path, tolerance: float, of_weights: float | None = None) -> None:
    """Every metric of every update and evaluation, relative to how large it gets, and the final weights.

    ``of_weights``: their tolerance, where they may differ more, as those may that start at zero.
    """
    for lines, others in ((updates(found), updates(expected)), (evaluations(found), evaluations(expected))):
        assert [line["step"] for line in lines] == [line["step"] for line in others]
        assert [line.keys() for line in lines] == [line.keys() for line in others]
        prefix = "" if "loss" in others[0] else "eval/"
        for name in others[0]:
            if name.endswith("rewards/accuracies"):  # where margins are nothing but rounding, so are these
                pairs = zip(lines, others, strict=True)
                pairs = [pair for pair in pairs if max(abs(line[f"{prefix}rewards/margins"]) for line in pair) > 1e-5]
                assert all(line[name] == pytest.approx(other[name], abs=1e-12) for line, other in pairs)
                continue
            scale = max(abs(line[name]) for line in others)
            if "rewards/" in name:  # beta x a difference of log-probs of some 50 nats, each rounded to 4e-6
                scale = max(scale, 0.1)
            worst = max(abs(line[name] - other[name]) for line, other in zip(lines, others, strict=True))
            assert worst <= tolerance * scale, (name, worst, scale)
    assert distance(weights(found), weights(expected)) <= (of_weights or tolerance)


def assert_identical_runs(found: Path, expected: Path) -> None:
    """Every metric of every step, the newest checkpoint and the final weights, to the bit."""
    assert metrics(found) == metrics(expected)
    assert_same_bits(weights(found), weights(expected))
    last = steps(expected)[-1]
    assert steps(found)[-1] == last
    assert_same_bits(saved(found, last), saved(expected, last))
