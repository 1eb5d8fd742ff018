"""Files as no writer leaves them."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

JUNK = [None, True, -1, 0, 2, 7, 10**12, 1e308, float("nan"), "", "x", "../x", "/etc/passwd", "\x00", "é" * 300, [], {}]
JUNK += [[[]], {"": {}}, ["a", 1, None], {"_target_": "os.system"}]


def mutated_bytes(data: bytes, pick: random.Random) -> bytes:
    """A bit turned, a piece cut out, doubled, or replaced, the end cut off or more of it."""
    place = pick.randrange(len(data) + 1)
    size = pick.choice([1, 2, 8, 64, 1024])
    noise = pick.randbytes(size)
    match pick.randrange(6):
        case 0 if place < len(data):
            return data[:place] + bytes([data[place] ^ 1 << pick.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:place]
        case 2:
            return data[:place] + data[place + size :]
        case 3:
            return data[:place] + noise + data[place + size :]
        case 4:
            return data[: place + size] + data[place:]
    return data + noise


def mutated_tree(tree: Any, pick: random.Random) -> Any:
    """A JSON value with a part replaced, taken out, or put somewhere else."""
    tree = copy.deepcopy(tree)
    for _ in range(pick.choice([1, 1, 2])):
        parent, key = pick.choice(list(_places(tree)))
        match pick.randrange(4):
            case 0:
                del parent[key]
            case 1:
                parent[key] = copy.deepcopy(pick.choice(list(_places(tree)))[0])
            case _:
                parent[key] = copy.deepcopy(pick.choice(JUNK))
        if not tree:
            break
    return tree


def mutated_json(text: str, pick: random.Random) -> bytes:
    """A JSON file that says something else, or is none."""
    match pick.randrange(10):
        case 0:
            return mutated_bytes(text.encode(), pick)
        case 1:
            return json.dumps(pick.choice(JUNK)).encode()
        case 2:
            return b"[" * 100_000
    return json.dumps(mutated_tree(json.loads(text), pick)).encode()


def mutated_safetensors(data: bytes, pick: random.Random) -> bytes:
    """A safetensors file whose header, bytes or lengths are wrong."""
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = data[8 : 8 + length], data[8 + length :]
    match pick.randrange(4):
        case 0:
            return mutated_bytes(data, pick)
        case 1:
            wrong = pick.choice([0, 1, length - 1, length + 1, len(data), 100_000_001, 2**63, 2**64 - 1])
            return struct.pack("<Q", wrong) + data[8:]
        case 2:
            header = mutated_json(header.decode(), pick)
        case 3:
            said = json.loads(header)
            name = pick.choice([name for name in said if name != "__metadata__"])
            said[name][pick.choice(["dtype", "shape", "data_offsets"])] = pick.choice(
                [
                    "F32",
                    "BF16",
                    "Q9",
                    [],
                    [1],
                    [0, 0],
                    [-4, 4],
                    [0, 2**63],
                    [2**40, 2**40],
                    [1.5, 2],
                    [3, 0],
                    [0, 12],
                    [4, 8],
                ]
            )
            header = json.dumps(said).encode()
            if pick.random() < 0.2:  # a name that is there twice
                header = header[:-1] + b"," + json.dumps(said).encode()[1:]
    return struct.pack("<Q", len(header)) + header + tensors


def _places(tree: Any) -> Any:
    """Every part of a JSON value, as what holds it and its key there."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list) and tree[key]:
            yield from _places(tree[key])
