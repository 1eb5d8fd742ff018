"""What is to be said of rows that were measured, and how bad it is. docs/inspect.md explains each by its name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dpo_cli.data.audit.result import LEVELS, Finding, Level, SideName
from dpo_cli.data.audit.side import Measured, wilson
from dpo_cli.data.build import Seen


@dataclass(frozen=True, slots=True)
class _Kind:
    """A finding that is so many of something, with the share from which it is a warning (None = never)."""

    what: str
    effect: str
    advice: str
    of: str = "rows"
    warns_from: float | None = 0.0
    held_out: str = ""
    """The effect of such held-out rows; empty = the same."""


_BAD = {
    "bad-rows": "can't be used",
    "empty-answers": "have an answer without a word",
    "equal-answers": "have two equal answers",
}
_COUNTED = {
    "in-both-sides": _Kind(
        "have a prompt that is held out",
        "They are left out of training.",
        "Nothing, if that is meant; else hold out other prompts.",
        of="rows read",
    ),
    "nearly-in-both-sides": _Kind(
        "have nearly the prompt of a training row",
        "The model has trained on nearly these prompts: held-out numbers look better than they are.",
        "Take such rows out of one side.",
    ),
    "contradictions": _Kind(
        "say the opposite of an earlier one, with the same prompt and answers",
        "Each undoes the other.",
        "Keep one, or say how sure it is with data.label_prob.",
        of="comparisons",
        held_out="No model can be right on both, so the best accuracy is below 100 %.",
    ),
    "duplicates": _Kind(
        "repeat an earlier row word for word",
        "Each repetition weighs the row once more.",
        "Take them out, unless that is meant.",
        warns_from=0.01,
        held_out="Each repetition counts once more.",
    ),
    "near-duplicates": _Kind(
        "have nearly the words of an earlier row",
        "They weigh like repetitions.",
        "Look at some; thin them out.",
        warns_from=0.05,
        held_out="They count like repetitions, and numbers seem surer than they are.",
    ),
    "special-tokens-in-text": _Kind(
        "have text that spells a special token",
        "In a conversation it is kept as plain text; in rows taken as they stand it becomes the token.",
        "Fine if people write about such tokens; else take it out, it is left over from another template.",
    ),
    "text-lost": _Kind(
        "have text that their tokens don't give back",
        "The tokenizer drops or changes it (control characters, mostly), or it follows an end token: no model sees it.",
        "Take such characters out.",
        of="answers",
        warns_from=0.01,
    ),
    "made-equal": _Kind(
        "have answers that the template or the cut makes equal",
        "They are left out: nothing can be learnt from them.",
        "Raise data.max_length.",
        held_out="They are left out: they tell no model from another.",
    ),
    "cut-to-nothing": _Kind(
        "lose all that is learnt to the cut",
        "They are left out.",
        "Raise data.max_length.",
    ),
    "too-long": _Kind(
        "are too long",
        "They are left out, or stop the run (data.on_too_long).",
        "Raise data.max_length, or data.on_too_long=truncate.",
        warns_from=0.01,
    ),
    "answers-cut": _Kind(
        "are cut",
        "They have no end token, and what decided the comparison may be gone.",
        "Raise data.max_length, or data.on_too_long=drop.",
        of="answers",
        warns_from=0.05,
    ),
    "prompts-cut": _Kind(
        "have their prompt cut",
        "The answers may be to something that is gone.",
        "Raise data.max_length or data.max_prompt_length, or data.on_too_long=drop.",
        warns_from=0.05,
    ),
    "scripts-differ": _Kind(
        "are between answers in different scripts",
        "The language decides, and it is easier to learn than what else is better.",
        "Look at some; compare answers in one language.",
        of="comparisons",
        warns_from=0.01,
        held_out="The language decides, and an accuracy says little about what else is better.",
    ),
    "other-script": _Kind(
        "are in another script than their prompt",
        "If most are chosen, or most rejected, the language is what is learnt.",
        "Look at some.",
        of="answers",
        warns_from=0.05,
        held_out="If most are chosen, or most rejected, the language is what is measured.",
    ),
    "mixed-scripts": _Kind(
        "mix scripts: a second one has over a tenth of the letters",
        "If better answers do, the model learns to.",
        "Fine for names and code; else look at some.",
        of="answers",
        warns_from=None,
        held_out="If better answers do, that is what is measured.",
    ),
    "one-token-answers": _Kind(
        "are a single word or sign",
        "Their log-probs move fast and far.",
        "Check that they are whole.",
        of="answers",
        warns_from=0.05,
    ),
    "without-preference": _Kind(
        "prefer no answer",
        "They are left out.",
        "Nothing, if ties are meant.",
        of="rows read",
        warns_from=None,
    ),
    "boundary-merges": _Kind(
        "would have a token across prompt and answer, were both tokenised as one text",
        "Here none has: the answer begins where the prompt given to generate ends.",
        "Nothing; trainers that tokenise the whole get slightly other numbers.",
        of="sampled rows",
        warns_from=None,
    ),
}
NAMES = (
    *(*_BAD, *_COUNTED, "longer-wins", "shorter-wins", "label-imbalance"),
    *("few-comparisons", "few-prompts", "same-opening"),
)
"""Every finding there is."""


def findings(train: Measured, held_out: Measured | None, *, stops: bool) -> list[Finding]:
    """The worst first: by level, then what training suffers from before what is measured wrongly, then by how many.

    Args:
        train, held_out: the sides.
        stops: whether a bad row stops a run.
    """
    found = [*_of_side(train, "training", stops=stops), *_of_training(train)]
    if held_out is not None:
        found += _of_side(held_out, "held out", stops=stops)
    return sorted(found, key=lambda each: (LEVELS.index(each.level), each.side == "held out", -each.count))


def _of_side(side: Measured, name: SideName, *, stops: bool) -> Iterator[Finding]:
    yield from _bad(side, name, stops=stops)
    yield from _counted(side, name)
    yield from _lengths(side, name)
    yield from _balance(side, name)


def _of(name: SideName, what: str) -> str:
    return what if name == "training" else f"held-out {what}"


def _bad(side: Measured, name: SideName, *, stops: bool) -> Iterator[Finding]:
    read = side.counts.read
    for finding, seen in side.counts.bad_by_finding.items():
        yield Finding(
            *(finding, name, "error" if stops else "warning", seen.count, seen.count / read),
            f"{seen.count:,} of {read:,} {_of(name, 'rows read')} {_BAD[finding]}.",
            "They stop a run." if stops else "They are left out.",
            "Mend them or take them out, or data.on_bad_row=skip." if stops else "Look at some, unless they are few.",
            seen.rows,
        )


def _counted(side: Measured, name: SideName) -> Iterator[Finding]:
    totals = {
        "rows read": side.counts.read,
        "rows": side.rows,
        "sampled rows": side.sampled,
        "answers": side.answers,
        "comparisons": side.comparisons,
    }
    found = {**side.found, "without-preference": Seen(side.counts.without_preference)}
    for finding, kind in _COUNTED.items():
        seen = found.get(finding, Seen())
        if seen.count:
            total = totals[kind.of]
            share = seen.count / total
            level: Level = "warning" if kind.warns_from is not None and share >= kind.warns_from else "note"
            what = f"{seen.count:,} of {total:,} {_of(name, kind.of)} {kind.what}."
            effect = kind.held_out if name == "held out" and kind.held_out else kind.effect
            yield Finding(finding, name, level, seen.count, share, what, effect, kind.advice, seen.rows)


def _lengths(side: Measured, name: SideName) -> Iterator[Finding]:
    longer, different = side.longer()
    for finding, wins, word, advice in (
        ("longer-wins", longer, "long", "loss=dpo_norm or simpo, loss.ld_alpha, or pairs of equal length."),
        ("shorter-wins", different - longer, "brief", "loss=dpo_norm or simpo, or pairs of equal length."),
    ):
        low, high = wilson(wins, different) if different else (0.0, 0.0)
        if low > 0.6:
            which, share = finding.partition("-")[0], f"{wins / different:.0%} of {_of(name, 'comparisons')}"
            learns = f"A model may learn to be {word}, and an" if name == "training" else "An"
            yield Finding(
                *(finding, name, "warning", wins, wins / different),
                f"The {which} answer wins {share} ({low:.0%} to {high:.0%}).",
                f"{learns} accuracy up to that share may be length alone.",
                advice if name == "training" else "Hold an accuracy against that share.",
            )


def _balance(side: Measured, name: SideName) -> Iterator[Finding]:
    good, bad = (len(side.lengths.get(part, ())) for part in ("good", "bad"))
    judged = good + bad
    share = good / judged if judged else 0.5
    if not 0.2 <= share <= 0.8:
        yield Finding(
            *("label-imbalance", name, "warning", good, share),
            f"{good:,} of {judged:,} {_of(name, 'judged answers')} are good.",
            "The rarer kind hardly counts.",
            "loss=kto: desirable_weight and undesirable_weight, so that both kinds weigh nearly the same."
            if name == "training"
            else "Hold an accuracy against that of one answer to all.",
        )
    counted = judged or side.comparisons
    if counted < 500:
        what = _of(name, "judged answers" if judged else "comparisons")
        within = 0.98 / math.sqrt(max(1, counted))  # 95 % of an accuracy of a half
        yield Finding(
            *("few-comparisons", name, "note", counted, None, f"There are {counted:,} {what}."),
            "A small set is learnt by heart within a few epochs."
            if name == "training"
            else f"An accuracy is known to within {within:.0%}, no better.",
            "One epoch, a held-out part, and a look at samples."
            if name == "training"
            else "Hold out more, or take small differences for chance.",
        )


def _of_training(side: Measured) -> Iterator[Finding]:
    if side.rows >= 20 and len(side.prompts) < side.rows / 4:
        yield Finding(
            *("few-prompts", "training", "note", len(side.prompts), len(side.prompts) / side.rows),
            f"{side.rows:,} rows have {len(side.prompts):,} different prompts.",
            "Rows of one prompt are not independent; in one row each prompt would also be run only once.",
            "Put the answers of a prompt into one row: prompt, completions, scores.",
        )
    words, count = max(side.openings.items(), key=lambda item: item[1], default=("", 0))
    total = sum(side.openings.values())
    if count >= 20 and count / total >= 0.1 and len(words.split()) > 1:
        yield Finding(
            *("same-opening", "training", "note", count, count / total),
            f"{count / total:.0%} of the better answers begin with {words!r}.",
            "A model soon begins all its answers so.",
            "Look whether the rejected ones do as well.",
        )
