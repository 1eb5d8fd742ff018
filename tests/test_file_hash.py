"""A file's hash is its content's, however it is remembered."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from dpo_cli.file_hash import file_hash, sha256


@pytest.mark.parametrize("how", ["written over", "replaced by a file of the same size and time"])
def test_a_changed_file_is_read_again(tmp_path: Path, how: str) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    os.utime(file, ns=(10**18, 10**18))
    assert file_hash(file, tmp_path / "cache") == hashlib.sha256(b"one").hexdigest()
    if how == "written over":
        file.write_bytes(b"two")
    else:
        other = tmp_path / "other"
        other.write_bytes(b"two")
        os.utime(other, ns=(10**18, 10**18))
        other.replace(file)
    assert file_hash(file, tmp_path / "cache") == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(
    "content", [b"", b"{half", b"\xff\xfe", b"[]", b"null", b"[1, 2]", b"[" * 200_000, b'{"a": 1}']
)
def test_a_damaged_memory_is_started_over(tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "cache"
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    expected = file_hash(file, cache)
    (cache / "file-hashes.json").write_bytes(content)
    assert file_hash(file, cache) == expected
    assert list(json.loads((cache / "file-hashes.json").read_text()).values()) == [expected]


def test_what_can_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stream: object, name: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", broken)
    (tmp_path / "rows").write_bytes(b"x")
    with pytest.raises(OSError, match="Input/output error") as found:
        sha256(tmp_path / "rows")
    assert found.value.filename == str(tmp_path / "rows")
