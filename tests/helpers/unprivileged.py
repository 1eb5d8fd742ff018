"""Files as a user without root's rights meets them: root may write anywhere, which hides what a test looks for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522
"""Of Linux's capabilities, in two words of 32 bits."""
_OVERRIDES = (1 << 1) | (1 << 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: permissions don't count."""


class _Words(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def permissions_count() -> Iterator[None]:
    """Inside, permissions count for this thread, whoever runs it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = (ctypes.c_uint32 * 2)(_VERSION, 0), (_Words * 2)()
    assert libc.capget(header, words) == 0
    before = words[0].effective
    words[0].effective = before & ~_OVERRIDES
    assert libc.capset(header, words) == 0
    try:
        yield
    finally:
        words[0].effective = before
        assert libc.capset(header, words) == 0
