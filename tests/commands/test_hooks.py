"""What a run takes up of a record that it finds."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_cli.commands.hooks import _is_alert


@pytest.mark.parametrize("alert", [{}, {"step": "1", "name": "a"}, {"step": 1}, {"step": 1, "name": 5}, {"name": "a"}])
def test_an_alert_that_is_none_is_not_gone_on_with(alert: dict[str, Any]) -> None:
    assert not _is_alert(alert)
    assert _is_alert({"step": 1, "name": "loss-spike", "text": "far above"})
