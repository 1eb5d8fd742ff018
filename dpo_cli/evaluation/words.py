"""What the measures of ``dpo eval`` are called for people; their names are those of eval.json (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Mapping

PREFERENCES = {
    "accuracy": "accuracy",
    "margin": "margin",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "confidence": "mean confidence",
    "overconfidence": "confidence less accuracy",
    "calibration_error": "calibration error",
}
RULES = {
    "longer_wins": "longer answer",
    "reference_logp": "reference's log-prob",
    "reference_logp_per_token": "... per token",
    "policy_logp": "the model's log-prob",
    "policy_logp_per_token": "... per token",
}
LENGTH = {
    "chosen_longer": "accuracy where the chosen is longer",
    "chosen_shorter": "accuracy where the chosen is shorter",
    "gap": "the first less the second",
    "balanced_accuracy": "mean of the two accuracies",
    "share_chosen_longer": "share with the chosen longer",
    "correlation": "correlation of reward and length",
}
DRIFT = {
    "true_reward": "true reward",
    "kl": "KL to the reference, nats per answer",
    "kl_per_token": "KL to the reference, nats per token",
    "entropy": "entropy, nats per token",
    "length": "tokens per answer",
    "repetition": "share of repeated 4-grams",
    "unfinished": "share cut at eval.max_new_tokens",
}
RATES = {
    "win_rate": "win rate",
    "length_controlled": "win rate at equal lengths",
    "share_longer": "share of longer answers",
}
SHIFTS = {
    "chosen": "chosen: nats per token since the reference",
    "rejected": "rejected: nats per token since the reference",
}
_AGAINST = {
    "accuracy": "accuracy, this less the other",
    "log_loss": "log-loss, this less the other",
    "p_value": "p",
    "first_only": "right alone: this",
    "second_only": "right alone: the other",
    "comparisons": "comparisons",
    "left_out": "comparisons left out",
}
_JUDGED = {"agreement": "both orders agree", "prompts": "prompts", "without_verdict": "prompts without a verdict"}
_ROWS = {"rows": "rows", "comparisons": "comparisons", "prompts": "prompts", "ties": "ties"}


def sections() -> dict[str, dict[str, str]]:
    """Single numbers of eval.json as they are shown together: by heading, words by the keys that lead to a number."""
    return {
        "rows": _under("rows", _ROWS),
        "implicit reward": _under("preferences", PREFERENCES),
        "accuracy of what needs no training": {f"baselines.{rule}.accuracy": words for rule, words in RULES.items()},
        "the reward's gain over that": {f"baselines.{rule}.gain": words for rule, words in RULES.items()},
        "length": _under("length", LENGTH) | _under("shifts", SHIFTS),
        "against the other model": _under("against", _AGAINST),
        "benchmark": {"benchmark.score": "score"},
        "sampled answers": _under("drift.policy", DRIFT),
        "the reference's sampled answers": _under("drift.reference", DRIFT),
        "win rate against the reference": _under("win_rate", RATES | _JUDGED),
    }


def _under(key: str, words: Mapping[str, str]) -> dict[str, str]:
    return {f"{key}.{name}": each for name, each in words.items()}
