"""The ranks of this machine: started, watched, and ended together; what went wrong first is said once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_cli import liveness
from dpo_cli.errors import ExitCode
from dpo_cli.launchers.apart import passing_on
from dpo_cli.stopping import ONE_REQUEST

HangTimeout = float | Literal["auto"] | None

_SECONDS_TO_END = 20.0
"""How long the other ranks may go on when one has ended with an error: they usually see the same one."""
_SECONDS_IN_A_HURRY = 5.0
"""How long any may go on after a second signal."""
_SECONDS_TO_ANSWER = 8.0
"""How long ranks that are asked where they stand may take to begin; a busy machine takes seconds to wake one."""
_SECONDS_TO_SAY = 0.5
_SECONDS_OF_A_LOOK = 1.0
"""How long a look at the ranks may take; what is beyond that, this process itself did not run."""
_COLLECTIVE = re.compile(r"[/\\](torch[/\\]distributed|deepspeed[/\\]comm)[/\\]")
"""In a rank's innermost frames: it waits for the others. With NCCL the host may wait elsewhere, in any copy."""
_INNERMOST = 4


@dataclass(frozen=True)
class _End:
    """How a rank ended, if not well."""

    rank: int
    code: int
    text: str
    """What it said; empty if it could not."""
    lost: bool
    """Whether it says no more than that it lost the others."""


def leave(folder: Path, rank: int, code: int, text: str, *, lost: bool) -> None:
    """As a rank: leave how it ends to the parent, who says it."""
    (folder / f"rank-{rank}.json").write_text(json.dumps({"code": code, "text": text, "lost": lost}), encoding="utf-8")


def run(words: Sequence[str], count: int, folder: Path, hang_timeout: HangTimeout) -> int:
    """Run ``words`` as every rank of a job; returns its exit code.

    Args:
        words: of the command.
        count: of ranks.
        folder: in which they leave what they have to say.
        hang_timeout: seconds without a sign of any rank after which all are ended; ``auto`` = as long as their signs
            say, or 1800 s where they don't; None = they may hang for good.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with passing_on(ranks) as signals:
            for own in _environments(count):
                ranks.append(subprocess.Popen(words, env={**os.environ, **own}))
            if signals:  # who was not there yet has not heard of it
                return _stopped()
            ends, trouble = _Watch(ranks, folder, hang_timeout, signals).wait()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if trouble:
        print(trouble, file=sys.stderr)
        return int(ExitCode.INTERNAL)
    if not ends:
        return int(ExitCode.DONE)
    # A rank that only lost the others is never to blame.
    first = min(ends, key=lambda end: (end.lost, end.code == ExitCode.INTERNAL))
    if first.code < 0 and signals:  # it had not even begun to listen
        return _stopped()
    print(_said(first), file=sys.stderr)
    return first.code if first.code > 0 else int(ExitCode.INTERNAL)


def _stopped() -> int:
    print("dpo: stopped by a signal before there was anything to save; the same command begins again", file=sys.stderr)
    return int(ExitCode.PREEMPTED)


def _environments(count: int) -> list[dict[str, str]]:
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }
    if sys.platform == "linux":
        shared.setdefault("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _said(end: _End) -> str:
    if end.code == ExitCode.INTERNAL and end.text:
        return f"{end.text.rstrip()}\ndpo: that was rank {end.rank}; the others were ended"
    if end.text:
        return end.text
    if end.code >= 0:
        return f"dpo: rank {end.rank} ended with exit code {end.code}"
    name = signal.Signals(-end.code).name
    why = " (the machine's memory may be full: dmesg tells)" if name == "SIGKILL" else ""
    return f"dpo: rank {end.rank} was ended by {name}{why}; the others were ended"


class _Watch:
    """From the start of the ranks to their end."""

    def __init__(
        self,
        ranks: Sequence[subprocess.Popen[bytes]],
        folder: Path,
        hang_timeout: HangTimeout,
        signals: Sequence[float],
    ) -> None:
        self._ranks = ranks
        self._folder = folder
        self._hang_timeout = hang_timeout
        self._signals = signals
        self._signs: list[liveness.Sign | None] = [None] * len(ranks)
        """The last of each rank."""
        self._silent = 0.0
        """Seconds that none has come for, as far as this process has run itself."""
        self._looked = time.monotonic()

    def wait(self) -> tuple[list[_End], str]:
        """Until all have ended, or must be ended.

        Returns:
            Those that ended with an error, the first first; and what to say if they hung.
        """
        failed: list[int] = []
        deadline = float("inf")
        while any(rank.poll() is None for rank in self._ranks) and time.monotonic() < deadline:
            self._look(failed)
            if failed:
                deadline = min(deadline, time.monotonic() + _SECONDS_TO_END)
            if in_a_hurry(self._signals):
                deadline = min(deadline, time.monotonic() + _SECONDS_IN_A_HURRY)
            if not failed and self._hangs():
                return [], self._who_hangs()
            time.sleep(0.1)
        self._look(failed)
        return [self._end(number) for number in failed], ""

    def _look(self, failed: list[int]) -> None:
        failed += [n for n, rank in enumerate(self._ranks) if rank.poll() not in (None, 0) and n not in failed]

    def _end(self, number: int) -> _End:
        code = self._ranks[number].returncode
        try:
            # What it said before it left Python counts: on the way out a library may still crash.
            left = json.loads((self._folder / f"rank-{number}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _End(number, code, "", lost=False)
        return _End(number, left["code"], left["text"], left["lost"])

    def _hangs(self) -> bool:
        """Whether no rank has got on for too long. Nothing is said of the time before the first sign of all."""
        now = time.monotonic()
        # A job that was stopped and goes on has not hung, and its ranks had no more time than this process.
        self._silent += min(now - self._looked, _SECONDS_OF_A_LOOK)
        self._looked = now
        signs = [liveness.last_sign(self._folder, number) for number in range(len(self._ranks))]
        if signs != self._signs:
            self._signs, self._silent = signs, 0.0
        return any(signs) and self._silent > self._allowed()

    def _allowed(self) -> float:
        """Seconds that all may be silent, as long as any of them may."""
        if self._hang_timeout is None:
            return float("inf")
        if self._hang_timeout != "auto":
            return self._hang_timeout
        silences = [0.0 if sign is None else sign.silence for sign in self._signs]
        if not all(silences) or any(liveness.waits_for_disk(rank.pid) for rank in self._ranks):
            return max(liveness.LONGEST, *silences)
        return max(silences)

    def _who_hangs(self) -> str:
        """Ask all where they stand, and put the one to blame first.

        That is one that was stopped; else one that is not in a collective, where it would wait for the others; else the
        one that has not got on for the longest.
        """
        silent = self._silent
        running = [number for number, rank in enumerate(self._ranks) if rank.poll() is None]
        stopped = {number for number in running if liveness.is_stopped(self._ranks[number].pid)}
        self._ask(running)
        waiting = {number for number in running if any(map(_COLLECTIVE.search, self._stack(number)[:_INNERMOST]))}
        last = {number: sign.at if (sign := self._signs[number]) else 0 for number in running}
        first, *others = sorted(running, key=lambda n: (n not in stopped, n in waiting, last[n]))
        if first in stopped:
            how = "was stopped by a signal"
        else:
            how = "is the one that the others wait for" if waiting == {*others} else "is the furthest behind"
        lines = [f"rank {first} {how}; it stands at", *self._stack(first)]
        for number in others:
            where = next(iter(self._stack(number)), "").strip()
            lines.append(f"rank {number} waits at {where}")
        why = "launch.hang_timeout" + ("=auto" if self._hang_timeout == "auto" else "")
        blame = f"rank {first} {how}"
        kept = self._keep_stacks(running, blame)
        return "\n".join(
            [
                *lines,
                f"dpo: no rank has got on for {silent:.0f} s ({why}): {blame}; all were ended, {kept}, and the same "
                "command with resume=auto goes on from the last checkpoint",
            ]
        )

    def _ask(self, running: Sequence[int]) -> None:
        """Have ranks write where they stand, and wait until they have, if they do."""
        before = {number: self._written(number) for number in running}
        for number in running:
            liveness.ask(self._ranks[number].pid)
        deadline = time.monotonic() + _SECONDS_TO_ANSWER
        while any(self._written(n) == text for n, text in before.items()) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(_SECONDS_TO_SAY)

    def _keep_stacks(self, running: Sequence[int], what: str) -> str:
        """All stacks in a file that lasts; says where, or why not."""
        text = "".join(
            f"\nrank {number}, whose last sign was {_ago(self._signs[number])}\n{self._written(number)}"
            for number in running
        )
        place = liveness.place_of_stacks(self._folder)
        try:
            if place is None:
                handle, name = tempfile.mkstemp(prefix="dpo-stacks-", suffix=".txt")
                os.close(handle)
                file = Path(name)
            else:
                file = place / "stacks.txt"
            file.write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}: {what}\n{text}", encoding="utf-8")
        except OSError as error:
            return f"their stacks could not be written ({error.strerror or error})"
        return f"their stacks are in {file}"

    def _written(self, number: int) -> str:
        try:
            return liveness.stack_of(self._folder, number).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _stack(self, number: int) -> list[str]:
        """Of a rank's main thread, which is the oldest and comes last."""
        main = re.split(r"^(?:Current t|T)hread .*$", self._written(number), flags=re.MULTILINE)[-1]
        lines = [line for line in main.splitlines() if line.startswith("  File")]
        return lines or ["  (it does not say)"]


def _ago(sign: liveness.Sign | None) -> str:
    return "none yet" if sign is None else f"{(time.monotonic_ns() - sign.at) / 1e9:.0f} s ago"


def in_a_hurry(signals: Sequence[float]) -> bool:
    """Whether a second signal has come, by the times of all."""
    return bool(signals) and max(signals) - min(signals) > ONE_REQUEST


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
