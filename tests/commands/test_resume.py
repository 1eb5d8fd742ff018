"""A checkpoint that somebody else made, or of another model: what does not fit is named, and put nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpo_cli.commands.resume import load_weights, precision_of
from dpo_cli.errors import CheckpointError
from dpo_cli.training.checkpoint import Checkpoint, TrainingState, read, write


def made(folder: Path, weights: dict[str, Tensor], **settings: Any) -> Checkpoint:
    state = TrainingState(1, "rows", settings)
    return read(write(folder, state, weights.items(), [("weight/exp_avg", torch.zeros(2, 3))], first=True))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"weight": torch.ones(2, 3)}, "holds no bias"),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(2), "more\n": torch.ones(1)},
            r"holds more\\n, which this model",
        ),
        ({"weight": torch.ones(1), "bias": torch.ones(2)}, r"weight is \[1\], and this model's \[2, 3\]"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"weight is \[3, 2\], and this model's \[2, 3\]"),
    ],
)
def test_weights_of_another_model(weights: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    with pytest.raises(CheckpointError, match=says):
        load_weights(module, made(tmp_path, weights))
    assert torch.equal(module.weight, before)


def test_weights_of_this_one(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    load_weights(module, made(tmp_path, {"weight": torch.full((2, 3), 5.0), "bias": torch.ones(2)}))
    assert module.weight.tolist() == [[5.0] * 3] * 2


@pytest.mark.parametrize("settings", [{}, {"train.precision": "fp8"}, {"train.precision": ["fp32"]}])
def test_a_checkpoint_that_does_not_say_how_it_was_made(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not say at which precision"):
        precision_of(made(tmp_path, {"weight": torch.ones(1)}, **settings))
