"""What a run leaves for people: tables on the screen, samples, a model card, its configuration as YAML."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from dpo_cli.config import TrainConfig
from dpo_cli.evaluation.samples import Samples
from dpo_cli.losses.loss import Modifiers
from dpo_cli.model.files import ModelFiles
from dpo_cli.tracking.console import Console

_SHOWN_SAMPLES = 5


def config_yaml(config: TrainConfig, run_dir: Path) -> str:
    """The resolved configuration."""
    values = {**config.model_dump(mode="json"), "run_dir": str(run_dir)}
    return str(OmegaConf.to_yaml(OmegaConf.create(values)))


def append_samples(run_dir: Path, samples: Samples, step: int) -> None:
    """To ``samples.jsonl``; what was sampled after the same update before is replaced."""
    path = run_dir / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if not line.startswith(f'{{"step": {step},')]
    new = [json.dumps(row, ensure_ascii=False) for row in samples.rows(step)]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in [*kept, *new]), encoding="utf-8")
    partial.replace(path)


def show_samples(console: Console, before: Samples, after: Samples) -> None:
    """Some answers side by side."""
    table = Table(title="sampled answers, before and after", title_justify="left", show_lines=True)
    for heading in ("prompt", "before", "after"):
        table.add_column(heading, overflow="fold", ratio=1)
    for index in range(min(_SHOWN_SAMPLES, len(before.answers))):
        cells = [after.questions[index], before.answers[index], after.answers[index]]
        cells = [textwrap.shorten(cell, 300, placeholder=" …") for cell in cells]
        for place, samples in ((1, before), (2, after)):
            if samples.rewards is not None:
                cells[place] += f"\n(true reward {samples.rewards[index]:.2f})"
        table.add_row(*cells)
    console.table(table)


def show_outcome(console: Console, run_dir: Path, record: Mapping[str, Any]) -> None:
    """The numbers before and after, and where everything is."""
    start, final = _first_values(run_dir), record["final"]
    table = Table(title="before and after", title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, label in _OUTCOME.items():
        if name in final:
            table.add_row(label, _number(start.get(name)), _number(final[name], final.get(f"{name}_error")))
    if table.row_count:
        console.table(table)
    speed = f"{final['pairs_per_second']:.3g} pairs/s"
    mfu = f", mfu {final['mfu']:.2f}" if "mfu" in final else ""
    console.result(
        f"{record['updates']} updates in {record['seconds']:.0f} s ({speed}{mfu} in the last), "
        f"peak memory {final['memory/rss_gib']:.1f} GiB"
    )
    files = [name for name in ("metrics.jsonl", "samples.jsonl", "run.json") if (run_dir / name).exists()]
    console.result(f"everything is in {run_dir}: final/ (the model), config.yaml, {', '.join(files)}")


_OUTCOME = {
    "eval/loss": "held-out loss",
    "eval/rewards/accuracies": "held-out reward accuracy",
    "eval/rewards/margins": "held-out reward margin",
    "samples/true_reward": "true reward of sampled answers",
    "samples/kl": "KL to the reference, nats per answer",
    "samples/length": "tokens per sampled answer",
}


def _first_values(run_dir: Path) -> dict[str, float]:
    """What was measured before the first update; a KL to oneself is 0."""
    found: dict[str, float] = {"samples/kl": 0.0}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if values.pop("step") == 0:
            found.update(values)
    return found


def _number(value: float | None, error: float | None = None) -> str:
    return "" if value is None else f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def model_card(
    config: TrainConfig, counted: str, final: Mapping[str, float], steps: int, *, base: ModelFiles, adapter: str
) -> str:
    """README.md of ``final/``: what it is and how it came about. Local folders are named by their last part.

    Args:
        config: of the run.
        counted: what was trained on, such as ``22 pairs``.
        final: metrics at the end.
        steps: updates.
        base: the model before training; of an adapter, what it is for.
        adapter: what was trained, in words; empty = all weights.
    """
    model, given = _public_name(config.model.path), _data_paths(config)
    data = [_public_name(path) for path in given]
    public = [name for name in data if name in given]
    loss = _loss_in_words(config.loss.settings())
    measured = [f"| {label} | {final[name]:.4f} |" for name, label in _OUTCOME.items() if name in final]
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags: [dpo, preference-optimization]",
        *([f"base_model: {base.path}"] if _public_name(base.path) == base.path else []),
        *([f"datasets: [{', '.join(public)}]"] if public else []),
        "---",
        "",
        f"# {Path(model).name}, tuned on preferences",
        "",
        f"Trained by {loss} from {model} on {counted} of {' and '.join(data)}: {steps} updates of",
        f"{config.train.batch_size}, learning rate {config.optim.lr}, seed {config.seed}.",
        *(_adapter_in_words(base, adapter) if adapter else ["Its weights are float32."]),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        "```",
        *(["", "| measured at the end | |", "|---|---|", *measured] if measured else []),
    ]
    return "\n".join(lines) + "\n"


def _adapter_in_words(base: ModelFiles, adapter: str) -> list[str]:
    """Which weights to load."""
    held = {"nf4": "4 bits (NF4)", "nf4_double": "4 bits (NF4, double quantisation)", "int8": "8 bits"}
    trained = f", which was held in {held[base.quantization]} in training" if base.quantization else ""
    return [
        "",
        f"These are not all of its weights, but an adapter, {adapter}. Its base model is",
        f"`{_public_name(base.path)}`{trained}. With peft installed, the lines below load the base model and put the",
        "adapter on it.",
    ]


def _loss_in_words(settings: Mapping[str, Any]) -> str:
    """A loss with what it was given, without the modifiers that are off."""
    if settings["name"] == "sum":
        terms = settings["terms"].items()
        return " + ".join(f"{settings['weights'][name]} x {_loss_in_words(term)}" for name, term in terms)
    off = asdict(Modifiers())
    given = {name: value for name, value in settings.items() if name != "name" and value != off.get(name, "")}
    return f"{settings['name']} ({', '.join(f'{name} {value}' for name, value in given.items())})"


def _data_paths(config: TrainConfig) -> list[str]:
    mix = config.data.mix
    return [str(config.data.path)] if mix is None else [part.path for part in mix.values()]


def _public_name(path: str) -> str:
    """A hub id as it is; of a folder or file, its name."""
    return Path(path).name if Path(path).exists() else path
