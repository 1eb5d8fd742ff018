"""A configuration of LLaMA-Factory with ``stage``: dpo or kto."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing import losses
from dpo_cli.importing.draft import Draft, brief
from dpo_cli.importing.huggingface import (
    NO_ADAPTERS,
    convert_evaluation,
    convert_model,
    convert_training,
    strategy_of,
)
from dpo_cli.importing.llamafactory_options import LLAMAFACTORY, NAMES
from dpo_cli.importing.losses import Term
from dpo_cli.importing.options import Options
from dpo_cli.importing.rows import ONE_PLACE, mix_names, set_share, set_workers
from dpo_cli.importing.trl import warn_of_adapters
from dpo_cli.importing.trl_options import KTO

TEMPLATES = ("chatml", "zephyr", "llama3", "mistral", "gemma")
"""Chat templates that go by the same name here."""
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
STRATEGIES = ("concat", "interleave_under", "interleave_over", "interleave_once")


def convert(given: Mapping[str, Any], draft: Draft, *, trainer: str | None, processes: int) -> str:
    """Everything the file says, into ``draft``; see ``trl.convert``."""
    if trainer is not None:
        raise DpoError(
            f"--trainer {trainer} is for TRL's configurations; this is one of LLaMA-Factory, which has stage"
        )
    stage = given.get("stage")
    if stage not in ("dpo", "kto"):
        raise DpoError(f"stage={stage or 'sft'}: expected dpo or kto; other training is not done here")
    options = Options(given, LLAMAFACTORY, tool="LLaMA-Factory", names=NAMES, beneath=KTO)
    options.take("stage")
    convert_model(options, draft)
    held_out = _convert_rows(options, draft)
    (_dpo if stage == "dpo" else _kto)(options, draft)
    convert_training(options, draft, processes)
    if options.truth("pure_bf16"):
        draft.set("train.precision", "bf16")
        draft.check(
            "pure_bf16: weights are float32 here, and only the products bfloat16: fewer updates are rounded away."
        )
    convert_evaluation(options, draft, held_out=held_out)
    adapter = (given.get("finetuning_type") or "lora") != "full"
    options.take("finetuning_type")
    if adapter:
        draft.lose("finetuning_type", given.get("finetuning_type") or "lora (its default)", NO_ADAPTERS)
    warn_of_adapters(options, draft, adapter=adapter)
    draft.account_for(options)
    return f"LLaMA-Factory's stage: {stage}"


def _convert_rows(options: Options, draft: Draft) -> str | float | None:
    """``data`` and the chat template; returns what ``data.eval`` would be, if known."""
    _name_rows(options, draft)
    if options.has("max_samples"):
        draft.set("data.limit", options.whole("max_samples"))
    set_workers(options, draft, "preprocessing_num_workers")
    draft.set("data.max_length", options.whole("max_length"), options.origin("max_length"))
    draft.set("data.truncate_prompt", "end", "as LLaMA-Factory")
    draft.check(
        "cutoff_len: where prompt and answer are both too long, they are cut in proportion there; here a prompt keeps "
        "half of data.max_length at least."
    )
    _convert_template(options, draft)
    if options.has("ref_model"):
        draft.set("reference.path", options.text("ref_model"))
    evaluated = _held_out(options, draft)
    return evaluated or set_share(options.number("val_size"), "val_size", draft)


def _names(options: Options, name: str) -> list[str]:
    """A list, or text with commas between."""
    value = options.take(name)
    listed = value if isinstance(value, list) else str(value).split(",") if value else []
    return [str(item).strip() for item in listed if str(item).strip()]


def _name_rows(options: Options, draft: Draft) -> None:
    """One data set, or several with their shares; where they are is left to fill in."""
    names = _names(options, "dataset")
    shares = _shares(options, names, draft)
    if len(names) < 2:
        what = (
            f"dataset={brief(names[0])} is a name in dataset_info.json" if names else "the file does not say which rows"
        )
        draft.missing["data.path"] = what
        return
    keys = [f"data.mix.{key}" for key in mix_names(names)]
    for name, key in zip(names, keys, strict=True):
        draft.missing[f"{key}.path"] = f"of {brief(name)} in dataset_info.json"
    for key, share in zip(keys, shares or [], strict=False):
        draft.set(f"{key}.weight", share)


def _shares(options: Options, names: list[str], draft: Draft) -> list[float] | None:
    """Weights that mean the same as ``mix_strategy``; None = all rows of all, each once."""
    strategy, given = options.text("mix_strategy") or "concat", _names(options, "interleave_probs")
    if strategy not in STRATEGIES:
        raise DpoError(f"mix_strategy={strategy}: expected one of {', '.join(STRATEGIES)}")
    if len(names) < 2:
        return None
    try:
        shares = [float(share) for share in given] or [1.0] * len(names)
    except ValueError:
        raise DpoError(f"interleave_probs={given}: expected numbers") from None
    if len(shares) != len(names) or not all(0 < share < math.inf for share in shares):
        raise DpoError(f"interleave_probs={given}: expected {len(names)} numbers over 0, one for each of dataset")
    if strategy == "interleave_under":
        chance = "of each data set chance decides how many rows, and " if given else ""
        draft.check(f"mix_strategy={strategy}: {chance}the first are taken there; here they are drawn by the seed.")
        return shares
    if strategy == "interleave_over":
        draft.lose("mix_strategy", strategy, "it repeats rows until all are used: data.mix.NAME.rows=N repeats evenly")
    if given:
        only_order = "they decide the order alone, and here the seed does"
        (draft.lose if strategy == "interleave_over" else draft.drop)("interleave_probs", given, only_order)
    return None


def _held_out(options: Options, draft: Draft) -> str | None:
    """``eval_dataset``: where it is is left to fill in."""
    names = _names(options, "eval_dataset")
    if len(names) > 1:
        draft.lose("eval_dataset", names, ONE_PLACE)
    if len(names) != 1 or strategy_of(options, "eval_strategy") == strategy_of(options, "evaluation_strategy") == "no":
        return None
    draft.missing["data.eval"] = f"eval_dataset={brief(names[0])} is a name in dataset_info.json"
    return "???"


def _convert_template(options: Options, draft: Draft) -> None:
    template = options.text("template")
    if template in TEMPLATES:
        draft.set("model.chat_template", template)
    elif template is not None:
        draft.check(f"template={template}: the tokenizer's own chat template is used; see that it writes the same.")
    if options.has("default_system"):
        draft.set("data.system", options.text("default_system"))
    if options.has("enable_thinking"):
        thinking = options.truth("enable_thinking")
        draft.set("data.template_args", {"enable_thinking": thinking})
        if not thinking:
            draft.check("enable_thinking=false: LLaMA-Factory takes thoughts out of the rows, too; here rows stay.")


def _dpo(options: Options, draft: Draft) -> None:
    """Its own formulas: ``train/dpo/trainer.py``; label smoothing does count there, and averages are per answer."""
    loss = options.text("pref_loss") or "sigmoid"
    if loss not in LOSSES:
        raise DpoError(f"pref_loss={loss}: expected one of {', '.join(LOSSES)}")
    beta = options.number("beta") or 0.0
    term: Term = {"beta": (beta, options.origin("beta"))}
    if loss == "sigmoid":
        term["label_smoothing"] = (options.number("label_smoothing"), options.origin("label_smoothing"))
    elif loss == "ipo":
        term["normalise"] = ("mean", "as LLaMA-Factory: log-probs per token")
    elif loss == "orpo":
        term["nll"] = ("answer", "as LLaMA-Factory: the SFT term is over the answer")
    elif loss == "simpo":
        term["gamma_ratio"] = losses.gamma_ratio(options, beta)
    if options.has("ld_alpha"):
        term["ld_alpha"] = (options.number("ld_alpha"), "")
        draft.check("ld_alpha: LLaMA-Factory weighs the policy's log-probs by it and leaves the reference's whole.")
    _write(LOSSES[loss], term, options, draft)


def _write(name: str, term: Term, options: Options, draft: Draft) -> None:
    """With BCO's share of the loss and the SFT term, where they are asked for."""
    sft, bco = options.number("pref_ftx") or 0.0, options.number("pref_bco_weight") or 0.0
    without_reference = name in ("orpo", "simpo")
    if bco and without_reference:
        draft.drop("pref_bco_weight", bco, f"without effect in LLaMA-Factory too, with pref_loss={name}")
    if bco and not without_reference:
        shares = {name: 1 / (1 + bco), "bco_pair": bco / (1 + bco)} | ({"sft": sft} if sft else {})
        terms: dict[str, Term] = {name: term, "bco_pair": {"beta": term["beta"]}} | ({"sft": {}} if sft else {})
        losses.write_sum(draft, {part: float(f"{share:.12g}") for part, share in shares.items()}, terms)
        return
    losses.write(draft, name, term | ({"sft_weight": (sft, "")} if sft else {}))
    if without_reference:
        draft.set("reference.mode", "none")


def _kto(options: Options, draft: Draft) -> None:
    losses.kto(options, draft)
    if options.number("pref_ftx"):
        draft.set("loss.sft_weight", options.number("pref_ftx"))
