"""How fast, and in how much memory, rows become a table of tokens.

    python scripts/bench_tokenise.py --rows hh_harmless.jsonl.gz --model SmolLM2-135M-Instruct

Rows of the shape of hh-rlhf (whole dialogues in ``chosen`` and ``rejected``) are repeated, each with a number of its
own at the end of both answers, until there are as many as asked for; then the table is made as ``dpo train`` makes it,
and opened a second time. The figures in docs/benchmarks.md are this script's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import psutil
from transformers import AutoTokenizer

from dpo_cli.data.build import Recipe
from dpo_cli.data.formats import Reading
from dpo_cli.data.load import Loader, Part
from dpo_cli.data.sources import Place
from dpo_cli.data.tokenize import Encoding
from dpo_cli.tracking.console import Console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="jsonl.gz with the columns chosen and rejected")
    parser.add_argument("--model", required=True, help="whose tokenizer and chat template are used")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=None, help="processes; the default is one per core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "rows.jsonl")
        with file.open("w", encoding="utf-8") as out:
            out.writelines(islice(numbered(options.rows), options.count))
        console = Console()
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        loader = Loader(tokenizer, Path(scratch, "cache"), options.workers, console.phase, console.warn)
        part = Part("data.path", Place(str(file)), Recipe(Reading(), Encoding(), "pairs", "raise"))
        for name in ("first", "second"):
            with Memory() as memory:
                start = time.monotonic()
                table = loader.table(part)
                seconds = time.monotonic() - start
            print(
                f"{name}: {len(table):,} pairs in {seconds:.1f} s, at most {memory.peak / 1e9:.2f} GB in all processes"
            )
        tokens = sum(
            len(group.prompt_ids) + sum(map(len, group.answers)) for group in map(table.__getitem__, range(len(table)))
        )
        print(f"{tokens:,} tokens, {(table.folder / 'rows.arrow').stat().st_size / 1e6:.0f} MB on disk")


def numbered(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["chosen"] != row["rejected"] and row["chosen"].count("Assistant:") > 0]
    for number, row in enumerate(cycle(rows)):
        yield json.dumps({name: f"{row[name]} ({number})" for name in ("chosen", "rejected")}) + "\n"


class Memory:
    """The most memory that this process and its children held at once (private pages and shared ones), in bytes."""

    def __enter__(self) -> Memory:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(0.1):
            held = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, held)


if __name__ == "__main__":
    main()
