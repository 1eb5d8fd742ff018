"""The system calls of saving, cut off anywhere, leave a checkpoint that loads: also if the power goes.

A disk need not hold what was written before it was asked to (fsync), neither a file's bytes nor a folder's names. So
every prefix of the recorded calls is replayed on a model of a file system, and three disks come of it: one that holds
everything, as after SIGKILL; one that holds only what it had to; and one that holds all names and only those bytes that
it had to, which is how file systems give empty files after a power cut.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from dpo_cli.training.checkpoint import find

SAVED = (1, 2, 3)
CALLS = (
    "openat,creat,write,pwrite64,writev,ftruncate,fallocate,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,"
    "rmdir,fsync,fdatasync,sendfile,copy_file_range,link,linkat,symlink,symlinkat"
)
Disk = Literal["all", "least", "names"]


@dataclass
class File:
    bytes_: bytes = b""
    written: int = 0
    """How far it has been written; the rest is zeros of a size that was given first."""
    kept: bytes = b""
    """What the disk holds for sure."""


@dataclass
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    kept: dict[str, File | Folder] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str

    def paths(self, folder: Path) -> list[str]:
        """Paths that it names, relative to ``folder``; a name after an open folder's own is inside that."""
        found = []
        for opened, text in re.findall(r'(?:\d+|AT_FDCWD)<([^>]*)>, "((?:\\x[0-9a-f]{2})*)"', self.arguments):
            found.append(os.path.join(opened, _bytes(text).decode()))
        if not found:
            found = [_bytes(text).decode() for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', self.arguments)]
        return [os.path.relpath(path, folder) for path in found]

    def opened(self, folder: Path) -> str:
        """The path of the file it is given open."""
        match = re.match(r"\d+<([^>]*)>", self.arguments)
        assert match, self
        return os.path.relpath(match[1], folder)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class Machine:
    """What the processes see, and what the disk holds for sure."""

    def __init__(self) -> None:
        self.root = Folder()

    def do(self, call: Call, folder: Path) -> None:
        match call.name:
            case "mkdir" | "mkdirat":
                self._put(call.paths(folder)[0], Folder())
            case "openat" | "creat":
                path = call.paths(folder)[0]
                if ("O_CREAT" in call.arguments and self._at(path) is None) or "O_TRUNC" in call.arguments:
                    self._put(path, File())
            case "write":
                match = re.search(r', "((?:\\x[0-9a-f]{2})*)"(\.\.\.)?, ', call.arguments)
                assert match, call
                assert not match[2], "the trace was cut"
                file, data = self._file(call.opened(folder)), _bytes(match[1])
                end = file.written + len(data)
                file.bytes_ = file.bytes_[: file.written] + data + file.bytes_[end:]
                file.written = end
            case "ftruncate":
                self._file(call.opened(folder)).bytes_ = bytes(int(call.arguments.rpartition(", ")[2]))
            case "fsync" | "fdatasync":
                node = self._at(call.opened(folder))
                if isinstance(node, File):
                    node.kept = node.bytes_
                elif node is not None:
                    node.kept = dict(node.names)
            case "rename" | "renameat" | "renameat2":
                old, new = call.paths(folder)
                node = self._at(old)
                assert node is not None, call
                del self._parent(old).names[os.path.basename(old)]
                self._put(new, node)
            case "unlink" | "unlinkat" | "rmdir":
                (path,) = call.paths(folder)
                del self._parent(path).names[os.path.basename(path)]
            case _:
                raise AssertionError(f"the model does not know {call}")

    def put_on(self, where: Path, disk: Disk) -> None:
        """Make what a machine finds on its disk when it starts again."""
        _make(self.root, where, disk)

    def _at(self, path: str) -> File | Folder | None:
        node: File | Folder | None = self.root
        for part in Path(path).parts:
            node = node.names.get(part) if isinstance(node, Folder) else None
        return node

    def _file(self, path: str) -> File:
        node = self._at(path)
        assert isinstance(node, File), path
        return node

    def _parent(self, path: str) -> Folder:
        node = self._at(os.path.dirname(path))
        assert isinstance(node, Folder), path
        return node

    def _put(self, path: str, node: File | Folder) -> None:
        self._parent(path).names[os.path.basename(path)] = node


def _make(folder: Folder, where: Path, disk: Disk) -> None:
    where.mkdir()
    for name, node in (folder.kept if disk == "least" else folder.names).items():
        if isinstance(node, Folder):
            _make(node, where / name, disk)
        else:
            (where / name).write_bytes(node.bytes_ if disk == "all" else node.kept)


def recorded(folder: Path) -> Iterator[Call | int]:
    """The calls of ``save_three.py`` that change ``folder``, and where it said that a checkpoint is there."""
    trace = folder.with_suffix(".trace")
    words = ["strace", "-f", "-y", "-xx", "-s", "1000000", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(trace)]
    script = Path(__file__).with_name("save_three.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([*words, sys.executable, str(script), str(folder)], env=environment, capture_output=True)
    if b"ptrace" in ran.stderr and ran.returncode:
        pytest.skip("processes can't be traced here")
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    for line in trace.read_text().splitlines():
        shown = re.sub(r"<((?:\\x[0-9a-f]{2})+)>", lambda opened: f"<{_bytes(opened[1]).decode()}>", line)
        match = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)", shown)
        if match is None or match[3].startswith("-"):
            assert "unfinished" not in shown or folder.name not in shown, shown
            continue
        call = Call(match[1], match[2])
        if call.name == "write" and call.arguments.startswith("2<"):
            text = re.search(r'"((?:\\x[0-9a-f]{2})*)"', call.arguments)
            if text and _bytes(text[1]).startswith(b"committed "):
                yield int(_bytes(text[1]).split()[1])
        elif _inside(call, folder):
            yield call


def _inside(call: Call, folder: Path) -> bool:
    reads = call.name == "openat" and "O_CREAT" not in call.arguments and "O_TRUNC" not in call.arguments
    if reads:
        return False
    named = call.paths(folder) if '"' in call.arguments and call.name not in ("write", "pwrite64", "writev") else []
    named = named or [call.opened(folder)] if named or re.match(r"\d+<", call.arguments) else named
    return any(not path.startswith("..") for path in named)


@pytest.mark.slow
def test_every_prefix_of_the_calls_of_saving_leaves_the_newest_complete(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here")
    folder = tmp_path / "traced"
    folder.mkdir()
    calls = list(recorded(folder))
    assert [call for call in calls if isinstance(call, int)] == list(SAVED)
    assert_order([call for call in calls if isinstance(call, Call)], folder)

    machine, committed, tried = Machine(), 0, 0
    for call in calls:
        if isinstance(call, int):
            committed = call
        else:
            machine.do(call, folder)
        for disk in ("all", "least", "names"):
            where = tmp_path / "disk"
            shutil.rmtree(where, ignore_errors=True)
            machine.put_on(where, disk)
            found, problems = find(where / "run")
            assert problems == [], (call, disk)
            step = 0 if found is None else found.state.step
            assert committed <= step <= min(committed + 1, 3), (call, disk)
            if found is not None:
                assert torch.equal(found.weights()["a"], torch.full((5,), float(step)))
                assert torch.equal(found.moments()["b/m"], torch.full((3, 3), -2.0 * step))
            tried += 1
    assert tried == 3 * len(calls)
    # The model is the machine: what it says is there at the end is there.
    seen = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    machine.put_on(tmp_path / "end", "all")
    assert seen == sorted(path.relative_to(tmp_path / "end") for path in (tmp_path / "end").rglob("*"))


def assert_order(calls: list[Call], folder: Path) -> None:
    """Of each save: all files written and synced, the manifest last; the folder synced; renamed; its parent synced."""
    for step in SAVED:
        partial, final = f"run/checkpoints/.partial-step-{step}", f"run/checkpoints/step-{step}"
        synced: list[str] = []
        written: list[str] = []
        renamed = False
        for call in calls:
            if call.name == "write" and call.opened(folder).startswith(partial + "/"):
                assert not renamed
                written.append(os.path.basename(call.opened(folder)))
            elif call.name in ("fsync", "fdatasync"):
                path = call.opened(folder)
                if path.startswith(partial):
                    synced.append(os.path.relpath(path, partial))
                if renamed and path == "run/checkpoints":
                    break
            elif call.name.startswith("rename") and call.paths(folder)[0].startswith(partial + "/"):
                old, new = map(os.path.basename, call.paths(folder))
                written = [new if name == old else name for name in written]
            elif call.name.startswith("rename") and call.paths(folder) == [partial, final]:
                assert synced[-1] == "."
                assert sorted(set(written)) == sorted(synced[:-1])
                assert written[-1] == "manifest.json"
                renamed = True
        else:
            raise AssertionError(f"the folder of step {step} was never synced after the rename")
