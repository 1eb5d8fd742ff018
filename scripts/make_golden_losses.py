"""Writes tests/parity/golden.json: the losses of a few fixed comparisons and their slopes, by the numpy implementation.

    python scripts/make_golden_losses.py            writes the file
    python scripts/make_golden_losses.py --check    says whether the file is what would be written

The values come from tests/parity/reference_*.py, which know nothing of dpo_cli. A formula changed there shows as a diff
of this file. Slopes are by the summed log-probs of each answer.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from parity import reference_free, reference_impl, reference_ranked, reference_rewards, reference_unpaired  # noqa: E402

GOLDEN = REPOSITORY / "tests" / "parity" / "golden.json"
RELATIVE = 1e-12  # exp and log may differ in the last digit from one platform to the next

FUNCTIONS = {
    name: function
    for module in (reference_impl, reference_rewards, reference_free, reference_unpaired, reference_ranked)
    for name, function in vars(module).items()
}

# policy's winner and loser, reference's winner and loser
COMPARISONS = {
    "ordinary": [[-1.25, -0.5, -2.0], [-0.75, -3.5], [-1.5, -0.75, -1.75], [-1.0, -2.25]],
    "wrong way": [[-2.5, -4.0], [-0.25, -0.5, -0.125, -1.0], [-1.0, -2.0], [-1.5, -1.25, -0.5, -2.0]],
    "policy is reference": [[-1.0, -0.25], [-2.0, -0.5, -3.0], [-1.0, -0.25], [-2.0, -0.5, -3.0]],
    "one token each": [[-0.03125], [-7.0], [-0.5], [-4.0]],
    "loser fell by 1e4": [[-0.5, -1.5], [-5001.0, -5001.0], [-0.5, -1.5], [-1.0, -1.0]],
    "winner fell by 1e4": [[-5001.0, -5001.0], [-0.5, -1.5], [-1.0, -1.0], [-0.5, -1.5]],
    "winner rose by 1e4": [[-1.0, -1.0], [-0.5, -1.5], [-5001.0, -5001.0], [-0.5, -1.5]],
    "both fell by 1e4": [[-5001.0, -5001.0], [-10001.0], [-1.0, -1.0], [-1.0]],
}

PAIRWISE: list[tuple[str, dict[str, Any]]] = [
    *[("dpo", {"beta": beta, "label_smoothing": e}) for beta, e in [(0.1, 0.0), (0.1, 0.2), (1.0, 0.0)]],
    ("dpo", {"beta": 0.1, "label_smoothing": 0.3, "margin": 0.5}),
    *[("dpo", {"beta": 0.1, "divergence": name}) for name in ("forward_kl", "js")],
    *[("dpo", {"beta": 0.1, "divergence": "alpha", "divergence_alpha": alpha}) for alpha in (0.25, 0.5, 1.0)],
    *[("robust", {"beta": 0.1, "label_smoothing": e}) for e in (0.1, 0.4)],
    *[("ipo", {"beta": beta, "normalise": how}) for beta, how in [(0.1, "mean"), (0.5, "mean"), (0.1, "sum")]],
    *[("hinge", {"beta": beta}) for beta in (0.05, 0.5)],
    *[("exo", {"beta": 0.1, "label_smoothing": e}) for e in (1e-3, 0.2)],
    *[("discopop", {"beta": 0.05, "tau": tau}) for tau in (0.05, 0.5)],
    *[("dpo_norm", {"beta": 5.0, "label_smoothing": e}) for e in (0.0, 0.1)],
    *[(f"rpo_{how}", {"beta": 0.1, "eta": 1.0, "true_gap": 1.5}) for how in ("bwd_kl", "fwd_kl", "sq")],
    *[(f"rpo_{how}", {"beta": 0.5, "eta": 2.0, "true_gap": -0.25}) for how in ("bwd_kl", "fwd_kl", "sq")],
    *[("nca", {"beta": beta}) for beta in (0.01, 0.5)],
    *[("bco_pair", {"beta": 0.1, "delta": delta}) for delta in (0.0, -0.375)],
    *[("sppo", {"beta": beta}) for beta in (1e-3, 0.1)],
    *[(name, {"beta": beta}) for name in ("apo_zero", "apo_down") for beta in (0.1, 1.0)],
    ("sft", {}),
    *[("slic", {"delta": delta, "sft_weight": weight}) for delta, weight in [(1.0, 0.1), (20.0, 0.0)]],
    *[("cpo", {"beta": 0.1, "sft_weight": weight, "label_smoothing": e}) for weight, e in [(1.0, 0.0), (0.5, 0.1)]],
    *[("simpo", {"beta": 2.0, "gamma_ratio": 0.5, "label_smoothing": e}) for e in (0.0, 0.1)],
    *[("alphapo", {"beta": 2.5, "alpha": alpha, "gamma_ratio": 0.1}) for alpha in (0.25, -0.5)],
    ("orpo", {"beta": 0.1}),
    ("orpo", {"beta": 1.0, "prompt": [-3.0, -0.5]}),
]

UNPAIRED: list[tuple[str, dict[str, Any]]] = [
    ("kto", {"beta": 0.1, "reference_point": 0.0}),
    ("kto", {"beta": 0.5, "reference_point": 0.75, "desirable_weight": 1.25, "undesirable_weight": 0.5}),
    *[("bco", {"beta": 0.1, "delta": delta}) for delta in (0.0, 0.625)],
    ("apo_zero_unpaired", {"beta": 0.1}),
]

# Without ties among what is sorted, which any order of equals would do for.
BATCH_OF = ["ordinary", "wrong way", "one token each", "loser fell by 1e4", "winner rose by 1e4"]
BATCH: list[tuple[str, dict[str, Any]]] = [
    (name, {"beta": 0.01 if e else 0.2, "label_smoothing": e}) for name in ("aot", "aot_unpaired") for e in (0.0, 0.1)
]

# Scores of one prompt's answers: the policy's and the reference's of "ordinary" and "wrong way".
SCORES = [[4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]


def pairwise(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    pairs = COMPARISONS.values()
    return {
        "losses": [FUNCTIONS[name](*pair, **hyperparameters) for pair in pairs],
        "slopes": [FUNCTIONS[f"{name}_slope"](*pair, **hyperparameters) for pair in pairs],
    }


def unpaired(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Every comparison's winner as a desirable answer, its loser as an undesirable one: two losses each."""

    def both(function: Any, pair: list[list[float]]) -> list[float]:
        answers = ((pair[0], pair[2], True), (pair[1], pair[3], False))
        return [function(*answer, **hyperparameters) for answer in answers]

    return {
        "losses": [both(FUNCTIONS[name], pair) for pair in COMPARISONS.values()],
        "slopes": [both(FUNCTIONS[f"{name}_slope"], pair) for pair in COMPARISONS.values()],
    }


def batch(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """``BATCH_OF`` as one batch; slopes of the losses' sum, winner's and loser's of each comparison."""
    sides = list(zip(*(COMPARISONS[of] for of in BATCH_OF), strict=True))
    winners, losers = FUNCTIONS[f"{name}_slope"](*sides, **hyperparameters)
    losses = FUNCTIONS[name](*sides, **hyperparameters)
    return {"losses": losses, "slopes": list(zip(winners, losers, strict=True))}


def ranked(scores: list[float], beta: float) -> dict[str, Any]:
    ordinary, wrong = COMPARISONS["ordinary"], COMPARISONS["wrong way"]
    group = (ordinary[:2] + wrong[:2], ordinary[2:] + wrong[2:], scores)
    return {
        "losses": [reference_ranked.plackett_luce(*group, beta=beta)],
        "slopes": [reference_ranked.plackett_luce_slope(*group, beta=beta)],
    }


def case(name: str, hyperparameters: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {"loss": name, "hyperparameters": hyperparameters, **values}


def golden() -> dict[str, Any]:
    return {
        "comparisons": COMPARISONS,
        "pairwise": [case(name, hyper, pairwise(name, hyper)) for name, hyper in PAIRWISE],
        "unpaired": [case(name, hyper, unpaired(name, hyper)) for name, hyper in UNPAIRED],
        "batch of": BATCH_OF,
        "batch": [case(name, hyper, batch(name, hyper)) for name, hyper in BATCH],
        "ranked": [
            case("plackett_luce", {"beta": beta, "scores": scores}, ranked(scores, beta))
            for beta in (0.1, 2.0)
            for scores in SCORES
        ],
    }


def as_text(sections: dict[str, Any]) -> str:
    """One case a line, so that a diff shows which loss changed."""
    blocks = []
    for name, section in sections.items():
        if isinstance(section, dict):
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in section.items()]
            blocks.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
        else:
            blocks.append(f'"{name}": [\n' + ",\n".join(f"  {json.dumps(value)}" for value in section) + "\n]")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def close(found: Any, expected: Any) -> bool:
    """Equal, numbers but for the last digits."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=1e-300)
    return bool(found == expected)


def main() -> int:
    text = as_text(golden())
    if "--check" not in sys.argv[1:]:
        GOLDEN.write_text(text, encoding="utf-8")
        return 0
    same = close(json.loads(text), json.loads(GOLDEN.read_text(encoding="utf-8")))
    print(f"{GOLDEN.relative_to(REPOSITORY)} is {'as the numpy implementation has it' if same else 'out of date'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
