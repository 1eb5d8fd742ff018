"""Commands in forks of one process that has imported everything: imports are most of a small run's time.

What a fork runs is the command line as ``python -m dpo_cli`` would; it has its own environment, folder, session and
output. Only what is fixed while modules are imported is shared: ``OMP_NUM_THREADS``, ``HF_HUB_OFFLINE``, and the order
of sets of strings. Tests of these, of start-up and of faults start processes of their own.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

FIXED = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
"""What modules read while they are imported."""
_IMPORTED = ("dpo_cli.commands.train", "dpo_cli.commands.evaluate", "dpo_cli.commands.precompute_ref")


def run(
    words: Sequence[str], environment: Mapping[str, str], cwd: Path, *, timeout: float = 240
) -> tuple[int, str, str]:
    """``dpo WORDS`` in a fork: its exit code, output and errors. Nothing of it is left running.

    Raises:
        TimeoutError: if it took longer than ``timeout`` seconds.
    """
    return run_at_once(words, environment, cwd, 1, timeout=timeout)[0]


def run_at_once(
    words: Sequence[str], environment: Mapping[str, str], cwd: Path, count: int, *, timeout: float = 240
) -> list[tuple[int, str, str]]:
    """``run``, in several forks that start together."""
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder, f"out-{number}"), Path(folder, f"err-{number}")) for number in range(count)]
        job = {"script": None, "words": list(words), "environment": dict(environment), "cwd": str(cwd)}
        codes = _server(os.getpid()).ask([job | {"out": str(out), "err": str(err)} for out, err in said], timeout)
        if codes is None:
            raise TimeoutError(f"dpo {' '.join(words)}: {timeout} s\n" + "\n".join(err.read_text() for _, err in said))
        return [(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, said, strict=True)]


def run_script(
    script: Path, words: Sequence[str], environments: Sequence[tuple[Mapping[str, str], Path]], *, timeout: float = 240
) -> list[int]:
    """A script in several forks at a time: their exit codes. Nothing of them is left running.

    Args:
        script: run as the main program.
        words: its arguments.
        environments: of each fork, with the file for all it says.
        timeout: seconds.

    Raises:
        TimeoutError: if one took longer.
    """
    jobs = [
        {"script": str(script), "words": list(words), "environment": dict(own), "cwd": os.getcwd()}
        | {"out": str(log), "err": str(log)}
        for own, log in environments
    ]
    codes = _server(os.getpid()).ask(jobs, timeout)
    if codes is None:
        raise TimeoutError(f"{script}: {timeout} s\n" + "\n".join(log.read_text()[-3000:] for _, log in environments))
    return codes


class _Server:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env={**os.environ, **FIXED},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.stop)

    def ask(self, jobs: Sequence[Mapping[str, Any]], timeout: float) -> list[int] | None:
        """The exit codes; None = one took too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([timeout, list(jobs)]), file=self._process.stdin, flush=True)
        answer: list[int] | None = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@cache
def _server(owner: int) -> _Server:
    """One for each process that asks."""
    return _Server()


# -- in the server's process


def _serve() -> None:
    for name in _IMPORTED:
        __import__(name)
    channel = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        timeout, jobs = json.loads(line)
        children = []
        for job in jobs:
            child = os.fork()
            if child == 0:
                _become(job)
            children.append(child)
        print(json.dumps(_wait(children, timeout)), file=channel, flush=True)


def _wait(children: Sequence[int], timeout: float) -> list[int] | None:
    def too_long(number: int, frame: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    codes = []
    try:
        for child in children:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    except TimeoutError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for child in children:
            with suppress(ProcessLookupError):  # what it has started, and itself
                os.killpg(child, signal.SIGKILL)
    if len(codes) == len(children):
        return codes
    for child in children[len(codes) :]:
        os.waitpid(child, 0)
    return None


def _become(job: Mapping[str, Any]) -> None:
    """Turn a fork into the command; does not return."""
    from dpo_cli.cli import main
    from dpo_cli.launchers import ranks

    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["environment"])
        for number, place in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
            opened = os.open(place, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, number)
        try:
            if job["script"] is None:
                ranks.subprocess = _Processes()  # type: ignore[assignment]
                code = main(job["words"])
            else:
                sys.path[:0] = [str(Path(job["script"]).parent), str(Path(__file__).parents[1])]
                sys.argv = [job["script"], *job["words"]]
                runpy.run_path(job["script"], run_name="__main__")
                code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        atexit._run_exitfuncs()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Rank:
    """What ``subprocess.Popen`` gives, of a rank that is a fork of the command."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                from dpo_cli.cli import main

                os.environ.clear()
                os.environ.update(env)
                code = main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # what the command is to do at its own end, such as to remove its folder, is not done

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Processes:
    """Stands for ``subprocess`` in ``dpo_cli.launchers.ranks``, whose ranks have imported everything as well."""

    def Popen(self, words: Sequence[str], **options: Any) -> Any:  # noqa: N802 (subprocess's own name)
        if list(words[1:4]) == ["-m", "dpo_cli", "_rank"]:
            return _Rank(words[3:], options["env"])
        return subprocess.Popen(words, **options)


if __name__ == "__main__":
    _serve()
