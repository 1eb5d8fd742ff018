"""Processes that do not get on are ended in time, and no others."""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_cli import liveness
from dpo_cli.launchers import ranks

RANK = """
import os, signal, sys, threading, time
from pathlib import Path
from dpo_cli import liveness

def wait_for_the_others():
    time.sleep(60)

folder, updates, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
liveness._AT_LEAST = 0.6
liveness.show_in(folder, int(os.environ["RANK"]))
if what != "early":
    liveness.put_stacks_in(folder / "run")
for _ in range(updates):
    with liveness.once_more("update"):
        time.sleep(0.01)
threading.Thread(target=time.sleep, args=[60], daemon=True).start()
to_blame = os.environ["RANK"] == "1"
if what == "saves" and to_blame:
    time.sleep(2)  # between two updates: the other one waits in the next
    sys.exit()
with liveness.once_more("update"):
    if what == "saves":
        time.sleep(2.2)
        sys.exit()
    if to_blame:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_the_others()
"""


def run(tmp_path: Path, updates: int, what: str, timeout: ranks.HangTimeout = "auto") -> tuple[int, float]:
    """Exit code and seconds of two ranks, which make updates, and then do ``what``."""
    (tmp_path / "run").mkdir()
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    began = time.monotonic()
    code = ranks.run([sys.executable, str(script), str(tmp_path), str(updates), what], 2, tmp_path, timeout)
    return code, time.monotonic() - began


@pytest.fixture(autouse=True)
def _finds_dpo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(liveness.__file__).parents[1]))
    monkeypatch.setattr(liveness, "LONGEST", 30.0)


def test_a_rank_that_is_stopped_in_an_update_is_seen_by_how_long_updates_took(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, seconds = run(tmp_path, 20, "stops")
    said = capfd.readouterr().err
    assert code == 70
    assert seconds < 15
    assert re.search(
        r"^rank 1 was stopped by a signal; it stands at\n  File .*rank.py\", line \d+ in <module>\n", said, re.M
    )
    assert re.search(r"^rank 0 waits at File .*rank.py\", line \d+ in wait_for_the_others\n", said, re.M)
    assert "(launch.hang_timeout=auto): rank 1 was stopped by a signal; all were ended" in said
    assert f"their stacks are in {tmp_path / 'run' / 'stacks.txt'}, and the same command" in said
    stacks = (tmp_path / "run" / "stacks.txt").read_text()
    assert "rank 1 was stopped by a signal" in stacks.splitlines()[0]
    first, second = stacks.split("\nrank 0, whose last sign was ")[1].split("\nrank 1, whose last sign was ")
    assert "in wait_for_the_others" in first
    assert "in <module>" in second
    assert "in wait_for_the_others" not in second


@pytest.mark.parametrize("what", ["early", "stops"])
def test_with_fewer_updates_before_nothing_is_known(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(liveness, "LONGEST", 2.5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, seconds = run(tmp_path, 19, what)
    assert code == 70
    assert seconds > 2.5
    capfd.readouterr()
    found = [path.name for path in tmp_path.rglob("*.txt")]
    assert found == ["stacks.txt"] if what == "stops" else found[0].startswith("dpo-stacks-")


def test_a_rank_that_waits_for_one_that_is_between_updates_does_not_hang(tmp_path: Path) -> None:
    assert run(tmp_path, 20, "saves")[0] == 0


def test_a_number_holds_everywhere(tmp_path: Path) -> None:
    code, seconds = run(tmp_path, 30, "stops", 2.5)
    assert code == 70
    assert seconds > 2.5


# -- without processes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, which goes on when it is told to."""
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds, monotonic_ns=lambda: int(now.seconds * 1e9))
    monkeypatch.setattr(liveness, "time", fake)
    monkeypatch.setattr(ranks, "time", fake)
    return now


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[liveness._Signs]:
    """As rank 0."""
    handle = os.open(tmp_path / "alive-0", os.O_CREAT | os.O_WRONLY)
    found = liveness._Signs(tmp_path, handle)
    monkeypatch.setattr(liveness, "_signs", found)
    yield found
    os.close(handle)


def silence(folder: Path) -> float:
    sign = liveness.last_sign(folder, 0)
    assert sign is not None
    return sign.silence


@pytest.mark.parametrize("unit", [1.0, 100.0])
@pytest.mark.usefixtures("signs")
def test_how_long_a_rank_may_be_silent(clock: SimpleNamespace, tmp_path: Path, unit: float) -> None:
    longest: list[float] = []
    for number in range(130):
        clock.seconds += 5000  # what is before it does not count
        with liveness.once_more("update"):
            known = max(180.0, 20 * statistics.median(longest[-100:])) if number >= 20 else 0.0
            assert silence(tmp_path) == pytest.approx(known)
            parts = [unit * (1 + number % 7), unit * (2 + number % 11), unit]
            for part in parts:
                clock.seconds += part
                liveness.beat()
                assert silence(tmp_path) == pytest.approx(known)
            clock.seconds += unit * (number % 13)
            longest.append(max(*parts, unit * (number % 13)))
        assert silence(tmp_path) == 0
        with liveness.once_more("another thing"):
            assert (silence(tmp_path) > 0) == (number >= 20)
    assert known > 180 or unit == 1.0


def test_what_fails_is_no_measure(clock: SimpleNamespace, tmp_path: Path, signs: liveness._Signs) -> None:
    with pytest.raises(KeyError), liveness.once_more("update"):
        raise KeyError
    assert not signs.known["update"]
    assert silence(tmp_path) == 0


def test_the_time_in_which_the_job_was_stopped_does_not_count(
    clock: SimpleNamespace, tmp_path: Path, signs: liveness._Signs
) -> None:
    watch = ranks._Watch([SimpleNamespace(pid=-1)], tmp_path, 10.0, [])  # type: ignore[list-item]
    signs.give()
    assert not watch._hangs()
    clock.seconds += 5000
    assert not watch._hangs()
    looks = 0
    while not watch._hangs():
        clock.seconds += 0.5
        looks += 1
    assert 17 <= looks <= 20


@pytest.mark.usefixtures("clock")
def test_a_rank_that_waits_for_a_disk_is_given_longer(
    tmp_path: Path, signs: liveness._Signs, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ranks._Watch([SimpleNamespace(pid=-1)], tmp_path, "auto", [])  # type: ignore[list-item]
    signs.silence = 7.0
    signs.give()
    assert not watch._hangs()
    assert watch._allowed() == 7.0
    monkeypatch.setattr(liveness, "waits_for_disk", lambda pid: True)
    assert watch._allowed() == 30.0
    signs.silence = 70.0
    signs.give()
    assert not watch._hangs()
    assert watch._allowed() == 70.0
