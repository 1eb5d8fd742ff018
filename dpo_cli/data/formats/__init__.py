"""From rows of any shape to Examples.

    Row ─ fields (data.columns) ─ recognise (data.shape) ─ shapes ─ dialogues ─ example ─ Example

Nothing here needs torch or transformers, so that a configuration can be checked against it at once.
"""

from dpo_cli.data.formats.answers import answers_of
from dpo_cli.data.formats.example import to_example
from dpo_cli.data.formats.reading import AS_FOUND, NO_COLUMNS, BadRowError, Columns, Reading, content_hash
from dpo_cli.data.formats.recognise import reading_problems
from dpo_cli.data.formats.shapes import SHAPES

__all__ = [
    "AS_FOUND",
    "NO_COLUMNS",
    "SHAPES",
    "BadRowError",
    "Columns",
    "Reading",
    "answers_of",
    "content_hash",
    "reading_problems",
    "to_example",
]
