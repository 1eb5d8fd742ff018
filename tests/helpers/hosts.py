"""Two machines on this one: network namespaces with addresses of their own, and an sshd in each."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = {"ip": "iproute2", "/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh"}


def why_not() -> str:
    """What this machine lacks for it; an empty string, if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    lacking = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    name = f"dpo-try-{os.getpid()}"
    tried = _run("ip", "netns", "add", name, check=False)
    _run("ip", "netns", "delete", name, check=False)
    return "" if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Hosts:
    """Two hosts, ``one`` and ``two`` by name, which share the file system."""

    folder: Path
    namespaces: tuple[str, str]

    @property
    def path(self) -> str:
        """A PATH on which ``ssh`` finds them."""
        return f"{self.folder}:{os.environ['PATH']}"

    def on_first(self, *words: str) -> list[str]:
        """A command line as on the first of them."""
        return ["ip", "netns", "exec", self.namespaces[0], *words]


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Make them, and leave nothing of them behind."""
    folder.mkdir()
    names = (f"dpo-one-{os.getpid()}", f"dpo-two-{os.getpid()}")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _connect(names)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
        config = []
        for name, host, address in zip(names, ("one", "two"), ("10.77.0.1", "10.77.0.2"), strict=True):
            daemons.append(_sshd(folder, name, host, address))
            config.append(f"Host {host}\n  HostName {address}\n")
        config.append(
            f"Host *\n  IdentityFile {folder}/key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
            f"  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
        )
        (folder / "config").write_text("".join(config))
        ssh = folder / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        ssh.chmod(0o755)
        for host in ("one", "two"):
            _wait_for(host, names[0], ssh)
        yield Hosts(folder, names)
    finally:
        for name in names:
            for pid in _run("ip", "netns", "pids", name, check=False).stdout.split():
                _run("kill", "-9", pid, check=False)
        for daemon in daemons:
            daemon.wait()
        for name in names:
            _run("ip", "netns", "delete", name, check=False)


def _connect(names: tuple[str, str]) -> None:
    for name in names:
        _run("ip", "netns", "add", name)
    ends = (f"dpo1-{os.getpid()}", f"dpo2-{os.getpid()}")
    _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for name, end, address in zip(names, ends, ("10.77.0.1", "10.77.0.2"), strict=True):
        _run("ip", "link", "set", end, "netns", name)
        inside = ("ip", "-n", name)
        _run(*inside, "link", "set", end, "name", "eth0")
        _run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "link", "set", "lo", "up")


def _sshd(folder: Path, name: str, host: str, address: str) -> subprocess.Popen[bytes]:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / f"host-{host}"))
    Path("/run/sshd").mkdir(exist_ok=True)
    config = folder / f"sshd-{host}"
    config.write_text(
        f"ListenAddress {address}\nHostKey {folder}/host-{host}\nAuthorizedKeysFile {folder}/key.pub\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n"
    )
    with (folder / f"sshd-{host}.log").open("w") as log:
        words = ["ip", "netns", "exec", name, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        return subprocess.Popen(words, stdout=log, stderr=log)


def _wait_for(host: str, namespace: str, ssh: Path) -> None:
    for _ in range(50):
        tried = _run("ip", "netns", "exec", namespace, str(ssh), "-o", "BatchMode=yes", host, "true", check=False)
        if tried.returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{host} on {socket.gethostname()}: {tried.stderr}")


def _run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}")
    return done
