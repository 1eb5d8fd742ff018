"""``dpo``: from the command line to a command. Nothing heavy is imported here, so that help is instant."""

from __future__ import annotations

import difflib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dpo_cli import __version__
from dpo_cli.environment import check_interpreter, loading_libraries
from dpo_cli.errors import DpoError, ExitCode, one_line, printable
from dpo_cli.secret import check_words, hide
from dpo_cli.stopping import STOPPABLE, stop_on_signals, unwind_on_signals
from dpo_cli.streams import give_up_unwritten, open_closed_streams, unfailing_stderr

COMMANDS = {
    "train": "train a model on preferences; -m sweeps over values",
    "precompute-ref": "compute and keep the reference's log-probs, and nothing else",
    "plan": "say whether a run fits, what it takes and what to change; no weight is loaded",
    "inspect": "show what training will see of the rows, and audit them all",
    "eval": "held-out preference metrics, samples and drift of a run or a model",
    "score": "add a model's implicit rewards to a file of answers",
}
HELPERS = {
    "report": "one HTML file about a run, a sweep or any set of runs",
    "runs": "list runs and how they stand, compare two, remove old checkpoints",
    "sync": "send runs to trackers that have not got them: offline ones, or cut off",
    "import": "turn a TRL, axolotl or LLaMA-Factory config into an experiment",
    "merge": "merge an adapter into its base model: plain weights with the same log-probs",
    "push": "upload a trained model to the Hugging Face hub, private unless told otherwise",
    "doctor": "look this machine over, or a run's folder: versions, devices, disk, caches, checkpoints",
    "configs": "print the folder with the configuration files, to read or to copy from",
    "completion": "print tab completion for bash, zsh or fish",
}

HELP = f"""\
usage: dpo COMMAND [key=value ...] [+experiment=NAME] [-m]

Preference optimisation of language models (DPO, Rafailov et al. 2023), driven by YAML.

commands
{"".join(f"  {name:<15} {text}{chr(10)}" for name, text in {**COMMANDS, **HELPERS}.items())}
first steps
  dpo train +experiment=quickstart              everything is inside: no network, no GPU, about a minute
  dpo plan +experiment=zephyr plan.device=h100  memory by part, time, cost, and the overrides that make it fit
  dpo train model.path=MODEL data.path=DATA     a hub id or a folder; a hub id, a file or a folder
  dpo inspect model.path=MODEL data.path=DATA   the same rows, token by token, and what is wrong with them
  dpo train --help                              every key with its default, and the recipes
  dpo train +experiment=NAME --cfg job          the composed configuration, without running it
  dpo train -m loss.beta=0.05,0.1,0.5           a sweep: one reference pass, three runs

exit codes
  0 done · 1 dpo inspect found what --fail-on names · 2 usage or data · 3 no valid checkpoint · 70 internal error
  74 input/output · 75 preempted, the same command with resume=auto goes on · 76 numbers went bad
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    open_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    _keep_out_of_this_folder()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A terminal may lack a letter, and the name of a file may have bytes that are none.
        sys.stdout.reconfigure(errors="backslashreplace")
    with unfailing_stderr():
        return _ended(words)


def _ended(words: list[str]) -> int:
    """Run a command and say how it ended, if not well; returns the exit code."""
    try:
        with loading_libraries():
            code = _run(words)
        sys.stdout.flush()
        return code
    except DpoError as error:
        _say(f"dpo: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        _say("dpo: interrupted")
        return 130
    except BrokenPipeError:  # `dpo ... | head`
        give_up_unwritten(sys.stdout)
        return int(ExitCode.IO)
    except OSError as error:
        _say(f"dpo: {describe(error)}")
        if os.environ.get("DPO_TRACEBACK"):
            _say(traceback.format_exc())
        give_up_unwritten(sys.stdout)
        return int(ExitCode.IO)
    except Exception:
        _say(traceback.format_exc())
        _say("dpo: this is a bug in dpo or in a library it uses, not in your input")
        return int(ExitCode.INTERNAL)


def _say(text: str) -> None:
    """On standard error, without secrets and without letters that a terminal would act on."""
    print(printable(hide(text.rstrip())), file=sys.stderr)


def _keep_out_of_this_folder() -> None:
    """Have the Pythons that are started from here (ranks, trackers, those that tokenise) not look for modules in the
    folder they are started in: it may be one that was downloaded, with a ``json.py`` beside the rows.

    Unless it is this package's own, which is then found in no other way.
    """
    with suppress(FileNotFoundError):  # a folder that is gone
        if Path.cwd() != Path(__file__).resolve().parents[1]:
            os.environ["PYTHONSAFEPATH"] = "1"


def describe(error: OSError) -> str:
    """An operating-system error in one line."""
    if isinstance(error, FileNotFoundError) and error.filename is None and not _folder_is_there():
        return "the folder that this was started in is gone: change to one that is there"
    what = error.strerror or str(error)
    where = f": {one_line(str(error.filename), 200)}" if error.filename else ""
    return f"{what}{where} (DPO_TRACEBACK=1 shows where)"


def _folder_is_there() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def as_overrides(command: str, words: Sequence[str]) -> list[str]:
    """``--json`` of ``dpo plan``, and ``dpo inspect``'s flags, as keys of the configuration.

    Raises:
        DpoError: a flag that lacks its value.
    """
    found = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if word == "--json" and command in ("inspect", "plan"):
            found.append(f"{command}.as_json=true")
        elif command == "inspect" and flag in ("--html", "--fail-on"):
            value = value if equals else next(rest, "")
            if not value:
                raise DpoError(f"{flag} needs a value: {'a file' if flag == '--html' else 'a level, or findings'}")
            found.append(f"inspect.html={_quoted(value)}" if flag == "--html" else f"inspect.fail_on=[{value}]")
        else:
            found.append(word)
    return found


def files_as_overrides(words: Sequence[str]) -> list[str]:
    """``dpo score``'s two files as keys of the configuration.

    Raises:
        DpoError: more files than two.
    """
    keys = ["data.path", "output"]
    found = []
    for word in words:
        if "=" in word or word.startswith(("-", "~")):
            found.append(word)
        elif not keys:
            raise DpoError(f"dpo score FILE OUT: {word} is a third file")
        else:
            found.append(f"{keys.pop(0)}={_quoted(word)}")
    return found


def _quoted(value: str) -> str:
    """As Hydra reads any text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return int(ExitCode.DONE)
    check_interpreter()
    check_words(words)
    name, *rest = words
    match name:
        case "--version" | "-V":
            print(f"dpo {__version__}")
        case "configs":
            from dpo_cli.config_folder import config_folder

            print(config_folder())
        case "report":
            from dpo_cli.commands import make_report
            from dpo_cli.compose import group_defaults

            make_report.run(rest, group_defaults)
        case "runs":
            from dpo_cli.commands import list_runs

            list_runs.run(rest)
        case "sync":
            from dpo_cli.commands.sync import run as sync

            sync(rest)
        case "import":
            from dpo_cli.commands.import_config import run

            run(rest)
        case "merge":
            from dpo_cli.commands.merge import run as merge

            with unwind_on_signals():
                merge(rest)
        case "doctor":
            from dpo_cli.commands.doctor import run as doctor

            doctor(rest)
        case "push":
            from dpo_cli.commands.push import run as push

            with unwind_on_signals():
                push(rest)
        case "completion":
            from dpo_cli.completion import script

            print(script(rest), end="")
        case "_complete":
            from dpo_cli.completion import candidates

            print("\n".join(candidates(rest[0] if rest else "", list(COMMANDS | HELPERS))))
        case "_rank":
            from dpo_cli.launch import run_rank

            return run_rank(*rest)
        case _ if name in COMMANDS:
            from dpo_cli.compose import run_command
            from dpo_cli.launchers.outer import said_once

            words = files_as_overrides(rest) if name == "score" else as_overrides(name, rest)
            with said_once(), stop_on_signals() if name in STOPPABLE else unwind_on_signals():
                return run_command(name, words)
        case _:
            near = difflib.get_close_matches(name, [*COMMANDS, *HELPERS], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DpoError(f"there is no command {name}; {hint}commands: {', '.join([*COMMANDS, *HELPERS])}")
    return int(ExitCode.DONE)
