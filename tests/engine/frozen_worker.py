"""One rank with a sharded frozen model, beside one that is trained. Started by ``test_frozen.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from helpers import training_case as case
from safetensors.torch import save_file
from torch import Tensor, nn

from dpo_cli import distributed
from dpo_cli.data.collate import collate
from dpo_cli.engine.engine import Engine
from dpo_cli.engine.frozen import Frozen


def main(stage: int, threshold: int, out: Path) -> None:
    """Score, train the other model by one update, move towards it, score again; say what was held meanwhile."""
    distributed.start()
    extra = {"zero_optimization": {"stage3_param_persistence_threshold": threshold}}
    module = case.policy()
    frozen = Frozen(module, sharded=True, extra=extra)
    engine = Engine(
        case.policy(),
        optimizer={"name": "adamw", **case.ADAMW},
        max_grad_norm=case.CLIP,
        zero_stage=stage,
        extra=extra,
    )
    held, scores = [held_by(module)], [score(module)]
    held.append(held_by(module))
    groups = case.groups_of(0)
    for round_ in range(2):
        loss = case.loss_of(engine, groups, case.comparisons_of(groups))
        scores.append(score(module))  # between the other's forward and backward pass
        engine.backward(loss / distributed.world_size(), last=True)
        engine.step(1e-2)
        frozen.move(engine.weights(), (0.25, 1.0)[round_])
        save(dict(frozen.weights()), out / f"moved-{round_}-{distributed.rank()}.safetensors")
        save(dict(engine.weights()), out / f"policy-{round_}-{distributed.rank()}.safetensors")
        scores.append(score(module))
    held.append(held_by(module))
    shapes = {name: list(shape) for name, shape in frozen.shapes().items()}
    save_file({str(n): tensor for n, tensor in enumerate(scores)}, out / f"scores-{distributed.rank()}.safetensors")
    result = {"held": held, "shapes": shapes, "gradients": sum(p.grad is not None for p in module.parameters())}
    (out / f"result-{distributed.rank()}.json").write_text(json.dumps(result))
    engine.destroy()
    frozen.destroy()
    distributed.stop()


def score(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(collate(case.groups_of(1))).clone()


def held_by(module: nn.Module) -> list[int]:
    """Numbers in this rank's parts, and in parameters that are whole here."""
    parameters = list(module.parameters())
    return [sum(p.ds_tensor.numel() for p in parameters), sum(p.numel() for p in parameters)]


def save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


if __name__ == "__main__":
    stage, threshold, out = json.loads(sys.argv[1])
    main(stage, threshold, Path(out))
