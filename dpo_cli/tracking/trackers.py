"""Trackers of a run, each in a process of its own that reads the run's files: nothing that one does, or fails to do,
can slow training or stop it, and nothing is lost, as the files have everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.tracking import progress
from dpo_cli.tracking.backends import KINDS, is_installed

_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Tracker:
    """A tracker that follows a run."""

    def __init__(
        self,
        name: str,
        run_dir: Path,
        *,
        project: str,
        run_name: str,
        group: str | None,
        config: Mapping[str, Any],
        mode: str,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """
        Args:
            name: of ``KINDS``.
            run_dir: whose files are followed.
            project: of the run.
            run_name: of the run.
            group: of the run; all runs of a sweep share one.
            config: shown with the run, without secrets.
            mode: ``online`` or ``offline``.
            say: told where the run is to be found.
            warn: told what goes wrong, each thing once.
        """
        self.name, self.run_dir = name, run_dir
        self.title = KINDS[name].title
        self._say, self._warn = say, warn
        self._said: set[str] = set()
        progress.folder_of(run_dir).mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in _OF_RANKS}
        with (progress.folder_of(run_dir) / f"{name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dpo_cli.tracking.follow"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for training, and this ends when that does
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        settings = {"tracker": name, "folder": str(run_dir), "project": project, "name": run_name, "group": group}
        self._tell({**settings, "config": config, "mode": mode, "process": os.getpid()})

    def end(self, exit_code: int) -> None:
        """Say that the run has ended; ``wait`` waits for what follows."""
        self._tell({"exit_code": exit_code})

    def wait(self, deadline: float) -> bool:
        """Whether the tracker has everything; its process is gone in any case.

        Args:
            deadline: by the monotonic clock.
        """
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            with suppress(ProcessLookupError):  # wandb has a process of its own, which may outlive this one
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._listener.join(1.0)
        return self._process.returncode == 0

    def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone, which ``wait`` will notice
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                what = json.loads(line)
            except ValueError:
                continue
            for kind, text in what.items() if isinstance(what, dict) else ():
                if text not in self._said:
                    self._said.add(text)
                    if kind == "where":
                        self._say(f"{self.title}: {text}")
                    else:
                        self._warn(f"{self.title}: {text}; training goes on, metrics.jsonl has every metric")


def finish(trackers: Sequence[Tracker], exit_code: int, *, seconds: float, warn: Callable[[str], None]) -> bool:
    """End all trackers of a run, and say what they did not get; whether they have everything.

    Args:
        trackers: of one run.
        exit_code: of the run.
        seconds: how long they may take, all together.
        warn: told what is missing.
    """
    for tracker in trackers:
        tracker.end(exit_code)
    deadline = time.monotonic() + seconds
    missing = [tracker for tracker in trackers if not tracker.wait(deadline)]
    for tracker in missing:
        lines = progress.unsent(tracker.run_dir, progress.load(tracker.run_dir, tracker.name))
        what = f"{lines} lines of metrics.jsonl were not sent" if lines else "it has not said that all has arrived"
        warn(f"{tracker.title}: {what}; `dpo sync {tracker.run_dir}` sends them")
    return not missing


def check_usable(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not there, or that has nowhere to send anything.

    Raises:
        DpoError: naming what to install or to set.
    """
    for name in names:
        if not is_installed(name):
            kind = KINDS[name]
            what = f"'dpo-cli[{kind.extra}]'" if kind.extra else kind.package
            raise DpoError(f"tracker={name} needs {kind.title}: pip install {what}")
        if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise DpoError(
                "tracker=mlflow needs a server: set MLFLOW_TRACKING_URI in the environment, such as "
                "http://127.0.0.1:5000 after `mlflow server`"
            )


def wandb_mode(mode: str) -> str:
    """``auto`` as ``online`` where a key is set up, by the environment or by wandb's login; else ``disabled``."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if not has_key:
        import netrc

        try:
            has_key = netrc.netrc().authenticators("api.wandb.ai") is not None
        except (OSError, netrc.NetrcParseError):
            has_key = False
    return "online" if has_key else "disabled"
