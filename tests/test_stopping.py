"""Signals that ask for an end, also where a library is in the way."""

from __future__ import annotations

import os
import pty
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from dpo_cli import stopping
from dpo_cli.errors import DpoError, ExitCode, Preempted
from dpo_cli.stopping import SIGNALS, stop_on_signals, unwind_on_signals


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


def is_taken_for_a_broken_model() -> None:
    with stop_on_signals():
        try:
            send(signal.SIGTERM)
        except Exception as error:  # what transformers makes of it is put into words
            raise DpoError("model.path=m is not a model") from error


def drops_it() -> None:
    with stop_on_signals():
        with suppress(Exception):
            send(signal.SIGTERM)
        with stop_on_signals():
            pytest.fail("it goes on")


@pytest.mark.parametrize("library", [makes_another_error_of_it, is_taken_for_a_broken_model, drops_it])
def test_a_library_in_the_way_changes_nothing(library: Callable[[], None]) -> None:
    with pytest.raises(Preempted):
        library()


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        1 / 0  # noqa: B018


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_with_nothing_to_save_is_unwound(number: int) -> None:
    before = signal.getsignal(number)
    removed: list[str] = []

    def command() -> None:
        with unwind_on_signals(), ExitStack() as stack:
            stack.callback(removed.append, "what was half written")
            send(number)

    with pytest.raises(SystemExit) as found:
        command()
    assert (found.value.code, removed) == (128 + number, ["what was half written"])
    assert signal.getsignal(number) is before


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            send(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_is_not_written_to() -> None:
    """A process on a terminal of its own, which is closed before it has said its last word."""
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if the tests run under nohup
        with suppress(BaseException), stop_on_signals() as stop, stop.waiting():
            os.write(1, b"ready")
            while not stop.requested:
                time.sleep(0.01)
            time.sleep(0.1)
            os.write(1, b"saved")
            code = 75
        os._exit(code)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
