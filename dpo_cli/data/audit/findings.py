"""What is to be said of rows that were measured, and how bad it is. docs/inspect.md explains each by its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_cli.data.audit.result import LEVELS, Finding, Level
from dpo_cli.data.audit.side import Measured, wilson


@dataclass(frozen=True, slots=True)
class _Kind:
    """A finding that is so many rows or answers, with the share from which it is a warning (None = never)."""

    what: str
    effect: str
    advice: str
    of: str = "rows"
    warns_from: float | None = 0.0


_COUNTED = {
    "contradictions": _Kind(
        "comparisons say the opposite of an earlier one, with the same prompt and answers",
        "Each undoes the other.",
        "Keep one, or say how sure it is with data.label_prob.",
        of="comparisons",
    ),
    "duplicates": _Kind(
        "rows repeat an earlier row word for word",
        "Each repetition weighs the row once more.",
        "Take them out, unless that is meant.",
        warns_from=0.01,
    ),
    "near-duplicates": _Kind(
        "rows have nearly the words of an earlier row",
        "They weigh like repetitions, and make held-out numbers look better if some are held out.",
        "Look at some; thin them out.",
        warns_from=0.05,
    ),
    "special-tokens-in-text": _Kind(
        "rows have text that spells a special token",
        "In a conversation it is kept as plain text; in rows taken as they stand it becomes the token.",
        "Fine if people write about such tokens; else take it out, it is left over from another template.",
    ),
    "made-equal": _Kind(
        "rows have answers that the template or the cut makes equal",
        "They are left out: nothing can be learnt from them.",
        "Raise data.max_length.",
    ),
    "cut-to-nothing": _Kind(
        "rows lose all that is learnt to the cut",
        "They are left out.",
        "Raise data.max_length.",
    ),
    "too-long": _Kind(
        "rows are too long",
        "They are left out, or stop the run (data.on_too_long).",
        "Raise data.max_length, or data.on_too_long=truncate.",
        warns_from=0.01,
    ),
    "answers-cut": _Kind(
        "answers are cut",
        "They have no end token, and what decided the comparison may be gone.",
        "Raise data.max_length, or data.on_too_long=drop.",
        of="answers",
        warns_from=0.05,
    ),
    "prompts-cut": _Kind(
        "prompts are cut",
        "The answers may be to something that is gone.",
        "Raise data.max_length or data.max_prompt_length, or data.on_too_long=drop.",
        warns_from=0.05,
    ),
    "other-script": _Kind(
        "answers are in another script than their prompt",
        "If most are chosen, or most rejected, the language is what is learnt.",
        "Look at some.",
        of="answers",
        warns_from=0.05,
    ),
    "one-token-answers": _Kind(
        "answers are a single word or sign",
        "Their log-probs move fast and far.",
        "Check that they are whole.",
        of="answers",
        warns_from=0.05,
    ),
}
NAMES = (
    *("bad-rows", "in-both-sides", *_COUNTED, "longer-wins", "shorter-wins", "label-imbalance"),
    *("without-preference", "few-comparisons", "few-prompts", "same-opening"),
)
"""Every finding there is."""


def findings(train: Measured, held_out: Measured | None, *, stops: bool) -> list[Finding]:
    """The worst first, then by how many.

    Args:
        train, held_out: the sides.
        stops: whether a bad row stops a run.
    """
    found = [*_of_training(train, stops=stops)]
    if held_out is not None:
        found += _of_both(train, held_out, stops=stops)
    return sorted(found, key=lambda finding: (LEVELS.index(finding.level), -finding.count))


def _of_training(side: Measured, *, stops: bool) -> Iterator[Finding]:
    yield from _bad(side, "training", stops=stops)
    totals = {"rows": side.rows, "answers": side.answers, "comparisons": side.comparisons}
    for name, kind in _COUNTED.items():
        seen = side.found.get(name)
        if seen is not None and seen.count:
            share = seen.count / max(1, totals[kind.of])
            level: Level = "warning" if kind.warns_from is not None and share >= kind.warns_from else "note"
            what = f"{seen.count:,} {kind.what}."
            yield Finding(name, level, seen.count, share, what, kind.effect, kind.advice, seen.rows)
    yield from _lengths(side)
    yield from _balance(side)


def _bad(side: Measured, name: str, *, stops: bool) -> Iterator[Finding]:
    bad, read = side.counts.bad, side.counts.read
    if bad:
        yield Finding(
            "bad-rows",
            "error" if stops else "warning",
            bad,
            bad / read,
            f"{bad:,} of {read:,} {name} rows can't be used.",
            "They stop a run." if stops else "They are left out.",
            "Mend them, or data.on_bad_row=skip." if stops else "Mend them.",
            side.counts.first_bad[:3],
        )


def _lengths(side: Measured) -> Iterator[Finding]:
    longer, different = side.longer()
    if not different:
        return
    low, high = wilson(longer, different)
    if low > 0.6:
        yield Finding(
            *("longer-wins", "warning", longer, longer / different),
            f"The longer answer wins in {longer / different:.0%} ({low:.0%} to {high:.0%}).",
            "A model may learn to be long, and an accuracy up to that share may be length alone.",
            "loss=dpo_norm or simpo, loss.ld_alpha, or pairs of equal length.",
        )
    if high < 0.4:
        yield Finding(
            *("shorter-wins", "warning", different - longer, 1 - longer / different),
            f"The shorter answer wins in {1 - longer / different:.0%} ({1 - high:.0%} to {1 - low:.0%}).",
            "A model may learn to be brief, and an accuracy up to that share may be length alone.",
            "loss=dpo_norm or simpo, or pairs of equal length.",
        )


def _balance(side: Measured) -> Iterator[Finding]:
    good, bad = (len(side.lengths.get(part, ())) for part in ("good", "bad"))
    judged = good + bad
    share = good / judged if judged else 0.5
    if not 0.2 <= share <= 0.8:
        yield Finding(
            *("label-imbalance", "warning", good, share, f"{share:.0%} of the judged answers are good."),
            "The rarer kind hardly counts.",
            "loss=kto: desirable_weight and undesirable_weight, so that both kinds weigh nearly the same.",
        )
    ties = side.counts.without_preference
    if ties:
        yield Finding(
            *("without-preference", "note", ties, ties / side.counts.read, f"{ties:,} rows prefer no answer."),
            "They are left out.",
            "Nothing, if ties are meant.",
        )
    counted = judged or side.comparisons
    if counted < 500:
        what = "judged answers" if judged else "comparisons"
        yield Finding(
            *("few-comparisons", "note", counted, None, f"There are {counted:,} {what}."),
            "A small set is learnt by heart within a few epochs.",
            "One epoch, a held-out part, and a look at samples.",
        )
    if side.rows >= 20 and len(side.prompts) < side.rows / 4:
        yield Finding(
            *("few-prompts", "note", len(side.prompts), len(side.prompts) / side.rows),
            f"{side.rows:,} rows have {len(side.prompts):,} different prompts.",
            "Rows of one prompt are not independent; in one row each prompt would also be run only once.",
            "Put the answers of a prompt into one row: prompt, completions, scores.",
        )
    yield from _opening(side)


def _opening(side: Measured) -> Iterator[Finding]:
    words, count = max(side.openings.items(), key=lambda item: item[1], default=("", 0))
    total = sum(side.openings.values())
    if count >= 20 and count / total >= 0.1 and len(words.split()) > 1:
        yield Finding(
            *("same-opening", "note", count, count / total),
            f"{count / total:.0%} of the better answers begin with {words!r}.",
            "A model soon begins all its answers so.",
            "Look whether the rejected ones do as well.",
        )


def _of_both(train: Measured, held_out: Measured, *, stops: bool) -> Iterator[Finding]:
    yield from _bad(held_out, "held-out", stops=stops)
    both = train.found.get("in-both-sides")
    if both is not None:
        yield Finding(
            *("in-both-sides", "warning", both.count, both.count / max(1, train.rows + both.count)),
            f"{both.count:,} training rows have a prompt that is held out.",
            "They are left out of training.",
            "Nothing, if that is meant; else hold out other prompts.",
            both.rows,
        )
