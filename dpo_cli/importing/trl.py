"""A configuration of TRL's DPO, KTO, CPO or ORPO trainer, as ``trl dpo --config`` takes it or saved as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing import losses
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.huggingface import (
    NO_LIMIT,
    convert_evaluation,
    convert_model,
    convert_training,
    strategy_of,
)
from dpo_cli.importing.options import Options
from dpo_cli.importing.rows import (
    Place,
    first_share,
    held_out,
    is_file,
    is_local,
    places_of,
    set_rows,
    set_share,
    set_workers,
)
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
    evaluated = _convert_data(options, draft)
    _convert_lengths(options, draft, null=512 if name in ("cpo", "orpo") else NO_LIMIT)
    if name == "cpo" and options.has("gamma_beta_ratio"):
        losses.simpo_of_its_authors(options, draft)
    else:
        LOSSES[name](options, draft)
    convert_reference(options, draft)
    convert_training(options, draft, processes)
    convert_evaluation(options, draft, held_out=evaluated)
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
        if options.text("truncation_mode") == "keep_start" and options.has("truncation_mode"):
            draft.check(
                "truncation_mode=keep_start: up to TRL 0.11 a prompt over max_prompt_length lost its end "
                "(data.truncate_prompt=end), since then its start, as here."
            )
    elif keep_end:
        draft.set("data.truncate_prompt", "start")
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
    set_workers(options, draft, "dataset_num_proc", "preprocessing_num_workers")
    mixture = options.mapping("dataset_mixture")
    listed = options.take("datasets") or mixture.get("datasets") or []
    if not isinstance(listed, list):
        raise DpoError(f"datasets={listed!r}: expected a list of data sets")
    if listed:
        found = _of_list([entry if isinstance(entry, dict) else {"path": entry} for entry in listed], draft)
        _set_streaming("streaming", found, options, draft)
    elif options.has("dataset_mixer"):
        return _of_mixer(options, draft)
    else:
        return _of_name(options, draft)
    for key in mixture.keys() - {"datasets", "test_split_size"}:
        draft.drop(f"dataset_mixture.{key}", mixture[key], "one seed decides the order of rows, and which are held out")
    set_rows(found, draft)
    size = mixture.get("test_split_size") if mixture else options.number("test_split_size")
    return set_share(size, "test_split_size", draft)


def _of_name(options: Options, draft: Draft) -> str | None:
    """``dataset_name`` and its splits."""
    path = options.text("dataset_name")
    split, remark = options.text("dataset_train_split") or "train", options.origin("dataset_train_split")
    entry = {"path": path, "name": options.text("dataset_config")}
    places = places_of(entry, "dataset", draft, {}) if path else []
    set_rows(places, draft, split=split, remark=remark)
    _set_streaming("dataset_streaming", places, options, draft)
    return options.text("dataset_test_split") if places and not is_file(places[0].path) else None


def _set_streaming(name: str, places: list[Place], options: Options, draft: Draft) -> None:
    if not options.truth(name):
        return
    draft.check(f"{name}: TRL trains in the order of the rows; here they are shuffled, for their tokens are kept.")
    if not all(is_local(place.path) for place in places):  # files are always read so
        draft.set("data.streaming", True)


_ENTRY = {"data_dir": "name the folder as data.path", "fraction": "", "weight": "", "columns": ""}
"""Keys of an entry of ``datasets`` or of the alignment handbook's mixture."""


def _of_list(entries: list[dict[str, Any]], draft: Draft) -> list[Place]:
    """TRL's ``datasets`` with their fractions, or the handbook's with weights."""
    names = {"id": "path", "config": "name"}
    entries = [{names.get(str(key), str(key)): value for key, value in entry.items()} for entry in entries]
    fractions = [entry.get("fraction") for entry in entries]
    if any(value is None for value in fractions) and any(value is not None for value in fractions):
        raise DpoError("datasets: a fraction must be given for all of them or for none")
    found = [
        [_drawn(place, entry, draft) for place in places_of(entry, "datasets", draft, _ENTRY)] for entry in entries
    ]
    if fractions[0] is None or len(entries) == 1:
        return [place for places in found for place in places]
    if any(len(places) > 1 for places in found):
        draft.lose("datasets.fraction", fractions, "several files in one entry can't have a share together")
        return [place for places in found for place in places]
    draft.check("datasets.fraction: TRL takes the first rows of each data set, here they are drawn by the seed.")
    return [
        replace(place, weight=_fraction(share))
        for places, share in zip(found, fractions, strict=True)
        for place in places
        if _fraction(share) > 0
    ]


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise DpoError(f"datasets.fraction={value!r}: expected a number that is not negative")
    return float(value)


def _drawn(place: Place, entry: Mapping[str, Any], draft: Draft) -> Place:
    """The handbook's ``weight``: a share of the rows, drawn by the mixture's seed."""
    weight = entry.get("weight")
    if weight in (None, 1):
        return place
    split = first_share(place.split or "train", _share(weight, "datasets.weight"), "datasets.weight", draft)
    if split.endswith("%]") and split != place.split:
        draft.check(f"datasets.weight={weight}: the handbook draws that share of the rows; {split} are the first.")
    return replace(place, split=split)


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DpoError(f"{name}={value!r}: expected a share between 0 and 1")
    return float(value)


def _of_mixer(options: Options, draft: Draft) -> str | None:
    """``dataset_mixer`` of the alignment handbook's first years: data sets, and which share of each is trained on.

    Of the splits those with train in their name are trained on and those with test held out, these always whole.
    """
    given, configs = options.mapping("dataset_mixer"), options.take("dataset_configs") or []
    splits = [str(split) for split in options.take("dataset_splits") or ["train", "test"]]
    train, test = ([split for split in splits if side in split] for side in ("train", "test"))
    if len(train) + len(test) != len(splits):
        raise DpoError(f"dataset_splits={splits}: expected names with train or test in them")
    for more in (train[1:], test[1:]):
        if more:
            draft.lose("dataset_splits", more, "one split of each data set is read")
    subsets = [str(name) if name else None for name in configs] or [None] * len(given)
    if len(subsets) != len(given):
        raise DpoError(f"dataset_configs={configs!r}: expected {len(given)}, one for each of dataset_mixer")
    places, tests = [], []
    for (path, value), subset in zip(given.items(), subsets, strict=True):
        share = _share(value, f"dataset_mixer.{path}")
        split = first_share(train[0] if train else "train", share, f"dataset_mixer.{path}", draft) if share else None
        places += [Place(path, subset, split)] if split else []
        tests += [Place(path, subset, test[0])] if test else []
    set_rows(places, draft)
    return held_out(tests, places, "dataset_splits", draft) if _evaluates(options) else None


def _evaluates(options: Options) -> bool:
    return any(strategy_of(options, name) != "no" for name in ("eval_strategy", "evaluation_strategy"))


def _convert_template(options: Options, draft: Draft) -> None:
    template = options.text("chat_template")
    if template is not None and ("{" in template or "\n" in template):
        draft.lose("chat_template", template, "save it as a .jinja file: model.chat_template=FILE")
    elif template is not None:
        draft.set("model.chat_template", template)
    tools = options.take("tools")
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools) and tools:
        draft.set("data.template_args", {"tools": tools})
    elif tools:
        draft.lose("tools", tools, "expected a list of JSON schemas")
