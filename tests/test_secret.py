"""What a secret looks like, and what does not; and that a command that refuses one neither shows nor writes it."""

from __future__ import annotations

import json

import pytest
from helpers.command import Outcome, dpo_each
from helpers.run_folders import config

from dpo_cli import cli, secret
from dpo_cli.commands.public import without_signatures
from dpo_cli.errors import ConfigError

VARIABLES = {
    "HF_TOKEN": "hf_" + "Canary0123456789abcdefghijklmnop",
    "AWS_SECRET_ACCESS_KEY": "canary/wJalrXUtnFEMI+K7MDENG/bPxRfiCYkey",
    "MY_API_KEY": "canary-plain-looking-value",
    "SSH_AUTH_SOCK": "/",
    "GIT_AUTHOR_NAME": "canary of the mine",
    "TOKENIZERS_PARALLELISM": "canary-not-secret",
    "SHORT_KEY": "canary",
}
SHAPED = {
    "what looks like a token of the hub": ["hf_abcdefghijABCDEFGHIJ0123", "x=hf_abcdefghijABCDEFGHIJ0123,"],
    "what looks like an API key": [
        "sk-proj-abcdefghijklmnopqrstuvwx_ABCDEFGH1234",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "AIza" + "Sy_-1" * 7,
    ],
    "a URL with a password": ["https://me:pa55word@host/rows.jsonl", "s3://key:sec%2Fret@bucket/a"],
    "a private key": ["-----BEGIN OPENSSH PRIVATE KEY-----\nabc"],
}
PLAIN = [
    "num_memory_tokens=8",
    "eos_token",
    "data.tokens_per_micro_batch=16384",
    "sk-learn-experiments-with-a-rather-long-name/model",
    "0123456789abcdef0123456789abcdef01234567",  # a commit
    "https://host/rows.jsonl?download=true",
    "https://host:8080/a@b",
    "git@host:me/repo",
    '{"://":1,"@":2}',
    "hf_small",
    "canary",
    "canary of the mine",
]


@pytest.mark.parametrize("what", SHAPED)
def test_secrets_have_shapes(what: str) -> None:
    for text in SHAPED[what]:
        assert secret.find(text, {}) == what
        assert "***" in secret.hide(text, {})
        assert secret.find(secret.hide(text, {}), {}) == ""
    assert secret.hide("https://me:pa55word@host/rows.jsonl", {}) == "https://***@host/rows.jsonl"


@pytest.mark.parametrize("text", PLAIN)
def test_others_are_left_alone(text: str) -> None:
    assert secret.find(text, VARIABLES) == ""
    assert secret.hide(text, VARIABLES) == text


def test_values_of_secret_variables_are_secrets() -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_API_KEY"):
        assert secret.find(f"a {VARIABLES[name]}.", VARIABLES) == f"the value of {name}"
        assert secret.hide(f"a {VARIABLES[name]}.", VARIABLES) == "a ***."


def test_options_of_other_tools() -> None:
    assert all(map(secret.is_secret_option, ["token", "hub_token", "wandb_api_key", "client_secret", "db_password"]))
    assert not any(map(secret.is_secret_option, ["eos_token", "num_memory_tokens", "pad_token_id", "key"]))


def test_all_keys_are_named() -> None:
    settings = {"a": {"b": ["x", VARIABLES["HF_TOKEN"]]}, "c": 1, VARIABLES["HF_TOKEN"]: 2}
    with pytest.raises(ConfigError) as error:
        secret.check_settings(settings)
    assert [line.partition(":")[0] for line in error.value.problems] == [
        "a.b.1 holds what looks like a token of the hub",
        "a key in the configuration holds what looks like a token of the hub",
    ]


def test_a_tracker_is_told_of_no_signature() -> None:
    settings = {"data": {"path": "https://host/a.jsonl?X-Amz-Signature=canary", "eval": "~/b.jsonl"}, "seed": 1}
    told = {"data": {"path": "https://host/a.jsonl", "eval": "~/b.jsonl"}, "seed": 1}
    assert without_signatures(settings) == told


def test_a_traceback_shows_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MY_API_KEY", VARIABLES["MY_API_KEY"])

    def broken(words: object) -> int:
        raise RuntimeError(f"401 for https://me:pa55word@host with {VARIABLES['MY_API_KEY']}")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["train"]) == 70
    shown = capsys.readouterr().err
    assert "RuntimeError: 401 for https://***@host with ***\n" in shown


# Command lines, and what is said of each; HF_TOKEN and MY_API_KEY are set.
HELD = "the value of HF_TOKEN"
REFUSED = {
    "an override": (
        ["train", "model.path=x", f"tracker.project={VARIABLES['HF_TOKEN']}"],
        f"tracker.project holds {HELD}",
    ),
    "a mistyped key": (["train", f"+hub.token={VARIABLES['HF_TOKEN']}"], f"+hub.token holds {HELD}"),
    "a word": (["push", "run", "--token", VARIABLES["HF_TOKEN"]], f"an argument holds {HELD}"),
    "a URL": (
        ["train", "model.path=x", "data.path=https://me:canary9@host/a.jsonl"],
        "data.path holds a URL with a pass",
    ),
    "a file": (["train", "+experiment=held", "model.path=x", "data.path=y"], "tracker.group holds what looks like"),
    "a file, shown": (["train", "+experiment=held", "--cfg", "job"], "tracker.group holds what looks like"),
    "a variable": (
        ["train", "+experiment=env", "model.path=x"],
        "data.path holds the value of MY_API_KEY",
    ),
    "a variable, shown": (
        ["train", "+experiment=env", "model.path=x", "--cfg", "job", "--resolve"],
        "data.path holds the value of MY_API_KEY",
    ),
    # What it says of the environment is text.
    "another's run": (["eval", "run=theirs"], "${oc.env:MY_API_KEY}"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    root = tmp_path_factory.mktemp("secrets")
    experiments = root / "mine" / "experiment"
    experiments.mkdir(parents=True)
    held = "hf_" + "AnotherCanary0123456789abcdef"
    (experiments / "held.yaml").write_text(f"# @package _global_\ntracker: {{group: {held}}}\n")
    stolen = "https://there.example/${oc.env:MY_API_KEY}.jsonl"
    (experiments / "env.yaml").write_text(f"# @package _global_\ndata: {{path: '{stolen}'}}\n")
    theirs = config(eval={"samples": 0}, launch={"name": "local", "num_processes": 1})
    theirs["model"] |= {"path": "${oc.env:MY_API_KEY}"}
    theirs["data"] |= {"path": "y", "eval": stolen}
    theirs["train"] |= {"precision": "fp32", "tokens_per_micro_batch": 64}
    (root / "theirs").mkdir()
    (root / "theirs" / "config.yaml").write_text(json.dumps(theirs))
    commands = [
        [*words[:1], *(["--config-dir", "mine"] * (words[0] == "train")), *words[1:]] for words, _ in REFUSED.values()
    ]
    outcomes = dpo_each(commands, cwd=root, variables=VARIABLES)
    assert sorted(path.name for path in root.iterdir()) == ["mine", "theirs"]  # nothing was written
    return dict(zip(REFUSED, outcomes, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_secret_is_refused_and_not_shown(name: str, refused: dict[str, Outcome]) -> None:
    found = refused[name]
    assert found.code == 2
    assert len(found.problems) == 1
    assert REFUSED[name][1] in found.err
    assert "anary" not in found.out + found.err
