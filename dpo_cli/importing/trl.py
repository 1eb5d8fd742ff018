"""A configuration of TRL's DPO, KTO, CPO or ORPO trainer, as ``trl dpo --config`` takes it or saved as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing import losses
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.huggingface import (
    NO_LIMIT,
    convert_evaluation,
    convert_model,
    convert_training,
)
from dpo_cli.importing.options import Options
from dpo_cli.importing.rows import is_file, place_of, set_rows, set_share
from dpo_cli.importing.trl_options import VERSION, known

LOSSES = {"dpo": losses.dpo, "kto": losses.kto, "cpo": losses.cpo, "orpo": losses.orpo}
TEXT_ROWS = (
    "Rows whose prompt and answers are text: {tool} takes text as it stands, here it becomes a chat of two turns where "
    "the tokenizer has a template. data.text=plain is {tool}'s way; rows of messages are treated alike."
)


def convert(given: Mapping[str, Any], draft: Draft, *, trainer: str | None, processes: int) -> str:
    """Everything the file says, into ``draft``.

    Args:
        given: the file's options.
        draft: written into.
        trainer: ``dpo``, ``kto``, ``cpo`` or ``orpo``; None = see ``guess_trainer``.
        processes: on which it ran.

    Returns:
        What the file was read as, for the first comment.

    Raises:
        DpoError: a value that its option can't have.
    """
    name = trainer or guess_trainer(given)
    options = Options(given, known(name), tool="TRL")
    convert_model(options, draft)
    held_out = _convert_data(options, draft)
    _convert_lengths(options, draft, null=512 if name in ("cpo", "orpo") else NO_LIMIT)
    if name == "cpo" and options.has("gamma_beta_ratio"):
        losses.simpo_of_its_authors(options, draft)
    else:
        LOSSES[name](options, draft)
    convert_reference(options, draft)
    convert_training(options, draft, processes)
    convert_evaluation(options, draft, held_out=held_out)
    warn_of_adapters(options, draft, adapter=given.get("use_peft") is True)
    draft.check(TEXT_ROWS.format(tool="TRL"))
    draft.account_for(options)
    guessed = "" if trainer else " (--trainer kto, cpo or orpo reads it otherwise)"
    return f"{VERSION}'s {name.upper()}Config{guessed if name == 'dpo' else ''}"


def guess_trainer(given: Mapping[str, Any]) -> str:
    """Which trainer the options are of. ORPOConfig has none of its own, so that it is never guessed."""
    loss = str(given.get("loss_type") or "")
    if loss in losses.KTO_LOSSES or {"desirable_weight", "undesirable_weight"} & given.keys():
        return "kto"
    if loss in ("simpo", "alphapo") or {"cpo_alpha", "simpo_gamma", "gamma_beta_ratio"} & given.keys():
        return "cpo"
    return "dpo"


def _convert_lengths(options: Options, draft: Draft, *, null: int) -> None:
    """What is cut. TRL cuts answers only, and leaves rows out whose prompt alone is too long.

    Args:
        null: what a length of null stands for.
    """
    none = options.take("max_length") is None
    length = null if none else options.whole("max_length")
    draft.set("data.max_length", length, "what null stands for" if none else options.origin("max_length"))
    keep_end = options.text("truncation_mode") == "keep_end"
    if options.has("max_prompt_length"):
        draft.set("data.max_prompt_length", options.whole("max_prompt_length"))
    elif keep_end:
        draft.check(
            "truncation_mode=keep_end: a prompt loses its start here too, but keeps half of data.max_length at least."
        )
    elif length is not None and length > 1 and length != NO_LIMIT:
        draft.set("data.max_prompt_length", length - 1, f"as {options.tool}: answers are cut, prompts are not")


def convert_reference(options: Options, draft: Draft) -> None:
    """TR-DPO: a reference that follows the policy."""
    if options.truth("sync_ref_model"):
        draft.set("reference.mode", "live")
        every, mix = "ref_model_sync_steps", "ref_model_mixup_alpha"
        draft.set("reference.update_every", options.whole(every), options.origin(every))
        draft.set("reference.update_mix", options.number(mix), options.origin(mix))


def warn_of_adapters(options: Options, draft: Draft, *, adapter: bool) -> None:
    """An adapter's learning rate would ruin full weights."""
    rate = options.number("learning_rate")
    if adapter and rate is not None:
        draft.check(
            f"optim.lr={rate:g} was chosen for an adapter, and here all weights are trained: 1e-7 to 1e-6 is usual for "
            "them. Choose it anew."
        )


def _convert_data(options: Options, draft: Draft) -> str | float | None:
    """Where the rows are; returns what ``data.eval`` would be, if known."""
    _convert_template(options, draft)
    mixture = options.mapping("dataset_mixture")
    for key in mixture.keys() - {"datasets", "test_split_size"}:
        draft.drop(f"dataset_mixture.{key}", mixture[key], "one seed decides the order of rows, and which are held out")
    listed = options.take("datasets") or mixture.get("datasets") or _mixer(options)
    if not isinstance(listed, list):
        raise DpoError(f"datasets={listed!r}: expected a list of data sets")
    if listed:
        entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in listed]
        places = [place_of(_renamed(entry), "datasets", draft, _ENTRY) for entry in entries]
        set_rows([place for place in places if place], draft)
        size = mixture.get("test_split_size") if mixture else options.number("test_split_size")
        share = set_share(size, "test_split_size", draft)
        splits = options.take("dataset_splits")
        return share or (str(splits[1]) if isinstance(splits, list) and len(splits) > 1 else None)
    path = options.text("dataset_name")
    split, remark = options.text("dataset_train_split") or "train", options.origin("dataset_train_split")
    place = path and place_of({"path": path, "name": options.text("dataset_config")}, "dataset", draft, {})
    set_rows([place] if place else [], draft, split=split, remark=remark)
    return options.text("dataset_test_split") if place and not is_file(place.path) else None


_ENTRY = {
    "data_dir": "name the folder as data.path",
    "fraction": "",
    "weight": "data.limit takes the first so many rows",
    "columns": "",
}
"""Keys of an entry of ``datasets`` or of the alignment handbook's mixture."""


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """The handbook's entries with TRL's names; a weight of 1 is all rows."""
    names = {"id": "path", "config": "name"}
    return {names.get(str(k), str(k)): v for k, v in entry.items() if not (k == "weight" and v == 1)}


def _mixer(options: Options) -> list[dict[str, Any]]:
    """``dataset_mixer`` of the alignment handbook's first years: data sets and their shares, first split trained on."""
    splits = options.take("dataset_splits")
    split = splits[0] if isinstance(splits, list) and splits else None
    return [{"path": path, "split": split, "weight": share} for path, share in options.mapping("dataset_mixer").items()]


def _convert_template(options: Options, draft: Draft) -> None:
    template = options.text("chat_template")
    if template is not None and ("{" in template or "\n" in template):
        draft.lose("chat_template", template, "save it as a .jinja file: model.chat_template=FILE")
    elif template is not None:
        draft.set("model.chat_template", template)
