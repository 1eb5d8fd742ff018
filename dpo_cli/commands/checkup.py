"""What ``dpo doctor`` looks at: packages, devices, disk, caches, the way to the network; or a run's folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dpo_cli.commands.caches import cache_folder, is_open_to_all
from dpo_cli.errors import DpoError, one_line
from dpo_cli.versions import needed
from dpo_cli.whole_folder import why_not_writable

_LITTLE = 1 << 30
"""Free bytes below which a disk is said to be nearly full."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    part: str
    name: str
    found: str
    right: bool = True
    advice: str = ""
    """What to do, if it is not right."""


def machine() -> Iterator[Finding]:
    """What a run would find here."""
    yield from _packages()
    yield from _devices()
    for name, folder in (("here", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        yield _disk(name, folder)
    try:
        cache = cache_folder(None)
    except DpoError as error:
        yield Finding("cache", "folder", str(error), False)
    else:
        yield _disk("cache", cache)
        yield from _cache(cache)
    yield from _network()


def _packages() -> Iterator[Finding]:
    for package in needed(extras=True):
        wanted = f" (needed: {package.wanted})" if package.wanted else ""
        advice = f"pip install '{package.name}{package.wanted}'"
        yield Finding("packages", package.name, f"{package.found or 'missing'}{wanted}", package.right, advice)


def _devices() -> Iterator[Finding]:
    import psutil  # type: ignore[import-untyped]
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    yield Finding("devices", "cpu", f"{cores} cores, {_size(memory.available)} of {_size(memory.total)} memory free")
    for number in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(number)
            found = f"{torch.cuda.get_device_name(number)}, {_size(free)} of {_size(total)} free"
            yield Finding("devices", f"gpu {number}", found)
        except RuntimeError as error:
            yield Finding("devices", f"gpu {number}", one_line(str(error), 200), False, "look at its driver")
    gpus = torch.cuda.is_available()
    there = torch.distributed.is_nccl_available() if gpus else torch.distributed.is_gloo_available()
    name = "NCCL" if gpus else "gloo"
    advice = f"install a build of torch that has {name}"
    yield Finding("devices", "between processes", f"{name}{'' if there else ' is missing'}", there, advice)


def _disk(name: str, folder: Path) -> Finding:
    """Whether there is room, and whether anything can be written."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    found = f"{_size(free)} free in {folder}"
    if why := why_not_writable(folder):
        return Finding("disk", name, f"{folder} can't be written to ({why})", False, "choose another folder")
    return Finding(
        "disk", name, found, free >= _LITTLE, "make room: a run checks before it saves, and would stop there"
    )


def _cache(cache: Path) -> Iterator[Finding]:
    """Every file of the caches against its hash."""
    if not cache.is_dir():
        yield Finding("cache", "folder", f"{cache}: nothing is there yet")
        return
    if is_open_to_all(cache):
        yield Finding("cache", "folder", f"{cache} can be written to by everybody", False, f"chmod o-w {cache}")
    yield from _references(cache / "reference")
    yield from _tables(cache / "tokens")
    leftovers = [path for path in cache.rglob("*") if path.name.endswith((".partial", ".new"))]
    if leftovers:
        size = sum(path.stat().st_size for path in leftovers if path.is_file())
        found = f"{len(leftovers)} unfinished, {_size(size)}: of runs that are still at it, or were killed"
        yield Finding("cache", "leftovers", found)
    for lock in sorted(cache.rglob("*.lock")):
        if _is_held(lock):
            yield Finding("cache", "lock", f"{lock.relative_to(cache)} is held by a process at work")


def _references(root: Path) -> Iterator[Finding]:
    from dpo_cli.errors import StorageError
    from dpo_cli.reference.store import read_chunk

    stores, size = [path for path in sorted(root.glob("*")) if path.is_dir()], 0
    for store in stores:
        for chunk in sorted(store.glob("chunk-*.safetensors")):
            size += chunk.stat().st_size
            try:
                read_chunk(chunk)
            except StorageError:
                yield Finding("cache", "reference", f"{chunk} is damaged", False, f"rm {chunk}; it is computed again")
    yield Finding("cache", "reference", f"{len(stores)} references, {_size(size)}, every hash compared")


def _tables(root: Path) -> Iterator[Finding]:
    from dpo_cli.data.store import open_table

    size, count = 0, 0
    for folder in sorted(root.glob("*")):
        if not folder.is_dir() or folder.suffix:
            continue
        count += 1
        size += sum(path.stat().st_size for path in folder.iterdir())
        table, trouble = open_table(folder)
        if table is None:
            yield Finding("cache", "tokens", trouble, False, f"rm -r {folder}; the next run makes it again by itself")
    yield Finding("cache", "tokens", f"{count} tables, {_size(size)}, every hash compared")


def _network() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    from dpo_cli.tracking.trackers import wandb_mode

    offline = constants.HF_HUB_OFFLINE
    where = "offline: only what is in its cache is used" if offline else f"{constants.ENDPOINT} is asked"
    yield Finding("network", "hub", f"{where}; {'a' if get_token() else 'no'} token is set up")
    yield Finding("network", "wandb", f"tracker.mode=auto means {wandb_mode('auto')}")


def run_folder(folder: Path) -> Iterator[Finding]:
    """Whether a run's folder is whole.

    Raises:
        DpoError: it is no run's folder.
    """
    from dpo_cli.reporting.runs import newest_step, read_config_file, status_of
    from dpo_cli.run_folder import read

    if not any((folder / name).is_file() for name in ("run.json", "config.yaml")):
        raise DpoError(f"{folder} is not a run's folder: it holds neither run.json nor config.yaml")
    record = read(folder)
    status = status_of(folder, record)
    right = status.word in ("done", "running", "preempted")
    yield Finding("run", "run.json", f"{status.word}: {status.why}" if status.why else status.word, right, "see above")
    config = read_config_file(folder / "config.yaml")
    yield Finding("run", "config.yaml", "readable" if config else "missing or damaged", bool(config), _RESTORE)
    yield _metrics(folder / "metrics.jsonl")
    yield from _checkpoints(folder / "checkpoints", newest_step(folder), status.word)
    if (folder / "final").is_dir():
        yield _final(folder / "final")
    leftovers = sorted(path.name for path in [*folder.glob(".*"), *(folder / "checkpoints").glob(".*")])
    if leftovers:
        yield Finding("run", "leftovers", ", ".join(map(one_line, leftovers)))


_RESTORE = "the same command in a new folder writes it again; what was trained does not depend on it"


def _metrics(file: Path) -> Finding:
    """Whether every line is one, and whether steps go forward."""
    if not file.is_file():
        return Finding("run", file.name, "missing", False, _RESTORE)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return Finding("run", file.name, one_line(f"can't be read ({error})", 200), False, _RESTORE)
    steps, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            bad.append(number)
            continue
        if "loss" in values:
            steps.append(step)
    whole = not bad and all(isinstance(step, int) for step in steps) and steps == sorted(set(steps))
    if whole:
        return Finding("run", file.name, f"{len(lines):,} lines, up to update {steps[-1] if steps else 0:,}")
    what = f"line {bad[0]} is no metrics" if bad else "updates are there twice, or not in order"
    return Finding(
        "run", file.name, what, False, "resume=auto takes lines after its checkpoint out and writes them anew"
    )


def _checkpoints(folder: Path, newest: int, status: str) -> Iterator[Finding]:
    from dpo_cli.errors import CheckpointError
    from dpo_cli.training import checkpoint

    found = checkpoint.folders(folder)
    for place in found:
        try:
            state = checkpoint.read(place).state
            yield Finding("checkpoints", place.name, f"whole: update {state.step:,}, every hash compared")
        except CheckpointError as error:
            what = str(error).replace(f"{place}: ", "").replace(f"{place} ", "")
            yield Finding(
                "checkpoints", place.name, one_line(what, 200), False, f"resume=auto skips it; rm -r {place} removes it"
            )
    if not found and newest and status not in ("done", "running"):
        yield Finding("checkpoints", "none", "there is nothing to go on from", False, "start again in a new folder")


def _final(folder: Path) -> Finding:
    """Whether the model is one that can be loaded: all files sound, all numbers finite."""
    import torch
    from safetensors import SafetensorError, safe_open

    from dpo_cli.model.files import CONFIG_FILE, WEIGHTS_FILE
    from dpo_cli.model.weight_files import read_header, read_headers

    adapter = (folder / CONFIG_FILE).is_file()
    try:
        held = read_header(folder / WEIGHTS_FILE) if adapter else read_headers(folder)
        json.loads((folder / (CONFIG_FILE if adapter else "config.json")).read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.safetensors")):
            if not file.is_file():  # to open a pipe is to wait for whoever writes to it
                raise DpoError(f"{file.name} is no ordinary file")
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        raise DpoError(f"{name} holds numbers that are not finite")
        if not held:
            raise DpoError("there are no weights in it")
    except (DpoError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        advice = "resume=auto writes it again from the last checkpoint" + (
            "" if (folder.parent / "checkpoints").is_dir() else ", if there is one"
        )
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        return Finding("run", "final", one_line(what, 300), False, advice)
    numbers = sum(math.prod(tensor.shape) for tensor in held.values())
    kind = "an adapter" if adapter else "a model"
    return Finding("run", "final", f"{kind} of {numbers / 1e6:,.2f} million numbers, all finite")


def _is_held(lock: Path) -> bool:
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _size(count: float) -> str:
    from dpo_cli.reporting.runs import byte_size

    return byte_size(int(count))


def as_plain(findings: list[Finding]) -> list[dict[str, Any]]:
    """For a program to read."""
    return [
        {"part": each.part, "name": each.name, "found": each.found, "right": each.right}
        | ({} if each.right else {"advice": each.advice})
        for each in findings
    ]
