"""Faults on purpose, at named places: how a run's promises about kills, full disks and signals are tried out.

``DPO_FAULT=POINT[:NUMBER][@RANK]=ACTION`` has one thing go wrong, once, in the process of that rank (0 if none is
named):

    DPO_FAULT=before-rename:4=kill        killed when the checkpoint of update 4 is written but not yet in its place
    DPO_FAULT=micro-batch:7.2@1=nan       the log-probs of rank 1's second micro-batch of update 7 are no numbers

Without the variable nothing here does anything; with it, the command says so before it begins.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from dpo_cli.errors import DataError, DpoError

VARIABLE = "DPO_FAULT"

POINTS = {
    "start": "before anything is loaded",
    "load": "before a model is loaded",
    "reference": "micro-batch n of the reference pass is scored, and not kept yet",
    "chunk": "chunk n of the reference's log-probs is kept",
    "update": "before update n",
    "micro-batch": "between forward and backward pass of micro-batch m of update n, as n.m",
    "evaluation": "before the held-out rows are scored after update n",
    "mid-save": "of the checkpoint of update n the weights are written, and nothing else",
    "before-rename": "the checkpoint of update n is written, and not yet in its place",
    "after-rename": "the checkpoint of update n is in its place, which the disk may not know yet",
    "delete": "the old checkpoint of update n has lost its name, and is still there",
    "final": "the trained model is written, and not yet in its place",
}
_SIGNALS = {
    name: getattr(signal, f"SIG{name.upper()}") for name in ("kill", "stop", "term", "int", "usr1", "usr2", "hup")
}
ACTIONS = {
    **{name: f"{number.name} to this process" for name, number in _SIGNALS.items()},
    **{f"{name}-parent": f"{number.name} to its parent" for name, number in _SIGNALS.items()},
    **{f"{name}-group": f"{number.name} to its process group" for name, number in _SIGNALS.items()},
    "raise": "an error that nobody expected",
    "refuse": "an error of the user's",
    "hang": "it sleeps for good",
    "enospc": "the disk is full",
    "nan": "log-probs are no numbers (micro-batch only)",
    "nan-gradient": "log-probs are numbers, and their gradients are not (micro-batch only)",
    "spike": "log-probs are -100 times what they are (micro-batch only)",
}
_OF_NUMBERS = ("nan", "nan-gradient", "spike")


@dataclass
class Fault:
    """What goes wrong, and where."""

    point: str
    number: str | None
    """None = the first time."""
    rank: int
    action: str
    happened: bool = False


_fault: Fault | None = None
_text: str | None = None
_update = 0
"""The update that is being made, which a micro-batch belongs to."""


def parse(text: str) -> Fault:
    """The fault that ``DPO_FAULT`` describes.

    Raises:
        DpoError: if it describes none.
    """
    found = re.fullmatch(r"([a-z-]+)(?::(\d+(?:\.\d+)?))?(?:@(\d+))?=([a-z0-9-]+)", text)
    if found is None:
        raise DpoError(f"{VARIABLE}={text}: expected POINT[:NUMBER][@RANK]=ACTION, such as before-rename:4=kill")
    point, number, rank, action = found.groups()
    for given, known, what in ((point, POINTS, "point"), (action, ACTIONS, "action")):
        if given not in known:
            raise DpoError(f"{VARIABLE}={text}: there is no {what} {given}; expected one of {', '.join(known)}")
    if action in _OF_NUMBERS and point != "micro-batch":
        raise DpoError(f"{VARIABLE}={text}: only a micro-batch can have {action}")
    return Fault(point, number, int(rank or 0), action)


def announce() -> None:
    """Say what will go wrong, if something is to; nobody should have that on without knowing.

    Raises:
        DpoError: if ``DPO_FAULT`` is not understood.
    """
    if (fault := _current()) is not None:
        where = f"{fault.point}{f' {fault.number}' if fault.number else ''} on rank {fault.rank}"
        print(f"dpo: {VARIABLE} is set: {fault.action} at {where}", file=sys.stderr)


def reached(point: str, number: int | str | None = None) -> str | None:
    """Be at a point: if the fault is here, it happens.

    Returns:
        Of the faults that are numbers, which it is; None = nothing of the kind.
    """
    global _update
    if VARIABLE not in os.environ:
        return None
    if point == "update":
        _update = int(number or 0)
    if point == "micro-batch":
        number = f"{_update}.{number}"
    fault = _current()
    if (
        fault is None
        or fault.happened
        or fault.point != point
        or fault.number not in (None, str(number))
        or str(fault.rank) != os.environ.get("RANK", "0")
    ):
        return None
    fault.happened = True
    return _strike(fault)


def spoiled(logps: Any, number: int) -> Any:
    """Log-probs of the update's micro-batch of this number; without a fault the same object."""
    match reached("micro-batch", number):
        case "nan":
            return logps * float("nan")
        case "nan-gradient":
            return logps + (logps * 0.0).sqrt()  # 0, whose slope is 0 x infinity
        case "spike":
            return logps * -100.0
        case _:
            return logps


def _current() -> Fault | None:
    global _fault, _text
    text = os.environ.get(VARIABLE)
    if text != _text:
        _fault, _text = None if text is None else parse(text), text
    return _fault


def _strike(fault: Fault) -> str | None:
    name, _, target = fault.action.partition("-")
    if name in _SIGNALS:
        match target:
            case "":
                os.kill(os.getpid(), _SIGNALS[name])
            case "parent":
                os.kill(os.getppid(), _SIGNALS[name])
                time.sleep(1.0)  # until it has passed it on
            case "group":
                os.killpg(0, _SIGNALS[name])
        return None
    where = f"{fault.point}{f' {fault.number}' if fault.number else ''}, as {VARIABLE} wants"
    match fault.action:
        case "raise":
            raise RuntimeError(f"an error at {where}")
        case "refuse":
            raise DataError(f"refused at {where}")
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "hang":
            while True:
                time.sleep(3600)
        case _:
            return fault.action
