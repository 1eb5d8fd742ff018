"""Work on rows a chunk at a time, by other processes where there are many rows. Memory holds a few chunks."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from signal import SIG_IGN, signal
from typing import Any, TypeVar

from dpo_cli.data.sources import Row
from dpo_cli.errors import DpoError
from dpo_cli.stopping import SIGNALS

CHUNK = 500
"""Rows at a time."""
CHARACTERS = 8 << 20
"""After which a chunk ends, however few rows it has: tokens take some twenty times the memory of their text."""
ALONE = 8
"""Chunks that are done here before other processes are started: that takes seconds."""

Done = TypeVar("Done")
Work = Callable[[Sequence[Row]], Done]


def by_chunks(rows: Iterable[Row], work: Work[Done], workers: int | None) -> Iterator[Done]:
    """What ``work`` makes of each chunk of the rows, in order.

    Args:
        rows: read here, in order, as they are needed.
        work: goes to other processes once, with what it learnt from the first ``ALONE`` chunks.
        workers: processes; None = one per core.
    """
    workers = workers or _cores()
    chunks = _batched(iter(rows))
    yield from map(work, islice(chunks, ALONE if workers > 1 else None))
    first = next(chunks, None)
    if first is None:
        return
    with _pool(workers, work) as submit:
        under_way = deque([submit(first)])
        for chunk in chunks:
            under_way.append(submit(chunk))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 32)


def _batched(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += _characters(row.values)
        if len(chunk) == CHUNK or size > CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _characters(value: Any) -> int:
    """Of all texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


@contextmanager
def _pool(workers: int, work: Work[Done]) -> Iterator[Callable[[Sequence[Row]], Future[Done]]]:
    """Other processes, each with the work."""
    context = get_context("spawn")  # a fork would inherit torch's threads, and may hang
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work,))
    try:
        yield lambda rows: pool.submit(_work, rows)
    except BrokenProcessPool:
        raise DpoError(
            "a process that was tokenising rows was ended from outside: by a lack of memory, or by a chat template "
            "that could be stopped in no other way (above it says where); data.workers=1 uses no other processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_of_worker: Work[Any]


def _start_worker(work: Work[Any]) -> None:
    global _of_worker
    _of_worker = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core is enough
    for number in SIGNALS:  # the parent's to handle
        signal(number, SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent can't shut its pool down."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(rows: Sequence[Row]) -> Any:
    return _of_worker(rows)
