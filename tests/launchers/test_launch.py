"""Ranks that composed different configurations; a run's launcher and its evaluation."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_cli import distributed, launch
from dpo_cli.errors import ConfigError


class Config:
    """What of a configuration is looked at."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def model_dump(self, mode: str) -> dict[str, Any]:
        return self._values


def test_ranks_that_disagree_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [
        ("one", {"train": {"batch_size": 8, "epochs": 1}, "seed": 0}),
        ("one", {"train": {"batch_size": 8, "epochs": 1}, "seed": 0}),
        ("two", {"train": {"batch_size": 16, "epochs": 1}, "seed": 1}),
    ]
    monkeypatch.setattr(distributed, "start", lambda: None)
    monkeypatch.setattr(distributed, "from_all", lambda value: ranks)
    with pytest.raises(ConfigError) as found:
        launch._check_agreed(Config(**ranks[0][1]))  # type: ignore[arg-type]
    assert found.value.problems == [
        "seed is 1 on rank 2 (two) and 0 on rank 0 (one): all ranks must be given the same configuration",
        "train.batch_size is 16 on rank 2 (two) and 8 on rank 0 (one): all ranks must be given the same configuration",
    ]
    monkeypatch.setattr(distributed, "from_all", lambda value: ranks[:2])
    launch._check_agreed(Config(**ranks[0][1]))  # type: ignore[arg-type]
