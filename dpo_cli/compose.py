"""From YAML and the command line to a typed configuration, by Hydra; and Hydra's errors in our words.

Hydra's own entry point is used as it is, so that ``--cfg``, ``--help``, ``--info``, ``-m`` and its sweepers work as
its documentation says. What it composed goes through ``read_config`` before anything heavy is imported.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError  # type: ignore[import-untyped] # OmegaConf reads files with it

from dpo_cli.config import (
    EvaluateConfig,
    InspectConfig,
    PlanConfig,
    PrecomputeConfig,
    ScoreConfig,
    TrainConfig,
    filled,
    read_config,
)
from dpo_cli.config_folder import config_folder
from dpo_cli.doors import bounded_yaml, check_doors, check_search_path, targets
from dpo_cli.errors import ConfigError, DpoError, ExitCode
from dpo_cli.launchers.outer import check_none
from dpo_cli.overrides import (
    add_plus,
    apart,
    asks_for_sweep,
    check_options,
    explain,
    explain_yaml,
    given,
    is_flag,
)
from dpo_cli.run_folder import read
from dpo_cli.secret import check_settings

SCHEMAS: dict[str, type[TrainConfig] | type[ScoreConfig]] = {
    "train": TrainConfig,
    "precompute-ref": PrecomputeConfig,
    "eval": EvaluateConfig,
    "inspect": InspectConfig,
    "score": ScoreConfig,
    "plan": PlanConfig,
}

_QUICKSTART_ASSETS = Path(__file__).parent / "quickstart" / "assets"


def run_command(command: str, words: list[str]) -> int:
    """Compose what the command line says and run the command on it, once or, with ``-m``, for each point of a sweep.

    Returns:
        The exit code.

    Raises:
        DpoError: for anything wrong with the configuration, and what the command raises.
    """
    words = [add_plus(word) for word in words if not word.startswith(("--local_rank", "--local-rank"))]
    flags, overrides = apart(words)
    words = [*flags, *overrides]  # flags may stand anywhere; Hydra wants all overrides together
    if any(is_flag(word, "--experimental-rerun") for word in words):
        raise DpoError("--experimental-rerun reads a pickle, which can run code: not supported")
    if any(asks_for_sweep(word) for word in words):
        if command != "train":
            raise DpoError(f"dpo {command} does not take -m; sweeps are for dpo train")
        check_none("a sweep")
        return _sweep([word for word in words if word != "resume=auto"])  # a sweep goes on anyway
    config = _compose(command, words)
    if config is None:  # --help, --cfg and the like
        return int(ExitCode.DONE)
    from dpo_cli.launch import run_once

    return run_once(command, config)


def _compose(command: str, words: Sequence[str]) -> TrainConfig | ScoreConfig | None:
    """The configuration of a command line; None, if Hydra only answered a question.

    Raises:
        DpoError: for anything wrong with it.
    """
    configs: list[TrainConfig | ScoreConfig] = []
    problems: list[DpoError] = []

    def task(tree: DictConfig) -> None:
        given[:] = _overrides()
        try:
            config = _typed(command, tree)
            _check_no_sweep(command, config.sweep.points if isinstance(config, TrainConfig) else [])
            configs.append(config)
        except DpoError as error:  # not raised here: Hydra would add words of its own
            problems.append(error)

    _hydra(command, words, task)
    if problems:
        raise problems[0]
    return configs[0] if configs else None


def _sweep(words: Sequence[str]) -> int:
    """Run ``dpo train`` for each point; returns the exit code."""
    from dpo_cli.smart_sweep import Trials, is_smart, without_plugin
    from dpo_cli.sweep import Sweep

    words = [without_plugin(word) for word in words]
    sweep = Sweep(words)
    if is_smart(words):

        def compose(point: Sequence[str]) -> TrainConfig:
            GlobalHydra.instance().clear()
            config = _compose("train", point)
            if not isinstance(config, TrainConfig):
                raise DpoError("-m with --cfg, --info and the like: give them without sweep.sampler")
            return config

        trials = Trials(words, sweep, compose)
        sweep.run(trials, trials.settings.parallel, here=not trials.on_slurm)
        return sweep.finish(trials.best())
    if sweep.ranges:
        raise DpoError(f"{sweep.ranges[0]} has no points to go through: draw them with sweep.sampler=tpe")
    problems: list[DpoError] = []
    parallel = 1

    def task(tree: DictConfig) -> None:
        nonlocal parallel
        overrides = _overrides()
        try:
            config = _typed("train", tree)
            assert isinstance(config, TrainConfig)
            parallel = config.sweep.parallel
            sweep.go_by(config)
            if config.sweep.sampler is not None:
                raise DpoError("sweep.sampler stands in an experiment; expected on the command line, with its ranges")
            sweep.add(config, overrides)
        except ConfigError as error:
            sweep.refuse(overrides, error)
        except DpoError as error:
            problems.append(error)

    for point in _points(words):
        _hydra("train", [*words, *point, f"hydra.sweep.dir='{sweep.folder}'"], task)
        if problems:
            raise problems[0]
    sweep.run(sweep.grid, parallel)
    return sweep.finish()


def _points(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each of ``sweep.points``; one without any, where there are none, or where Hydra is about to say
    what is wrong."""
    flags, overrides = apart(words)
    try:
        points = _loader(flags).load_configuration("train", overrides, run_mode=RunMode.MULTIRUN).sweep.points
        return [shlex.split(str(point)) for point in points] or [[]]
    except Exception:  # any of Hydra's and OmegaConf's
        return [[]]
    finally:
        GlobalHydra.instance().clear()


def complete(command: str, line: str) -> list[str]:
    """Hydra's candidates for the last word of ``line`` (arguments only); flags don't matter, but a ``--config-dir``."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    *before, last = line.split(" ")
    if last.startswith("-"):
        return []
    flags, overrides = apart([word for word in before if word])
    completion = BashCompletion(_loader(flags))
    found: list[str] = completion._query(_config_name(command), " ".join([*overrides, last]))
    return found


def group_defaults(command: str, words: Sequence[str]) -> dict[str, Any] | None:
    """What a command's configuration is with nothing given but ``words``, without what has no default; None if Hydra
    refuses them."""
    try:
        tree = _loader([]).load_configuration(_config_name(command), list(words), run_mode=RunMode.RUN)
        with open_dict(tree):
            del tree["hydra"]
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException):
        return None
    finally:
        GlobalHydra.instance().clear()
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else None


def _loader(flags: Sequence[str]) -> ConfigLoader:
    """Hydra's configurations, with those of a ``--config-dir``."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_automatic_config_search_path
    from hydra.core.config_search_path import SearchPathQuery

    _register_resolvers()
    search_path = create_automatic_config_search_path(None, None, str(config_folder()))
    for flag, value in pairwise(" ".join(flags).replace("=", " ").split()):
        if flag in ("--config-dir", "-cd"):
            before_schema = SearchPathQuery(provider="schema")
            search_path.prepend("command-line", f"file://{Path(value).absolute()}", anchor=before_schema)
    return Hydra.create_main_hydra2("dpo", search_path).config_loader


def _check_composed(command: str, words: Sequence[str]) -> None:
    """Refuse what Hydra itself would run, write or print before we see the configuration.

    Raises:
        ConfigError: naming the keys.
    """
    flags, overrides = apart(words)
    mode = RunMode.MULTIRUN if any(asks_for_sweep(word) for word in flags) else RunMode.RUN
    check_search_path(flags, overrides)
    try:
        tree = _loader(flags).load_configuration(_config_name(command), overrides, run_mode=mode)
    except Exception:  # Hydra's own run is about to say what is wrong
        return
    finally:
        GlobalHydra.instance().clear()
    check_doors(tree)
    check_settings(OmegaConf.to_container(tree, resolve=False))
    with open_dict(tree):
        del tree["hydra"]
    with suppress(OmegaConfBaseException):
        check_settings(OmegaConf.to_container(tree, resolve=True, throw_on_missing=False))


def _hydra(command: str, words: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    """Hydra's main with our arguments, and its complaints as ours."""
    with bounded_yaml():
        _compose_with_hydra(command, words, task)


def _compose_with_hydra(command: str, words: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    _register_resolvers()
    check_options(words, config_folder())
    _check_composed(command, words)
    options = {} if hydra.__version__ >= "1.4" else {"version_base": "1.3"}
    entry = hydra.main(config_path=str(config_folder()), config_name=_config_name(command), **options)(task)
    schema = SCHEMAS[command]
    with _arguments(command, words):
        try:
            entry()
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([explain(error, schema)]) from None
        except MarkedYAMLError as error:
            raise ConfigError([explain_yaml(error)]) from None
        except RecursionError:
            raise ConfigError(["a configuration file has lists or mappings too deep in each other"]) from None
        except UnicodeDecodeError as error:
            raise ConfigError([f"a configuration file is not valid UTF-8 ({error})"]) from None
        except SystemExit as end:  # argparse, after --help or a flag it doesn't know
            if isinstance(end.code, int) and end.code > 128:  # a signal
                raise
            if end.code:
                raise SystemExit(int(ExitCode.USAGE)) from None


@contextmanager
def _arguments(command: str, words: Sequence[str]) -> Iterator[None]:
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"dpo {command}", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let its exceptions reach us, instead of a traceback on the screen
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
        logging.disable(logging.NOTSET)  # `job_logging: disabled` switches off all logging for good


def _typed(command: str, tree: DictConfig) -> TrainConfig | ScoreConfig:
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key}: {str(error).splitlines()[0]}"]) from None
    if not isinstance(plain, dict):
        raise DpoError("the configuration is not a mapping")
    values: dict[str, Any] = {str(key): value for key, value in plain.items()}
    if "experiment" in values:
        file = next((file for file in _files() if file.parent.name == "experiment"), "experiment")
        raise ConfigError([f"{file}: the first line of an experiment must be `# @package _global_`"])
    if command in ("eval", "score"):
        values = _with_run(values, _overrides())
        check_settings(values)  # another's run is another's configuration
    if named := [f"{key}._target_".lstrip(".") for key, _ in targets(values)]:
        raise ConfigError([f"{key} names code: no configuration runs any" for key in named])
    return read_config(values, SCHEMAS[command], list(_files()))


def _check_no_sweep(command: str, points: Sequence[str]) -> None:
    """Refuse to train once on what an experiment sweeps over; its reference pass is the same for every point.

    Raises:
        ConfigError: naming the keys.
    """
    swept = list(HydraConfig.get().sweeper.get("params") or [])
    if points:
        swept.append("sweep.points")
    if swept and command == "train":
        raise ConfigError([f"the experiment sweeps over {', '.join(map(str, swept))}: add -m"])


def _overrides() -> list[str]:
    """The command line's, as they were written: with an interpolation in one, the list would resolve it."""
    words = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(word) for word in words or ()]


def _with_run(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """For ``dpo eval run=DIR`` and ``dpo score``: the run's own configuration, the command line on top."""
    run = values.get("run")
    if run is None:
        return values
    file = Path(str(run), "config.yaml")
    if not file.is_file():
        raise DpoError(f"run={run} is not a run folder: there is no {file}")
    ran = _run_config(file)
    for section in ("model", "data", "loss", "reference"):
        values[section] = filled(ran[section], values[section])
    if "eval" in values:
        kept = {name: value for name, value in ran["eval"].items() if name not in ("tasks", "shots", "task_limit")}
        values["eval"] = filled(kept, values["eval"])
        # How the run was launched says nothing of where this is wanted; only this machine's processes are taken over.
        if ran["launch"]["name"] == "local" and values["launch"]["name"] == "local":
            values["launch"] = filled(_for_this_machine(ran["launch"]), values["launch"])
    values["seed"] = ran["seed"]
    values["precision"] = read(Path(str(run))).get("precision", ran["train"]["precision"])  # what `auto` came to
    values["tokens_per_micro_batch"] = ran["train"]["tokens_per_micro_batch"]
    config = OmegaConf.create(values)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+")
        if key in ("judge", "launch") or override.input_line == "eval=harness":
            continue  # an option that the run says nothing of, and which is composed already
        if key in ("loss", "data", "model", "reference", "eval"):
            raise DpoError(f"{override.input_line}: with run=..., the run's own choice can't be replaced as a whole")
        OmegaConf.update(config, key, override.value(), force_add=True)
    given = {override.partition("=")[0] for override in overrides}
    if "eval" not in values:  # dpo score: what the run said of its own rows says nothing of this file
        own: dict[str, Any] = {"path": None, "split": "train", "streaming": False}
        own |= dict.fromkeys(("mix", "eval", "subset", "revision", "limit", "weight", "margin", "label_prob"))
        config.data.update({name: value for name, value in own.items() if f"data.{name}" not in given})
    elif "data.path" in given:
        config.data.mix = None
        if "data.eval" not in given:
            config.data.eval = None
    elif config.data.eval is None:
        raise DpoError(f"run={run} held no rows out: name rows to evaluate with data.path=... or data.eval=...")
    if "eval" in values and (config.prompts is not None or not config.eval.samples) and "eval.true_reward" not in given:
        config.eval.true_reward = None  # the run's own, which judges answers to its held-out prompts
    merged = OmegaConf.to_container(config, resolve=True)
    return {str(key): value for key, value in merged.items()} if isinstance(merged, dict) else values


def _for_this_machine(launch: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was launched, with no more processes than this machine has cores: a stranger may have said anything."""
    count = launch.get("num_processes")
    too_many = isinstance(count, int) and count > (os.cpu_count() or 1)
    return {**launch, "num_processes": "auto"} if too_many else dict(launch)


def _literal(value: Any) -> Any:
    """Values of which none is an interpolation: a run's are resolved already, and a stranger's ``${oc.env:NAME}`` in a
    URL would send what is in the environment there."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _run_config(file: Path) -> dict[str, Any]:
    """What a run, perhaps a stranger's, says that it was trained with.

    Raises:
        DpoError: it lacks what every run writes.
    """
    from dpo_cli.reporting.runs import read_config_file

    plain = _literal(OmegaConf.to_container(OmegaConf.load(file))) if read_config_file(file) else {}
    ran = {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}
    needed = {
        **dict.fromkeys(("model", "data", "loss", "reference", "eval"), ()),
        "launch": ("name",),
        "train": ("precision", "tokens_per_micro_batch"),
    }
    lacking = [
        ".".join(filter(None, (section, name)))
        for section, names in needed.items()
        for name in ("", *names)
        if not isinstance(ran.get(section), dict) or (name and name not in ran[section])
    ]
    lacking += ["seed"] * ("seed" not in ran)
    if lacking:
        raise DpoError(f"{file} is not a run's configuration: it has no {', '.join(lacking)}, which `dpo train` writes")
    return ran


def _files() -> Iterator[Path]:
    """The configuration files that took part, the user's own first."""
    runtime = HydraConfig.get().runtime
    sources = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    for source in sources:
        for group, option in runtime.choices.items():
            options = [option] if isinstance(option, str) else list(option or [])
            for name in options:
                if not group.startswith("hydra/") and (file := source / group / f"{name}.yaml").is_file():
                    yield file


def _config_name(command: str) -> str:
    return command.replace("-", "_")


def _register_resolvers() -> None:
    def asset(name: str) -> str:
        return str(_QUICKSTART_ASSETS / name)

    OmegaConf.register_new_resolver("quickstart", asset, replace=True)
