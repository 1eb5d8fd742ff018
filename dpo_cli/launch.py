"""From a composed configuration to running ranks: in this process if one will do, else a process each.

Ranks never run Hydra, unless an outer launcher has started them: they are given the configuration in a file. What goes
wrong in them is said once, by the parent, and their exit code is its exit code. Launchers beyond this machine are in
``launchers/``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dpo_cli import faults, liveness
from dpo_cli.config import EvaluateConfig, InspectConfig, PlanConfig, PrecomputeConfig, ScoreConfig, TrainConfig
from dpo_cli.config_launch import HostfileConfig, SlurmConfig, TorchrunConfig
from dpo_cli.environment import loading_libraries
from dpo_cli.errors import ConfigError, DpoError, ExitCode, StorageError
from dpo_cli.launchers import hostfile, lifeline, outer, ranks, slurm
from dpo_cli.secret import hide
from dpo_cli.stopping import STOPPABLE, stop_on_signals


def run_once(command: str, config: TrainConfig | ScoreConfig) -> int:
    """Run a command on as many processes as it asks for; returns the exit code.

    Raises:
        DpoError: what the command raises, when it runs in this process.
    """
    faults.announce()
    own = isinstance(config, TrainConfig | EvaluateConfig) and isinstance(config.launch, TorchrunConfig)
    if not own and (left := outer.drop_leftovers(os.environ)):
        print(f"dpo: not used, as no launcher has started this process: {', '.join(left)}", file=sys.stderr)
    if isinstance(config, InspectConfig | PlanConfig) or not isinstance(config, TrainConfig | EvaluateConfig):
        # Nothing of it is shared out.
        _call(command, config)
        return int(ExitCode.DONE)
    if isinstance(config.launch, TorchrunConfig):
        return _run_as_rank(command, config)
    outer.check_none(f"launch={config.launch.name}")
    if isinstance(config.launch, HostfileConfig):
        return hostfile.run(command, config)
    if isinstance(config.launch, SlurmConfig):
        return slurm.run(command, config)
    count = config.launch.num_processes
    processes = devices() if count == "auto" else count
    if processes == 1:
        _call(command, config)
        return int(ExitCode.DONE)
    with tempfile.TemporaryDirectory(prefix="dpo-") as folder:
        file = Path(folder, "config.json")
        file.write_text(config.model_dump_json(), encoding="utf-8")
        words = [sys.executable, "-m", "dpo_cli", "_rank", command, str(file)]
        return ranks.run(words, processes, Path(folder), config.launch.hang_timeout)


def _run_as_rank(command: str, config: TrainConfig | EvaluateConfig) -> int:
    """Be one of the ranks that an outer launcher has started."""
    os.environ.update(outer.adopt(os.environ))
    if int(os.environ["WORLD_SIZE"]) > 1:
        _check_agreed(config)
    _call(command, config)
    return int(ExitCode.DONE)


def _check_agreed(config: TrainConfig | EvaluateConfig) -> None:
    """Join the other ranks, each of which has composed the configuration itself, and see that it is the same one.

    Raises:
        ConfigError: on all ranks, naming the keys in which the first that differs does so.
    """
    from dpo_cli import distributed

    distributed.start()
    every = distributed.from_all((socket.gethostname(), config.model_dump(mode="json")))
    problems = []
    for rank, (host, other) in enumerate(every):
        mine, theirs = _flat(every[0][1]), _flat(other)
        problems += [
            f"{key} is {theirs.get(key)} on rank {rank} ({host}) and {mine.get(key)} on rank 0 ({every[0][0]}): all "
            "ranks must be given the same configuration"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]
        if problems:
            raise ConfigError(problems)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def run_rank(command: str, file: str) -> int:
    """What a rank (or a job of a sweep, or of Slurm) does: the command on the configuration in ``file``.

    An error is not printed but left beside the file, for the parent to say once; where there is no parent, but an outer
    launcher, it is raised.

    Raises:
        DpoError: then, and if there is no such file.
    """
    _end_with_parent()
    with stop_on_signals() if command in STOPPABLE else nullcontext():
        return _as_rank(command, file)


def _as_rank(command: str, file: str) -> int:
    config = _read(command, Path(file))
    if isinstance(config.launch, TorchrunConfig):
        with outer.said_once():
            return run_once(command, config)
    folder, rank = Path(file).parent, int(os.environ.get("RANK", "0"))
    watched = lifeline.is_watched(folder)
    if watched:
        _take_on(folder, rank)
    text, code, lost = "", int(ExitCode.DONE), False
    try:
        if "RANK" in os.environ:
            if not watched:
                liveness.show_in(folder, rank)
            _call(command, config)
        else:
            code = run_once(command, config)
    except DpoError as error:
        text, code = f"dpo: {error}", int(error.exit_code)
    except KeyboardInterrupt:
        text, code = "dpo: interrupted", 130
    except OSError as error:
        from dpo_cli.cli import describe

        text, code, lost = f"dpo: {describe(error)}", int(ExitCode.IO), outer.is_lost_connection(error)
    except Exception as error:
        text, code, lost = traceback.format_exc(), int(ExitCode.INTERNAL), outer.is_lost_connection(error)
    text = hide(text)
    if watched:
        lifeline.leave(folder, rank, code, text, lost=lost)
    elif text:
        ranks.leave(folder, rank, code, text, lost=lost)
    return code


def _read(command: str, file: Path) -> TrainConfig | EvaluateConfig:
    schemas: dict[str, type[TrainConfig] | type[EvaluateConfig]] = {
        "eval": EvaluateConfig,
        "precompute-ref": PrecomputeConfig,
    }
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(
            f"{socket.gethostname()} does not see {file}, which the launching machine has written: the run folder must "
            "be on a file system that all machines share"
        ) from None
    return schemas.get(command, TrainConfig).model_validate_json(text)


def _take_on(folder: Path, rank: int) -> None:
    """On another machine: the launching machine's environment, as far as it is passed on, and its orders."""
    os.environ.update(json.loads((folder / "environment.json").read_text(encoding="utf-8")))
    here = int(os.environ.get("LOCAL_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
    lifeline.follow(folder, rank)


def _end_with_parent() -> None:
    """Have this process stopped when its parent dies: nobody would hear of it, and the same command again would have
    two runs write into one folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@loading_libraries()
def _call(command: str, config: TrainConfig | ScoreConfig) -> None:
    """Run a command in this process."""
    faults.reached("start")
    from dpo_cli.allocator import bound_kernel_caches, keep_freed_memory
    from dpo_cli.quiet import quieten
    from dpo_cli.versions import check_versions

    check_versions()
    quieten()
    keep_freed_memory()
    bound_kernel_caches()
    import torch

    try:
        if isinstance(config, EvaluateConfig):
            from dpo_cli.commands import evaluate

            evaluate.run(config)
        elif isinstance(config, ScoreConfig):
            from dpo_cli.commands import score

            score.run(config)
        elif isinstance(config, InspectConfig):
            from dpo_cli.commands import inspect

            inspect.run(config)
        elif isinstance(config, PlanConfig):
            from dpo_cli.commands import plan

            plan.run(config)
        elif command == "precompute-ref":
            from dpo_cli.commands import precompute_ref

            assert isinstance(config, PrecomputeConfig)
            precompute_ref.run(config)
        else:
            from dpo_cli.commands import train

            train.run(config)
    except torch.OutOfMemoryError as error:
        what = str(error).splitlines()[0]
        raise DpoError(
            f"the GPU's memory is full ({what}): lower train.tokens_per_micro_batch or data.max_length, or share the "
            "state out over more GPUs with engine.zero_stage=3"
        ) from error


def devices(none: int = 1) -> int:
    """GPUs of this machine, or ``none``. torch is asked only where there may be one, as importing it takes seconds."""
    if "RANK" in os.environ or not (Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()):
        return none
    import torch

    return max(none, torch.cuda.device_count())
