"""The command: what it prints and writes, its mistakes in one line, and that nothing heavy is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.command import Outcome, dpo, dpo_each, environment

FIXTURES = Path(__file__).parent / "fixtures"
DPO = str(FIXTURES / "trl" / "dpo.yaml")
EVIL = "model_name_or_path: m\nbeta: !!python/object/apply:os.system ['touch pwned']\n"

BOMB = ", ".join(
    ["&a [x, x, x, x, x, x, x, x, x, x]"]
    + [f"&{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefg", "bcdefgh", strict=True)]
)

FILES = {
    "list.yaml": "- a\n- b\n",
    "text.yaml": "just text\n",
    "empty.yaml": "",
    "broken.yaml": "a: [1\nb: 2\n",
    "broken.json": '{"beta": 0.1,}',
    "evil.yaml": EVIL,
    "other.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n",
    "ours.yaml": "# @package _global_\nmodel: {path: m}\nloss: {beta: 0.1}\n",
    "grpo.yaml": "base_model: m\nrl: grpo\nmicro_batch_size: 1\n",
    "sft.yaml": "stage: sft\nmodel_name_or_path: m\nfinetuning_type: full\n",
    "wrong.yaml": "model_name_or_path: m\nlearning_rate: fast\n",
    "axolotl.yaml": "base_model: m\nrl: dpo\nmicro_batch_size: 1\n",
    "bomb.yaml": f"base_model: m\nrl: dpo\nlora_model_dir: [{BOMB}]\ndeepspeed: *h\nlora_target_modules: *h\n",
    "itself.yaml": "base_model: m\nrl: dpo\nlora_target_modules: &a [*a]\n",
    "digits.yaml": f"base_model: m\nrl: dpo\nseed: 0x{'f' * 5000}\n",
    "nan.yaml": "base_model: m\nrl: dpo\nlearning_rate: .nan\n",
    "month.yaml": "base_model: m\nrl: dpo\nx: 2020-13-45\n",
    "long.yaml": f"base_model: {'m' * 1_000_000}\n",
}
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no file": ([], ["import", "FILE"]),
    "no such file": (["absent.yaml"], ["absent.yaml: no such file"]),
    "a folder": (["."], ["is a folder"]),
    "no text": (["latin.yaml"], ["latin.yaml is not text"]),
    "a pickle": (["training_args.bin"], ["training_args.bin is a pickle", "to_json_string"]),
    "a list": (["list.yaml"], ["found a list"]),
    "text": (["text.yaml"], ["found a single value"]),
    "nothing": (["empty.yaml"], ["found nothing"]),
    "no YAML": (["broken.yaml"], ["broken.yaml is not valid YAML", "line 2"]),
    "no JSON": (["broken.json"], ["broken.json is not valid JSON"]),
    "code": (["evil.yaml"], ["evil.yaml is not valid YAML", "python/object/apply:os.system"]),
    "another tool": (["other.yaml"], ["of 4 options TRL knows 0, axolotl knows 0", "LLaMA-Factory"]),
    "our own": (["ours.yaml"], ["an experiment of dpo itself"]),
    "another training": (["grpo.yaml"], ["rl=grpo: expected one of dpo, ipo, kto, orpo, simpo"]),
    "another stage": (["sft.yaml"], ["stage=sft: expected dpo or kto"]),
    "a wrong value": (["wrong.yaml"], ["wrong.yaml: learning_rate='fast': expected a number"]),
    "a trainer for axolotl": (["axolotl.yaml", "--trainer", "kto"], ["--trainer kto is for TRL"]),
    "no such trainer": ([DPO, "--trainer", "ppo"], ["--trainer", "ppo", "'kto'"]),
    "no processes": ([DPO, "--processes", "0"], ["--processes", "0: expected a number from 1"]),
    "no such flag": ([DPO, "--process", "x", "--nope"], ["import: "]),
    "ten lines for a billion values": (["bomb.yaml"], ["its aliases stand for more than 100,000 values"]),
    "a list that holds itself": (["itself.yaml"], ["its aliases stand for more than 100,000 values"]),
    "a number of 20,000 bits": (["digits.yaml"], ["a whole number of 20,000 bits; expected 64 at most"]),
    "a number that is none": (["nan.yaml"], ["learning_rate=nan: expected a number"]),
    "a month that is none": (["month.yaml"], ["is not valid YAML: month must be in 1..12"]),
    "a megabyte": (["long.yaml"], ["has more than 1,000,000 bytes"]),
    "a pipe": (["pipe.yaml"], ["pipe.yaml is no file"]),
    "a file in the way": ([DPO, "-o", "list.yaml"], ["-o list.yaml exists"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin.yaml").write_bytes(b"a: \xff\n")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    words = [["import", *words] for words, _ in MISTAKES.values()]
    return dict(zip(MISTAKES, dpo_each(words, cwd=folder), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(name: str, outcomes: dict[str, Outcome], folder: Path) -> None:
    found = outcomes[name]
    assert (found.code, found.out) == (2, "")
    (line,) = found.problems
    for part in MISTAKES[name][1]:
        assert part in line
    assert not (folder / "pwned").exists()
    assert (folder / "list.yaml").read_text(encoding="utf-8") == FILES["list.yaml"]


def test_it_prints_an_experiment_and_loads_nothing_heavy(tmp_path: Path) -> None:
    job = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dpo_cli", "import", DPO],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
    )
    assert job.returncode == 0
    assert job.stdout.startswith("# @package _global_\n# Converted from dpo.yaml, read as TRL 1.16's DPOConfig")
    assert yaml.safe_load(job.stdout)["loss"] == {"beta": 0.05, "label_smoothing": 0.0}
    assert max(map(len, job.stdout.splitlines())) <= 120
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in job.stderr.splitlines()}
    assert "yaml" in loaded
    assert not loaded & {"torch", "transformers", "trl", "deepspeed", "datasets", "numpy", "hydra", "omegaconf"}


def test_it_writes_an_experiment_and_says_how_to_run_it(tmp_path: Path) -> None:
    job = dpo("import", DPO, "-o", "mine/experiment/zephyr.yaml", "--processes", "8", cwd=tmp_path)
    assert (job.returncode, job.stderr) == (0, "")
    assert job.stdout.splitlines()[0].startswith("wrote mine/experiment/zephyr.yaml; ")
    command = job.stdout.splitlines()[1]
    assert command == "dpo train --config-dir mine +experiment=zephyr"
    assert f"# {command}\n" in (tmp_path / "mine/experiment/zephyr.yaml").read_text(encoding="utf-8")
    shown = dpo(*command.split()[1:], "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["train"]["batch_size"] == 128


def test_what_lies_elsewhere_must_be_moved(tmp_path: Path) -> None:
    job = dpo("import", DPO, "-o", "zephyr.yaml", cwd=tmp_path)
    assert "Move it to DIR/experiment/zephyr.yaml" in job.stdout


def test_help(tmp_path: Path) -> None:
    job = dpo("import", "--help", cwd=tmp_path)
    assert job.returncode == 0
    for part in ("dpo import", "--processes N", "--trainer {dpo,kto,cpo,orpo}", "TRL, axolotl or"):
        assert part in job.stdout
    assert "import " in dpo("--help", cwd=tmp_path).stdout
