"""The group of data-parallel ranks, in the few operations that dpo needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# The others may wait long for the first rank: a checkpoint of a large model, another run's reference pass. When a rank
# ends, the launcher ends the others; no timeout is needed for that.
_TIMEOUT = timedelta(hours=24)

# DeepSpeed insists on it, also where no launcher has set it.
_LOCAL_RANK = "LOCAL_RANK"
_made_up: set[str] = set()


def start() -> None:
    """Join the ranks that the environment names (RANK, WORLD_SIZE, ...), or be the only one."""
    if dist.is_initialized():
        return
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


def device() -> torch.device:
    """Where this rank computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get(_LOCAL_RANK, "0")))
    return torch.device("cpu")


def sums(values: Sequence[float]) -> list[float]:
    """Each value summed over the ranks, in float64."""
    if world_size() == 1:
        return [float(value) for value in values]
    total = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return list(total.tolist())


def summed(values: torch.Tensor) -> torch.Tensor:
    """A tensor summed over the ranks, in place."""
    if world_size() > 1:
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
