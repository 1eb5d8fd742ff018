"""``launch=hostfile``: ranks on several machines, which DeepSpeed's launcher starts over ssh by pdsh.

The hosts are looked at first, so that what is wrong with one is said in a line. Configuration and environment go
through a folder that all hosts share, and nothing secret through a command line. DeepSpeed ends the ranks of a host
where one has died; ``lifeline`` ends those of the others.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import IO
from uuid import uuid4

from dpo_cli.config import EvaluateConfig, TrainConfig
from dpo_cli.config_launch import HostfileConfig
from dpo_cli.errors import DpoError, ExitCode, StorageError
from dpo_cli.launchers.lifeline import Order, Record, began, give, records
from dpo_cli.secret import is_secret_variable
from dpo_cli.stopping import heeded, leave_terminal

_PASSED = (
    "NCCL_",
    "GLOO_",
    "UCX_",
    "OMP_",
    "HF_",
    "DPO_",
    "WANDB_",
    "TORCH_",
    "PYTORCH_",
    "DS_",
    "TOKENIZERS_",
    "CUDA_",
)
_NOT_PASSED = ("CUDA_VISIBLE_DEVICES", "DS_ENV_FILE")
_FOR_DEEPSPEED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "SSH_AUTH_SOCK"),
    *("PYTHONPATH", "PYTHONSAFEPATH"),
)
"""What DeepSpeed's launcher is given itself: of its environment it puts some on the hosts' command lines."""

_SECONDS_BETWEEN_BEATS = 5.0
_SECONDS_FOR_OTHERS = 15.0
"""How long the other ranks may go on when one has ended with an error: they usually see the same one."""
_SECONDS_TO_END = 15.0
"""How long they have when they were told to end."""
_PLAIN = re.compile(r"[\w@+=:,./-]+")
_OF_DEEPSPEED = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[[A-Z]+\] \[\w+\.py:")
_DIED = re.compile(r"exits with return code = (-?\d+)")
_SSH_ENDED = re.compile(r"pdsh@[^:]+: (\S+): ssh exited with exit code (\d+)")


def run(command: str, config: TrainConfig | EvaluateConfig) -> int:
    """Run a command on the hosts of a hostfile; returns the exit code.

    Raises:
        DpoError: if a host can't be used, before anything is started.
    """
    launch = config.launch
    assert isinstance(launch, HostfileConfig)
    hosts = read_hostfile(Path(launch.hostfile))
    if shutil.which("pdsh") is None:
        raise DpoError("launch=hostfile needs pdsh and ssh on this machine (apt-get install pdsh openssh-client)")
    folder = _shared_folder(config)
    try:
        file = folder / "config.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        passed = passed_on(os.environ, launch.pass_env)
        (folder / "environment.json").write_text(json.dumps(passed), encoding="utf-8")
        give(folder, "go", 0)
        addresses = _look_at(list(hosts), file, launch.ssh_port)
        words = _deepspeed(launch, launch.master_addr or addresses[0], file, command)
        return _Launch(folder, hosts, words).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their processes, in order.

    Raises:
        DpoError: naming the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DpoError(f"launch.hostfile={path}: {getattr(error, 'strerror', None) or error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        match = re.fullmatch(r"([\w.@-]+)\s+slots=([1-9]\d*)", words)
        if match is None or match[1].startswith("-"):
            raise DpoError(f"{path}, line {number}: {words[:80]!r}; expected HOST slots=N")
        if match[1] in hosts:
            raise DpoError(f"{path}, line {number}: {match[1]} is there twice; give it all its slots in one line")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise DpoError(f"launch.hostfile={path} names no host; expected lines as HOST slots=N")
    return hosts


def passed_on(environment: Mapping[str, str], more: Sequence[str]) -> dict[str, str]:
    """The variables that ranks on other machines are given; no secrets, as they are written to a file.

    Args:
        environment: of this process.
        more: names that the user wants passed on as well.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in more or (name.startswith(_PASSED) and name not in _NOT_PASSED and not is_secret_variable(name))
    }


def _shared_folder(config: TrainConfig | EvaluateConfig) -> Path:
    """A new folder beside the run's, so on the same file system."""
    run_dir = config.run_dir if isinstance(config, TrainConfig) else config.output
    parent = Path("runs") if run_dir is None else Path(run_dir).parent
    folder = (parent / f".launch-{uuid4().hex[:12]}").absolute()
    _check_plain(folder, Path.cwd(), Path(sys.executable))
    folder.mkdir(parents=True, mode=0o700)
    return folder


def _check_plain(*paths: Path) -> None:
    """DeepSpeed puts them on command lines as they are.

    Raises:
        DpoError: if one would not be one word there.
    """
    for path in paths:
        if not _PLAIN.fullmatch(str(path)):
            raise DpoError(f"{path}: launch=hostfile needs paths of letters, digits and @+=:,./-_ alone")


def _look_at(hosts: Sequence[str], file: Path, port: int | None) -> list[str]:
    """See that every host can be reached and has what it takes; returns each one's first address.

    Raises:
        DpoError: a line for each host that can't be used.
    """
    look = (
        f"test -r {shlex.quote(str(file))} || exit 101; cd {shlex.quote(str(Path.cwd()))} || exit 102; "
        f"test -x {shlex.quote(sys.executable)} || exit 103; hostname -I"
    )
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", *([] if port is None else ["-p", str(port)])]

    def ask(host: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ssh", *options, host, look], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
        )

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, hosts))
    why = {
        101: f"does not see {file.parent.parent}, where the run is to write: it must be on a file system all share",
        102: f"has no folder {Path.cwd()}, which is the current one here",
        103: f"has no {sys.executable}: this Python must be at the same path on all hosts",
    }
    problems = []
    for host, answer in zip(hosts, answers, strict=True):
        if answer.returncode:
            said = next(iter(answer.stderr.strip().splitlines()[-1:]), f"exit code {answer.returncode}")
            problems.append(f"host {host} {why.get(answer.returncode, f'can not be used over ssh: {said}')}")
    if problems:
        raise StorageError("\n".join(problems)) if answers[0].returncode == 101 else DpoError("\n".join(problems))
    return [next(iter(answer.stdout.split()), host) for host, answer in zip(hosts, answers, strict=True)]


def _deepspeed(launch: HostfileConfig, address: str, file: Path, command: str) -> list[str]:
    port = random.randint(20000, 30000) if launch.master_port == "auto" else launch.master_port
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(Path(launch.hostfile).absolute())),
        *("--launcher", "pdsh", "--force_multi", "--no_ssh_check", "--no_local_rank"),
        *("--master_addr", address, "--master_port", str(port)),
        *([] if launch.ssh_port is None else ["--ssh_port", str(launch.ssh_port)]),
        *("--module", "dpo_cli", "_rank", command, str(file)),
    ]


class _Launch:
    """Ranks on their way, from the first to the last."""

    def __init__(self, folder: Path, hosts: Mapping[str, int], words: Sequence[str]) -> None:
        self._folder, self._hosts = folder, hosts
        self._words = words
        self._ended: dict[str, int] = {}
        """How ssh to a host ended, where it ended badly."""
        self._died: dict[str, int] = {}
        """The exit code of the rank that DeepSpeed saw die on a host; negative = a signal."""
        self._signals: list[int] = []

    def run(self) -> int:
        """To the end of all ranks; returns the exit code, and what went wrong is printed."""
        ssh = "-o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
        environment = {name: os.environ[name] for name in os.environ if name in _FOR_DEEPSPEED or name[:3] == "LC_"}
        environment |= {"DS_ENV_FILE": os.devnull, "PDSH_SSH_ARGS_APPEND": ssh}
        process = subprocess.Popen(
            self._words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # signals reach the ranks as orders, so that they can save
        )
        readers = [
            Thread(target=self._read, args=(pipe, shown), daemon=True)
            for pipe, shown in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        try:
            with self._hearing_signals():
                self._see_to(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in readers:
            reader.join(5)
        return self._verdict(process.returncode)

    def _see_to(self, process: subprocess.Popen[str]) -> None:
        """Give orders until DeepSpeed's launcher has ended, or has been given up."""
        beat, next_beat, given = 0, 0.0, "go"
        failed_at = float("inf")
        while process.poll() is None:
            now = time.monotonic()
            if failed_at > now and self._failed():
                failed_at = now
            order: Order = "stop" if self._signals else "go"
            if len(self._signals) > 1 or now > failed_at + _SECONDS_FOR_OTHERS:
                order = "end"
            if order != given or now >= next_beat:
                beat, next_beat, given = beat + 1, now + _SECONDS_BETWEEN_BEATS, order
                give(self._folder, order, beat)
            if now > failed_at + _SECONDS_FOR_OTHERS + _SECONDS_TO_END:
                return
            time.sleep(0.3)

    def _failed(self) -> bool:
        bad = [record for record in records(self._folder).values() if record.code]
        return bool(self._ended or self._died or [record for record in bad if record.code != ExitCode.PREEMPTED])

    def _read(self, pipe: IO[str] | None, shown: IO[str]) -> None:
        """Pass on what the ranks print, without what DeepSpeed does."""
        assert pipe is not None
        first = next(iter(self._hosts))
        for line in pipe:
            if match := _SSH_ENDED.match(line):
                self._ended[match[1]] = int(match[2])
                continue
            host, colon, text = line.partition(": ")
            if not colon or host not in {name.rpartition("@")[2] for name in self._hosts}:
                host, text = "", line
            if match := _DIED.search(text):
                self._died[host] = int(match[1])
            if not _OF_DEEPSPEED.match(text):
                print(text if host in ("", first) else line, end="", file=shown, flush=True)

    @contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        def hear(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            if number == signal.SIGHUP:
                leave_terminal()

        before = {number: signal.signal(number, hear) for number in heeded()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _verdict(self, code: int) -> int:
        """Say what went wrong first; returns the exit code."""
        found = records(self._folder)
        bad = sorted((record for record in found.values() if record.code), key=lambda record: record.time)
        silent = {rank: host for rank, host in began(self._folder).items() if rank not in found}
        if not bad and not silent and code == 0:
            return int(ExitCode.DONE)
        own = [record for record in bad if not record.lost and record.code != ExitCode.PREEMPTED]
        stopped = [record for record in bad if record.code == ExitCode.PREEMPTED]
        if own:
            return _say(own[0])
        if stopped and (self._signals or not silent):
            return _say(min(stopped, key=lambda record: record.rank))
        gone = [host for host, code in self._ended.items() if code == 255]
        if silent:
            print(f"dpo: {self._lost(silent)}", file=sys.stderr)
        elif gone:
            print(f"dpo: ssh to {', '.join(gone)} broke off; the other ranks were ended", file=sys.stderr)
        elif bad:
            return _say(bad[0])
        else:
            print(f"dpo: DeepSpeed's launcher ended with exit code {code}: see above", file=sys.stderr)
        return int(ExitCode.INTERNAL)

    def _lost(self, silent: Mapping[int, str]) -> str:
        """For ranks that ended without a word."""
        how = [f"on {host} one died of signal {-code}" for host, code in self._died.items() if code < 0]
        how += [f"ssh to {host} broke off" for host, code in self._ended.items() if code == 255]
        who = ", ".join(f"rank {rank} on {host}" for rank, host in sorted(silent.items()))
        why = f" ({'; '.join(how)}: was it killed, or memory full?)" if how else ""
        return f"{who} ended without a word{why}; the other ranks were ended"


def _say(record: Record) -> int:
    """Print a rank's error; returns its exit code."""
    text = record.text or f"dpo: exit code {record.code}"
    if record.rank:
        text = text.replace("dpo: ", f"dpo: rank {record.rank} on {record.host}: ", 1)
    print(text, file=sys.stderr)
    return record.code if record.code > 0 else int(ExitCode.INTERNAL)
