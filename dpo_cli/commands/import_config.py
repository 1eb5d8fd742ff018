"""``dpo import``: a configuration of another tool becomes an experiment of ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpo_cli.commands.arguments import Parser, count
from dpo_cli.errors import DpoError
from dpo_cli.importing import import_config
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.trl_options import TRAINERS
from dpo_cli.whole_folder import write_file


def run(words: Sequence[str]) -> None:
    """Convert a file and print the experiment, or write it.

    Raises:
        DpoError: see ``import_config``; or the file to write exists.
    """
    arguments = _parser().parse_args(list(words))
    if arguments.output is not None and arguments.output.exists():
        raise DpoError(f"-o {arguments.output} exists: remove it, or choose another name")
    text, draft = import_config(
        arguments.file,
        trainer=arguments.trainer,
        processes=arguments.processes,
        heading=[_how_to_run(arguments.output)],
    )
    if arguments.output is None:
        print(text, end="")
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(arguments.output, text)
    print(f"wrote {arguments.output}; {_summary(draft)}")
    print(_how_to_run(arguments.output))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dpo import",
        description="Turn a configuration of TRL, axolotl or LLaMA-Factory into an experiment of dpo: YAML, "
        "with remarks on what could not be converted or means something else. Nothing in the file is run.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML or JSON")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there instead of to the screen")
    parser.add_argument(
        "--processes", type=count, default=1, metavar="N", help="on how many it ran, for the batch size (default 1)"
    )
    parser.add_argument("--trainer", choices=list(TRAINERS), help="TRL's, where its options don't tell")
    return parser


def _how_to_run(output: Path | None) -> str:
    """The command that trains with the experiment, which Hydra looks for in a folder of that name."""
    if output is None:
        return "Save it as DIR/experiment/NAME.yaml, then: dpo train --config-dir DIR +experiment=NAME"
    if output.parent.name == "experiment" and output.suffix == ".yaml":
        folder = output.parent.parent
        return f"dpo train --config-dir {folder} +experiment={output.stem}"
    return f"Move it to DIR/experiment/{output.stem}.yaml, then: dpo train --config-dir DIR +experiment={output.stem}"


def _summary(draft: Draft) -> str:
    numbers = {
        "to check": len(draft.checks),
        "not converted": sum(map(len, draft.lost.values())),
        "unknown": len(draft.unknown),
        "to give on the command line": len(draft.missing),
    }
    said = [f"{number} {what}" for what, number in numbers.items() if number]
    return f"{', '.join(said)}: see the comments in it" if said else "everything was converted"
