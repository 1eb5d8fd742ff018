"""Files to read, and what is read from them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import zstandard

from dpo_cli.data.sources import Place, Row, Source, open_source

PAIR = {"prompt": "Hi", "chosen": "Hello 😊", "rejected": "No"}
LINE = json.dumps(PAIR, ensure_ascii=False).encode()


def source(path: Path | str, split: str = "train", *, cache: Path | None = None, **options: Any) -> Source:
    """A source whose hashes are remembered beside the file."""
    cache = cache or Path(path).parent / "cache.d"
    return open_source(Place(str(path), split, **options), key="data.path", cache=cache)


def read(path: Path | str, split: str = "train", *, cache: Path | None = None, **options: Any) -> list[Row]:
    return list(source(path, split, cache=cache, **options).rows())


def write(path: Path, content: bytes) -> Path:
    """Packed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}.get(
        path.suffix, bytes
    )
    path.write_bytes(pack(content))
    return path


def numbered(count: int) -> bytes:
    """A jsonl file's content: rows whose ``n`` counts from 0."""
    return b"".join(json.dumps({"n": number, "square": number**9}).encode() + b"\n" for number in range(count))


def numbers(rows: list[Row]) -> list[int]:
    return [row.values["n"] for row in rows]
