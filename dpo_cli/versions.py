"""The versions that dpo needs, from its own package metadata: pyproject.toml is the one place that says them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from dpo_cli.errors import DpoError

_PACKAGE = "dpo-cli"
_EXTRAS = ("bnb", "harness", "optuna")
"""Those that a command makes use of."""


@dataclass(frozen=True)
class Needed:
    """A package, and whether what is installed will do."""

    name: str
    found: str | None
    """None = it is not installed."""
    wanted: str
    """As pip has it; empty = any."""
    right: bool


def needed(*, extras: bool = False) -> Iterator[Needed]:
    """Each package that dpo needs; nothing where dpo itself was not installed.

    Args:
        extras: also those of extras that happen to be installed.
    """
    from packaging.requirements import Requirement

    try:
        lines = requires(_PACKAGE) or []
    except PackageNotFoundError:
        return
    for line in lines:
        package = Requirement(line)
        marker = package.marker
        optional = marker is not None and not marker.evaluate({"extra": ""})
        if optional and not (extras and any(marker and marker.evaluate({"extra": name}) for name in _EXTRAS)):
            continue
        try:
            found = version(package.name)
        except PackageNotFoundError:
            if not optional:
                yield Needed(package.name, None, str(package.specifier), False)
            continue
        yield Needed(package.name, found, str(package.specifier), package.specifier.contains(found, prereleases=True))


def check_versions() -> None:
    """
    Raises:
        DpoError: a package is missing or too old; older ones have known holes, or other numbers.
    """
    wrong = [package for package in needed() if not package.right]
    if wrong:
        found = ", ".join(
            f"{package.name} {package.found or 'is missing'} (expected {package.wanted})" for package in wrong
        )
        install = " ".join(f"'{package.name}{package.wanted}'" for package in wrong)
        raise DpoError(f"these packages will not do: {found}; install them: pip install {install}")
