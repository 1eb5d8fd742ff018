"""``dpo doctor``: whether all is well with this machine, or with a run's folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_cli.commands.arguments import Parser
from dpo_cli.errors import DpoError, printable

_DESCRIPTION = """\
Look this machine over: versions against those needed, devices, what connects
processes, disk, caches (every file against its hash), the way to the network.
With RUN: a run's folder (its record, metrics, every checkpoint against its
manifest, the final model's files and numbers). Nothing is changed.
"""


def run(words: Sequence[str]) -> None:
    """Show what was found.

    Raises:
        DpoError: something is wrong, or RUN is no run's folder.
    """
    arguments = _parser().parse_args(list(words))
    from dpo_cli.quiet import quieten

    quieten()
    from dpo_cli.commands import checkup

    findings = list(checkup.machine() if arguments.run is None else checkup.run_folder(arguments.run))
    if arguments.json:
        print(json.dumps(checkup.as_plain(findings), indent=2))
    else:
        _show(findings)
    wrong = [each for each in findings if not each.right]
    if wrong:
        names = ", ".join(dict.fromkeys(f"{each.part}: {each.name}" for each in wrong))
        raise DpoError(f"doctor: {len(wrong)} of {len(findings)} are not right ({names})")


def _show(findings: Sequence[object]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from dpo_cli.commands.checkup import Finding
    from dpo_cli.tracking.console import Terminal

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    part = ""
    for each in findings:
        assert isinstance(each, Finding)
        if part and each.part != part:
            table.add_section()
        mark = Text("ok", style="green") if each.right else Text("wrong", style="bold red")
        text = Text(printable(each.found))
        if not each.right and each.advice:
            text.append(f"\n{each.advice}", style="dim")
        table.add_row(
            Text(each.part if each.part != part else "", style="bold"), mark, Text(printable(each.name)), text
        )
        part = each.part
    Terminal(width=None if sys.stdout.isatty() else 120).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dpo doctor", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--json", action="store_true", help="for a program to read")
    return parser
