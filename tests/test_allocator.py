"""Freed memory is kept, and given out again."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Page faults of taking and giving back 64 MiB fifty times, after the first.
CHURN = """
import resource, sys
from dpo_cli.allocator import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("mallopt refused")
bytearray(64 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    block = bytearray(64 * 2**20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_not_faulted_in_again() -> None:
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True).stdout)
        for how in ("given back", "kept")
    )
    assert kept < given_back / 10
