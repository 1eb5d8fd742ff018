"""How much memory the ranks of a real ``dpo train`` hold, each in a fork that begins with all imports done."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from dpo_cli.config import TrainConfig

_IMPORTED = [
    "dpo_cli.commands.train",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
]


def train_and_measure(config: TrainConfig, world_size: int, cache: Path) -> list[tuple[int, int]]:
    """Of each rank: bytes that its process held before there was a model, and the most that it ever held."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"DPO_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    if world_size > 1:
        variables |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    each = [variables | ({"RANK": str(n), "LOCAL_RANK": str(n)} if world_size > 1 else {}) for n in range(world_size)]
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in each]
    try:
        text = config.model_dump_json()
        jobs = [pool.submit(_train, text, own) for pool, own in zip(pools, each, strict=True)]
        return [job.result(timeout=240) for job in jobs]
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _train(text: str, variables: dict[str, str]) -> tuple[int, int]:
    os.environ.update(variables)
    from dpo_cli.commands.parts import Scorer, Setup
    from dpo_cli.launch import _call

    before: list[int] = []
    load = Setup.load_policy

    def noted(self: Setup) -> Scorer:
        before.append(held("VmRSS"))
        return load(self)

    Setup.load_policy = noted  # type: ignore[method-assign]
    _call("train", TrainConfig.model_validate_json(text))
    return before[0], held("VmHWM")


def held(field: str) -> int:
    """Bytes of a line of Linux's count of this process's memory: VmRSS = now, VmHWM = at most so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024
