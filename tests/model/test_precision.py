"""The choice of a number format is made once on a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpo_cli.model import precision
from dpo_cli.model.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(100.0, 139.0, "fp32"), (100.0, 141.0, "bf16"), (1.0, None, "fp32")]
)
def test_bfloat16_must_be_worth_it_and_is_measured_once(monkeypatch, tmp_path: Path, fp32, bf16, expected: str) -> None:
    measured = []

    def peak(device: torch.device, name: str) -> float | None:
        measured.append(name)
        return {"fp32": fp32, "bf16": bf16}[name]

    monkeypatch.setattr(precision, "peak_flops", peak)
    assert choose_precision("auto", CPU, tmp_path) == expected
    fp32, bf16 = bf16, fp32  # busy now
    assert choose_precision("auto", CPU, tmp_path) == expected
    assert measured == ["fp32", "bf16"]
    (tmp_path / "precision.json").write_text("[1]")
    choose_precision("auto", CPU, tmp_path)
    assert len(measured) == 4


def test_a_wish_is_a_wish(tmp_path: Path) -> None:
    assert [choose_precision(name, CPU, tmp_path / "cache") for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert not (tmp_path / "cache").exists()
