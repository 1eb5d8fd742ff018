"""Faults at an exact place of the real command, in whichever of its processes gets there.

Python imports this file at every start when its folder is on PYTHONPATH. DPO_TEST_FAULT says what goes wrong:

    {"update": 3, "micro": 2, "signal": "SIGKILL", "to": "group"}

In the third update that this process makes, before its second backward pass (0: before the first forward pass), the
signal is sent to this process ("self"), its parent or its whole group. With "sync" instead of "update" and "micro",
it is the n-th file or folder that checkpoints sync to the disk; with "evaluation", after the n-th evaluation; with
"import", right after a module of this name was imported. "rank" names the rank that does it, by default 0. "error" in
place of a signal is an error of the user's, raised there.
"""

import atexit
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time

_FAULT = json.loads(os.environ.get("DPO_TEST_FAULT", "null"))


def _strike():
    if _FAULT["signal"] == "error":
        from dpo_cli.errors import DataError

        atexit.register(time.sleep, 1.0)  # a large process takes its time to end
        raise DataError("only this rank knows")
    number = getattr(signal, _FAULT["signal"])
    match _FAULT["to"]:
        case "self":
            os.kill(os.getpid(), number)
        case "parent":
            os.kill(os.getppid(), number)
            time.sleep(1.0)  # until it has passed it on
        case "group":
            os.killpg(0, number)


def _in_updates(module):
    original, made = module.train_step, 0

    def train_step(engine, *arguments):
        nonlocal made
        made += 1
        if made == _FAULT["update"]:
            if _FAULT["micro"] == 0:
                _strike()
            _in_backward(engine)
        return original(engine, *arguments)

    module.train_step = train_step


def _in_backward(engine):
    original, made = engine.backward, 0

    def backward(loss, *, last):
        nonlocal made
        made += 1
        if made == _FAULT["micro"]:
            _strike()
        original(loss, last=last)

    engine.backward = backward


def _in_saves(module):
    original, made = module._sync, 0

    def sync(path):
        nonlocal made
        original(path)
        made += 1
        if made == _FAULT["sync"]:
            _strike()

    module._sync = sync


def _in_evaluations(module):
    original, made = module.evaluate_preferences, 0

    def evaluate_preferences(*arguments, **options):
        nonlocal made
        found = original(*arguments, **options)
        made += 1
        if made == _FAULT["evaluation"]:
            _strike()
        return found

    module.evaluate_preferences = evaluate_preferences


class _After(importlib.abc.MetaPathFinder):
    """Changes a module right after it was imported."""

    def __init__(self, name, change):
        self._name, self._change = name, change

    def find_spec(self, name, path, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            self._change(module)

        spec.loader.exec_module = exec_module
        return spec


if _FAULT and os.environ.get("RANK", "0") == str(_FAULT.get("rank", 0)):
    match _FAULT:
        case {"sync": _}:
            _after = _After("dpo_cli.training.checkpoint", _in_saves)
        case {"evaluation": _}:
            _after = _After("dpo_cli.commands.hooks", _in_evaluations)
        case {"import": _module}:
            _after = _After(_module, lambda module: _strike())
        case _:
            _after = _After("dpo_cli.training.loop", _in_updates)
    sys.meta_path.insert(0, _after)
