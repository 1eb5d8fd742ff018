"""One rank of a run of ``helpers.training_case`` through the engine. Started by ``test_engine.py``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from helpers import training_case as case
from safetensors.torch import save_file

from dpo_cli import distributed
from dpo_cli.data.collate import collate
from dpo_cli.engine.engine import Engine
from dpo_cli.training.checkpoint import TrainingState, folder_of, read, write


def main(optimizer: str, stage: int, clip: float | None, start: Path | None, first: int, out: Path) -> None:
    """Updates ``first`` to the end of the run, keeping a checkpoint after each."""
    distributed.start()
    rank, world = distributed.rank(), distributed.world_size()
    module = case.policy(case.width_of(optimizer))
    if start is not None:
        saved = read(folder_of(start, first))
        module.load_state_dict(saved.weights(), strict=False)  # tied weights stand in it once
    engine = Engine(
        module,
        optimizer={"name": optimizer, **case.OPTIMIZERS[optimizer]},
        max_grad_norm=clip,
        zero_stage=stage,
        extra=case.DEEPSPEED,
    )
    if start is not None:
        idle = case.loss_of(engine, case.groups_of(first)[:1], 1) * 0.0
        engine.set_moments(saved.moments(), updates=first, idle_loss=idle)
        keep(engine, first, out / "set")
    norms = []
    spoil(engine, case.RATES[first])
    for update in range(first, len(case.RATES)):
        groups = case.groups_of(update)
        with torch.no_grad():  # an evaluation between two updates must leave no trace
            case.loss_of(engine, groups[:2], 1)
        parts = case.SPLITS[world][rank]
        for index, part in enumerate(parts):
            loss = case.loss_of(engine, [groups[i] for i in part or [0]], case.comparisons_of(groups))
            engine.backward(loss if part else loss * 0.0, last=index == len(parts) - 1)
        norms.append(engine.step(case.RATES[update]))
        keep(engine, update + 1, out)
    with engine.gathered():
        if rank == 0:  # alone: what is held is held through a forward pass
            with torch.no_grad():
                engine(collate(case.groups_of(first)[:1]))
        gathered = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    save_file(gathered, out / f"gathered-{rank}.safetensors")
    (out / f"norms-{rank}.json").write_text(json.dumps(norms))
    engine.destroy()
    distributed.stop()


def spoil(engine: Engine, lr: float) -> None:
    """An update whose gradient is no number on the last rank: it must leave no trace on any."""
    number = torch.nan if distributed.rank() == distributed.world_size() - 1 else 1.0
    for last in (False, True):
        engine.backward(case.loss_of(engine, case.groups_of(0)[:2], 1) * number, last=last)
    assert not math.isfinite(engine.step(lr))


def keep(engine: Engine, updates: int, out: Path) -> None:
    """A checkpoint after ``updates`` updates; every rank takes part, the first writes."""
    state = TrainingState(step=updates, data="", settings={})
    write(out, state, engine.weights(), engine.moments(), first=distributed.rank() == 0)


if __name__ == "__main__":
    optimizer, stage, clip, start, first, out = json.loads(sys.argv[1])
    main(optimizer, stage, clip, start and Path(start), first, Path(out))
