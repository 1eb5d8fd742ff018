"""Going on with a run: which checkpoint, and whether it is of the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.places import new_adapter, policy_files
from dpo_cli.config import TrainConfig
from dpo_cli.engine.second_weights import gathered, whole_shape
from dpo_cli.errors import CheckpointError, DpoError, one_line
from dpo_cli.reference.fingerprint import reference_files
from dpo_cli.tracking.console import Console
from dpo_cli.training.checkpoint import Checkpoint, TrainingState, find

_ROWS = "data"
"""The rows' fingerprint among the settings."""
_SHAPES = ("loss.name", "optim.name", "adapter", "model", "reference.update")
"""Settings that moments and weights of a checkpoint only fit the same of."""


def find_checkpoint(resume: str, run_dir: Path, console: Console) -> Checkpoint | None:
    """The checkpoint that ``resume`` asks for; None = start anew.

    Raises:
        CheckpointError: if there are checkpoints but no valid one, or none where one was named. A run never starts
            anew in silence where there was something to go on with.
    """
    if resume == "none":
        return None
    where = run_dir if resume == "auto" else Path(resume)
    if resume == "auto" and not where.exists():
        return None
    if not where.is_dir():
        raise CheckpointError(f"resume={resume}: there is no such folder")
    found, problems = find(where)
    for problem in problems:
        console.warn(f"skipped: {problem}")
    if found is None and (problems or resume != "auto"):
        raise CheckpointError(f"resume={resume}: there is no valid checkpoint in {where}")
    if found is None:
        console.say(f"there is no checkpoint in {where} yet: starting at the beginning")
    else:
        console.say(f"going on from {found.folder} (update {found.state.step})")
    return found


def precision_of(found: Checkpoint) -> str:
    """At which precision a run was.

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    said = found.state.settings.get("train.precision")
    if said not in ("fp32", "bf16"):
        raise CheckpointError(f"{found.folder} does not say at which precision it was made")
    return str(said)


def update_settings(config: TrainConfig, precision: str, reference: Mapping[str, str]) -> dict[str, Any]:
    """What the updates depend on, besides weights and rows.

    The reference counts by content: one that is another now must not go unnoticed, and one that has moved is the same.
    So does the model under an adapter, which checkpoints don't hold.
    """
    files = policy_files(config.model)
    under = {}
    if files.adapter is not None or new_adapter(config.model) is not None:
        under = {"adapter": config.model.adapter.model_dump(mode="json", exclude={"path"})}
        under["model"] = dict(reference_files(files, cache_folder(config.reference.cache_dir)))
    return {
        **under,
        "loss": config.loss.model_dump(mode="json"),
        "optim": config.optim.model_dump(mode="json"),
        "train.batch_size": config.train.batch_size,
        "train.epochs": config.train.epochs,
        "train.max_steps": config.train.max_steps,
        "train.precision": precision,
        "seed": config.seed,
        "reference": dict(reference),
        "reference.update": [config.reference.update_every, config.reference.update_mix],
    }


def check_same_run(
    state: TrainingState, fingerprint: str, settings: Mapping[str, Any], may_differ: Sequence[str] = ()
) -> list[str]:
    """Refuse a checkpoint made under other settings or with other rows.

    Args:
        state: of the checkpoint.
        fingerprint: of the rows.
        settings: as ``update_settings`` gives them.
        may_differ: keys of settings that may be others now, or a section of them; ``data`` for the rows.

    Returns:
        What differs and may, in words.

    Raises:
        DpoError: naming what differs and may not, or a key that is none.
    """
    before = {_ROWS: state.data[:12], **_flat(state.settings)}
    now = {_ROWS: fingerprint[:12], **_flat(settings)}
    known = [key for key in now if not _is_of(key, _SHAPES)]
    if odd := [key for key in may_differ if not any(_is_of(each, [key]) for each in known)]:
        raise DpoError(
            f"resume_force names {one_line(odd[0])}; expected some of {', '.join(known)}, or a section of them"
        )
    differing = {key: _change(key, before.get(key), value) for key, value in now.items() if before.get(key) != value}
    refused = [said for key, said in differing.items() if key not in known or not _is_of(key, may_differ)]
    if refused:
        forced = [key for key in differing if key in known]
        how = f", or name what may differ: resume_force=[{','.join(forced)}]" if len(forced) == len(differing) else ""
        raise DpoError(
            f"the checkpoint was made with others: {'; '.join(refused)}. Resume with the same, start a new run in "
            f"another run_dir{how}"
        )
    return list(differing.values())


def _is_of(key: str, wanted: Sequence[str]) -> bool:
    """Whether a key is among the wanted ones, or in one of their sections."""
    return any(key == one or key.startswith(f"{one}.") for one in wanted)


def _change(key: str, before: object, now: object) -> str:
    what = "rows (the data keys, the tokenizer or the chat template) were" if key == _ROWS else f"{key} was"
    return f"{what} {one_line(str(before))}, now {one_line(str(now))}"


def load_weights(module: nn.Module, found: Checkpoint) -> None:
    """Put a checkpoint's weights into a module that no engine holds yet; frozen ones may be absent.

    All ranks must call it, as they may share the weights out.

    Raises:
        CheckpointError: if it lacks what is trained.
    """
    weights = found.weights()
    parameters = dict(module.named_parameters())
    if missing := [name for name, p in parameters.items() if name not in weights and p.requires_grad]:
        raise CheckpointError(f"{found.folder} holds no {missing[0]}: it is of a model that was trained otherwise")
    if strange := [name for name in weights if name not in parameters]:
        raise CheckpointError(f"{found.folder} holds {one_line(strange[0])}, which this model has not")
    for name, weight in weights.items():
        if weight.shape != (shape := whole_shape(parameters[name])):  # torch would spread one number over all of it
            raise CheckpointError(f"{found.folder}: {name} is {list(weight.shape)}, and this model's {list(shape)}")
        with gathered(parameters[name], modifier_rank=0), torch.no_grad():
            parameters[name].copy_(weight)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(
            {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat
