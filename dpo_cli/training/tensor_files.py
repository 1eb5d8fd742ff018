"""Many named tensors in files of safetensors, one tensor at a time in memory, or a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class Tensors(Mapping[str, Tensor]):
    """The tensors of some files, each read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        """``files``: of which no two hold tensors of one name."""
        self._file_of: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                self._file_of.update(dict.fromkeys(opened.keys(), file))

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def in_parts(
    tensors: Iterable[tuple[str, Tensor]], size: int, unit: Callable[[str], str] = str
) -> Iterator[dict[str, Tensor]]:
    """Tensors in portions of about ``size`` bytes; one at least, which may be empty.

    Args:
        tensors: by name.
        size: bytes; a portion is larger only where a unit is.
        unit: what a name belongs to; tensors in a row of one unit are not parted.
    """
    part: dict[str, Tensor] = {}
    held, last = 0, ""
    for name, tensor in tensors:
        if part and held + tensor.nbytes > size and unit(name) != last:
            yield part
            part, held = {}, 0
        part[name] = tensor.contiguous()
        held, last = held + tensor.nbytes, unit(name)
    yield part


def save_in_parts(tensors: Iterable[tuple[str, Tensor]], folder: Path, name: str, *, size: int, writes: bool) -> None:
    """Write tensors to ``<name>.safetensors``, and what is beyond ``size`` to ``<name>-00002.safetensors`` and so on.

    Args:
        tensors: by name; getting at them may be a collective, and all ranks iterate.
        folder: there already.
        name: of the files.
        size: bytes of a file, and so of what is in memory at a time.
        writes: whether this is the rank that writes.

    Raises:
        OSError: if they can't be written; all were iterated over all the same.
    """
    if not writes:
        for _ in tensors:
            pass
        return
    parts = in_parts(tensors, size)
    try:
        for number, part in enumerate(parts, 1):
            save(part, folder / (f"{name}.safetensors" if number == 1 else f"{name}-{number:05}.safetensors"))
    except OSError:
        for _ in parts:  # the other ranks are in the same collectives
            pass
        raise


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one file.

    Raises:
        OSError: if it can't be written.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, say
        raise OSError(str(error)) from None
