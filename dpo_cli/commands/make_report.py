"""``dpo report``: one HTML file about a run, a sweep, or any set of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_cli.commands.arguments import Parser
from dpo_cli.commands.list_runs import note
from dpo_cli.commands.writable import check_writable
from dpo_cli.errors import DpoError
from dpo_cli.reporting.compare import Goal, common_goal
from dpo_cli.reporting.runs import Run, byte_size, find_runs, read_runs

Defaults = Callable[[str, Sequence[str]], dict[str, Any] | None]
"""``compose.group_defaults``, which stands above the commands."""


def run(words: Sequence[str], defaults: Defaults) -> None:
    """Read the runs and write the page.

    Args:
        words: of the command line.
        defaults: what a command's configuration is with nothing given but some choices of groups.

    Raises:
        DpoError: there are no runs, or none has the metric that is asked for.
    """
    arguments = _parser().parse_args(list(words))
    places: list[Path] = arguments.runs
    found = read_runs(find_runs(places, note))
    check_metric(found, arguments.metric)
    file = arguments.out or places[0] / "report.html"
    if file.is_dir():
        raise DpoError(f"--out {file} is a folder; expected a file")
    check_writable(file.parent, "dpo report", "name another file with --out FILE")
    from dpo_cli.commands.report_page import write_report

    title = " and ".join(place.resolve().name for place in places[:3]) + (" …" if len(places) > 3 else "")
    best = write_report(
        file,
        found,
        title=title,
        goal=Goal(arguments.metric) if arguments.metric else common_goal(found),
        defaults=defaults_of(found[0].config, defaults) if len(found) == 1 else None,
    )
    if len(found) > 1:
        print(best)
    print(f"{len(found)} run{'s' * (len(found) > 1)} in {file} ({byte_size(file.stat().st_size)})")
    if arguments.png is not None:
        from dpo_cli.commands.report_pictures import write_pictures

        names = write_pictures(arguments.png, found)
        print(f"{len(names)} pictures in {arguments.png}")


def check_metric(runs: Sequence[Run], metric: str | None) -> None:
    """Refuse a metric that no run has.

    Raises:
        DpoError: naming those that there are.
    """
    if metric is not None and all(run.final(metric) is None for run in runs):
        names = sorted({name for run in runs for name in run.metrics})
        raise DpoError(f"--metric {metric}: no run has it; they have {', '.join(names) or 'no metrics'}")


def defaults_of(config: Mapping[str, Any], defaults: Defaults) -> dict[str, Any] | None:
    """The configuration of ``dpo train`` with nothing but a run's choices from the groups; None = it can't be told.

    Values that have no default are left out.
    """
    adapter = (config.get("model") or {}).get("adapter") or {}
    chosen = {group: (config.get(group) or {}).get("name") for group in ("loss", "optim")}
    chosen["model/adapter"] = adapter.get("name")
    if not all(isinstance(name, str) and name.isidentifier() for name in chosen.values()):
        return None  # a stranger's: Hydra would take paths and lists as well
    return defaults("train", [f"{group}={name}" for group, name in chosen.items()])


def _parser() -> Parser:
    parser = Parser(
        prog="dpo report",
        description="Write one HTML file about a run, a sweep, or any set of runs: what differs, what to worry about, "
        "curves, reward against KL, samples, rows. It needs no network, and opens on a phone and on paper as well.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run, a sweep or a folder of runs")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: report.html in the first RUN)"
    )
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="the charts as pictures as well, for a paper")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="to choose the best by, such as eval/loss (default: sweep.metric, else true reward or accuracy)",
    )
    return parser
