"""Write the tables of docs/migrating.md from the converters' own, so that the two say the same.

python scripts/make_migrating_tables.py           writes them
python scripts/make_migrating_tables.py --check   ends with 1 if they are not up to date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from dpo_cli.importing.axolotl_options import AXOLOTL, PLUGINS
from dpo_cli.importing.draft import brief
from dpo_cli.importing.llamafactory_options import OWN
from dpo_cli.importing.options import Table
from dpo_cli.importing.trl_options import CPO, DPO, KTO, OLD_TRAINING, OLD_TRL, ORPO, SCRIPT, TRAINING

DOCUMENT = Path(__file__).parents[1] / "docs" / "migrating.md"
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def beside(options: Table, other: Table) -> Table:
    """Those that the other table has not, or says something else of."""
    return {name: option for name, option in options.items() if other.get(name) != option}


TABLES: dict[str, Table] = {
    "trl-dpo": {name: option for name, option in DPO.items() if name not in TRAINING},
    "trl-kto": beside(KTO, DPO),
    "trl-cpo": beside(CPO, DPO),
    "trl-orpo": beside(ORPO, DPO),
    "trl-training": {name: DPO[name] for name in TRAINING},
    "trl-script": SCRIPT,
    "trl-old": OLD_TRAINING | OLD_TRL,
    "axolotl": AXOLOTL,
    "axolotl-plugins": PLUGINS,
    "llamafactory": OWN,
}
"""By the name that marks their place in the document."""


def main() -> int:
    """Write or check; returns the exit code."""
    text = DOCUMENT.read_text(encoding="utf-8")
    made = with_tables(text)
    if "--check" in sys.argv[1:]:
        return int(made != text)
    DOCUMENT.write_text(made, encoding="utf-8")
    return 0


def with_tables(text: str) -> str:
    """The document with every marked table made anew."""
    return _MARKED.sub(lambda found: found[1] + "\n".join(lines(TABLES[found[2]])) + "\n" + found[3], text)


def lines(options: Table) -> Iterator[str]:
    """Markdown: what is converted, one option a row; then what is not, one reason a row."""
    converted = [option for option in options.values() if option.ours]
    if converted:
        yield "| option | default | here | |"
        yield "|---|---|---|---|"
    for option in converted:
        yield f"| `{option.name}` | {_cell(option.default)} | {_code(option.ours)} | {option.note} |"
    for matters, title in ((True, "not converted, and the run differs"), (False, "not needed here")):
        reasons: dict[str, list[str]] = {}
        for option in options.values():
            if not option.ours and option.matters == matters:
                reasons.setdefault(option.note, []).append(option.name)
        if reasons:
            yield ""
            yield f"| {title} | |"
            yield "|---|---|"
        yield from (f"| {_code(', '.join(names))} | {reason} |" for reason, names in reasons.items())


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _cell(default: object) -> str:
    return "" if default is None or default == [] else f"{default:g}" if isinstance(default, float) else brief(default)


if __name__ == "__main__":
    sys.exit(main())
