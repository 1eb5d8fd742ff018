"""The model card: README.md of a trained model, out of what the run's folder says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import cached_file

from dpo_cli.commands.places import policy_files
from dpo_cli.commands.public import hub_id, public_name, public_yaml
from dpo_cli.config import TrainConfig
from dpo_cli.errors import one_line
from dpo_cli.losses.loss import Modifiers
from dpo_cli.losses.registry import LOSSES
from dpo_cli.model.adapters import Adapter
from dpo_cli.model.files import ModelFiles
from dpo_cli.run_folder import from_json

FOLDER = "THIS_FOLDER"
"""Stands in the card's code where the model is, until it has a place on the hub."""
MEASURED = {
    "eval/loss": "held-out loss",
    "eval/rewards/accuracies": "held-out reward accuracy",
    "eval/rewards/margins": "held-out reward margin",
    "samples/true_reward": "true reward of sampled answers",
    "samples/kl": "KL to the reference, nats per answer",
    "samples/length": "tokens per sampled answer",
}
_LICENSE = ("license", "license_name", "license_link")
_HELD = {"nf4": "4 bits (NF4)", "nf4_double": "4 bits (NF4, double quantisation)", "int8": "8 bits"}
_LEFT_OUT = {
    "bad": "unusable",
    "without_preference": "without a preference",
    "dropped_too_long": "too long",
    "made_equal": "equal once they were cut",
    "nothing_scored": "nothing left to score",
    "prompts_held_out": "prompt is held out",
}
_CHANGED = {"prompts_truncated": "prompts cut", "answers_truncated": "answers cut", "duplicates": "repeated rows, kept"}


def about(config: TrainConfig, adapter: Adapter | None) -> dict[str, Any]:
    """What a card says of a run that neither its configuration nor its counts do; for ``run.json``.

    Found out while the run goes on, when a relative path still is the place it was.
    """
    files = policy_files(config.model)
    mix = config.data.mix
    paths = [str(config.data.path)] if mix is None else [part.path for part in mix.values()]
    held_out = config.data.eval
    return {
        "model": public_name(config.model.path),
        "base": public_name(files.path),
        "base_model": hub_id(files.path),
        "quantization": files.quantization,
        "adapter": None if adapter is None else str(adapter),
        "adapter_kind": None if adapter is None else config.model.adapter.name,
        "data": [public_name(path) for path in paths],
        "datasets": [name for name in map(hub_id, paths) if name is not None],
        "held_out": public_name(held_out) if isinstance(held_out, str) else held_out,
        "license": license_of(files),
    }


def license_of(files: ModelFiles) -> dict[str, str]:
    """The licence that a base model's own card names, or else its configuration; empty if neither does."""
    for name in ("README.md", "config.json"):
        file = Path(files.path, name)
        if not Path(files.path).is_dir():
            found = cached_file(
                files.path,
                name,
                revision=files.revision,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )
            file = Path(str(found))
        values = None
        with suppress(OSError):
            if file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                values = metadata_of(text) if name == "README.md" else from_json(text)
        if isinstance(values, dict) and isinstance(values.get("license"), str):
            return {key: one_line(values[key]) for key in _LICENSE if isinstance(values.get(key), str)}
    return {}


def metadata_of(card: str) -> dict[str, Any]:
    """What the first lines of a model card say, perhaps a stranger's; empty if they say nothing that can be read.

    huggingface_hub's own reader goes through all that aliases stand for.
    """
    found = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", card, re.DOTALL)
    with suppress(ValueError, RecursionError, yaml.YAMLError):
        values = yaml.safe_load(found[1]) if found is not None else None
        return values if isinstance(values, dict) else {}
    return {}


def model_card(
    settings: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None = None,
    merged: str = "",
    weights: str = "float32",
) -> str:
    """README.md: metadata as the hub reads it, what the model is, how it came about and how well it did.

    Args:
        settings: ``config.yaml``.
        record: ``run.json``, with ``about`` and ``final``.
        evaluation: ``eval.json``, if the model was evaluated again.
        merged: how an adapter was merged, in words; empty = it was not, or all weights were trained.
        weights: their format.
    """
    facts = record["about"]
    title = f"{Path(facts['base']).name}, tuned on preferences"
    lines = [
        f"# {title}",
        "",
        *_what(settings, record, merged, weights),
        *_use(),
        *_training(settings, record),
        *_data(record),
        *_evaluation(record, evaluation),
        *_versions(record),
        *_reproduce(settings),
        *_license(facts["license"]),
    ]
    text = "\n".join(["---", _metadata(settings, record, title, merged).to_yaml(), "---", "", *lines]) + "\n"
    return str(ModelCard(text))


def plain_card(base: str | None, license_found: Mapping[str, str], *, merged: str = "", weights: str = "") -> str:
    """A card of a model about whose training nothing is known.

    Args:
        base: the base model of an adapter; None = there are all weights.
        license_found: of the base model.
        merged: how an adapter was merged into it, in words; empty = it was not.
        weights: their format, where it was.
    """
    adapter = base is not None and not merged
    data = ModelCardData(**_of_base(hub_id(base or ""), license_found, adapter=adapter))
    name = "A language model" if base is None else f"{Path(public_name(base)).name}, with an adapter"
    what = f"An adapter for `{public_name(base)}`" if base is not None else "A language model"
    lines = [f"# {name}", "", f"{what}, {merged} Its weights are {weights}." if merged else f"{what}.", *_use()]
    lines += ["", "How it was trained is not known here: the folder came without its run's.", *_license(license_found)]
    return str(ModelCard("\n".join(["---", data.to_yaml(), "---", "", *lines]) + "\n"))


def text_hash(text: str) -> str:
    """By which a card that somebody changed is told from one that is as it was written."""
    return hashlib.sha256(text.encode()).hexdigest()


def _metadata(settings: Mapping[str, Any], record: Mapping[str, Any], title: str, merged: str) -> ModelCardData:
    facts = record["about"]
    adapter = bool(facts["adapter"]) and not merged
    kind = [] if not facts["adapter_kind"] else ["peft", facts["adapter_kind"]]
    losses = _loss_names(settings["loss"])
    held_out = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_id(str(facts["held_out"])) or "preferences",
            dataset_name=f"held-out rows of {' and '.join(facts['data'])}",
            metric_type=metric,
            metric_name=MEASURED[name],
            metric_value=round(float(record["final"][name]), 6),
        )
        for name, metric in (("eval/rewards/accuracies", "accuracy"), ("eval/loss", "loss"))
        if record["final"].get(name) is not None
    ]
    return ModelCardData(
        **_of_base(facts["base_model"], facts["license"], adapter=adapter),
        datasets=facts["datasets"] or None,
        tags=list(dict.fromkeys(["dpo", "preference-optimization", *losses, *kind])),
        model_name=title if held_out else None,
        eval_results=held_out or None,
    )


def _of_base(base: str | None, license_found: Mapping[str, str], *, adapter: bool) -> dict[str, Any]:
    """Metadata that every card has; ``base`` is a hub id."""
    relation = {} if base is None else {"base_model_relation": "adapter" if adapter else "finetune"}
    return {
        "base_model": base,
        **relation,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **license_found,
    }


def _what(settings: Mapping[str, Any], record: Mapping[str, Any], merged: str, weights: str) -> Iterator[str]:
    facts = record["about"]
    groups = record["data"]["train"]["groups"]
    yield (
        f"Trained by {loss_in_words(settings['loss'])} from {facts['model']} on {groups:,} prompts of "
        f"{' and '.join(facts['data'])}: {record['updates']} updates of {settings['train']['batch_size']}, learning "
        f"rate {settings['optim']['lr']}, seed {settings['seed']}."
    )
    held = f", which was held in {_HELD[facts['quantization']]} in training" if facts["quantization"] else ""
    if merged:
        yield ""
        yield f"Its weights are {weights}. An adapter was trained, {facts['adapter']}, {merged}"
    elif facts["adapter"]:
        yield ""
        yield (
            f"These are not all of its weights, but an adapter, {facts['adapter']}. Its base model is "
            f"`{facts['base']}`{held}. With peft installed, the lines below load the base model and put the adapter "
            "on it."
        )
    else:
        yield f"Its weights are {weights}."


def _use() -> Iterator[str]:
    yield from ("", "## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield f'model = AutoModelForCausalLM.from_pretrained("{FOLDER}")'
    yield f'tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")'
    yield "```"


def _training(settings: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    optim, train, reference = settings["optim"], settings["train"], record.get("reference") or {}
    files = (reference.get("identity") or {}).get("files") or {}
    rows = [
        ("loss", loss_in_words(settings["loss"])),
        *[("", _source(name)) for name in _loss_names(settings["loss"])],
        ("reference", _reference(settings, files)),
        ("optimizer", f"{optim['name']}, learning rate {optim['lr']}, {optim['schedule']} schedule"),
        ("updates", f"{record['updates']} of {train['batch_size']} (epochs: {train['epochs']}, or less)"),
        ("longest sequence", f"{settings['data']['max_length']} tokens"),
        ("precision", f"{record.get('precision', '')} products, float32 weights"),
        ("seed", str(settings["seed"])),
    ]
    yield from ("", "## Training", "", *_table(("", ""), rows))


def _reference(settings: Mapping[str, Any], files: Mapping[str, str]) -> str:
    if not files:
        return "none"
    path = settings["reference"]["path"]
    return "the model before training" if path is None else public_name(path)


def _data(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Data", "")
    names = ["read", *_LEFT_OUT, "groups", *_CHANGED]
    labels = {"read": "rows read", "groups": "**prompts used**"}
    labels |= {name: f"left out: {label}" for name, label in _LEFT_OUT.items()} | _CHANGED
    sides = {side: counts for side, counts in record["data"].items() if isinstance(counts, Mapping)}
    counted = {side: _flat(counts) for side, counts in sides.items()}
    rows = [
        (labels[name], *(_whole(counts.get(name)) for counts in counted.values()))
        for name in names
        if any(counts.get(name) for counts in counted.values())
    ]
    yield from _table(("", *({"train": "training", "held_out": "held out"}.get(side, side) for side in counted)), rows)
    yield ""
    yield f"SHA-256 of the tokens trained on: `{record['data']['fingerprint']}`"


def _flat(side: Mapping[str, Any]) -> dict[str, Any]:
    """A side's counts by name."""
    tokenized = {name: value for name, value in side.get("tokenized", {}).items() if name != "groups"}
    groups = side.get("groups", side.get("tokenized", {}).get("groups"))
    return {**side.get("rows", {}), **tokenized, "groups": groups, "prompts_held_out": side.get("prompts_held_out")}


def _evaluation(record: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    final = record["final"]
    rows = [(label, f"{final[name]:.4f}") for name, label in MEASURED.items() if final.get(name) is not None]
    if rows:
        yield from ("", "## Evaluation", "", *_table(("measured at the end", ""), rows))
    if evaluation:
        data = evaluation["config"]["data"]
        place = data["eval"] if isinstance(data.get("eval"), str) else data.get("path")
        heading = f"measured by `dpo eval` on {public_name(str(place)) if place else 'a mixture'}"
        values = [(name, f"{value:.4f}") for name, value in evaluation["metrics"].items() if value is not None]
        yield from ("", *([] if rows else ["## Evaluation", ""]), *_table((heading, ""), values))


def _versions(record: Mapping[str, Any]) -> Iterator[str]:
    rows = list((record.get("versions") or {}).items())
    files = ((record.get("reference") or {}).get("identity") or {}).get("files") or {}
    hashes = [(f"reference: {name}", f"`{value}`") for name, value in files.items()]
    code = [("code of dpo", f"`{record['code']}`")] if "code" in record else []
    yield from ("", "## Versions", "", *_table(("", ""), rows))
    yield from ("", *_table(("SHA-256", ""), [*code, *hashes]))


def _reproduce(settings: Mapping[str, Any]) -> Iterator[str]:
    text = public_yaml(settings)
    yield from ("", "## The same again", "")
    yield "With what is below as `config.yaml`, and the paths in it put right:"
    yield from ("", "```console", "$ dpo train --config-dir . --config-name config", "```", "")
    yield from ("<details><summary>config.yaml</summary>", "", "```yaml", text.rstrip(), "```", "", "</details>")


def _license(found: Mapping[str, str]) -> Iterator[str]:
    yield from ("", "## Licence", "")
    if found:
        name = found.get("license_name") or found["license"]
        yield f"That of the base model, whose files name it: {name}. The data may ask for more."
    else:
        yield "The files of the base model name none, so none is named here: look it up before you pass this on."


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (heading, ["---"] * len(heading), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"


def _whole(value: Any) -> str:
    return "" if value is None else f"{value:,}"


def _loss_names(settings: Mapping[str, Any]) -> list[str]:
    if settings["name"] != "sum":
        return [str(settings["name"])]
    return list(dict.fromkeys(str(term["name"]) for term in settings["terms"].values()))


def _source(name: str) -> str:
    """The first paragraph of the loss's own documentation, which names the equation's source."""
    documentation = LOSSES[name].function.__doc__ or name
    return " ".join(documentation.strip().split("\n\n")[0].split())


def loss_in_words(settings: Mapping[str, Any]) -> str:
    """A loss with what it was given, without the modifiers that are off."""
    if settings["name"] == "sum":
        terms = settings["terms"].items()
        return " + ".join(f"{settings['weights'][name]} x {loss_in_words(term)}" for name, term in terms)
    off = asdict(Modifiers())
    given = {name: value for name, value in settings.items() if name != "name" and value != off.get(name, "")}
    return f"{settings['name']} ({', '.join(f'{name} {value}' for name, value in given.items())})"
