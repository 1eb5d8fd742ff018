"""The hash of a file's content, and the same remembered."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from filelock import FileLock

from dpo_cli.whole_folder import naming, write_file


def sha256(file: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    with naming(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_hash(file: Path, cache: Path) -> str:
    """SHA-256 of a file, remembered by what the file system says of it, so that a 70B is not read at every start."""
    stat = file.resolve().stat()
    identity = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    memory = cache / "file-hashes.json"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):
        known = _read(memory)
        if identity not in known:
            known[identity] = sha256(file)
            write_file(memory, json.dumps(known))
        return known[identity]


def _read(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):  # it only saves time: start over
        return {}
    return known if isinstance(known, dict) and all(isinstance(value, str) for value in known.values()) else {}
