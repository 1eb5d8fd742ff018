"""Train the built-in task with every loss and write the table of docs/losses.md.

    python scripts/compare_losses.py [LOSS ...]

One run after another through the real command, in runs/losses/; what is finished there is not run again. Half a minute
each on two CPU cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs" / "losses.md"
RUNS = ROOT / "runs" / "losses"
BEGIN, END = "<!-- measured: scripts/compare_losses.py -->", "<!-- end of measured -->"

# What each loss needs on this task, where an answer has some seven tokens and labels are sharp; others as they are.
SETTINGS: dict[str, list[str]] = {
    "dpo_quickstart": ["loss.beta=1"],
    "robust": ["loss.beta=1", "loss.label_smoothing=0.05"],
    "ipo": ["loss.beta=1"],
    "hinge": ["loss.beta=1"],
    "slic": ["loss.sft_weight=1"],
    "exo": ["loss.beta=1"],
    "nca": ["loss.beta=1"],
    "bco_pair": ["loss.beta=1"],
    "sppo": ["loss.beta=0.5"],
    "aot": ["loss.beta=1"],
    "aot_unpaired": ["loss.beta=1", "loss.sft_weight=1"],
    "apo_zero": ["loss.beta=1"],
    "apo_down": ["loss.beta=0.3", "loss.sft_weight=1"],
    "discopop": ["loss.beta=1"],
    "dpo_norm": ["loss.beta=7"],
    "simpo": ["loss.beta=2", "loss.sft_weight=1"],
    "alphapo": ["loss.beta=2.5", "loss.sft_weight=1"],
    "cpo": ["loss.beta=0.3"],
    "orpo": ["loss.beta=0.5"],
    "rpo_bwd_kl": ["loss.beta=1", "data.margin=[reward_chosen,reward_rejected]", "loss.eta=8"],
    "rpo_fwd_kl": ["loss.beta=1", "data.margin=[reward_chosen,reward_rejected]", "loss.eta=8"],
    "rpo_sq": ["loss.beta=1", "data.margin=[reward_chosen,reward_rejected]", "loss.eta=8"],
    "sft": [],
    "kto": ["loss.beta=1", "train.batch_size=128"],
    "bco": ["loss.beta=1", "train.batch_size=128"],
    "apo_zero_unpaired": ["loss.beta=1", "train.batch_size=128"],
    "plackett_luce": ["loss.beta=1"],
    "mpo": ["loss.terms.dpo.beta=1", "loss.terms.bco_pair.beta=1", "loss.weights.sft=0.1"],
}


def main() -> None:
    """Run what is missing and write the table."""
    chosen = sys.argv[1:] or list(SETTINGS)
    rows = []
    for name in chosen:
        before, after = measured(run(name, [f"loss={name}", *SETTINGS[name]]))
        rows.append(row(name, SETTINGS[name], before, after))
    if chosen == list(SETTINGS):
        write(rows)
    print("\n".join(rows))


def run(name: str, words: list[str]) -> Path:
    """A finished run of the loss."""
    folder = RUNS / name
    command = [
        sys.executable,
        "-m",
        "dpo_cli",
        "train",
        "+experiment=quickstart",
        *words,
        f"run_dir={folder}",
        "resume=auto",
        "seed=1",
    ]
    subprocess.run([*command, "train.eval_every=null", "tracker.mode=disabled"], check=True, cwd=ROOT)
    return folder


def measured(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics before the first update and after the last."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    before = {key: value for line in lines if line["step"] == 0 for key, value in line.items()}
    return before, json.loads((folder / "run.json").read_text(encoding="utf-8"))["final"]


def row(name: str, words: list[str], before: dict[str, float], after: dict[str, float]) -> str:
    """A line of the table."""
    if after["samples/true_reward"] <= before["samples/true_reward"]:
        print(f"warning: {name} does not raise the true reward", file=sys.stderr)
    changed = ", ".join(word.removeprefix("loss.") for word in words if not word.startswith("data."))
    figures = [
        f"{after['eval/rewards/accuracies']:.3f}",
        f"{before['samples/true_reward']:.3f} → {after['samples/true_reward']:.3f}",
        f"{after['samples/kl']:.2f} ± {after['samples/kl_error']:.2f}",
        f"{after['eval/logps/chosen'] - before['eval/logps/chosen']:+.2f}",
    ]
    return f"| `{name.removesuffix('_quickstart')}` | {changed or 'defaults'} | {' | '.join(figures)} |"


def write(rows: list[str]) -> None:
    """Put the table into the document."""
    head = [
        "| loss | settings | held-out accuracy | true reward of samples | KL, nats per answer | chosen log-prob |",
        "|---|---|---|---|---|---|",
    ]
    document = DOC.read_text(encoding="utf-8")
    start, rest = document.split(BEGIN)
    _, end = rest.split(END)
    DOC.write_text("\n".join([f"{start}{BEGIN}", *head, *rows, f"{END}{end}"]), encoding="utf-8")


if __name__ == "__main__":
    main()
