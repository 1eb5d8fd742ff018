"""A run from its rows to its merged weights, watched: nothing is unpickled, nobody is called, no secret is written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.numpy
from helpers import forks
from helpers.runs import Place, make_rows, record, write_rows

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("guarded.py")
SECRETS = {
    "HF_TOKEN": "hf_CanaryOfTheHub0123456789abcdefgh",
    "WANDB_API_KEY": "ca9a57" * 6 + "0123",
    "AWS_SECRET_ACCESS_KEY": "canaryOfAws/wJalrXUtnFEMI+K7MDENGbPxRfiCY",
    "OPENAI_API_KEY": "sk-canary-ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
}


@dataclass(frozen=True)
class Watched:
    root: Path
    run: Path
    heard: list[list[str]]
    """What the audit heard: the event, and its arguments."""


def say(key: str, value: object) -> str:
    return f"{key}={'null' if value is None else value}"


@pytest.fixture(scope="module")
def watched(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    root = tmp_path_factory.mktemp("watched")
    run, log = root / "run", tmp_path_factory.mktemp("log") / "heard"
    for name in ("home", "tmp"):
        (root / name).mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "DPO", "HF_"))}
    environment |= {**forks.FIXED, **SECRETS, "HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}
    environment |= {"DPO_CACHE": str(root / "cache"), "WANDB_MODE": "offline"}

    def dpo(name: str, *words: str) -> None:
        said = root / f"said-{name}"
        codes = forks.run_script(SCRIPT, [json.dumps([str(log), *words])], [(environment, said)])
        assert codes == [0], said.read_text()[-3000:]

    arguments: Mapping[str, object] = {
        **place.arguments(),
        "model/adapter": "lora",
        "tracker.mode": "offline",
        "train.epochs": 1,
        "eval.samples": 2,
        "eval.max_new_tokens": 4,
        "run_dir": run,
    }
    words = [say(key, value) for key, value in arguments.items()]
    dpo("train", "train", *words)
    shutil.rmtree(run / "final")
    (run / "run.json").write_text(json.dumps(record(run) | {"status": "preempted"}))
    dpo("resume", "train", *words, "resume=auto")
    assert record(run)["starts"][-1]["update"] == 2
    dpo("eval", "eval", f"run={run}", f"output={root / 'evaluation'}")
    dpo("merge", "merge", str(run), str(root / "merged"))
    dpo("report", "report", str(run), "--out", str(root / "report.html"))
    return Watched(root, run, [json.loads(line) for line in log.read_text().splitlines()])


def test_nothing_is_unpickled(watched: Watched) -> None:
    assert not [said for event, *said in watched.heard if event == "pickle.find_class"]


def test_nobody_is_called(watched: Watched) -> None:
    called = [said for event, *said in watched.heard if event.startswith("socket.")]
    others = [
        said for said in called if said[0] not in ("127.0.0.1", "::1", "localhost") and not said[0].startswith("/")
    ]
    assert not others


def test_no_byte_holds_a_secret(watched: Watched) -> None:
    files = [path for path in watched.root.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert {"run.json", "config.yaml", "metrics.jsonl", "README.md", "state.json", "report.html", "table.json"} <= names
    assert any(name.endswith(".wandb") for name in names)
    for path in files:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path
    started = [said for event, *said in watched.heard if event in ("subprocess.Popen", "os.exec", "os.posix_spawn")]
    assert started  # wandb's own process, at least
    assert not [name for name, value in SECRETS.items() if value in json.dumps(started)]


@pytest.mark.parametrize("wrong", [0, 7])
def test_stored_log_probs_that_are_not_the_models_are_found_whichever_row_they_are_of(
    place: Place, tmp_path: Path, wrong: int
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(8))
    changes = {"data.path": rows, "data.eval": None, "train.max_steps": 1, "train.eval_every": None}
    changes["train.tokens_per_micro_batch"] = 4096  # all eight are looked at
    place.run(tmp_path / "right", changes, cache=tmp_path / "cache")
    [chunk] = (tmp_path / "cache").glob("reference/*/chunk-*")
    tensors = safetensors.numpy.load_file(chunk)
    answers = len(tensors["ends"])
    place_of = range(answers)[wrong * answers // 8]
    tensors["logps"][tensors["ends"][place_of] - 1] -= 0.5
    data = safetensors.numpy.save(tensors)
    chunk.unlink()
    chunk.with_name(f"chunk-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    ended = place.try_run(tmp_path / "wrong", changes, cache=tmp_path / "cache")
    assert ended.code == 76, ended.err
    assert "off its value at zero margin" in ended.err.splitlines()[-1]
