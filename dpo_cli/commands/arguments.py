"""The arguments of commands that are not driven by YAML."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dpo_cli.errors import DpoError


class Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere in dpo."""

    def error(self, message: str) -> NoReturn:
        raise DpoError(f"{self.prog.removeprefix('dpo ')}: {message} ({self.prog} --help)")


def count(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1")
    return int(text)
