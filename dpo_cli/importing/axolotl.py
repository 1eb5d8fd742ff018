"""A configuration of axolotl with ``rl``: dpo, ipo, kto, orpo or simpo, all of which it trains with TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing import losses
from dpo_cli.importing.axolotl_options import AXOLOTL, NAMES, PLUGINS
from dpo_cli.importing.axolotl_rows import convert_rows
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.huggingface import convert_evaluation, convert_model, convert_training
from dpo_cli.importing.options import Options, Table, with_defaults
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
    held_out = convert_rows(options, draft, rl=rl)
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
        ("sequence_parallel_degree", "context_parallel_size"),
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
    if (shared_by := options.whole("context_parallel_size") or 1) > 1:
        draft.set("engine.sequence_parallel", shared_by, options.origin("context_parallel_size"))
        draft.check(
            "Processes share a row by their attention heads here: engine.sequence_parallel must divide these, and "
            "launch.num_processes."
        )
    if options.has("wandb_project"):
        draft.set("tracker.project", options.text("wandb_project"))
    if options.text("wandb_mode") in ("online", "offline", "disabled"):
        draft.set("tracker.mode", options.text("wandb_mode"))
    elif options.take("use_wandb") is False:
        draft.set("tracker.mode", "disabled")
