"""Standard streams that are closed, full or gone: no exit code changes, nothing is written into another file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.command import environment

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, of Linux")


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of shell, in which ``dpo`` is this one."""
    begin = f'dpo() {{ "{sys.executable}" -m dpo_cli "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", begin + line],
        cwd=folder,
        env=environment(folder / "cache"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@FULL
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("dpo runs absent 2>/dev/full", 2, ""),
        ("dpo runs absent 2>&-", 2, ""),
        ("dpo runs absent >&- <&-", 2, "absent: there is no such folder"),
        ("dpo configs >/dev/full", 74, "dpo: No space left on device"),
        ("dpo configs >/dev/full 2>&1", 74, ""),
        ("dpo configs >&-", 0, ""),
        ("mkdir gone; cd gone; rmdir ../gone; dpo train +experiment=quickstart", 74, "was started in is gone"),
        ("set -o pipefail; dpo help | true", 74, ""),
    ],
)
def test_the_exit_code_stays(line: str, code: int, says: str, tmp_path: Path) -> None:
    ended = shell(line, tmp_path)
    assert ended.returncode in ((code, 0) if "| true" in line else (code,))  # help may be written before it ends
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


_OPENS = """
import os, sys
from dpo_cli.streams import open_closed_streams
open_closed_streams()
file = open(sys.argv[1], "wb")
os.write(2, b"of a library in C")
os.write(1, b"and another")
os.system("echo of a child; echo of a child >&2")
print("ours")
print("ours", file=sys.stderr)
"""


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]])
def test_no_file_gets_the_number_of_a_closed_stream(closed: Sequence[int], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"

    def close() -> None:
        for number in closed:
            os.close(number)

    ended = subprocess.run([sys.executable, "-c", _OPENS, file], preexec_fn=close, check=False, timeout=60)
    assert ended.returncode == 0
    assert file.read_bytes() == b""
