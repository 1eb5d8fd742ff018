"""``dpo push``: a trained model goes to the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dpo_cli.commands.arguments import Parser

_EXAMPLES = """\
examples
  dpo push runs/mine OWNER/NAME --dry-run   what would be uploaded
  dpo push runs/mine OWNER/NAME             a run's model or adapter, private
  dpo push runs/mine OWNER/NAME --merged    its adapter merged, in float32
  dpo push merged OWNER/NAME --public       what `dpo merge` wrote, for everybody

Uploaded are weights in safetensors, configurations, tokenizer, chat template,
the model card, and the run's config.yaml with places on this machine reduced
to their names; nothing else, and no file that holds a secret. The token is
HF_TOKEN's, or the one that `hf auth login` kept; HF_ENDPOINT names another hub.
"""


def run(words: Sequence[str]) -> None:
    """Show what is uploaded, and upload it.

    Raises:
        DpoError: there is no model, the name is none, a file holds a secret, or the hub refuses.
        StorageError: the hub can't be reached.
    """
    arguments = _parser().parse_args(list(words))
    # Hours of upload without a sign of life are worse than bars that are not ours. Merging would have more of them.
    bars = sys.stderr.isatty() and not arguments.merged
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if bars else "1")
    from dpo_cli.quiet import quieten

    quieten()
    from dpo_cli.commands.pushing import Wanted, push

    push(
        arguments.source,
        Wanted(arguments.repo, arguments.public, arguments.revision, arguments.dry_run, arguments.merged),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dpo push",
        description="Upload a trained model to the Hugging Face hub with its model card, in one\n"
        "commit: private unless --public says otherwise.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="RUN_OR_FOLDER", help="a run's folder, or one of a model or an adapter")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; made if it isn't there, else updated")
    parser.add_argument("--public", action="store_true", help="for everybody to see")
    parser.add_argument("--revision", metavar="BRANCH", help="made if it isn't there (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and send nothing")
    parser.add_argument("--merged", action="store_true", help="merge the adapter first, as `dpo merge` does")
    return parser
