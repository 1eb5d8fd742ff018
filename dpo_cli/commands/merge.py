"""``dpo merge``: an adapter and its base model become plain weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dpo_cli.commands.arguments import Parser
from dpo_cli.commands.writable import check_writable
from dpo_cli.errors import DpoError

DTYPES = ("float32", "bfloat16", "float16")
HELD = ("nf4", "nf4_double", "int8")

_DESCRIPTION = """\
Merge an adapter (LoRA, DoRA, rsLoRA, QLoRA) into its base model: a plain
Hugging Face folder that loads without peft, and whose log-probs are those of
the adapter on its base.
"""
_EXAMPLES = """\
examples
  dpo merge runs/mine merged                        a run's adapter
  dpo merge OWNER/ADAPTER merged --dtype bfloat16   the hub's, in half the space
  dpo merge adapter merged --held nf4_double        QLoRA without a run's folder

Log-probs of fixed token sequences are computed before and after; if they
differ by more than rounding, nothing is written. At DPO's learning rates,
rounding to bfloat16 can undo much of an update: how much is shown.
"""


def run(words: Sequence[str]) -> None:
    """Merge, and say how far the log-probs are from the adapter's.

    Raises:
        DpoError: there is no adapter, it can't be merged, or ``OUTPUT`` holds something.
    """
    arguments = _parser().parse_args(list(words))
    check_output(arguments.output)
    from dpo_cli.quiet import quieten

    quieten()
    from dpo_cli.commands.merging import Wanted, find_source, merge_into

    source = find_source(arguments.adapter, base=arguments.model, held=arguments.held)
    merge_into(arguments.output, source, Wanted(arguments.dtype, arguments.onto))
    print(f"written to {arguments.output}")


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something, or can't be made.

    Raises:
        DpoError: naming it.
    """
    free = not folder.is_symlink() and (not any(folder.iterdir()) if folder.is_dir() else not folder.exists())
    if not free:
        raise DpoError(f"merge: {folder} is there already: remove it, or choose another folder")
    if not folder.name or folder.name == ".." or os.path.ismount(folder):
        raise DpoError(f"merge: {folder} can't be written as a whole: name a new folder in it")
    for place in (folder.parent, folder.with_name(f".partial-{folder.name}")):  # the latter may be too long a name
        check_writable(place, "merge", "choose another place for the merged model")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dpo merge",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapter", metavar="RUN_OR_ADAPTER", help="a run's folder, or folder or hub id of an adapter")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write, complete or not at all")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument(
        "--onto",
        choices=("trained", "original"),
        default="trained",
        help="of a quantised base, what to merge into: the matrices as they were in training, taken out of 4 or 8 bits "
        "(the default: log-probs stay what was trained), or the original ones, which the adapter was not trained on",
    )
    parser.add_argument("--model", metavar="MODEL", help="the base model, if it is not where the adapter says")
    parser.add_argument(
        "--held", choices=HELD, help="how the base was held in training, if there is no config.yaml that says so"
    )
    return parser
