"""Runs command lines of ``dpo`` one after another, each in a process forked from this one: imports are paid for once.

    python dpo_worker.py COMMANDS.json

Ends with an error at the first that does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import dpo_cli.commands.train  # noqa: F401
from dpo_cli.cli import main


def run(words: list[str]) -> int:
    """The exit code of ``dpo WORDS``."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = main(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if code := run(words):
            sys.exit(f"dpo {' '.join(words)}: ended with {code}")
