"""What ``dpo eval`` found: tables and warnings on the screen, a section of the model card."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from dpo_cli.evaluation.alarms import Alarm
from dpo_cli.evaluation.intervals import Estimate
from dpo_cli.evaluation.words import DRIFT, LENGTH, PREFERENCES, RATES, RULES, SHIFTS
from dpo_cli.tracking.console import Console
from dpo_cli.whole_folder import write_file

_WAYS = {"length": "length of the chosen answer to that of the rejected one", "turns": "user turns"}
"""Ways to slice whose names say too little."""
_SHOWN_SLICES = 12
_SHOWN_ANSWERS = 3
_START, _END = "<!-- dpo eval: start -->", "<!-- dpo eval: end -->"


def show(console: Console, title: str, found: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
    """The main table and the warnings, then what was asked for beside it, then the rest.

    Args:
        title: of the main table.
        found: what goes into ``eval.json``, with estimates as they are.
        alarms: what is wrong.
    """
    preferences = found.get("preferences")
    if preferences:
        table = _table(title, "", "value", "95% interval")
        for name, label in PREFERENCES.items():
            _add(table, label, preferences[name])
        _add(table, "accuracy of: the longer answer", found["baselines"]["longer_wins"]["accuracy"])
        console.table(table)
    else:
        _plain(console, title, found["metrics"])
    for alarm in alarms:
        console.warn(f"{alarm.name}: {alarm.text}")
    if "against" in found:
        _show_against(console, found["against"])
    if "benchmark" in found:
        show_benchmark(console, found["benchmark"])
    if "tasks" in found:
        _show_tasks(console, found["tasks"])
    if preferences:
        _show_preferences(console, found)
        own = {name: value for name, value in found["metrics"].items() if not name.startswith("samples/")}
        _plain(console, "means of the loss's own metrics, as in training", own)


def _show_preferences(console: Console, found: Mapping[str, Any]) -> None:
    table = _table("what needs no training, on the same comparisons", "", "accuracy", "the reward's gain")
    for rule, values in found["baselines"].items():
        table.add_row(RULES[rule], *(_with_interval(values[name]) for name in ("accuracy", "gain")))
    console.table(table)
    table = _table("length", "", "value", "95% interval")
    for name, label in LENGTH.items():
        _add(table, label, found["length"][name])
    for side, value in found["shifts"].items():
        _add(table, SHIFTS[side], value)
    console.table(table)
    for way, parts in found["slices"].items():
        table = _table(f"by {_WAYS.get(way, way)}", "", "number", "accuracy", "margin", "log-loss")
        for part in parts[:_SHOWN_SLICES]:
            numbers = [f"{part[name].value:.3f}" for name in ("margin", "log_loss")]
            table.add_row(part["value"], f"{part['comparisons']:,}", _with_interval(part["accuracy"]), *numbers)
        console.table(table)
        if len(parts) > _SHOWN_SLICES:
            console.result(f"... {len(parts) - _SHOWN_SLICES} more in eval.json")


def show_benchmark(console: Console, found: Mapping[str, Any]) -> None:
    """RewardBench's tables."""
    table = _table(f"{found['name']}: {found['score']:.4f}", "section", "score")
    for section, value in found["sections"].items():
        table.add_row(section, f"{value:.4f}")
    console.table(table)
    if found["subsets"].keys() == found["sections"].keys():
        return
    table = _table("subsets", "subset", "rows", "accuracy")
    for name, subset in found["subsets"].items():
        table.add_row(name, f"{subset['rows']:,}", f"{subset['value']:.4f}")
    console.table(table)


def _show_tasks(console: Console, tasks: Mapping[str, Any]) -> None:
    table = _table("lm-evaluation-harness, with standard errors", "task", "metric", "reference", "policy")
    for task, sides in tasks.items():
        for metric, score in sides["policy"].items():
            before = sides.get("reference", {}).get(metric)
            table.add_row(task, metric, "-" if before is None else _with_error(before), _with_error(score))
    console.table(table)


def _with_error(score: Mapping[str, float | None]) -> str:
    return f"{score['value']:.4f}" + (f" ± {score['error']:.4f}" if score["error"] is not None else "")


def _show_against(console: Console, found: Mapping[str, Any]) -> None:
    table = _table(
        f"against {found['model']}: {found['comparisons']:,} comparisons", "this less the other", "", "95% interval"
    )
    for name, label in (("accuracy", "accuracy"), ("log_loss", "log-loss")):
        _add(table, label, found[name])
    console.table(table)
    test = "McNemar's exact test" if found["test"] == "mcnemar" else "permutation test over prompts"
    console.result(
        f"right alone: this {found['first_only']:,}, the other {found['second_only']:,}; "
        f"p = {found['p_value']:.3g} ({test})"
    )


def show_generations(console: Console, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    """Drift and win rate, and some answers side by side."""
    if "drift" in found:
        sides = found["drift"]
        table = _table("sampled answers", "", *(f"{side}'s" for side in sides))
        for name, label in DRIFT.items():
            if name in sides["policy"]:
                others = [f"{sides[side][name].value:.3f}" if name in sides[side] else "" for side in list(sides)[1:]]
                table.add_row(label, _with_interval(sides["policy"][name]), *others)
        console.table(table)
    if "win_rate" in found:
        rate = found["win_rate"]
        table = _table(f"against the reference, judged by {_judge(rate)}", "", "value", "95% interval")
        for name, label in RATES.items():
            if name in rate:
                _add(table, label, rate[name])
        console.table(table)
        agreed = "" if rate["agreement"] is None else f", which agree in {rate['agreement']:.0%}"
        console.result(
            f"{rate['prompts']:,} prompts judged in both orders{agreed}; {rate['without_verdict']:,} without a verdict"
        )
    table = Table(title="some of the answers", title_justify="left", show_lines=True)
    headings = [name for name in ("prompt", "policy", "reference") if rows[0][name] is not None]
    for heading in headings:
        table.add_column(heading, overflow="fold", ratio=1)
    for row in rows[:_SHOWN_ANSWERS]:
        table.add_row(*(Text(textwrap.shorten(row[name], 300, placeholder=" …")) for name in headings))
    console.table(table)


def _plain(console: Console, title: str, metrics: Mapping[str, float]) -> None:
    table = _table(title, "", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console.table(table)


def into_card(card: Path, rows: str, found: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
    """Put the main numbers into a model card, in the place of those of an earlier evaluation.

    Args:
        card: the file; nothing happens where there is none.
        rows: what was evaluated on, in words.
        found: as for ``show``.
        alarms: what is wrong.
    """
    if not card.is_file():
        return
    lines = [_START, "## Evaluation", "", f"On {rows}, with 95% bootstrap intervals over prompts.", ""]
    if found.get("preferences"):
        lines += ["| implicit reward | value | interval |", "|---|---|---|"]
        values = {label: found["preferences"][name] for name, label in PREFERENCES.items()}
        values["accuracy of: the longer answer"] = found["baselines"]["longer_wins"]["accuracy"]
        lines += [f"| {label} | {' | '.join(_cells(value))} |" for label, value in values.items()]
    else:
        lines += [
            "| | value |",
            "|---|---|",
            *(f"| {name} | {value:.4f} |" for name, value in found["metrics"].items()),
        ]
    sampled = {label: found.get("drift", {}).get("policy", {}).get(name) for name, label in DRIFT.items()}
    sampled |= {f"{label} against the reference": found.get("win_rate", {}).get(name) for name, label in RATES.items()}
    if any(sampled.values()):
        lines += ["", "| sampled answers | value | interval |", "|---|---|---|"]
        lines += [f"| {label} | {' | '.join(_cells(value))} |" for label, value in sampled.items() if value is not None]
    if "win_rate" in found:
        lines += ["", f"Judged by {_judge(found['win_rate'])}, each pair in both orders."]
    if "benchmark" in found:
        benchmark = found["benchmark"]
        lines += ["", f"| {benchmark['name']} | {benchmark['score']:.4f} |", "|---|---|"]
        lines += [f"| {section} | {value:.4f} |" for section, value in benchmark["sections"].items()]
    lines += ["", *(f"- {alarm.name}: {alarm.text}" for alarm in alarms), _END]
    text = card.read_text(encoding="utf-8")
    before, start, rest = text.partition(_START)
    after = rest.partition(_END)[2] if start else ""
    write_file(card, f"{before.rstrip()}\n\n" + "\n".join(lines) + (after or "\n"))


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def _add(table: Table, label: str, value: Estimate) -> None:
    table.add_row(label, *_cells(value))


def _cells(found: Estimate) -> tuple[str, str]:
    if found.value != found.value:
        return "-", "-"
    interval = "-" if found.low != found.low else f"{found.low:.3f} to {found.high:.3f}"
    return f"{found.value:.3f}", interval


def _judge(rate: Mapping[str, Any]) -> str:
    """The model that judged."""
    return str(rate["judge"].get("model") or rate["judge"].get("path"))


def _with_interval(found: Estimate) -> str:
    return "{} ({})".format(*_cells(found))
