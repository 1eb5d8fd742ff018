"""One rank of every run in a list, one after another. Started by ``test_grid.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from helpers import grid
from helpers import training_case as case
from safetensors.torch import load_file

from dpo_cli import distributed
from dpo_cli.data.collate import FlatBatch
from dpo_cli.engine.engine import Engine
from dpo_cli.engine.sharding import Sharder
from dpo_cli.losses import Sums, make_loss
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.load import attach, load_model
from dpo_cli.model.policy import Policy
from dpo_cli.model.quantize import keep_one_path, quantization_options
from dpo_cli.objective import Objective
from dpo_cli.training.step import train_step


def main(folder: str, runs: list[grid.Run], out: Path) -> None:
    distributed.start()
    curves = [curve_of(folder, run) for run in runs]
    (out / f"curves-{distributed.rank()}.json").write_text(json.dumps(curves))
    distributed.stop()


def curve_of(folder: str, run: grid.Run) -> grid.Curve:
    """Make a run."""
    known = load_file(Path(folder, grid.REFERENCE))

    def reference(batch: FlatBatch) -> torch.Tensor:
        return torch.cat([known[f"{run.adapter}/{group.source}"] for group in batch.groups])

    loss = make_loss({"name": "dpo", "beta": grid.BETA})
    engine = Engine(
        policy(folder, run),
        optimizer={"name": "adamw", **case.ADAMW},
        max_grad_norm=grid.CLIP[run.adapter],
        zero_stage=run.stage,
        extra=case.DEEPSPEED,
    )
    objective = Objective(grid.groups(), loss, reference, share=True)
    curve, state = grid.Curve([], []), {}
    for update in range(grid.UPDATES):
        step, sums = grid.step(update, run.world, run.budget), Sums(loss.metric_names)
        if distributed.world_size() == 1:
            step = grid.in_one_process(step)
        made = train_step(engine, step, objective, grid.rate(update, run.adapter), sums, state)
        state = made.state
        curve.losses.append(sums.means(distributed.sums)["loss"])  # of the global batch
        curve.norms.append(made.norm)
    engine.destroy()
    return curve


def policy(folder: str, run: grid.Run) -> Policy:
    """The model as ``dpo train`` loads it: under ZeRO 3 shared out while it is read, unless it gets an adapter."""
    kind = "nf4_double" if run.adapter == "qlora" else None
    loaded = load_model(
        folder,
        None,
        vocabulary=case.VOCABULARY,
        attention="groups",
        quantization=quantization_options(kind, run.precision, distributed.device()),
        place=Sharder(case.DEEPSPEED) if run.stage == 3 and run.adapter == "none" else None,
    )
    noise = None
    if run.adapter != "none":
        if kind is not None:
            keep_one_path(loaded.model)
        new = NewAdapter(run.adapter, r=grid.RANK, alpha=grid.ALPHA, dropout=0.0, target_modules="all-linear")
        attach(loaded, ModelFiles(folder), new, precision=run.precision, seed=0)
        noise = loaded.adapter.noise
    return Policy(loaded.model, precision=run.precision, groups=True, noise=noise).train()


if __name__ == "__main__":
    folder, runs, out = json.loads(sys.argv[1])
    main(folder, [grid.Run(*run) for run in runs], Path(out))
