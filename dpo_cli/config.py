"""The configuration's types and checks.

The YAML under ``configs/`` holds every default; the models here hold every type and range, and nothing else
knows either. ``read_config`` turns what Hydra composed into one of them, or reports all problems at once: unknown
keys with the nearest valid one and the file they stand in, missing keys, wrong types, ranges, and keys that have
no effect together. It runs before torch is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from dpo_cli.config_adapters import AdapterConfig, NewAdapterConfig
from dpo_cli.config_judges import JudgeConfig
from dpo_cli.config_launch import LaunchConfig, launch_conflicts
from dpo_cli.config_losses import LossConfig, SumConfig, kind_of
from dpo_cli.config_optim import OptimConfig, optim_conflicts
from dpo_cli.config_sweep import SweepConfig, sweep_conflicts
from dpo_cli.config_types import Auto, CountFromZero, Positive, PositiveInt, Precision, Section, Share
from dpo_cli.errors import ConfigError


class ModelConfig(Section):
    path: str
    revision: str | None
    chat_template: str | None
    attention: Literal["auto", "groups", "plain"]
    adapter: AdapterConfig = Field(discriminator="name")


class MixedConfig(Section):
    """One of several sources; what it doesn't say is as in ``data``."""

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    streaming: bool | None = None
    shape: str | None = None
    columns: dict[str, str] | None = None
    rows: PositiveInt | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None


class DataConfig(Section):
    path: str | None
    mix: dict[str, MixedConfig] | None
    split: str
    subset: str | None
    revision: str | None
    streaming: bool
    shape: str
    columns: dict[str, str]
    eval: str | Annotated[float, Field(gt=0, lt=1)] | None
    limit: PositiveInt | None
    text: Literal["auto", "chat", "plain"]
    system: str | None
    template_args: dict[str, Any]
    loss_on: Literal["last", "differing"]
    max_length: Annotated[int, Field(ge=2, strict=True)]
    max_prompt_length: PositiveInt | None
    truncate_prompt: Literal["start", "end"]
    on_too_long: Literal["truncate", "drop", "raise"]
    on_bad_row: Literal["raise", "skip"]
    weight: str | None
    margin: str | tuple[str, str] | None
    label_prob: str | None
    workers: PositiveInt | Auto
    cache_dir: str | None


class ReferenceConfig(Section):
    mode: Literal["cached", "live", "adapter_off", "none"]
    path: str | None
    revision: str | None
    cache_dir: str | None
    sharded: bool | Auto
    update_every: PositiveInt | None
    update_mix: Annotated[float, Field(gt=0, le=1, strict=True)] | None


class EngineConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] | Auto
    sequence_parallel: PositiveInt
    deepspeed: dict[str, Any]


class TrackerConfig(Section):
    name: Literal["wandb", "tensorboard", "mlflow", "none"]
    also: list[Literal["wandb", "tensorboard", "mlflow"]]
    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    run_name: str | None
    group: str | None
    seconds_at_end: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EvalConfig(Section):
    samples: CountFromZero
    max_new_tokens: PositiveInt
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
    generator: Literal["hf", "vllm"]
    true_reward: Literal["quickstart"] | None
    tasks: list[str]
    shots: CountFromZero | None
    task_limit: PositiveInt | None


class StopConfig(Section):
    kl: Positive | None
    plateau: PositiveInt | None
    displacement: Positive | None


class TrainSection(Section):
    epochs: PositiveInt
    max_steps: PositiveInt | None
    batch_size: PositiveInt
    precision: Precision
    tokens_per_micro_batch: PositiveInt | Auto
    activation_checkpointing: Literal["auto", "none", "selective", "full"]
    log_every: PositiveInt
    eval_every: PositiveInt | None
    sample_every: PositiveInt | None
    save_every: PositiveInt | None
    keep_last: Annotated[int, Field(ge=2, strict=True)]
    keep_best: str | None
    stop: StopConfig
    on_failed_save: Literal["continue", "stop"]
    nonfinite_limit: PositiveInt
    on_spike: Literal["alert", "rollback"]


class TrainConfig(Section):
    """What ``dpo train`` takes."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = Field(discriminator="name")
    reference: ReferenceConfig
    optim: OptimConfig = Field(discriminator="name")
    engine: EngineConfig
    launch: LaunchConfig = Field(discriminator="name")
    tracker: TrackerConfig
    eval: EvalConfig
    sweep: SweepConfig
    train: TrainSection
    seed: CountFromZero
    strict_revision: bool
    run_dir: str | None
    resume: str
    resume_force: list[str]


class PrecomputeConfig(TrainConfig):
    """What ``dpo precompute-ref`` takes: everything that ``dpo train`` does, and which part of the pass to do."""

    shard: Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*$")] | None


class InspectSection(Section):
    rows: CountFromZero
    as_json: bool
    html: str | None
    fail_on: list[str]


class InspectConfig(TrainConfig):
    """What ``dpo inspect`` takes: everything that ``dpo train`` does, and what to show."""

    inspect: InspectSection


class PlanSection(Section):
    device: str
    hosts: PositiveInt
    memory_gib: Positive | None
    headroom: Share
    mfu: Annotated[float, Field(gt=0, le=1, strict=True)] | None
    price_per_hour: Positive | None
    rows: PositiveInt
    prompt_tokens: PositiveInt
    answer_tokens: PositiveInt
    as_json: bool


class PlanConfig(TrainConfig):
    """What ``dpo plan`` takes: everything that ``dpo train`` does, and what it would run on."""

    plan: PlanSection


class ScoreConfig(Section):
    """What ``dpo score`` takes."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = Field(discriminator="name")
    reference: ReferenceConfig
    run: str | None
    step: PositiveInt | None
    seed: CountFromZero
    strict_revision: bool
    precision: Precision
    tokens_per_micro_batch: PositiveInt | Auto
    output: str | None


class EvaluateConfig(ScoreConfig):
    """What ``dpo eval`` takes."""

    launch: LaunchConfig = Field(discriminator="name")
    eval: EvalConfig
    against: str | None
    benchmark: Literal["rewardbench", "rewardbench2"] | None
    slices: list[str] | Auto
    resamples: Annotated[int, Field(ge=100, strict=True)]
    prompts: str | None
    judge: JudgeConfig = Field(discriminator="name")


Config = TypeVar("Config", bound=Section)


def read_config(tree: dict[str, Any], schema: type[Config], files: Sequence[Path] = ()) -> Config:
    """The typed configuration, or every problem with it.

    Args:
        tree: what was composed, as plain dicts, interpolations resolved, ``???`` where a value is missing.
        schema: ``TrainConfig`` or ``EvaluateConfig``.
        files: the user's configuration files that took part, searched for where a wrong key stands.

    Raises:
        ConfigError: with one line per problem.
    """
    problems = [f"{key} has no value: give it one, {key}=..." for key in _missing(tree)]
    try:
        config: Config = schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([*problems, *_explain(error, tree, schema, files)]) from None
    problems += _conflicts(config)
    if problems:
        raise ConfigError(problems)
    return config


def filled(ran: Any, now: Any) -> Any:
    """A section of a run's configuration, with what a run of an older version did not know yet as it is now.

    Args:
        ran: of the run.
        now: the same section today; what it says of another choice (a ``name`` that differs) fills nothing.
    """
    if not (isinstance(ran, dict) and isinstance(now, dict)) or ran.get("name") != now.get("name"):
        return ran
    return now | {key: filled(value, now.get(key)) for key, value in ran.items()}


def valid_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every full key of a schema, such as ``loss.beta``; of a section with alternatives those of all of them."""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for section in sections(field.annotation):
            keys += valid_keys(section, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return sections(inner[0])
    if get_origin(annotation) in (Union, UnionType):
        return [section for alternative in inner for section in sections(alternative)]
    return []


def _without_tags(place: Sequence[str], schema: type[BaseModel]) -> list[str]:
    """The keys down to a problem, without the names of the alternatives that pydantic puts in between."""
    first = schema.model_fields.get(place[0]) if place else None
    parts = list(place)
    if len(parts) > 4 and parts[2] == "terms":
        del parts[4]
    if len(parts) > 1 and first is not None and len(sections(first.annotation)) > 1:
        del parts[1]
    if len(parts) > 2 and parts[:2] == ["model", "adapter"]:
        del parts[2]
    return parts


def _no_such_key(key: str, tree: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """Why a key that some alternative of its section has is unknown here, or which one was meant."""
    section, _, name = key.rpartition(".")
    chosen: Any = tree
    for part in section.split("."):
        chosen = chosen.get(part) if isinstance(chosen, Mapping) else None
    if key not in valid_keys(schema) or not isinstance(chosen, Mapping):
        return nearest_key(key, schema)
    own = next(
        (
            [other for other in model.model_fields if other != "name"]
            for model in _alternatives(section, schema)
            if chosen.get("name") in get_args(model.model_fields["name"].annotation)
        ),
        [],
    )
    chosen_option = f"{section.replace('.', '/')}={chosen.get('name')}"
    return f": {chosen_option} makes no use of {name}; its keys are {', '.join(own) or 'none'}"


def _alternatives(section: str, schema: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a section, such as ``optim`` or ``model.adapter``, may hold."""
    models: list[type[BaseModel]] = [schema]
    for part in filter(None, section.split(".")):
        models = [
            inner
            for model in models
            if part in model.model_fields
            for inner in sections(model.model_fields[part].annotation)
        ]
    return models


def nearest_key(key: str, schema: type[BaseModel]) -> str:
    """A hint naming the valid key most like ``key``, or an empty string."""
    keys = {valid.lower(): valid for valid in valid_keys(schema)}
    if key in keys.values():
        options = _options_with(key, schema)
        few = f"; it is a key of {' or '.join(options)}"
        return (
            few
            if 0 < len(options) <= 4
            else f": the chosen {key.rpartition('.')[0].replace('.', '/')} makes no use of it"
        )
    wanted = key.lower()
    near = (
        [k for k in keys if k.rsplit(".", 1)[-1] == wanted.rsplit(".", 1)[-1]]  # right name, wrong section
        or difflib.get_close_matches(wanted, keys, n=1, cutoff=0.6)
    )
    return f"; did you mean {keys[near[0]]}?" if near else ""


def _options_with(key: str, schema: type[BaseModel]) -> list[str]:
    """The options of a group that have a key, where not all have the same: ``optim=rmsprop`` for ``optim.alpha``."""
    section, _, name = key.rpartition(".")
    models = _alternatives(section, schema)
    group = section.replace(".", "/")
    having = [model for model in models if len(models) > 1 and name in model.model_fields]
    return [f"{group}={option}" for model in having for option in get_args(model.model_fields["name"].annotation)]


def _explain(
    error: ValidationError, tree: Mapping[str, Any], schema: type[BaseModel], files: Sequence[Path]
) -> Iterator[str]:
    """One line per wrong key; the members of a union report one by one, so they are put together."""
    expected: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    known = set(valid_keys(schema))
    for problem in error.errors(include_url=False):
        parts = _without_tags([str(part) for part in problem["loc"]], schema)
        key = next(
            (".".join(parts[:n]) for n in range(len(parts), 0, -1) if _known(parts[:n], known)),
            ".".join(parts),
        )
        if problem["type"] == "extra_forbidden":
            key = ".".join(parts)
            yield f"unknown key {key}{_where(key, files)}{_no_such_key(key, tree, schema)}"
        elif problem["type"] == "union_tag_invalid":
            name, options = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "")
            yield f"{key}.name={name}{_where(f'{key}.name', files, name)}: expected one of {options}"
        elif problem["type"] == "union_tag_not_found":
            yield f"{key}.name is missing: the configuration must give it a value"
        elif problem["type"] == "missing" and key == ".".join(parts):
            yield f"{key} is missing: the configuration must give it a value"
        else:
            expected.setdefault(key, []).append(_requirement(problem))
            found[key] = problem["input"]
    for key, requirements in expected.items():
        if found[key] != "???":
            wanted = " or ".join(dict.fromkeys(requirements))
            yield f"{key}={found[key]!r}{_where(key, files, str(found[key]))}: expected {wanted}"


def _known(parts: Sequence[str], known: Container[str]) -> bool:
    """Whether there is such a key; a sum's terms have the keys of losses, and a mixture's sources keys of their own."""
    if len(parts) == 4 and parts[:2] == ["loss", "terms"]:
        parts = ["loss", parts[3]]
    if len(parts) == 4 and parts[:2] == ["data", "mix"]:
        return parts[3] in MixedConfig.model_fields
    return ".".join(parts) in known


def _requirement(problem: Any) -> str:
    if problem["type"] == "missing":
        return "one item more"
    if problem["type"] == "too_long":
        return f"{problem['ctx']['max_length']} items"
    message = str(problem["msg"])
    for start in ("Input should be a valid ", "Input should be ", "Value error, "):
        message = message.removeprefix(start)
    return message if message[:2].isupper() else message[0].lower() + message[1:]


def _where(key: str, files: Sequence[Path], value: str = "") -> str:
    """The file and line in which ``key`` stands with that value, as far as a look at the text can tell; the command
    line stands nowhere."""
    name = key.rsplit(".", 1)[-1]
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            content = line.split("#", 1)[0].strip()
            if content.startswith(f"{name}:") and value in content:
                return f" ({file}, line {number})"
    return ""


def _missing(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Full keys that are still ``???``."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _missing(value, f"{prefix}{name}.")
        elif value == "???":
            yield f"{prefix}{name}"


def _conflicts(config: Section) -> Iterator[str]:
    """Keys that contradict each other, or have no effect together."""
    if not isinstance(config, TrainConfig | ScoreConfig):
        return
    data = config.data
    yield from _source_conflicts(data)
    yield from _text_conflicts(data)
    if config.reference.revision is not None and config.reference.path is None:
        yield "reference.revision has no effect without reference.path: the model's is model.revision"
    if isinstance(config, ScoreConfig) and config.step is not None and config.run is None:
        yield f"step={config.step} has no effect without run: it names a checkpoint of a run"
    if data.max_prompt_length is not None and data.max_prompt_length >= data.max_length:
        yield (
            f"data.max_prompt_length={data.max_prompt_length} leaves no room for an answer in "
            f"data.max_length={data.max_length}: make it smaller"
        )
    if not isinstance(config, TrainConfig | EvaluateConfig):
        yield from _score_conflicts(config)
        return
    if config.eval.true_reward and not config.eval.samples:
        yield f"eval.true_reward={config.eval.true_reward} has no effect without eval.samples: it judges samples"
    yield from _loss_conflicts(config)
    if isinstance(config, EvaluateConfig):
        yield from _sampling_conflicts(config)
    yield from launch_conflicts(config.launch)
    if isinstance(config, TrainConfig):
        yield from _train_conflicts(config)
    elif config.run is None and isinstance(config.model.adapter, NewAdapterConfig):
        yield (
            f"model/adapter={config.model.adapter.name} has no effect in `dpo eval`: nothing is trained; name a "
            "trained adapter's folder with model.path"
        )
    elif config.run is None and config.reference.update_every is not None:
        yield "reference.update_every has no effect in `dpo eval`: nothing is trained"
    elif config.run is None and config.reference.sharded != "auto":
        yield "reference.sharded has no effect in `dpo eval`: nothing is sharded there"
    elif config.run is None and config.data.eval is not None:
        yield "data.eval has no effect in `dpo eval` of a model: name the rows to evaluate with data.path"


def _sampling_conflicts(config: EvaluateConfig) -> Iterator[str]:
    """Of who is asked what, and who judges."""
    for name in ("shots", "task_limit"):
        if getattr(config.eval, name) is not None and not config.eval.tasks:
            yield f"eval.{name} has no effect without eval.tasks"
    if config.eval.generator != "hf" and not config.eval.samples:
        yield f"eval.generator={config.eval.generator} has no effect without eval.samples: it answers so many"
    if config.eval.tasks and getattr(config.launch, "num_processes", None) not in (1, "auto"):
        yield "eval.tasks are run by one process: launch=local launch.num_processes=1"
    if config.judge.name != "none" and not config.eval.samples:
        yield f"judge={config.judge.name} has no effect without eval.samples: it judges sampled answers"
    if config.judge.name != "none" and config.run is None and config.reference.path is None:
        yield f"judge={config.judge.name} needs answers to win against: name a reference, reference.path=..."
    if config.prompts is not None and not config.eval.samples:
        yield "prompts has no effect without eval.samples, which says how many of them are answered"
    if config.prompts is not None and config.eval.true_reward is not None:
        yield "eval.true_reward has no effect with prompts: it judges answers to held-out prompts"


def _score_conflicts(config: ScoreConfig) -> Iterator[str]:
    data = config.data
    if config.output is None:
        yield "output has no value: dpo score FILE OUT names the rows and where the scored ones go"
    if data.mix is not None:
        yield "data.mix has no effect in `dpo score`: name one file"
    for name in ("eval", "weight", "margin", "label_prob"):
        if getattr(data, name) is not None:
            yield f"data.{name} has no effect in `dpo score`: answers are scored one by one, and all of them"
    if config.run is None and isinstance(config.model.adapter, NewAdapterConfig):
        yield (
            f"model/adapter={config.model.adapter.name} has no effect in `dpo score`: nothing is trained; name a "
            "trained adapter's folder with model.path"
        )


def _source_conflicts(data: DataConfig) -> Iterator[str]:
    """Of where rows come from."""
    from dpo_cli.data.formats import reading_problems  # not above: it takes numpy, which help has no need of

    if data.path is None and not data.mix:
        yield "data.path has no value: give it one, data.path=..., or several sources, data.mix={...}"
    if data.path is not None and data.mix is not None:
        yield f"data.path={data.path} has no effect with data.mix: put it in there"
    yield from reading_problems(data.shape, data.columns)
    mix = data.mix or {}
    for name, part in mix.items():
        own = reading_problems(part.shape or data.shape, data.columns if part.columns is None else part.columns)
        yield from (f"data.mix.{name}: {problem}" for problem in own if part.shape or part.columns)
        if part.rows is not None and part.weight is not None:
            yield f"data.mix.{name}: rows and weight contradict each other: give one"
    weighed = [name for name, part in mix.items() if part.weight is not None]
    if weighed and len(weighed) < len(mix):
        others = ", ".join(name for name in mix if name not in weighed)
        yield f"data.mix: {', '.join(weighed)} with a weight and {others} without: give all one, or none"


def _text_conflicts(data: DataConfig) -> Iterator[str]:
    """Of how text becomes tokens."""
    if data.truncate_prompt != "start" and data.on_too_long != "truncate":
        yield (
            f"data.truncate_prompt={data.truncate_prompt} has no effect with data.on_too_long={data.on_too_long}: "
            "nothing is cut"
        )
    for key in ("template_args", "system"):
        if data.text == "plain" and getattr(data, key):
            yield f"data.{key} has no effect with data.text=plain: no template is used"


def _loss_conflicts(config: TrainConfig | EvaluateConfig) -> Iterator[str]:
    """Of the loss with the rows' columns and the reference."""
    loss, data = config.loss, config.data
    for column in ("weight", "margin", "label_prob"):
        if getattr(data, column) is not None and column not in loss.columns:
            yield f"data.{column} has no effect: loss={loss.name} makes no use of it"
    if config.reference.mode == "none" and loss.needs_reference:
        yield f"reference.mode=none: loss={loss.name} needs a reference"
    unused = isinstance(config, TrainConfig) and not config.eval.samples  # for their KL
    if config.reference.path is not None and not loss.needs_reference and unused:
        yield f"reference.path has no effect: loss={loss.name} needs no reference"
    for place, term in loss.terms.items() if isinstance(loss, SumConfig) else [("", loss)]:
        prefix = f"loss.terms.{place}" if place else "loss"
        if term.name.startswith("rpo_") and data.margin is None:
            yield f"data.margin has no value: {term.name} needs the true reward's gap, a column or two ([good, bad])"
        alpha = getattr(term, "divergence_alpha", None)
        divergence = getattr(term, "divergence", None)
        if divergence == "alpha" and alpha is None:
            yield f"{prefix}.divergence_alpha has no value: between 0 (reverse KL) and 1 (forward KL)"
        if divergence != "alpha" and alpha is not None:
            yield f"{prefix}.divergence_alpha={alpha} has no effect with {prefix}.divergence={divergence}"
        humanline = getattr(term, "humanline", None)
        if humanline is not None and humanline[0] >= humanline[1]:
            yield f"{prefix}.humanline={list(humanline)}: expected [low, high]"
        if humanline is not None and getattr(term, "reference_free", False):
            yield f"{prefix}.humanline holds ratios to the reference, and {prefix}.reference_free=true leaves it out"
    if isinstance(loss, SumConfig):
        yield from _sum_conflicts(loss)


def _sum_conflicts(loss: SumConfig) -> Iterator[str]:
    if loss.terms.keys() != loss.weights.keys():
        expected = ", ".join(loss.terms)
        yield f"loss.weights has {', '.join(loss.weights) or 'none'}; expected one for each of loss.terms: {expected}"
    if not loss.terms:
        yield "loss.terms is empty: configs/loss/sum.yaml says how to give a sum its losses"
    kinds = {kind_of(term.name) for term in loss.terms.values()}
    if len(kinds) > 1:
        yield f"loss.terms: one sum can't count {' and '.join(sorted(kinds))}"


def _measured_conflicts(config: TrainConfig) -> Iterator[str]:
    """Of what goes by evaluations and samples with how often there are any."""
    train = config.train
    if train.sample_every is not None and not config.eval.samples:
        yield f"train.sample_every={train.sample_every} has no effect without eval.samples, which says how many"
    if train.keep_best is not None:
        every = "sample_every" if train.keep_best.startswith("samples/") else "eval_every"
        if getattr(train, every) is None or train.save_every is None:
            yield f"train.keep_best={train.keep_best} has no effect without train.{every} and train.save_every"
    if train.stop.kl is not None and (train.sample_every is None or config.eval.temperature != 1.0):
        yield "train.stop.kl goes by samples: it needs train.sample_every, and eval.temperature=1"
    for name in ("plateau", "displacement"):
        if getattr(train.stop, name) is not None and train.eval_every is None:
            yield f"train.stop.{name} goes by evaluations: it needs train.eval_every"


def _tracker_conflicts(tracker: TrackerConfig) -> Iterator[str]:
    chosen = [tracker.name, *tracker.also]
    if len(set(chosen)) < len(chosen):
        yield f"tracker.also={tracker.also}: expected trackers that are not chosen already, each once"
    if tracker.mode in ("online", "offline") and "wandb" not in chosen:
        yield f"tracker.mode={tracker.mode} has no effect without wandb"


def _train_conflicts(config: TrainConfig) -> Iterator[str]:
    yield from optim_conflicts(config.optim)
    yield from _tracker_conflicts(config.tracker)
    train = config.train
    if config.eval.generator != "hf":
        yield f"eval.generator={config.eval.generator} has no effect in `dpo train`: the model there answers itself"
    if config.eval.tasks:
        yield "eval.tasks has no effect in `dpo train`: dpo eval run=... eval=harness runs them, before and after"
    yield from sweep_conflicts(config.sweep, eval_every=train.eval_every)
    if train.eval_every is not None and config.data.eval is None:
        yield f"train.eval_every={train.eval_every} has no effect without data.eval"
    if config.eval.samples and config.data.eval is None:
        yield f"eval.samples={config.eval.samples} has no effect without data.eval: samples answer its prompts"
    yield from _measured_conflicts(config)
    reference = config.reference
    if reference.mode in ("live", "adapter_off") and reference.cache_dir is not None:
        yield f"reference.cache_dir has no effect with reference.mode={reference.mode}: nothing is kept"
    if reference.mode == "adapter_off" and reference.path is not None:
        yield "reference.path has no effect with reference.mode=adapter_off: the reference is the model itself"
    if reference.sharded != "auto" and (reference.mode != "live" or not config.loss.needs_reference):
        yield (
            "reference.sharded has no effect: only a second model is shared out, which there is with "
            "reference.mode=live and a loss that needs a reference"
        )
    if reference.update_every is None and reference.update_mix is not None:
        yield f"reference.update_mix={reference.update_mix} has no effect without reference.update_every"
    if reference.update_every is not None:
        if reference.update_mix is None:
            yield "reference.update_mix has no value: which share of the policy, such as 0.6"
        if reference.mode not in ("live", "adapter_off") or not config.loss.needs_reference:
            yield (
                "reference.update_every moves the reference: it needs reference.mode=live or adapter_off, and a loss "
                "with a reference"
            )
    if config.resume != "none" and config.run_dir is None:
        yield f"resume={config.resume} needs run_dir, the folder to go on in"
