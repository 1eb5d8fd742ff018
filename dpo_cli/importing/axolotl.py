"""A configuration of axolotl with ``rl``: dpo, ipo, kto, orpo or simpo, all of which it trains with TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing import losses
from dpo_cli.importing.axolotl_options import AXOLOTL, DATASET, NAMES, PLUGINS
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.huggingface import convert_evaluation, convert_model, convert_training
from dpo_cli.importing.options import Options, Table, with_defaults
from dpo_cli.importing.rows import Place, is_file, place_of, set_rows, set_share
from dpo_cli.importing.trl import warn_of_adapters
from dpo_cli.importing.trl_options import CPO, DPO, KTO, ORPO

_TRAINERS: dict[str, tuple[Table, Any]] = {
    "dpo": (DPO, losses.dpo),
    "ipo": (with_defaults(DPO, loss_type=["ipo"]), losses.dpo),
    "kto": (KTO, losses.kto),
    "orpo": (ORPO, losses.orpo),
    "simpo": (with_defaults(CPO, loss_type="simpo"), losses.cpo),
}
"""``rl`` to what it hands its options to, with TRL's defaults beneath its own, and the converter of its losses."""

TEMPLATES = ("chatml", "llama3", "gemma")
"""Chat templates that go by the same name here."""

ROW_SHAPES = {
    "chatml.argilla": "instruction, chosen_response and rejected_response",
    "chatml.icr": "input, chosen and rejected",
    "chatml.intel": "question, chosen and rejected",
    "llama3.argilla": "instruction, chosen_response and rejected_response",
    "llama3.icr": "input, chosen and rejected",
    "llama3.intel": "question, chosen and rejected",
    "zephyr.nectar": "prompt and answers with ranks",
}
"""Types whose rows have columns of other names than ours."""


def convert(given: Mapping[str, Any], draft: Draft, *, trainer: str | None, processes: int) -> str:
    """Everything the file says, into ``draft``; see ``trl.convert``."""
    if trainer is not None:
        raise DpoError(f"--trainer {trainer} is for TRL's configurations; this is one of axolotl, which says rl itself")
    rl = str(given.get("rl") or "").lower()
    if rl not in _TRAINERS:
        raise DpoError(f"rl={rl or 'null'}: expected one of {', '.join(_TRAINERS)}; other training is not done here")
    library, convert_loss = _TRAINERS[rl]
    beneath = _handed_on(given, library)
    options = Options(_normalised(given), AXOLOTL | PLUGINS, tool="axolotl", names=NAMES, beneath=beneath)
    options.take("rl")
    convert_model(options, draft)
    held_out = _convert_rows(options, draft)
    _convert_lengths(options, draft)
    _drop_grpo(options, draft)
    convert_loss(options, draft)
    convert_training(options, draft, processes)
    _convert_rest(options, draft)
    convert_evaluation(options, draft, held_out=held_out)
    adapter = options.has("adapter")
    warn_of_adapters(options, draft, adapter=adapter)
    if not adapter and draft.values["train.precision"][0] != "fp32":
        draft.check(
            "axolotl trains bfloat16 weights; here they are float32 and only the products bfloat16. At DPO's learning "
            "rates that changes what is learnt: fewer updates are rounded away."
        )
    draft.account_for(options)
    return f"axolotl's rl: {rl}"


def _normalised(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that axolotl knows by two names, by the one asked for."""
    found = dict(given)
    for old, new in (
        ("revision_of_model", "model_revision"),
        ("bfloat16", "bf16"),
        ("evaluation_strategy", "eval_strategy"),
    ):
        if found.get(old) is not None and found.get(new) is None:
            found[new] = found.pop(old)
    trl = found.get("trl")
    if isinstance(trl, dict) and trl.get("beta") is not None:
        found |= {"rl_beta": trl["beta"], "trl": {key: value for key, value in trl.items() if key != "beta"}}
    elif found.get("rl_beta") is None:
        name = next((name for name in ("dpo_beta", "orpo_alpha") if found.get(name) is not None), None)
        if name is not None:
            found["rl_beta"] = found.pop(name)
    for weight in ("kto_desirable_weight", "kto_undesirable_weight"):
        if found.get(weight) == 0:
            found[weight] = 1.0
    return found


def _handed_on(given: Mapping[str, Any], library: Table) -> Table:
    """TRL's options with the defaults that axolotl gives them."""
    return with_defaults(
        library,
        save_strategy="steps" if given.get("save_steps") else "epoch",
        save_total_limit=4,
        eval_strategy="steps" if given.get("eval_steps") else "no",
    )


def _drop_grpo(options: Options, draft: Draft) -> None:
    """The section ``trl``, of which preference losses read beta alone."""
    rest = options.mapping("trl")
    if rest:
        draft.drop("trl", rest, "of GRPO")


def _convert_lengths(options: Options, draft: Draft) -> None:
    length = options.whole("max_length")
    draft.set("data.max_length", length, options.origin("max_length"))
    name = "excess_length_strategy"
    strategy = str(options.take(name) or "drop").lower()
    if strategy not in ("drop", "truncate", "raise"):
        raise DpoError(f"{name}={strategy}: expected drop, truncate or raise")
    draft.set("data.on_too_long", strategy, options.origin(name))
    if strategy == "truncate" and length is not None:
        draft.set("data.max_prompt_length", max(length - 1, 1), "as axolotl: answers are cut, prompts are not")
        draft.check(
            f"{name}=truncate: axolotl leaves rows out whose prompt alone is too long, and ends cut answers with "
            "end-of-sequence; here such prompts are cut, and cut answers have no end."
        )


def _convert_rest(options: Options, draft: Draft) -> None:
    """Where axolotl differs from what is beneath it."""
    if options.has("batch_size"):
        draft.set("train.batch_size", options.whole("batch_size"), "batch_size, taken as the whole")
        draft.check(
            "batch_size is taken as the rows of one update over all processes, as axolotl's documentation has it."
        )
    if not options.has("learning_rate"):
        draft.check("There is no learning_rate, which axolotl demands: optim.lr is TRL's default.")
    scheduler = options.text("lr_scheduler_type")
    if not options.has("warmup_steps", "warmup_ratio") and scheduler != "constant":
        draft.set("optim.warmup_ratio", 0.03, "axolotl's default; it stops at 100 updates")
    if options.has("cosine_min_lr_ratio") and scheduler == "cosine":
        draft.set("optim.schedule", "cosine_with_min_lr", options.origin("lr_scheduler_type"))
        draft.set("optim.min_lr_ratio", options.number("cosine_min_lr_ratio"))
    if options.take("fsdp_config"):
        draft.set("engine.zero_stage", 3, "in place of FSDP")
    if options.has("wandb_project"):
        draft.set("tracker.project", options.text("wandb_project"))
    if options.text("wandb_mode") in ("online", "offline", "disabled"):
        draft.set("tracker.mode", options.text("wandb_mode"))
    elif options.take("use_wandb") is False:
        draft.set("tracker.mode", "disabled")


def _convert_rows(options: Options, draft: Draft) -> str | float | None:
    """``data`` and the chat template; returns what ``data.eval`` would be, if known."""
    entries = _entries(options, "datasets")
    places = [place_of(_plain(entry), "datasets", draft, DATASET) for entry in entries]
    train = set_rows([place for place in places if place], draft)
    kinds = [entry.get("type") for entry in entries]
    _convert_template(options, draft, kinds)
    for kind, entry in zip(kinds, entries, strict=True):
        _say_columns(kind, entry, draft)
    share = set_share(options.number("val_set_size"), "val_set_size", draft)
    tests = [place_of(_plain(entry), "test_datasets", draft, DATASET) for entry in _entries(options, "test_datasets")]
    return share or _held_out(train, [place for place in tests if place], draft)


def _entries(options: Options, name: str) -> list[dict[str, Any]]:
    value = options.take(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise DpoError(f"{name}={value!r}: expected a list of keys and values")
    return [dict(entry) for entry in value]


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what says nothing: usual names for roles and their parts."""
    usual = {"role": "role", "content": "content"}
    roles = entry.get("roles")
    if isinstance(roles, dict) and all(names == [role] for role, names in roles.items()):
        entry = {key: value for key, value in entry.items() if key != "roles"}
    return {key: value for key, value in entry.items() if not (key == "message_property_mappings" and value == usual)}


def _held_out(train: Place | None, tests: list[Place], draft: Draft) -> str | None:
    """A file of held-out rows, or another split of the same data set."""
    if not tests:
        return None
    (test, *more) = tests
    if not more and is_file(test.path):
        draft.set("data.eval", test.path)
        return test.path
    if not more and train and test.path == train.path and test.split:
        draft.set("data.eval", test.split)
        return test.split
    draft.lose("test_datasets", [place.path for place in tests], "data.eval is a file, or a split of data.path")
    return None


def _convert_template(options: Options, draft: Draft, kinds: list[Any]) -> None:
    """The chat template that the data sets' types write out, else the one that is named."""
    written = {str(kind).partition(".")[0] for kind in kinds} & {"chatml", "llama3", "zephyr"}
    named = options.text("chat_template")
    file = options.text("chat_template_jinja")
    if len(written) == 1:
        draft.set("model.chat_template", written.pop(), "by the type of the data set")
    elif file is not None and file.endswith(".jinja"):
        draft.set("model.chat_template", file)
    elif file is not None:
        draft.lose("chat_template_jinja", file, "save it as a .jinja file: model.chat_template=FILE")
    elif named in TEMPLATES:
        draft.set("model.chat_template", named)
    elif named not in (None, "tokenizer_default"):
        draft.lose(
            "chat_template", named, "the tokenizer's own is used; for another one, model.chat_template=FILE.jinja"
        )


def _say_columns(kind: Any, entry: Mapping[str, Any], draft: Draft) -> None:
    """What the rows must look like here."""
    ours = "here rows must have prompt (or conversations), chosen and rejected"
    name = str(kind)
    if kind is None or isinstance(kind, dict) or name.startswith("passthrough"):
        draft.set("data.text", "plain", "text as it stands, as axolotl takes it")
        fields = {
            key: value for key, value in (kind if isinstance(kind, dict) else {}).items() if not _usual(key, value)
        }
        if fields:
            draft.lose("datasets.type", fields, f"{ours}, with every template in their text")
    elif name in ROW_SHAPES:
        draft.check(f"type={name} reads {ROW_SHAPES[name]}; {ours}.")
    elif name == "chat_template.default":
        columns = [str(entry.get(f"field_{column}", column)) for column in ("messages", "chosen", "rejected")]
        draft.check(f"type={name} reads {', '.join(columns)}; {ours}.")
    if name.partition(".")[0] in ("chatml", "llama3"):
        draft.check(f"type={name}: a column system is not read here; make it the first message of prompt.")


def _usual(key: str, value: Any) -> bool:
    """Whether a part of a type is what it is by default: ``field_prompt`` prompt, ``prompt_format`` {prompt}."""
    return not value or value in (key.removeprefix("field_"), f"{{{key.removesuffix('_format')}}}")
