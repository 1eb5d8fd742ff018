"""The command lines that are not Hydra's."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dpo_cli.errors import DpoError


class Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere in dpo."""

    def error(self, message: str) -> NoReturn:
        raise DpoError(f"{self.prog.removeprefix('dpo ')}: {message} ({self.prog} --help)")
