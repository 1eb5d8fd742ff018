"""The group of ranks of tests that start DeepSpeed in their own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dpo_cli import distributed


@contextmanager
def one_process_group() -> Iterator[None]:
    """DeepSpeed can be started again in a process as long as the group of ranks is the same."""
    patch = pytest.MonkeyPatch()
    patch.setattr(distributed, "stop", lambda: None)
    patch.setenv("LOCAL_RANK", "0")  # what start() would leave in the environment
    distributed.start()
    yield
    patch.undo()
