"""Processes that are the ranks of one job."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from helpers import forks


def run_ranks(worker: Path, arguments: Sequence[object], world: int, out: Path) -> None:
    """Run a script as every rank of a job to its good end; nothing of it is left running.

    Args:
        worker: the script.
        arguments: it is given as JSON.
        world: how many ranks.
        out: folder for what they say.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | forks.FIXED
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    ranks = [(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, out / f"log-{rank}") for rank in range(world)]
    codes = forks.run_script(worker, [json.dumps(list(arguments))], ranks)
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for _, log in ranks)
