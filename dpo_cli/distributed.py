"""The processes of a run, in the few operations that dpo needs.

A *rank* is a process. A *data rank* is who has rows of its own: a process, or under sequence parallelism a sequence
group, several neighbouring processes that share each row and so all hold the same numbers of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dpo_cli.errors import DpoError

# The others may wait long for the first rank: a checkpoint of a large model, another run's reference pass. When a rank
# ends, the launcher ends the others; no timeout is needed for that.
_TIMEOUT = timedelta(hours=24)

# DeepSpeed insists on it, also where no launcher has set it.
_LOCAL_RANK = "LOCAL_RANK"
_made_up: set[str] = set()


@dataclass(frozen=True)
class _Sequences:
    """How processes share rows."""

    size: int = 1
    """Processes of a sequence group."""
    group: Any = None
    """This process's; None where it is alone."""


_sequences = _Sequences()


def check_sequence_parallel(size: int, processes: int | None = None) -> None:
    """Refuse sequence groups that don't come out even.

    Args:
        size: processes of a group.
        processes: of the run; None = as many as the environment names.

    Raises:
        DpoError: naming both.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1")) if processes is None else processes
    if processes % size:
        raise DpoError(
            f"engine.sequence_parallel={size}: so many processes share each row, and there are {processes}; expected a "
            "number that divides them"
        )


def start(sequence_parallel: int = 1) -> None:
    """Join the ranks that the environment names (RANK, WORLD_SIZE, ...), or be the only one.

    Args:
        sequence_parallel: neighbouring ranks that share each row; it divides their number.
    """
    global _sequences
    if not dist.is_initialized():
        _join()
    _sequences = _Sequences()
    if sequence_parallel > 1:
        groups = [  # all ranks make all groups
            dist.new_group(list(range(first, first + sequence_parallel)), timeout=_TIMEOUT)
            for first in range(0, world_size(), sequence_parallel)
        ]
        _sequences = _Sequences(sequence_parallel, groups[rank() // sequence_parallel])


def _join() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:  # no port, no host name, nothing that a strange network could break
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        if _LOCAL_RANK not in os.environ:
            os.environ[_LOCAL_RANK] = "0"
            _made_up.add(_LOCAL_RANK)


def stop() -> None:
    """Leave the group, and the environment as it was: to other libraries LOCAL_RANK says that there are ranks."""
    global _sequences
    _sequences = _Sequences()
    if dist.is_initialized():
        dist.destroy_process_group()
    while _made_up:
        os.environ.pop(_made_up.pop(), None)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def data_rank() -> int:
    """The number, from 0, of who has this process's rows."""
    return rank() // _sequences.size


def data_ranks() -> int:
    """How many have rows of their own."""
    return world_size() // _sequences.size


def sequence_size() -> int:
    """Processes that share each row; 1 = none does."""
    return _sequences.size


def sequence_rank() -> int:
    """This process's number, from 0, among those that share its rows."""
    return rank() % _sequences.size


def sequence_group() -> Any:
    """Those, to torch; None where a process is alone."""
    return _sequences.group


def device() -> torch.device:
    """Where this rank computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get(_LOCAL_RANK, "0")))
    return torch.device("cpu")


def sums(values: Sequence[float]) -> list[float]:
    """Each value summed over the data ranks, in float64."""
    if world_size() == 1:
        return [float(value) for value in values]
    return list(summed(torch.tensor(values, dtype=torch.float64, device=device())).tolist())


def summed(values: torch.Tensor) -> torch.Tensor:
    """A tensor summed over the data ranks, in place; every rank has the result."""
    if world_size() > 1:
        if sequence_rank() > 0:  # the first of its group has the same
            values.zero_()
        dist.all_reduce(values)
    return values


def largest(values: Sequence[float]) -> list[float]:
    """Each value's maximum over the ranks."""
    if world_size() == 1:
        return [float(value) for value in values]
    top = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(top, op=dist.ReduceOp.MAX)
    return list(top.tolist())


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank. For small plain values; it goes through pickle between our own processes."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """Every rank's value, by rank, on every rank. As ``from_first`` does, it pickles."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when every rank is here."""
    if world_size() > 1:
        dist.barrier()
