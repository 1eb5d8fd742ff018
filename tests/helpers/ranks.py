"""Processes that are the ranks of one job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


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
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    command = [sys.executable, str(worker), json.dumps(list(arguments))]
    ranks = []
    for rank in range(world):
        with (out / f"log-{rank}").open("w") as log:
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0] * world, "\n".join((out / f"log-{rank}").read_text()[-3000:] for rank in range(world))
