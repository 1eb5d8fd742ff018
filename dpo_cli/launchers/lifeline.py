"""What a launching machine and its ranks on other machines tell each other: small files in a folder that all share.

The launcher writes its orders and, every few seconds, that it is alive; each rank follows them, and leaves a record of
how it ended. So an end comes to every rank, and its reason to the launcher, whatever became of the connections.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dpo_cli.errors import ExitCode
from dpo_cli.run_folder import write_json

Order = Literal["go", "stop", "end"]
"""go on; save and end; end at once"""

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_WITHOUT_LAUNCHER = 90.0
"""Without a sign of the launcher a rank saves and ends: nobody would hear of it, or end it."""
_SECONDS_TO_STOP = 60.0
_SECONDS_FOR_OTHERS = 20.0


@dataclass(frozen=True)
class Record:
    """How a rank ended."""

    rank: int
    host: str
    code: int
    text: str
    """What went wrong, if something did."""
    lost: bool
    """Whether that is no more than the loss of another rank."""
    time: float


def give(folder: Path, order: Order, beat: int) -> None:
    """As the launcher: say what to do, and that it is alive (another ``beat`` each time)."""
    write_json(folder / "orders.json", {"order": order, "beat": beat})


def is_watched(folder: Path) -> bool:
    """Whether a launcher gives orders in this folder."""
    return (folder / "orders.json").exists()


def follow(folder: Path, rank: int) -> None:
    """As a rank: follow the launcher's orders from here on, in a thread."""
    (folder / f"began-{rank}").write_text(socket.gethostname(), encoding="utf-8")
    threading.Thread(target=_follow, args=(folder, rank), daemon=True).start()


def _follow(folder: Path, rank: int) -> None:
    beat, seen, stopped = -1, time.monotonic(), 0.0
    while True:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        now = time.monotonic()
        try:
            orders = json.loads((folder / "orders.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # gone, or the file system is slow: the launcher has not been heard of
            orders = {"order": "go", "beat": beat}
        if orders["beat"] != beat:
            beat, seen = orders["beat"], now
        order = "stop" if now - seen > _SECONDS_WITHOUT_LAUNCHER else orders["order"]
        listens = callable(signal.getsignal(signal.SIGTERM))
        if order == "stop" and not stopped and listens:
            stopped = now
            os.kill(os.getpid(), signal.SIGTERM)
        alone = now - seen > _SECONDS_WITHOUT_LAUNCHER + _SECONDS_TO_STOP
        if order == "end" or alone:
            leave(folder, rank, int(ExitCode.INTERNAL), "dpo: ended because another rank had", lost=True)
            os._exit(int(ExitCode.INTERNAL))


def leave(folder: Path, rank: int, code: int, text: str, *, lost: bool = False) -> None:
    """As a rank: record how it ends. A rank that was stopped waits for the others to have been, as its own end would
    bring a second signal to those of its machine, which means at once."""
    try:
        record = Record(rank, socket.gethostname(), code, text, lost, time.time())
        write_json(folder / f"rank-{rank}.json", asdict(record))
    except OSError:  # the folder has gone, and with it whoever would read this
        return
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS
    while code == ExitCode.PREEMPTED and time.monotonic() < deadline:
        if len(records(folder)) == int(os.environ.get("WORLD_SIZE", "1")):
            break
        time.sleep(0.2)


def records(folder: Path) -> dict[int, Record]:
    """As the launcher: how the ranks ended that have."""
    found = {}
    for file in folder.glob("rank-*.json"):
        record = Record(**json.loads(file.read_text(encoding="utf-8")))
        found[record.rank] = record
    return found


def began(folder: Path) -> dict[int, str]:
    """As the launcher: the ranks that began, and each one's host."""
    return {int(file.name.partition("-")[2]): file.read_text(encoding="utf-8") for file in folder.glob("began-*")}
