"""From a composed configuration to running ranks: in this process if one will do, else a process each.

Ranks never run Hydra: they are given the configuration in a file. What goes wrong in them is said once, by the
parent, and their exit code is its exit code.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dpo_cli.config import EvaluateConfig, InspectConfig, PlanConfig, ScoreConfig, TrainConfig
from dpo_cli.errors import DpoError, ExitCode

_SECONDS_TO_END = 20.0
"""How long the other ranks may go on when one has ended with an error: they usually see the same one."""


def run_once(command: str, config: TrainConfig | ScoreConfig) -> int:
    """Run a command on as many processes as it asks for; returns the exit code.

    Raises:
        DpoError: what the command raises, when it runs in this process.
    """
    if isinstance(config, InspectConfig | PlanConfig) or not isinstance(config, TrainConfig | EvaluateConfig):
        # Nothing of it is shared out.
        _call(command, config)
        return int(ExitCode.DONE)
    count = config.launch.num_processes
    processes = _devices() if count == "auto" else count
    if processes == 1:
        _call(command, config)
        return int(ExitCode.DONE)
    with tempfile.TemporaryDirectory(prefix="dpo-") as folder:
        file = Path(folder, "config.json")
        file.write_text(config.model_dump_json(), encoding="utf-8")
        return _run_ranks([sys.executable, "-m", "dpo_cli", "_rank", command, str(file)], processes, Path(folder))


@dataclass(frozen=True)
class Ended:
    """How a command that ran in a process of its own ended."""

    exit_code: int
    text: str
    """What went wrong, if it said so."""
    interrupted: bool
    """Whether a signal came to this process meanwhile."""


def run_apart(command: str, config: TrainConfig, environment: Mapping[str, str]) -> Ended:
    """Run a command in a process of its own, ranks and all.

    A second DeepSpeed run in one process is not safe, so every job of a sweep is run this way.
    """
    with tempfile.TemporaryDirectory(prefix="dpo-") as folder:
        file = Path(folder, "config.json")
        file.write_text(config.model_dump_json(), encoding="utf-8")
        words = [sys.executable, "-m", "dpo_cli", "_rank", command, str(file)]
        outer = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        job = subprocess.Popen(words, env={**outer, **environment})
        with _passing_on([job]) as signals:
            code = job.wait()
        return Ended(code if code >= 0 else int(ExitCode.INTERNAL), _said(Path(folder), 0), bool(signals))


def run_rank(command: str, file: str) -> int:
    """What a rank (or a job of a sweep) does: the command on the configuration in ``file``.

    An error is not printed but left beside the file, for the parent to say once.
    """
    _end_with_parent()
    schema = EvaluateConfig if command == "eval" else TrainConfig
    config = schema.model_validate_json(Path(file).read_text(encoding="utf-8"))
    text, code = "", int(ExitCode.DONE)
    try:
        if "RANK" in os.environ:
            _call(command, config)
        else:
            code = run_once(command, config)
    except DpoError as error:
        text, code = f"dpo: {error}", int(error.exit_code)
    except KeyboardInterrupt:
        text, code = "dpo: interrupted", 130
    except OSError as error:
        from dpo_cli.cli import describe

        text, code = f"dpo: {describe(error)}", int(ExitCode.IO)
    except Exception:
        text, code = traceback.format_exc(), int(ExitCode.INTERNAL)
    if text:
        rank = os.environ.get("RANK", "0")
        Path(file).with_name(f"rank-{rank}.json").write_text(json.dumps({"text": text}), encoding="utf-8")
    return code


def _end_with_parent() -> None:
    """Have this process stopped when its parent dies: nobody would hear of it, and the same command again would have
    two runs write into one folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _call(command: str, config: TrainConfig | ScoreConfig) -> None:
    """Run a command in this process."""
    from dpo_cli.allocator import keep_freed_memory
    from dpo_cli.quiet import quieten

    quieten()
    keep_freed_memory()
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


def _run_ranks(words: Sequence[str], count: int, folder: Path) -> int:
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }
    if sys.platform == "linux":
        shared.setdefault("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    ranks = [
        subprocess.Popen(words, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        with _passing_on(ranks) as signals:
            first = _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if first is None:
        return int(ExitCode.DONE)
    code = ranks[first].returncode
    if code < 0 and signals:  # it had not even begun to listen
        print(
            "dpo: stopped by a signal before there was anything to save; the same command begins again", file=sys.stderr
        )
        return int(ExitCode.PREEMPTED)
    print(_said(folder, first) or f"dpo: rank {first} ended with exit code {code}", file=sys.stderr)
    return code if code > 0 else int(ExitCode.INTERNAL)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Until all have ended; the first that failed of itself, or None."""
    first: int | None = None
    deadline = float("inf")
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        failed = [number for number, rank in enumerate(ranks) if rank.poll() not in (None, 0)]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + _SECONDS_TO_END
        time.sleep(0.1)
    failed = [number for number, rank in enumerate(ranks) if rank.poll() not in (None, 0)]
    failed.sort(key=lambda number: number != first)
    # When one ends, others lose their connection to it, and may be faster to say so.
    failed.sort(key=lambda number: ranks[number].returncode == int(ExitCode.INTERNAL))
    return next(iter(failed), None)


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Signals to this process go to the children, which save and end; this process waits for them.

    Yields the signals that came, as they come.
    """
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for child in children:
            # From a terminal, Ctrl-C has already gone to the whole foreground group.
            if child.poll() is None and not (number == signal.SIGINT and sys.stdin and sys.stdin.isatty()):
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _said(folder: Path, rank: int) -> str:
    try:
        return str(json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))["text"])
    except FileNotFoundError:
        return ""


def _devices() -> int:
    """GPUs of this machine, or 1. torch is asked only where there may be one, as importing it takes seconds."""
    if "RANK" in os.environ or not (Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
