"""Weight files by strangers: what their headers say is checked before anything is made of it.

A safetensors file is 8 bytes that give the length of a header, the header in JSON, and the tensors' bytes end to end.
Only headers are read here, so a check takes no memory to speak of, however large or wrong the file is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, one_line

_LONGEST_HEADER = 100_000_000
"""Bytes; the same as the safetensors library has."""
_LONGEST_INDEX = 100_000_000
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_SIDES = (
    *("hidden_size", "intermediate_size", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""Keys of configurations that no matrix of the model can be narrower than."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, as the header has it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    """Bytes, from the header's end."""


class _Wrong(Exception):
    """What is wrong with a file."""


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, by name; no byte is in two of them or in none.

    Raises:
        DpoError: naming the file and what is wrong with it.
    """
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise _Wrong(f"it is cut off: {size:,} bytes, and its header alone would have {length:,}")
            if length > _LONGEST_HEADER:
                raise _Wrong(f"its header has {length:,} bytes, more than {_LONGEST_HEADER:,}")
            header = _json(stream.read(length))
        return _tensors(header, size - 8 - length)
    except _Wrong as error:
        raise DpoError(f"{file} is no sound safetensors file: {one_line(str(error))}") from None
    except OSError as error:
        raise DpoError(f"{file} can't be read ({error.strerror or error})") from None


def read_headers(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder: of its one file or of those that its index names, in the order of transformers.

    Raises:
        DpoError: a file is missing or not sound, lies elsewhere, or lacks what the index says is in it.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not index.is_file():
        return {}
    shards = read_index(index)
    found: dict[str, Stored] = {}
    for shard, names in shards.items():
        if not (folder / shard).is_file():
            raise DpoError(f"{index} names {one_line(shard)}, which is not there")
        tensors = read_header(folder / shard)
        if lacking := sorted(names - tensors.keys()):
            raise DpoError(f"{index} says that {one_line(lacking[0])} is in {shard}, and it is not")
        if twice := sorted(tensors.keys() & found.keys()):
            raise DpoError(f"{folder / shard} holds {one_line(twice[0])}, which another file holds as well")
        found.update(tensors)
    return found


def read_index(index: Path) -> dict[str, set[str]]:
    """The names of tensors by the file they are in, which lies beside the index.

    Raises:
        DpoError: it is not sound.
    """
    try:
        if index.stat().st_size > _LONGEST_INDEX:
            raise _Wrong(f"it has more than {_LONGEST_INDEX:,} bytes")
        settings = _json(index.read_bytes())
        places = settings.get("weight_map") if isinstance(settings, dict) else None
        if not isinstance(places, dict) or not places:
            raise _Wrong("it has no weight_map")
        shards: dict[str, set[str]] = {}
        for name, shard in places.items():
            if not isinstance(shard, str) or not is_plain_name(shard):
                raise _Wrong(f"it names {str(shard)!r}, which is not a file beside it")
            shards.setdefault(shard, set()).add(name)
        return shards
    except _Wrong as error:
        raise DpoError(f"{index} is not sound: {one_line(str(error))}") from None


def check_sizes(settings: dict[str, Any], tensors: dict[str, Stored]) -> None:
    """Refuse a configuration that calls for a model far larger than its files, before memory is taken for it, or for
    none.

    Args:
        settings: a model's configuration, as plain values.
        tensors: of its files; empty = not known.

    Raises:
        DpoError: naming the key.
    """
    if settings.get("num_hidden_layers", 1) < 1:
        raise DpoError(f"config.json says num_hidden_layers={settings['num_hidden_layers']}; expected 1 or more")
    widest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    limits = {"num_hidden_layers": len(tensors), **dict.fromkeys(_SIDES, widest)}
    for key, limit in limits.items():
        value = settings.get(key)
        if tensors and isinstance(value, int) and value > limit:
            what = f"{limit} tensors" if key == "num_hidden_layers" else f"no tensor wider than {limit:,}"
            raise DpoError(f"config.json says {key}={value:,}, and the files hold {what}")


def check_quantised(settings: dict[str, Any], tensors: dict[str, Stored]) -> None:
    """Refuse a configuration that says of plain weights that they are quantised: bitsandbytes would take them for it.

    Args:
        settings: a model's configuration, as plain values.
        tensors: of its files; empty = not known.

    Raises:
        DpoError: if so.
    """
    said = settings.get("quantization_config")
    in_bytes = any(tensor.dtype in ("U8", "I8") for tensor in tensors.values())
    # transformers takes it for bitsandbytes' by either of these keys, whatever the method is called.
    bits = isinstance(said, dict) and (said.get("load_in_4bit") or said.get("load_in_8bit"))
    if isinstance(said, dict) and (bits or said.get("quant_method") == "bitsandbytes") and tensors and not in_bytes:
        raise DpoError("config.json has a quantization_config, and the files hold no quantised weights: take it out")


def is_plain_name(name: str) -> bool:
    """Whether a name that a file gives is one of a file beside it: no folder, no way up, nothing odd."""
    return (
        0 < len(name.encode("utf-8", "surrogatepass")) <= 255
        and name not in (".", "..")
        and not any(letter in "/\\" or not letter.isprintable() for letter in name)
    )


def _json(data: bytes) -> Any:
    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise _Wrong(f"{next(name for name in names if names.count(name) > 1)} is there twice")
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"not valid JSON ({error})") from None


def _tensors(header: Any, room: int) -> dict[str, Stored]:
    if not isinstance(header, dict):
        raise _Wrong("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Wrong("its metadata are not texts")
    found = {name: _stored(name, entry) for name, entry in header.items()}
    place = 0
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != place:
            raise _Wrong(f"{name} begins at byte {tensor.start:,}, and what is before it ends at {place:,}")
        place = tensor.stop
    if place != room:
        raise _Wrong(f"its tensors have {place:,} bytes, and the file has {room:,} for them")
    return found


def _stored(name: str, entry: Any) -> Stored:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"{name} has not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Wrong(f"{name} has the unknown dtype {dtype}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _Wrong(f"{name} has a shape or offsets that are not whole numbers from 0")
    bits = math.prod(shape) * _BITS[dtype]
    if 8 * (offsets[1] - offsets[0]) != bits:
        raise _Wrong(f"{name} has {offsets[1] - offsets[0]:,} bytes, and {dtype} {shape} takes {bits // 8:,}")
    return Stored(dtype, tuple(shape), offsets[0], offsets[1])


def _counts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
    )
