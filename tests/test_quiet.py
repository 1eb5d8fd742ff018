"""Whether DeepSpeed is told that there is no GPU."""

from __future__ import annotations

import fnmatch
import glob

import pytest

from dpo_cli import quiet


@pytest.mark.parametrize(
    ("devices", "there_may_be"), [(["/dev/nvidia3"], True), (["/dev/nvidiactl", "/dev/nvidia-uvm"], False), ([], False)]
)
def test_a_gpu_of_any_number_is_seen(monkeypatch, devices: list[str], there_may_be: bool) -> None:
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))
    assert quiet._may_have_gpu() == there_may_be
