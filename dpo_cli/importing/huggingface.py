"""What every tool on Hugging Face's trainer has: optimiser, schedule, length of the run, batch, precision, logs.

The names asked for are those of transformers' TrainingArguments; see ``Options`` for tools that call them otherwise.
"""

from __future__ import annotations

import json
import math
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing.draft import Draft, brief
from dpo_cli.importing.options import Options

NO_ADAPTERS = "adapters are not carried over: all weights are trained, unless model/adapter=lora is added by hand"
SHARES_OF_A_RUN = "shares of a run can't be given: {key} counts updates, of which a pass has rows / train.batch_size"
NO_LIMIT = 1_000_000
"""Tokens: stands for "no limit"."""
_ENDLESS = 1000
"""Passes over the data that no run reaches."""

OPTIMISERS = dict.fromkeys(
    ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_hf", "adamw_apex_fused"), "adamw"
)
OPTIMISERS |= {"rmsprop": "rmsprop", "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit"}
OPTIMISERS |= {name: name for name in ("paged_adamw_32bit", "paged_adamw_8bit")}

SCHEDULES = {name: name for name in ("linear", "cosine", "constant", "inverse_sqrt", "cosine_with_min_lr")}
SCHEDULES |= {"constant_with_warmup": "constant"}


def convert_training(options: Options, draft: Draft, processes: int) -> None:
    """Everything in this file.

    Args:
        processes: on which the tool ran.

    Raises:
        DpoError: a value that is not of its option's type.
    """
    convert_optimiser(options, draft)
    convert_schedule(options, draft)
    convert_length(options, draft)
    convert_batch(options, draft, processes)
    convert_precision(options, draft)
    convert_checkpoints(options, draft)
    convert_logs(options, draft)
    convert_engine(options, draft)
    draft.set("seed", options.whole("seed"), options.origin("seed"))
    if options.has("data_seed") and options.whole("data_seed") != options.whole("seed"):
        draft.lose("data_seed", options.whole("data_seed"), "one seed decides everything here, the order of rows too")


def convert_model(options: Options, draft: Draft) -> None:
    """Which model."""
    path = options.text("model_name_or_path")
    if path is None:
        draft.missing["model.path"] = "the file does not say which model"
    else:
        draft.set("model.path", path)
    kwargs = model_kwargs(options)
    revision = kwargs.get("revision") or options.text("model_revision")
    if revision not in (None, "main"):
        draft.set("model.revision", revision)
    for name, value in kwargs.items():
        if name in ("attn_implementation", "device_map", "use_cache", "use_kernels"):
            draft.drop(f"model_init_kwargs.{name}", value, "speed or memory only")
        elif name not in ("revision", "dtype", "torch_dtype") and value not in (None, False):
            draft.lose(f"model_init_kwargs.{name}", value, "models are loaded as their files say")


def model_kwargs(options: Options) -> dict[str, Any]:
    """``model_init_kwargs``, which may be text of JSON.

    Raises:
        DpoError: it is neither a mapping nor such text.
    """
    value = options.take("model_init_kwargs")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DpoError(f"model_init_kwargs={value!r}: expected keys and values") from None
    if not isinstance(value, dict | None):
        raise DpoError(f"model_init_kwargs={value!r}: expected keys and values")
    return {str(key): item for key, item in (value or {}).items()}


def convert_optimiser(options: Options, draft: Draft) -> None:
    """The optimiser, its rate and clipping."""
    given = options.text("optim") or "adamw_torch"
    name = OPTIMISERS.get(given, "adamw")
    if given not in OPTIMISERS:
        draft.lose(options.name("optim"), given, "there is no such optimiser here: adamw stands in its place")
    if name != "adamw":
        draft.groups["optim"] = name
    draft.set("optim.lr", options.number("learning_rate"), options.origin("learning_rate"))
    decay = options.number("weight_decay")
    if name != "rmsprop":
        betas = [options.number("adam_beta1"), options.number("adam_beta2")]
        draft.set("optim.betas", betas, options.origin("adam_beta1", "adam_beta2"))
        draft.set("optim.eps", options.number("adam_epsilon"), options.origin("adam_epsilon"))
        draft.set("optim.weight_decay", decay, options.origin("weight_decay"))
    elif decay:
        draft.lose(options.name("weight_decay"), decay, "RMSprop has no weight decay here")
    clip = 0 if options.is_null("max_grad_norm") else options.number("max_grad_norm")
    draft.set("optim.max_grad_norm", clip or None, options.origin("max_grad_norm") or ("" if clip else "no clipping"))


def convert_schedule(options: Options, draft: Draft) -> None:
    """How the rate changes."""
    name = options.name("lr_scheduler_type")
    given = options.text("lr_scheduler_type") or "linear"
    schedule = SCHEDULES.get(given, "linear")
    if given not in SCHEDULES:
        draft.lose(name, given, "there is no such schedule here: linear stands in its place")
    kwargs = options.mapping("lr_scheduler_kwargs")
    if schedule == "cosine_with_min_lr":
        draft.set("optim.min_lr_ratio", _min_lr_ratio(kwargs, options))
    for key, value in kwargs.items():
        if not (schedule == "cosine_with_min_lr" and key in ("min_lr", "min_lr_rate")):
            draft.lose(f"lr_scheduler_kwargs.{key}", value, "schedules have no such setting here")
    draft.set("optim.schedule", schedule, options.origin("lr_scheduler_type"))
    _convert_warmup(options, draft, none=given == "constant")


def _min_lr_ratio(kwargs: dict[str, Any], options: Options) -> float:
    try:
        if kwargs.get("min_lr_rate") is not None:
            return float(kwargs["min_lr_rate"])
        return float(f"{float(kwargs['min_lr']) / (options.number('learning_rate') or 1.0):.12g}")
    except (KeyError, TypeError, ValueError):
        raise DpoError(
            f"{options.name('lr_scheduler_type')}=cosine_with_min_lr: expected a number in lr_scheduler_kwargs, as "
            "min_lr or min_lr_rate"
        ) from None


def _convert_warmup(options: Options, draft: Draft, *, none: bool) -> None:
    steps = options.number("warmup_steps") or 0
    ratio = options.number("warmup_ratio") or 0.0
    remark = options.origin("warmup_steps", "warmup_ratio")
    if none:
        draft.set("optim.warmup_ratio", 0.0, f"{options.tool}'s constant schedule has no warm-up")
    elif steps >= 1:
        draft.set("optim.warmup_ratio", 0.0)
        draft.set("optim.warmup_steps", int(steps), remark)
    else:
        draft.set("optim.warmup_ratio", float(steps or ratio), remark)


def convert_length(options: Options, draft: Draft) -> None:
    """Passes over the data, or updates."""
    steps = options.whole("max_steps") or 0
    epochs = options.number("num_train_epochs") or 0.0
    name = options.name("num_train_epochs")
    if steps > 0:
        draft.set("train.max_steps", steps)
        draft.set("train.epochs", _ENDLESS, "the data are repeated until max_steps")
    else:
        draft.set("train.epochs", math.ceil(epochs), options.origin("num_train_epochs"))
        if not float(epochs).is_integer():
            draft.lose(name, epochs, "whole passes only: for less, give train.max_steps (updates)")


def convert_batch(options: Options, draft: Draft, processes: int) -> None:
    """Rows per update."""
    per_device = options.whole("per_device_train_batch_size") or 1
    steps = options.whole("gradient_accumulation_steps") or 1
    if per_device < 1 or steps < 1:
        raise DpoError(f"{options.name('per_device_train_batch_size')}={per_device}: expected a number over 0")
    more = "es" if processes > 1 else " (dpo import --processes N)"
    factors = f"{per_device} per device x {steps} accumulated x {processes} process{more}"
    default = options.origin("per_device_train_batch_size")
    draft.set("train.batch_size", per_device * steps * processes, factors + (f"; {default}" if default else ""))


def convert_precision(options: Options, draft: Draft) -> None:
    """The numbers' format: weights are float32 here in any case."""
    kwargs = model_kwargs(options)
    names = ("dtype", "torch_dtype")
    dtype = next((str(kwargs[name]) for name in names if kwargs.get(name)), None)
    dtype = dtype or next((options.text(name) for name in names if options.has(name)), None)
    bf16 = options.take("bf16")
    if options.truth("fp16"):
        draft.lose("fp16", True, "float16 is not supported: bfloat16 stands in its place")
        draft.set("train.precision", "bf16")
    elif bf16 == "auto":
        draft.set("train.precision", "auto", options.origin("bf16"))
    elif bf16 is None or bf16 == "full" or options.truth("bf16"):
        draft.set("train.precision", "bf16", options.origin("bf16"))
    else:
        draft.set("train.precision", "bf16" if dtype in ("bfloat16", "float16") else "fp32", options.origin("bf16"))
    if dtype in ("bfloat16", "float16", "auto") and options.given.get("use_peft") is not True:
        low = f"{dtype} weights" if dtype != "auto" else "weights in the format of the model's files"
        draft.check(
            f"dtype={dtype}: {options.tool} trains {low}; here they are float32, whatever the precision of the "
            "products. At DPO's learning rates that changes what is learnt: fewer updates are rounded away."
        )


def convert_checkpoints(options: Options, draft: Draft) -> None:
    """When the run is saved."""
    strategy, steps = strategy_of(options, "save_strategy"), options.number("save_steps") or 0
    limit = options.whole("save_total_limit")
    if strategy == "steps" and steps >= 1:
        draft.set("train.save_every", int(steps), options.origin("save_steps"))
        if limit is None:
            draft.check(f"{options.tool} keeps all checkpoints; here the newest train.keep_last=2 are kept.")
        else:
            draft.set("train.keep_last", max(limit, 2), "2 is the least: the last may be broken" if limit < 2 else "")
    elif strategy == "steps":
        draft.drop("save_steps", steps, SHARES_OF_A_RUN.format(key="train.save_every"))
    elif strategy != "no" and options.has("save_strategy"):
        draft.drop("save_strategy", strategy, "train.save_every counts updates; the trained model is always written")


def strategy_of(options: Options, name: str) -> str:
    """``no``, ``steps``, ``epoch`` or ``best``; YAML reads a bare ``no`` as false."""
    value = options.take(name)
    return "no" if value in (None, False) else str(value).lower()


def convert_evaluation(options: Options, draft: Draft, *, held_out: str | float | None) -> None:
    """When the run is evaluated.

    Args:
        held_out: the rows to evaluate, as ``data.eval`` has them; None = unknown.
    """
    strategy = strategy_of(options, "eval_strategy")
    if strategy == "no" and options.has("evaluation_strategy"):
        strategy = strategy_of(options, "evaluation_strategy")
    if strategy == "no":
        return
    steps = options.number("eval_steps") or options.number("logging_steps") or 0
    if held_out is None:
        draft.check("Held-out rows are not named in the file: data.eval=... and train.eval_every=... evaluate on them.")
        return
    if "data.eval" not in draft.missing:
        draft.set("data.eval", held_out)
    if strategy == "steps" and steps >= 1:
        draft.set("train.eval_every", int(steps), options.origin("eval_steps"))
    elif strategy == "steps":
        draft.drop("eval_steps", steps, SHARES_OF_A_RUN.format(key="train.eval_every"))
    else:
        draft.drop("eval_strategy", strategy, "evaluated at start and end; train.eval_every=N: every N updates as well")
    _keep_best(options, draft)


def _keep_best(options: Options, draft: Draft) -> None:
    if not options.truth("load_best_model_at_end"):
        return
    metric = (options.text("metric_for_best_model") or "loss").removeprefix("eval_")
    if "train.eval_every" in draft.values and "train.save_every" in draft.values:
        draft.set("train.keep_best", metric)
    draft.check(
        "load_best_model_at_end: final/ is the model after the last update here; train.keep_best keeps the best "
        "checkpoint beside it, in checkpoints/."
    )


def convert_logs(options: Options, draft: Draft) -> None:
    """Where the run is written and what is written of it."""
    if options.has("output_dir"):
        draft.set("run_dir", options.text("output_dir"))
    steps = options.number("logging_steps") or 0
    if options.has("logging_steps") and steps >= 1:
        draft.set("train.log_every", int(steps))
    elif options.has("logging_steps"):
        draft.drop("logging_steps", steps, SHARES_OF_A_RUN.format(key="train.log_every"))
    if options.has("run_name"):
        draft.set("tracker.run_name", options.text("run_name"))
    _convert_trackers(options, draft)


def _convert_trackers(options: Options, draft: Draft) -> None:
    given = options.take("report_to")
    trackers = [str(name) for name in (given if isinstance(given, list) else [given]) if name is not None]
    if options.has("report_to") and not {"wandb", "all"} & set(trackers):
        draft.set("tracker.mode", "disabled")
    others = [name for name in trackers if name not in ("wandb", "all", "none")]
    if others:
        draft.drop("report_to", others, "tracker=wandb, tensorboard or mlflow; metrics.jsonl has every number")


def convert_engine(options: Options, draft: Draft) -> None:
    """How weights are shared out, which does not change what is learnt."""
    deepspeed = options.take("deepspeed")
    if isinstance(deepspeed, dict):
        zero = deepspeed.get("zero_optimization")
        stage = zero.get("stage") if isinstance(zero, dict) else None
        if stage in (0, 1, 2, 3):
            draft.set("engine.zero_stage", stage)
        draft.drop("deepspeed", deepspeed, "its ZeRO stage is engine.zero_stage; more DeepSpeed keys: engine.deepspeed")
    elif deepspeed:
        stage = next((n for n in (1, 2, 3) if f"zero{n}" in str(deepspeed).lower().replace("_", "")), None)
        if stage is not None:
            draft.set("engine.zero_stage", stage, f"by the name of {brief(str(deepspeed).rsplit('/', 1)[-1])}")
        draft.drop(
            "deepspeed", deepspeed, "the file is not read; ZeRO stage: engine.zero_stage; more: engine.deepspeed"
        )
    elif options.take("fsdp"):
        draft.set("engine.zero_stage", 3, "in place of FSDP")
