"""What comes from the hub by a name that may be another tomorrow: refused where that is asked for, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.configs import composed
from huggingface_hub import constants

from dpo_cli.commands.revisions import check_revisions, commits_of
from dpo_cli.errors import ConfigError
from dpo_cli.model.files import ModelFiles, adapter_settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STRICT = "strict_revision=true"


def problems(*words: str) -> list[str]:
    try:
        check_revisions(composed("train", words), "pairs")
    except ConfigError as error:
        return error.problems
    return []


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("{}")
    return f"data.path={tmp_path / 'rows.jsonl'}"


def test_branches_and_tags_are_refused(rows: str) -> None:
    (model,) = problems("model.path=org/model", rows, STRICT)
    assert model.startswith("strict_revision: model.path=org/model is on the hub, at its default branch: expected")
    assert model.endswith("model.revision=...")
    found = problems(
        *(
            "model.path=org/model",
            "model.revision=main",
            "reference.path=org/other",
            f"reference.revision={COMMIT[:12]}",
        ),
        *("data.path=org/rows", "data.revision=v1", "data.eval=org/more:test", STRICT),
    )
    assert [line.split(" is on the hub, at ")[0] for line in found] == [
        "strict_revision: model.path=org/model",
        "strict_revision: reference.path=org/other",
        "strict_revision: data.path=org/rows",
        "strict_revision: data.eval=org/more",
    ]
    (mixed,) = problems("model.path=.", "data.mix={a:{path: org/a}, b:{path: org/b, revision: " + COMMIT + "}}", STRICT)
    assert "data.mix.a.path=org/a" in mixed


def test_commits_and_what_is_on_this_machine_are_not(tmp_path: Path, rows: str) -> None:
    assert not problems("model.path=org/model", "data.path=org/rows")
    assert not problems(f"model.path={tmp_path}", rows, STRICT)
    pinned = ("model", "reference", "data")
    words = [f"{key}.path=org/{key}" for key in pinned] + [f"{key}.revision={COMMIT}" for key in pinned]
    assert not problems(*words, "data.eval=test", STRICT)


def test_the_base_of_an_adapter_counts_too(tmp_path: Path, rows: str) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": "main"}))
    (found,) = problems(f"model.path={tmp_path}", rows, STRICT)
    assert found.startswith(f"strict_revision: org/base, a part of model.path={tmp_path}, is on the hub, at main")
    file.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": COMMIT}))
    adapter_settings.cache_clear()
    assert not problems(f"model.path={tmp_path}", rows, STRICT)


def test_the_commit_of_a_branch_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--org--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots" / COMMIT).mkdir(parents=True)
    (place / "snapshots" / COMMIT / "config.json").write_text("{}")
    assert commits_of(ModelFiles("org/model")) == {"org/model": COMMIT}
    assert commits_of(ModelFiles(str(tmp_path))) == {}
