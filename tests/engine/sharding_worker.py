"""One rank that reads a model under ZeRO 3. Started by ``test_sharding.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from helpers import training_case as case
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dpo_cli import distributed
from dpo_cli.data.collate import collate
from dpo_cli.engine.engine import Engine
from dpo_cli.engine.second_weights import gathered
from dpo_cli.engine.sharding import Sharder, gather_where_used
from dpo_cli.model.checkpointing import checkpoint_layers
from dpo_cli.model.load import load_model
from dpo_cli.model.policy import Policy


def main(model: str, vocabulary: int, checkpointing: str, zero: dict[str, Any], out: Path) -> None:
    """Read it, score with it, and train it; say what was held, and what it was."""
    distributed.start()
    held: list[int] = []
    extra = {"zero_optimization": {**case.DEEPSPEED["zero_optimization"], **zero}}
    sharder = Sharder(extra)

    def place(parameter: nn.Parameter) -> None:
        held.append(sum(p.numel() for p in known.values() if p.device.type != "meta"))
        sharder(parameter)

    def note(owner: nn.Module, name: str, parameter: nn.Parameter) -> None:
        known[id(parameter)] = parameter

    known: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()
    register_module_parameter_registration_hook(note)
    loaded = load_model(model, None, vocabulary=vocabulary, attention="groups", place=place)
    module = Policy(loaded.model, precision="fp32", groups=True)
    parts = sum(p.ds_tensor.numel() for p in module.parameters())
    weights = {}
    for name, parameter in module.named_parameters():
        with gathered(parameter):
            weights[name] = parameter.detach().clone()
    end = gather_where_used(module)
    with torch.no_grad():
        scores = [module(collate(case.groups_of(update))) for update in range(2)]
    end()
    rank = distributed.rank()
    tensors = {f"weight/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"buffer/{name}": buffer.clone() for name, buffer in module.named_buffers()}
    tensors |= {f"score/{number}": score for number, score in enumerate(scores)}
    whole = max(p.numel() for p in module.parameters())
    checkpoint_layers(loaded.model, checkpointing)
    module.train()
    engine = Engine(module, optimizer={"name": "adamw", **case.ADAMW}, max_grad_norm=None, zero_stage=3, extra=extra)
    norms = []
    for update in range(2):
        groups = case.groups_of(update)
        engine.backward(case.loss_of(engine, groups, case.comparisons_of(groups)) / distributed.world_size(), last=True)
        norms.append(engine.step(1e-3))
    tensors |= {f"trained/{name}": tensor for name, tensor in engine.weights()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / f"tensors-{rank}.safetensors")
    said = {"parts": parts, "whole": whole, "held": max(held), "norms": norms, "added": loaded.added_rows}
    (out / f"said-{rank}.json").write_text(json.dumps(said))
    engine.destroy()
    distributed.stop()


if __name__ == "__main__":
    *arguments, out = json.loads(sys.argv[1])
    main(*arguments, Path(out))
