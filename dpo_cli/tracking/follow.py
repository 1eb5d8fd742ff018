"""What the process of a tracker does: follow a run's files, and send what is new.

    python -m dpo_cli.tracking.follow

It is given its settings as the first line of its input, and how the run ended as the second; if its input ends without
one, so has the run, in a way that nobody had time to speak of. It answers with lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.run_folder import read
from dpo_cli.tracking import progress
from dpo_cli.tracking.backends import Backend, Run, opened, without_secrets
from dpo_cli.tracking.metrics_file import NewLines
from dpo_cli.tracking.progress import Progress, finite, parsed

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_NEXT_TRY = 10.0
_LONGEST_PAUSE = 300.0
_KILLED = 255
"""As which the exit code of a run counts that did not live to say."""
_SECONDS_WITHOUT_PARENT = 60.0


@dataclass
class Ending:
    """When the run ends, and how."""

    came: threading.Event
    exit_code: int = _KILLED
    killed: bool = False

    def listen(self) -> None:
        """Wait for the line that says so."""
        line = sys.stdin.readline()
        if line:
            self.exit_code = int(json.loads(line)["exit_code"])
        self.killed = not line
        self.came.set()
        if self.killed:  # nobody waits, and nobody would end this process
            timer = threading.Timer(_SECONDS_WITHOUT_PARENT, os.killpg, (os.getpgrp(), signal.SIGKILL))
            timer.daemon = True
            timer.start()


class Follower:
    """A run's files on their way to a tracker."""

    def __init__(self, name: str, run_dir: Path, sent: Progress) -> None:
        self.name, self.run_dir, self.sent = name, run_dir, sent
        self._lines = NewLines(run_dir / "metrics.jsonl")
        self._samples_changed = 0.0

    def catch_up(self, backend: Backend) -> None:
        """Send what is new."""
        before = repr(self.sent)
        try:
            self._metrics(backend)
            self._samples(backend)
            self._alerts(backend)
        finally:
            if repr(self.sent) != before:
                progress.save(self.run_dir, self.name, self.sent)

    def _metrics(self, backend: Backend) -> None:
        for step, values in parsed(self._lines.read()):
            metrics = finite(values)
            if not self.sent.has(step, values):
                if not backend.has(step, metrics):
                    backend.log(step, metrics)
                self.sent.add(step, values)

    def _samples(self, backend: Backend) -> None:
        path = self.run_dir / "samples.jsonl"
        if not path.exists() or path.stat().st_mtime == self._samples_changed:
            return
        changed = path.stat().st_mtime
        by_step: dict[int, list[dict[str, Any]]] = {}
        with path.open("rb") as file:
            for step, row in parsed(file):
                by_step.setdefault(step, []).append({"step": step, **row})
        for step in sorted(by_step):
            if step > self.sent.sampled:
                backend.samples(step, by_step[step])
                self.sent.sampled = step
        self._samples_changed = changed

    def _alerts(self, backend: Backend) -> None:
        for alert in (read(self.run_dir).get("alerts") or [])[self.sent.alerts :]:
            backend.alert(str(alert["name"]), f"after update {alert['step']}: {alert['text']}")
            self.sent.alerts += 1


def follow(name: str, run: Run, sent: Progress, ending: Ending) -> bool:
    """Send a run to a tracker until it ends; whether the tracker has all of it.

    A tracker that can't be reached is tried again and again, from where it was, until the run ends.
    """
    pause = _SECONDS_TO_NEXT_TRY
    while True:
        last = ending.came.is_set()
        try:
            _send(name, run, sent, ending)
        except Exception as error:  # any of the trackers' many
            _say(warn=without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300])
            sent.finished = False
            if last or ending.came.wait(pause):
                if last:
                    return False
                continue
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return True


def _send(name: str, run: Run, sent: Progress, ending: Ending) -> None:
    backend = opened(name, run if sent.run_id is None else _going_on(run, sent.run_id))
    if sent.run_id is not None and not sent.finished and backend.has(0, {}) is not None:
        sent.step, sent.lines = -1, []  # it was cut off: what has arrived, the tracker itself knows better
    sent.run_id, sent.where, sent.offline, sent.finished = backend.run_id, backend.where, run.mode == "offline", False
    progress.save(run.folder, name, sent)
    _say(where=backend.where)
    follower = Follower(name, run.folder, sent)
    ended = False
    while not ended:
        ended = ending.came.wait(_SECONDS_BETWEEN_LOOKS)
        follower.catch_up(backend)
    backend.finish(read(run.folder), ending.exit_code)
    sent.finished = True
    progress.save(run.folder, name, sent)


def _going_on(run: Run, run_id: str) -> Run:
    return Run(**{**run.__dict__, "run_id": run_id})


def _say(**what: str) -> None:
    try:
        print(json.dumps(what), file=sys.__stdout__, flush=True)
    except BrokenPipeError:  # nobody is there to hear it
        return


def main() -> int:
    """The process; returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the run that is followed says when it is over
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)  # training comes first
    sys.stdout = sys.stderr  # what libraries print is no answer
    settings = json.loads(sys.stdin.readline())
    name, run_dir = settings.pop("tracker"), Path(settings.pop("folder"))
    sent = progress.load(run_dir, name)
    if sent.offline and settings["mode"] == "online":  # nobody has it so far, but for the files here
        sent = Progress(run_id=sent.run_id)
    ending = Ending(threading.Event())
    threading.Thread(target=ending.listen, daemon=True).start()
    run = Run(folder=run_dir, run_id=None, **settings)
    return 0 if follow(name, run, sent, ending) else 1


if __name__ == "__main__":
    sys.exit(main())
