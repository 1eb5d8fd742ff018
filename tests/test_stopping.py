"""Signals that ask for an end, also where a library is in the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from dpo_cli import stopping
from dpo_cli.errors import ExitCode, Preempted
from dpo_cli.stopping import SIGNALS, stop_on_signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_with_nothing_to_save_it_ends_at_once(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted) as found, stop_on_signals():
        send(number)
    assert found.value.exit_code == ExitCode.PREEMPTED
    assert signal.getsignal(number) is before


def test_with_something_to_save_it_is_asked_for_and_a_second_signal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_on_signals() as stop, stop.waiting():
        send(signal.SIGUSR2)
        assert stop.requested
        send(signal.SIGTERM)  # to the whole group, and once more by the parent: one request
        monkeypatch.setattr(stopping, "ONE_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def makes_another_error_of_it() -> None:
    with stop_on_signals():
        try:
            send(signal.SIGTERM)
        except Exception as error:
            raise ImportError("cannot import this module") from error


def drops_it() -> None:
    with stop_on_signals():
        with suppress(Exception):
            send(signal.SIGTERM)
        with stop_on_signals():
            pytest.fail("it goes on")


@pytest.mark.parametrize("library", [makes_another_error_of_it, drops_it])
def test_a_library_in_the_way_changes_nothing(library: Callable[[], None]) -> None:
    with pytest.raises(Preempted):
        library()


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        1 / 0  # noqa: B018
