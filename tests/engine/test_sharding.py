"""A model that several processes share out while they read it, against the same model read by one alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_case as case
from helpers.families import FAMILIES, MIXTURES, build
from helpers.ranks import run_ranks
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dpo_cli.data.collate import collate
from dpo_cli.engine.optimizers import make_optimizer
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.load import load_model
from dpo_cli.model.policy import Policy


def written(folder: Path, config: Any) -> PreTrainedModel:
    """A model in several files."""
    model = build(config, GROUP_ATTENTION, torch.float32)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def updated(module: Policy) -> dict[str, torch.Tensor]:
    """After the worker's two updates, by one process."""
    optimizer = make_optimizer("adamw", list(module.parameters()), **case.ADAMW)
    for update in range(2):
        groups = case.groups_of(update)
        case.loss_of(module, groups, case.comparisons_of(groups)).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("family", "added", "world", "checkpointing", "zero"),
    [
        ("llama-tied", 3, 2, "full", {}),  # tied, and with more tokens than it has embeddings for
        *(
            pytest.param(*some, marks=pytest.mark.slow)
            for some in [
                ("llama", 3, 3, "selective", {}),
                ("gemma3", 0, 2, "none", OFFLOADED),
                ("mixtral", 0, 2, "full", {}),  # experts are put together as they are read
            ]
        ),
    ],
)
def test_it_is_bit_for_bit_the_same_model(
    family: str, added: int, world: int, checkpointing: str, zero: dict[str, Any], tmp_path: Path
) -> None:
    """And trained it stays the same, to rounding."""
    folder = tmp_path / "model"
    vocabulary = written(folder, (FAMILIES | MIXTURES)[family]()).config.get_text_config().vocab_size
    assert len(list(folder.glob("*.safetensors"))) > 1
    worker = Path(__file__).with_name("sharding_worker.py")
    run_ranks(worker, [str(folder), vocabulary + added, checkpointing, zero, str(tmp_path)], world, tmp_path)
    plain = load_model(str(folder), None, vocabulary=vocabulary + added, attention="groups")
    module = Policy(plain.model, precision="fp32", groups=True)
    expected = {f"weight/{name}": parameter.detach().clone() for name, parameter in module.named_parameters()}
    expected |= {f"buffer/{name}": buffer for name, buffer in module.named_buffers()}
    with torch.no_grad():
        expected |= {f"score/{n}": module(collate(case.groups_of(n))) for n in range(2)}
    count = sum(parameter.numel() for parameter in module.parameters())
    vocabularys = sum(p.numel() for p in module.parameters() if p.shape[0] == vocabulary + added)
    largest = max(p.numel() for p in module.parameters() if p.shape[0] != vocabulary + added)
    assert count > 1.5 * (vocabularys + largest)  # or what follows would say nothing
    trained = updated(module)
    for rank in range(world):
        found = load_file(tmp_path / f"tensors-{rank}.safetensors")
        assert {name for name in found if not name.startswith("trained/")} == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
        for name, tensor in trained.items():
            assert torch.allclose(found[f"trained/{name}"], tensor, rtol=0, atol=2e-6), name
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert said["added"] == added
        assert said["whole"] == 0  # nothing but its part
        assert count <= said["parts"] * world < count + world * len(expected)
        # Of all that was whole at any time. An embedding that was lengthened waits for the garbage collector.
        assert said["held"] <= vocabularys + largest + (vocabularys // 2 if added else 0)
