"""What a run takes up of a record that it finds."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_cli.commands.hooks import _is_said, _passed_over_in


@pytest.mark.parametrize("alert", [{}, {"step": "1", "name": "a"}, {"step": 1}, {"step": 1, "name": 5}, {"name": "a"}])
def test_an_alert_that_is_none_is_not_gone_on_with(alert: dict[str, Any]) -> None:
    assert not _is_said(alert, "name")
    assert _is_said({"step": 1, "name": "loss-spike", "text": "far above"}, "name")


@pytest.mark.parametrize("noted", [None, [], 5, {}, {"last": 7}, {"last": [1, None, {"step": "1", "why": "x"}]}])
def test_what_is_no_note_of_updates_passed_over_is_left_out(noted: Any) -> None:
    assert _passed_over_in({"passed_over": noted}) == []
    good = {"step": 3, "why": "the loss is not finite"}
    assert _passed_over_in({"passed_over": {"count": 1, "last": [noted, good]}}) == [good]
