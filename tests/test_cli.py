"""The command line: quick, and every mistake answered in one line that says what to change."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.command import Outcome, dpo, dpo_each, environment

import dpo_cli.quickstart
from dpo_cli.cli import COMMANDS, HELPERS
from dpo_cli.config import EvaluateConfig, ScoreConfig, valid_keys

CONFIGS = Path(__file__).parents[1] / "configs"
LOSSES = sorted(file.stem for file in (CONFIGS / "loss").glob("*.yaml"))
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
ASSETS = Path(dpo_cli.quickstart.__file__).parent / "assets" / "model"
GIVEN = ("model.path=some-model", "data.path=rows.jsonl")
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "numpy")


# -- speed


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["merge", "--help"], ["push", "--help"]])
def test_help_is_instant_and_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        job = dpo(*words, cwd=tmp_path)
        seconds.append(time.perf_counter() - started)
        assert job.returncode == 0, job.stderr
        assert job.stdout.startswith(("usage: dpo", "dpo "))
        assert not job.stderr
    assert statistics.median(seconds) < 0.3
    assert not set(imported(words, tmp_path)) & {*HEAVY, "hydra", "omegaconf", "pydantic"}


@pytest.mark.parametrize(
    "words",
    [["train", "--help"], ["train", "--cfg", "job"], ["_complete", "dpo train loss."], ["train", *GIVEN, "seed=x"]],
)
def test_what_runs_nothing_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    assert "hydra" in imported(words, tmp_path)
    assert not set(imported(words, tmp_path)) & set(HEAVY)


def imported(words: Sequence[str], cwd: Path) -> list[str]:
    """Top-level modules that a command line loads, by Python's own account."""
    job = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dpo_cli", *words],
        cwd=cwd,
        env=environment(cwd / "cache"),
        capture_output=True,
        text=True,
    )
    lines = [line for line in job.stderr.splitlines() if line.startswith("import time:")]
    return sorted({line.rpartition("|")[2].strip().partition(".")[0] for line in lines})


# -- mistakes in the configuration


@dataclass(frozen=True)
class Mistake:
    """A wrong command line, and what must stand in each line of the answer."""

    words: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def mistake(*words: str, says: Sequence[str] | Sequence[Sequence[str]]) -> Mistake:
    lines = tuple((line,) if isinstance(line, str) else tuple(line) for line in says)
    return Mistake(words, lines)


def train(*words: str, says: Sequence[Any]) -> Mistake:
    return mistake("train", *GIVEN, *words, says=says)


def mine(name: str, *words: str, says: Sequence[Any]) -> Mistake:
    return train("--config-dir", "mine", f"+experiment={name}", *words, says=says)


AVAILABLE = ", ".join(EXPERIMENTS)
MISTAKES = {
    # keys
    "mistyped": train("loss.betta=1", says=["unknown key loss.betta; did you mean loss.beta?"]),
    "mistyped, appended": train("+loss.betta=1", says=["unknown key loss.betta; did you mean loss.beta?"]),
    "mistyped section": train("lossy.beta=1", says=["unknown key lossy.beta; did you mean loss.beta?"]),
    "wrong section": train("loss.lr=1", says=["unknown key loss.lr; did you mean optim.lr?"]),
    "no section": train("batch_size=1", says=["unknown key batch_size; did you mean train.batch_size?"]),
    "like nothing": train("xyzzy=1", says=["unknown key xyzzy"]),
    "mistyped group": train("losss=dpo", says=["unknown key losss; did you mean loss?"]),
    "deleted": train("~loss.beta", says=["loss.beta is missing"]),
    "of train, in eval": mistake("eval", *GIVEN, "train.epochs=2", says=["unknown key train.epochs"]),
    "swept, unknown": train("-m", "xyzzy=1,2", says=["unknown key xyzzy"]),
    # group options
    "no such option": train("engine=zero9", says=[["engine=zero9", "did you mean zero3?", "auto, zero3"]]),
    "no such loss": train("loss=dppo", says=[["loss=dppo", "did you mean dpo?", f"(available: {', '.join(LOSSES)})"]]),
    "no such experiment": train("+experiment=quickstrat", says=[["did you mean quickstart?", AVAILABLE]]),
    "no such experiment, no plus": train("experiment=quickstrat", says=[["did you mean quickstart?", AVAILABLE]]),
    "a number for an option": train("loss=3", says=[["loss=3", "loss is a group"]]),
    "nothing for an option": train("loss=null", says=[["loss=null", "loss is a group"]]),
    "keys for an option": train("loss={beta: 1}", says=[["loss={beta: 1}", "loss is a group"]]),
    "a number among options": train("-m", "loss=dpo,3", says=[["loss=dpo,3", "loss is a group"]]),
    # values
    "text for a number": train("loss.beta=strong", says=[["loss.beta", "strong", "number"]]),
    "nan": train("loss.beta=nan", says=[["loss.beta=nan", "finite"]]),
    "inf": train("optim.lr=inf", says=[["optim.lr=inf", "finite"]]),
    "nothing for a number": train("loss.beta=null", says=[["loss.beta", "number"]]),
    "out of range": train("loss.beta=-1", says=[["loss.beta=-1", "greater than 0"]]),
    "a fraction for a count": train("train.epochs=1.5", says=[["train.epochs=1.5", "integer"]]),
    "truth for a count": train("train.epochs=true", says=[["train.epochs", "integer"]]),
    "not one of the choices": train("model.attention=flash", says=[["model.attention", "groups", "plain"]]),
    "too few items": train("optim.betas=[0.9]", says=[["optim.betas=[0.9]", "one item more"]]),
    "unbalanced": train("optim.betas=[0.9", says=["[0.9"]),
    "no value": train("loss.beta", says=["loss.beta"]),
    "no key": train("=3", says=[["=3", "expected a key"]]),
    "unknown interpolation": train("model.path=${nope}", says=[["model.path", "nope"]]),
    "environment not set": train("model.path=${oc.env:DPO_NO_SUCH}", says=[["model.path", "DPO_NO_SUCH"]]),
    "a list without -m": train("loss.beta=0.1,0.2", says=[["loss.beta=0.1,0.2", "--multirun"]]),
    # missing
    "nothing given": mistake("train", says=["model.path has no value", "data.path has no value"]),
    "no data": mistake("train", "model.path=m", says=[["data.path has no value", "data.path=..."]]),
    "no model": mistake("precompute-ref", "data.path=rows.jsonl", says=["model.path has no value"]),
    "score of nothing": mistake("score", "model.path=m", says=["data.path has no value", "output has no value"]),
    "score to nowhere": mistake(
        "score", "rows.jsonl", "model.path=m", says=["output has no value: dpo score FILE OUT"]
    ),
    "score of three": mistake("score", "a.jsonl", "b.jsonl", "c.jsonl", says=["dpo score FILE OUT: c.jsonl is"]),
    "a judge of nothing": mistake(
        "eval",
        *GIVEN,
        "judge=reward_model",
        "judge.path=rm",
        says=[
            "judge=reward_model has no effect without eval.samples",
            "judge=reward_model needs answers to win against",
        ],
    ),
    "a step of no run": mistake("eval", *GIVEN, "step=3", says=["step=3 has no effect without run"]),
    "prompts for nothing": mistake("eval", *GIVEN, "prompts=a.json", says=["prompts has no effect without eval"]),
    "eval of nothing": mistake("eval", says=["model.path has no value", "data.path has no value"]),
    "eval of no run": mistake("eval", "run=nowhere", says=[["run=nowhere", "nowhere/config.yaml"]]),
    "of another option": train(
        "optim=rmsprop", "optim.betas=[0.9,0.9]", says=[["unknown key optim.betas", "optim=adamw"]]
    ),
    "chosen by name": train(
        "optim.name=rmsprop",
        says=[
            ["optim.alpha is missing"],
            ["unknown key optim.betas", "optim=rmsprop makes no use of betas"],
            ["unknown key optim.weight_decay"],
        ],
    ),
    # no effect
    "warm-up twice": train("optim.warmup_steps=9", says=[["optim.warmup_steps=9 and optim.warmup_ratio=0.1 both"]]),
    "eval_every": train("train.eval_every=3", says=["train.eval_every=3 has no effect without data.eval"]),
    "samples": train("eval.samples=3", says=["eval.samples=3 has no effect without data.eval"]),
    "cache of nothing": train(
        "reference.mode=live", "reference.cache_dir=x", says=["reference.cache_dir has no effect with reference.mode"]
    ),
    "no room": train("data.max_prompt_length=9", "data.max_length=9", says=["data.max_prompt_length=9 leaves no room"]),
    "resume where": train("resume=auto", says=[["resume=auto needs run_dir"]]),
    # several at once, one line each
    "several": train("loss.beta=x", "train.epochs=0", "optim.lr=nan", says=["loss.beta", "optim.lr", "train.epochs"]),
    # in a file of the user's own
    "file: mistyped": mine(
        "typo", says=[["unknown key loss.betta", "mine/experiment/typo.yaml, line 5", "loss.beta?"]]
    ),
    "file: values": mine(
        "values",
        says=[
            ["loss.beta='strong'", "mine/experiment/values.yaml, line 3", "number"],
            ["optim.lr=nan", "mine/experiment/values.yaml, line 5", "finite"],
        ],
    ),
    "file: group": mine("group", says=[["loss=dppo", "did you mean dpo?"]]),
    "file: no effect": mine("no_effect", says=["train.eval_every=3 has no effect without data.eval"]),
    "file: a number for a section": mistake(
        *("train", "model.path=m", "--config-dir", "mine", "+experiment=section"),
        says=[["data=3", "mine/experiment/section.yaml, line 2"]],
    ),
    "file: no YAML": mine("broken", says=[["mine/experiment/broken.yaml, line 4", "not valid YAML"]]),
    "file: a key twice": mine("twice", says=[["mine/experiment/twice.yaml, line 4", "duplicate key beta"]]),
    "file: no UTF-8": mine("latin", says=["not valid UTF-8"]),
    "file: no package line": mine("local", says=[["mine/experiment/local.yaml", "# @package _global_"]]),
    "file: not there": mine("nowhere", says=[["experiment=nowhere", "available:", "typo"]]),
    "folder: not there": train("--config-dir", "yours", says=["yours"]),
    "file: in eval": mistake("eval", "--config-dir=mine", "+experiment=typo", *GIVEN, says=["loss.betta"]),
    # commands and flags
    "mistyped command": mistake("trian", says=[["no command trian", "did you mean train?"]]),
    "no such command": mistake(
        "xyzzy", says=[["no command xyzzy", "commands: train, precompute-ref, plan, inspect, eval"]]
    ),
    "no such shell": mistake("completion", "tcsh", says=[["bash", "zsh", "fish"]]),
    "eval sweeps": mistake("eval", "-m", *GIVEN, "loss.beta=1,2", says=["dpo eval does not take -m"]),
    "precompute-ref sweeps": mistake(
        "precompute-ref", *GIVEN, "loss.beta=1,2", "--multirun", says=["dpo precompute-ref does not take -m"]
    ),
    "pickle": train("--experimental-rerun", "x.pickle", says=["--experimental-rerun reads a pickle"]),
    "pickle, one word": train("--experimental-rerun=x.pickle", says=["--experimental-rerun reads a pickle"]),
    "pickle, cut short": train("--exp", "x.pickle", says=["--experimental-rerun reads a pickle"]),
    "sweep without -m": mistake(
        "train", "+experiment=sweep_beta", says=["the experiment sweeps over loss.beta: add -m"]
    ),
    "sweep by another name": train("hydra.mode=MULTIRUN", "loss.beta=1,2", says=["sweep with -m"]),
}
FILES = {
    "typo": "loss:\n  # beta\n  beta: 0.2\n  betta: 0.3\n",
    "values": "loss:\n  beta: strong\noptim:\n  lr: .nan\n",
    "group": "defaults:\n  - override /loss: dppo\n",
    "no_effect": "train:\n  eval_every: 3\n",
    "section": "data: 3\n",
    "broken": "loss: {\n beta: 1\n",
    "twice": "loss:\n  beta: 1\n  beta: 2\n",
    "latin": "loss:\n  beta: '\xff'\n",
    "good": "loss:\n  beta: 0.7\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    own = folder / "mine" / "experiment"
    own.mkdir(parents=True)
    for name, text in FILES.items():
        (own / f"{name}.yaml").write_text("# @package _global_\n" + text, encoding="latin-1")
    (own / "local.yaml").write_text("loss:\n  beta: 1\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mistakes(folder: Path) -> dict[str, Outcome]:
    outcomes = dpo_each([mistake.words for mistake in MISTAKES.values()], cwd=folder)
    return dict(zip(MISTAKES, outcomes, strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_before_torch(name: str, mistakes: dict[str, Outcome]) -> None:
    found, expected = mistakes[name], MISTAKES[name].lines
    assert found.code == 2
    assert "Traceback" not in found.err
    assert not found.torch
    assert not found.out
    assert found.err.startswith("dpo: ")
    assert len(found.problems) == len(expected), found.err
    for line, parts in zip(found.problems, expected, strict=True):
        for part in parts:
            assert part in line


def test_mistakes_leave_no_run_behind(folder: Path, mistakes: dict[str, Outcome]) -> None:
    """Of a sweep, Hydra makes the folder before it composes the first point."""
    assert {entry.name for entry in folder.iterdir()} <= {"mine", "runs"}
    assert all(path.name == "multirun.yaml" for path in (folder / "runs").glob("*/*"))


def test_an_unknown_flag_is_a_usage_error(folder: Path) -> None:
    (found,) = dpo_each([["train", *GIVEN, "--nonsense"]], cwd=folder)
    assert found.code == 2
    assert found.problems[-1] == "dpo train: error: unrecognized arguments: --nonsense"
    assert "Traceback" not in found.err


def test_the_program_itself_exits_with_2(tmp_path: Path) -> None:
    """As above, from outside."""
    job = dpo("train", *GIVEN, "loss.betta=0.2", cwd=tmp_path)
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr == "dpo: unknown key loss.betta; did you mean loss.beta?\n"


# -- what is shown without running


SHOWN = {
    "cfg": ["train", *GIVEN, "loss.beta=0.7", "--cfg", "job"],
    "cfg of nothing": ["train", "--cfg", "job"],
    "flag first": ["train", "--cfg", "job", *GIVEN, "loss.beta=0.7"],
    "flag between": ["train", "loss.beta=0.7", "--cfg", "job", *GIVEN],
    "flag with =": ["train", "loss.beta=0.7", "--cfg=job", *GIVEN],
    "short flag": ["train", "loss.beta=0.7", "-c", "job", *GIVEN],
    "experiment": ["train", "+experiment=quickstart", "--cfg", "job", "--resolve"],
    "experiment, no plus": ["train", "experiment=quickstart", "--cfg", "job", "--resolve"],
    "own experiment": ["train", *GIVEN, "experiment=good", "--cfg", "job", "--config-dir", "mine"],
    "train help": ["train", "--help"],
    "precompute-ref help": ["precompute-ref", "--help"],
    "eval help": ["eval", "--help"],
    "inspect help": ["inspect", "--help"],
    "score help": ["score", "--help"],
    "plan help": ["plan", "--help"],
    "configs": ["configs"],
    "bash": ["completion", "bash"],
    "zsh": ["completion", "zsh"],
    "fish": ["completion", "fish"],
}


@pytest.fixture(scope="module")
def shown(folder: Path) -> dict[str, str]:
    outcomes = dict(zip(SHOWN, dpo_each(list(SHOWN.values()), cwd=folder), strict=True))
    for name, outcome in outcomes.items():
        assert (outcome.code, outcome.err, outcome.torch) == (0, "", False), name
    return {name: outcome.out for name, outcome in outcomes.items()}


def test_cfg_job_is_the_composed_configuration(shown: dict[str, str]) -> None:
    assert "\nloss:\n  name: dpo\n  beta: 0.7\n" in shown["cfg"]
    assert shown["cfg of nothing"] == shown["cfg"].replace("0.7", "0.1").replace("some-model", "???").replace(
        "rows.jsonl", "null"
    )
    assert "hydra:" not in shown["cfg"]


@pytest.mark.parametrize(("command", "config"), [("eval", EvaluateConfig), ("score", ScoreConfig)])
def test_help_begins_with_what_a_command_is_called_with(shown: dict[str, str], command: str, config: type) -> None:
    """In lines that fit a terminal, of keys that there are."""
    first = shown[f"{command} help"].partition("== Recipes")[0]
    lines = [line for line in first.splitlines() if line.startswith(f"dpo {command} ")]
    assert len(lines) > 1
    assert max(map(len, first.splitlines()[1:])) <= 80
    keys = {word.partition("=")[0] for line in first.splitlines()[1:] for word in line.split() if "=" in word}
    assert "run" in keys
    assert keys - set(valid_keys(config)) - {"judge", "judge.path", "eval"} == set()


def test_flags_may_stand_anywhere(shown: dict[str, str]) -> None:
    assert {shown[name] for name in ("flag first", "flag between", "flag with =", "short flag")} == {shown["cfg"]}


def test_an_experiment_needs_no_plus(shown: dict[str, str]) -> None:
    assert str(ASSETS) in shown["experiment"]
    assert shown["experiment, no plus"] == shown["experiment"]


def test_an_experiment_of_ones_own(shown: dict[str, str]) -> None:
    assert shown["own experiment"] == shown["cfg"]


@pytest.mark.parametrize("command", ["train", "precompute-ref", "eval", "inspect", "plan", "score"])
def test_help_lists_keys_and_recipes(command: str, shown: dict[str, str]) -> None:
    text = shown[f"{command} help"]
    assert text.startswith(f"dpo {command}: ")
    assert "+experiment=NAME" in text
    assert f"experiment: {AVAILABLE}\n" in text
    for line in ("loss:\n  name: dpo\n  beta: 0.1\n", "engine: auto, zero3\n", "dpo configs"):
        assert line in text
    assert "$" not in text
    lists = ("experiment: ", "loss: ")  # of options, which Hydra writes in one line
    assert max(len(line) for line in text.splitlines() if not line.startswith(lists)) <= 120


def test_configs_prints_a_folder_with_the_files(shown: dict[str, str]) -> None:
    folder = Path(shown["configs"].strip())
    assert (folder / "train.yaml").is_file()
    assert (folder / "loss" / "dpo.yaml").is_file()


# -- tab completion


COMPLETIONS = {
    "dpo ": [f"{command} " for command in [*COMMANDS, *HELPERS]],
    "dpo tr": ["train "],
    "dpo train loss=": [f"loss={name}" for name in LOSSES],
    "dpo train engine=z": ["engine=zero3"],
    "dpo train loss.b": ["loss.beta="],
    "dpo train train.batch": ["train.batch_size="],
    "dpo train +experiment=": [f"+experiment={name}" for name in EXPERIMENTS],
    "dpo train experiment=smollm2_h": ["experiment=smollm2_hh"],
    "dpo train loss.beta=0.1 -m engine=a": ["engine=auto"],
    "dpo train --config-dir mine seed=1 +experiment=g": ["+experiment=good", "+experiment=group"],
    "dpo train --config-dir=mine experiment=lo": ["experiment=local"],
    "dpo train --mult": [],
    "dpo eval ru": ["run="],
    "dpo precompute-ref refer": ["reference.", "reference="],
    "dpo nonsense lo": [],
}


@pytest.fixture(scope="module")
def completions(folder: Path) -> dict[str, list[str]]:
    outcomes = dpo_each([["_complete", line] for line in COMPLETIONS], cwd=folder)
    assert {(outcome.code, outcome.err) for outcome in outcomes} == {(0, "")}
    return {line: outcome.out.splitlines() for line, outcome in zip(COMPLETIONS, outcomes, strict=True)}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion_knows_what_fits(line: str, completions: dict[str, list[str]]) -> None:
    assert [candidate for candidate in completions[line] if candidate] == COMPLETIONS[line]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_works_in_bash(shown: dict[str, str], tmp_path: Path) -> None:
    """The script as it is given out; the function called as bash calls it, with the cursor in mid-line as well."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "dpo"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dpo_cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "dpo.bash").write_text(shown["bash"], encoding="utf-8")
    script = """
        set -eu
        PATH="$PWD/bin:$PATH"
        source dpo.bash
        complete -p dpo
        [[ $COMP_WORDBREAKS != *=* ]]
        at() { COMP_LINE=$1; COMP_POINT=$2; COMPREPLY=(); _dpo_complete; echo "<${COMPREPLY[*]-}>"; }
        line='dpo train engine=z loss.beta=0.3'
        at "$line" 18
        at 'dpo ev' 6
        at 'dpo train +experiment=smollm2_h' 31
        at 'dpo train xyzzy.' 16
    """
    job = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
    )
    assert job.returncode == 0, job.stderr
    registered, *replies = job.stdout.splitlines()
    assert "-F _dpo_complete dpo" in registered
    assert replies == ["<engine=zero3>", "<eval >", "<+experiment=smollm2_hh>", "<>"]


# -- input that can't be trained on


def row(prompt: Any = "Sort A to Z: yak owl", chosen: Any = "owl yak", rejected: Any = "yak owl") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


MESSAGES = row([turn("user", "yak owl")], [turn("assistant", "owl yak")], [turn("assistant", "yak owl")])
GOOD = row()
DATA: dict[str, list[Any]] = {
    "good": [GOOD, row("Sort Z to A: yak owl", "yak owl", "owl yak")],
    "messages": [MESSAGES],
    "malformed": [GOOD, '{"prompt": "x", "chosen": '],
    "not-an-object": [GOOD, "[1, 2]"],
    "no-answer": [GOOD, {"prompt": "x", "chosen": "y"}],
    "equal": [GOOD, GOOD, row("x", "same", "same")],
    "empty": [GOOD, row("x", "y", " \n")],
    "number": [GOOD, row("x", 3, "y")],
    "no-content": [GOOD, row([turn("user", None)])],
    "wrong-role": [GOOD, row([turn("wizard", "x")])],
    "long": [GOOD, row("x", "owl " * 90, "y")],
    "nothing": [],
}


@dataclass(frozen=True)
class Bad:
    """Input that can't be trained on: the words beside run_dir, and what the answer must name."""

    words: tuple[str, ...]
    says: tuple[str, ...]


def data(name: str, *words: str, says: Sequence[str]) -> Bad:
    return Bad((f"model.path={ASSETS}", f"data.path={name}", *words), tuple(says))


def model(name: str, *words: str, says: Sequence[str]) -> Bad:
    return Bad((f"model.path={name}", "data.path=good.jsonl", *words), tuple(says))


BAD = {
    "no data file": data("absent.jsonl", says=["data.path=absent.jsonl", "no such file or folder"]),
    "no data folder": data("./absent", says=["data.path=./absent", "no such file or folder"]),
    "empty data folder": data("hollow", says=["data.path=hollow", ".jsonl", ".parquet"]),
    "data of another kind": data("notes.txt", says=["data.path=notes.txt", ".jsonl"]),
    "malformed JSON": data("malformed.jsonl", says=["malformed.jsonl, line 2", "not valid JSON", "column 26"]),
    "no object": data("not-an-object.jsonl", says=["not-an-object.jsonl, line 2", "expected an object, found a list"]),
    "no UTF-8": data("latin.jsonl", says=["latin.jsonl, line 1", "UTF-8"]),
    "row without answer": data(
        "no-answer.jsonl", says=["no-answer.jsonl, line 2", "lacks rejected", "data.on_bad_row=skip"]
    ),
    "equal answers": data("equal.jsonl", says=["equal.jsonl, line 3", "the same", "data.on_bad_row=skip"]),
    "empty answer": data("empty.jsonl", says=["empty.jsonl, line 2", "rejected is empty", "data.on_bad_row=skip"]),
    "number for text": data("number.jsonl", says=["number.jsonl, line 2", "chosen", "expected text", "found int"]),
    "no content": data("no-content.jsonl", says=["no-content.jsonl, line 2", "prompt, message 1", "content", "null"]),
    "no such role": data(
        "wrong-role.jsonl", says=["wrong-role.jsonl, line 2", "prompt, message 1", "'wizard'", "user"]
    ),
    "no rows": data("nothing.jsonl", says=["no usable row"]),
    "too long": data(
        "long.jsonl",
        "data.on_too_long=raise",
        "data.max_length=64",
        says=["long.jsonl, line 2", "data.max_length=64", "data.on_too_long=truncate"],
    ),
    "no held-out file": data("good.jsonl", "data.eval=absent.jsonl", says=["data.eval=absent.jsonl", "no such file"]),
    "bad held-out row": data("good.jsonl", "data.eval=malformed.jsonl", says=["malformed.jsonl, line 2"]),
    "all held out": data("good.jsonl", "data.eval=good.jsonl", says=["nothing is left to train on", "data.eval"]),
    "messages as they stand": data("messages.jsonl", "data.text=plain", says=["data.text=plain", "messages", "auto"]),
    "no chat template": Bad(
        ("model.path=no-template", "data.path=messages.jsonl"), ("no chat template", "model.chat_template", "chatml")
    ),
    "no such template": data("good.jsonl", "model.chat_template=nope", says=["model.chat_template=nope", "chatml"]),
    "model without config": model("no-config", says=["model.path=no-config", "config.json"]),
    "model is a file": model("notes.txt", says=["model.path=notes.txt", "is a file"]),
    "no model folder": model("./absent", says=["model.path=./absent", "no such folder"]),
    "no weights": model("no-weights", says=["model.path=no-weights", "weights could not be loaded"]),
    "truncated weights": model("truncated", says=["model.path=truncated", "weights could not be loaded"]),
    "no weights at all": model("hollow-weights", says=["model.path=hollow-weights", "weights could not be loaded"]),
    "a layer too few": model("a-layer-short", says=["model.path=a-layer-short", "model.layers.3."]),
    "weights of another shape": model("too-narrow", says=["model.path=too-narrow", "model.embed_tokens.weight"]),
    "no such architecture": model("unknown", says=["model.path=unknown", "nonesuch"]),
    "broken config": model("broken-config", says=["model.path=broken-config", "JSON"]),
    "broken tokenizer": model("broken-tokenizer", says=["model.path=broken-tokenizer", "tokenizer"]),
    "no reference": data("good.jsonl", "reference.path=./absent", says=["reference.path=./absent", "no such folder"]),
    "truncated reference": data("good.jsonl", "reference.path=truncated", says=["truncated", "weights"]),
    "DeepSpeed's batch size": data(
        "good.jsonl",
        "engine.deepspeed.train_batch_size=3",
        says=["engine.deepspeed.train_batch_size", "train.batch_size"],
    ),
    "best of what": data(
        "good.jsonl",
        *("data.eval=messages.jsonl", "train.eval_every=1", "train.save_every=1", "train.keep_best=beauty"),
        says=["train.keep_best=beauty", "rewards/accuracies"],
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name, rows in DATA.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "latin.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    (folder / "notes.txt").write_text("notes", encoding="utf-8")
    for name in ("hollow", "empty", "full"):
        (folder / name).mkdir()
    (folder / "full" / "keep.txt").write_text("keep", encoding="utf-8")
    weights = (ASSETS / "model.safetensors").read_bytes()
    config = json.loads((ASSETS / "config.json").read_text(encoding="utf-8"))
    changes: dict[str, dict[str, bytes | None]] = {
        "no-template": {"chat_template.jinja": None},
        "no-config": {"config.json": None},
        "no-weights": {"model.safetensors": None},
        "truncated": {"model.safetensors": weights[: len(weights) // 2]},
        "hollow-weights": {"model.safetensors": b""},
        "a-layer-short": {"config.json": json.dumps({**config, "num_hidden_layers": 4}).encode()},
        "too-narrow": {"config.json": json.dumps({**config, "hidden_size": 64}).encode()},
        "unknown": {"config.json": b'{"model_type": "nonesuch"}'},
        "broken-config": {"config.json": b"{"},
        "broken-tokenizer": {"tokenizer.json": b"{"},
    }
    for name, files in changes.items():
        shutil.copytree(ASSETS, folder / name)
        for file, content in files.items():
            if content is None:
                (folder / name / file).unlink()
            else:
                (folder / name / file).write_bytes(content)
    return folder


TAKEN = ["full", "notes.txt", "empty"]


@pytest.fixture(scope="module")
def outcomes(inputs: Path) -> list[Outcome]:
    """Everything that has to import torch, in one process."""
    words = [["train", *bad.words, f"run_dir=runs/{number}"] for number, bad in enumerate(BAD.values())]
    words += [["train", "model.path=truncated", "data.path=good.jsonl", f"run_dir={place}"] for place in TAKEN]
    return dpo_each(words, cwd=inputs)


@pytest.fixture(scope="module")
def refusals(outcomes: list[Outcome]) -> dict[str, Outcome]:
    """Of bad input, each with a run folder of its own: ``runs/`` and the number of the case."""
    return dict(zip(BAD, outcomes, strict=False))


@pytest.fixture(scope="module")
def taken(outcomes: list[Outcome]) -> dict[str, Outcome]:
    """Of run folders that are there already."""
    return dict(zip(TAKEN, outcomes[len(BAD) :], strict=True))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_nothing_is_written(name: str, refusals: dict[str, Outcome], inputs: Path) -> None:
    found = refusals[name]
    assert found.code == 2
    assert "Traceback" not in found.err
    message = found.err[found.err.index("dpo: ") :]  # lines before it say how far the run got
    for part in BAD[name].says:
        assert part in message
    assert len(message.splitlines()) <= 2, "one row, and what can be done about all of them"
    assert not (inputs / "runs" / str(list(BAD).index(name))).exists()


def test_bad_input_ends_the_program_itself(inputs: Path) -> None:
    """As above, from outside, with a run folder that dpo would have chosen."""
    job = dpo("train", *BAD["equal answers"].words, cwd=inputs)
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith("dpo: equal.jsonl, line 3: chosen and rejected are the same\n")
    assert not list(inputs.glob("runs/20*"))


@pytest.mark.parametrize("name", TAKEN)
def test_a_run_folder_that_is_taken_is_left_as_it_is(name: str, taken: dict[str, Outcome], inputs: Path) -> None:
    found = taken[name]
    assert found.code == 2
    assert "Traceback" not in found.err
    if name == "empty":  # a run that could not start does not take away the user's own folder
        assert not list((inputs / "empty").iterdir())
        return
    assert len(found.problems) == 1
    if name == "full":
        assert "run_dir=full is not empty" in found.problems[0]
        assert "resume=auto" in found.problems[0]
        assert [entry.name for entry in (inputs / "full").iterdir()] == ["keep.txt"]
    else:
        assert "run_dir: notes.txt can't be written to (notes.txt is a file)" in found.problems[0]
        assert (inputs / name).read_text(encoding="utf-8") == "notes"
