"""Which files a model is made of: its own, or a base model's and an adapter's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from dpo_cli.errors import DpoError, one_line

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_LONGEST_NAME = 4096
"""Bytes; of a path, on Linux."""


_SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*")
"""Files of a model folder whose content comes into what is written, or may."""


@contextmanager
def understood(what: str) -> Iterator[None]:
    """What a library raises over a stranger's file, as one line: a file may make it raise anything.

    Args:
        what: could not be done.

    Raises:
        DpoError: caused by what was raised.
    """
    try:
        yield
    except (DpoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise DpoError(f"{what} ({first_line(error)})") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust
            raise
        raise DpoError(f"{what} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """What an error says, in a line: its first, or the one that this announces."""
    first, *others = str(error).strip().splitlines() or [""]
    text = (others[0].strip() if first.endswith(":") and others else first).rstrip(".")
    return one_line(text) or type(error).__name__


def check_links(folder: Path) -> None:
    """Refuse links by which a folder from elsewhere would have us read, and write into what is published, other files.

    The hub's cache is made of links, into its own folder of the repository.

    Raises:
        DpoError: naming the link.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    for pattern in _SMALL if folder.is_dir() else ():
        for file in folder.glob(pattern):
            if not file.resolve().is_relative_to(root):
                raise DpoError(f"{file} is a link to {file.resolve()}, outside of its folder; expected a file: copy it")


@dataclass(frozen=True)
class ModelFiles:
    """The files that a model is made of, and how its matrices are held."""

    path: str
    """Hub id or folder of the model; with an adapter, of its base."""
    revision: str | None = None
    adapter: str | None = None
    """Hub id or folder of an adapter."""
    adapter_revision: str | None = None
    quantization: str | None = None
    """``nf4``, ``nf4_double`` or ``int8``; None = as they are in the files."""

    def __str__(self) -> str:
        held = f" in {self.quantization}" if self.quantization else ""
        return f"{self.path}{held}" + (f" with the adapter {self.adapter}" if self.adapter else "")


def find_files(
    path: str,
    revision: str | None,
    *,
    adapter: str | None = None,
    quantization: str | None = None,
    name: str | None = None,
) -> ModelFiles:
    """Which files a path, and perhaps an adapter's path, stand for.

    Args:
        path: of a model, or of an adapter, whose own configuration then names the model.
        revision: of what ``path`` names.
        adapter: on the model of ``path``.
        quantization: how matrices are to be held.
        name: what messages call ``path``; None = ``model.path=...``.

    Raises:
        DpoError: if there is no such adapter, or both paths are adapters.
    """
    found = adapter_settings(path, revision)
    name = name or f"model.path={path}"
    if adapter is not None:
        if found is not None:
            raise DpoError(f"{name} is an adapter itself: with model.adapter.path={adapter}, expected its base model")
        if adapter_settings(adapter, None) is None:
            raise DpoError(f"model.adapter.path={adapter} is not an adapter: it holds no {CONFIG_FILE}")
        return ModelFiles(path, revision, adapter, None, quantization)
    if found is None:
        return ModelFiles(path, revision, quantization=quantization)
    base, its_revision = found.get("base_model_name_or_path"), found.get("revision")
    if not base:
        raise DpoError(f"{name} does not say which model it is for: give that as model.path, and model.adapter.path")
    for key, said in (("base_model_name_or_path", base), ("revision", its_revision)):
        if said is not None and not _is_place(said):
            raise DpoError(
                f"{name} says {key}={one_line(repr(said), 100)}; expected the name of one: give the model as "
                "model.path, and the adapter as model.adapter.path"
            )
    return ModelFiles(base, its_revision, path, revision, quantization)


def _is_place(said: object) -> bool:
    """Whether this may be a hub id, a path or a revision."""
    return isinstance(said, str) and said.isprintable() and len(said.encode()) < _LONGEST_NAME


def check_folder(path: str, name: str) -> None:
    """Say what is wrong with a folder before transformers takes its name for a hub id.

    Args:
        path: a folder or a hub id.
        name: what messages call it, such as ``model.path=...``.

    Raises:
        DpoError: a path of this machine that is no model's folder.
    """
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or folder.exists() or path.count("/") != 1
    if looks_local and not folder.is_dir():
        if folder.exists():
            raise DpoError(f"{name} is a file; expected a model folder or a hub id")
        if "/" in path:
            raise DpoError(f"{name}: there is no such folder")
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", CONFIG_FILE)):
        raise DpoError(f"{name} is not a model folder: it holds no config.json")


@lru_cache
def adapter_settings(path: str, revision: str | None) -> dict[str, Any] | None:
    """An adapter's configuration; None if the path is not one's."""
    if not Path(path).is_dir() and (path.count("/") != 1 or path.startswith((".", "/", "~"))):
        return None  # neither a folder nor a hub id
    file = find_adapter_config_file(path, revision=revision)
    if file is None:
        return None
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DpoError(f"{file} is not valid JSON ({error})") from None
    return settings if isinstance(settings, dict) else {}


def adapter_files(path: str, revision: str | None) -> list[Path]:
    """Configuration and weights of an adapter, where they lie on this machine.

    Raises:
        DpoError: if it has no weights in safetensors. Others are pickles, which can run code.
    """
    if Path(path).is_dir():
        files = [Path(path, name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    else:
        found = [
            cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            for name in (CONFIG_FILE, WEIGHTS_FILE)
        ]
        files = [Path(str(file)) for file in found]
    if not files[1].is_file():
        raise DpoError(
            f"the adapter {path} holds no {WEIGHTS_FILE}; other formats are pickles, which can run code, and are not "
            "read"
        )
    return files
