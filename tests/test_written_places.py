"""Folders that can't be written to, files that are all there or not at all, and runs that have their folder alone."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.run_folders import make_run
from helpers.unprivileged import permissions_count

from dpo_cli.cli import describe, main
from dpo_cli.commands.caches import cache_folder
from dpo_cli.errors import DpoError
from dpo_cli.run_folder import RunRecord, differing_versions, held, identity, this_process
from dpo_cli.whole_folder import in_place_of, leftovers, why_not_writable, write_file


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that can't be written to."""
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "config.yaml").write_text("as it was")
    folder.chmod(0o555)
    with permissions_count():
        yield folder
    folder.chmod(0o755)


def test_what_can_be_written_to(tmp_path: Path) -> None:
    assert why_not_writable(tmp_path) == ""
    assert why_not_writable(tmp_path / "new" / "newer") == ""
    assert list(tmp_path.iterdir()) == []


def test_what_can_not(tmp_path: Path, closed: Path) -> None:
    assert why_not_writable(closed) == "Permission denied"
    assert why_not_writable(closed / "new" / "newer") == "Permission denied"
    assert why_not_writable(closed / "config.yaml" / "new") == f"{closed / 'config.yaml'} is a file"
    (tmp_path / "link").symlink_to("nowhere")
    assert why_not_writable(tmp_path / "link") == f"{tmp_path / 'link'} is a link to nothing"
    assert why_not_writable(tmp_path / ("x" * 300)) == "File name too long"


ASKED = ["model.path=nothing", "data.path=nothing.jsonl"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", *ASKED, "run_dir={}/run"], "run_dir: {}/run can't be written to (Permission denied): choose"),
        (["train", *ASKED, "run_dir={}", "resume=auto"], "run_dir: {} can't be written to (Permission denied)"),
        (["eval", *ASKED, "output={}"], "output: {} can't be written to (Permission denied): name another folder"),
        (["score", "model.path=nothing", "nothing.jsonl", "{}/out.jsonl"], "output: {} can't be written to"),
        (["inspect", *ASKED, "--html={}/page.html"], "--html: {} can't be written to"),
        (["report", "{}"], "dpo report: {} can't be written to (Permission denied): name another file"),
        (["merge", "nothing", "{}/merged"], "merge: {} can't be written to"),
    ],
)
def test_what_can_not_be_written_to_is_said_before_anything_is_done(
    words: list[str], says: str, closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(closed) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dpo: {says.format(closed)}")
    assert said.count("\n") == 1
    assert [path.name for path in closed.iterdir()] == ["config.yaml"]
    assert (closed / "config.yaml").read_text() == "as it was"


def test_a_cache_that_can_not_be_written_to(closed: Path) -> None:
    with pytest.raises(DpoError, match="name another with DPO_CACHE"):
        cache_folder(str(closed / "cache"))


def test_a_file_is_all_there_or_as_it_was(tmp_path: Path, closed: Path) -> None:
    write_file(tmp_path / "a", "é")
    write_file(tmp_path / "a", b"\xff", lasting=True)
    assert (tmp_path / "a").read_bytes() == b"\xff"
    with pytest.raises(PermissionError):
        write_file(closed / "config.yaml", "half")
    assert (closed / "config.yaml").read_text() == "as it was"
    assert leftovers(tmp_path) == leftovers(closed) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as refused:
        write_file(tmp_path / "run.json", "{}", lasting=True)
    assert describe(refused.value).startswith(f"No space left on device: {tmp_path / 'run.json'} (")
    assert not list(tmp_path.iterdir())


def test_what_was_not_finished_is_known_by_its_writer(tmp_path: Path) -> None:
    mine, others = tmp_path / ".a.txt..1f.partial", tmp_path / ".a.txt.3-of-16.2e.partial"
    mine.touch()
    others.touch()
    assert leftovers(tmp_path) == [mine]
    assert leftovers(tmp_path, "b*") == []
    assert leftovers(tmp_path, "a*", "3-of-16") == [others]


def failing_rename(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    ordinary = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if to == target and path.name.startswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return ordinary(path, to)

    monkeypatch.setattr(Path, "rename", rename)


def test_a_folder_is_replaced_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, partial = tmp_path / "final", tmp_path / ".partial-final"
    for text in ("first", "second"):
        with in_place_of(folder, partial) as place:
            (place / "a").write_text(text)
    assert (folder / "a").read_text() == "second"
    failing_rename(monkeypatch, folder)
    with pytest.raises(OSError, match="Input/output error"), in_place_of(folder, partial) as place:
        (place / "a").write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (folder / "a").read_text() == "second"


def test_two_do_not_write_one_folder(tmp_path: Path) -> None:
    folder, partial = tmp_path / "merged", tmp_path / ".partial-merged"
    partial.mkdir()
    (partial / "leftover").touch()  # of one that was killed
    with in_place_of(folder, partial) as place:
        (place / "a").write_text("first")
        with pytest.raises(BlockingIOError, match="another process is writing it"), in_place_of(folder, partial):
            pass
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_somebody_else_put_there_meanwhile_stays(tmp_path: Path) -> None:
    folder, partial = tmp_path / "merged", tmp_path / ".partial-merged"
    folder.mkdir()
    with in_place_of(folder, partial, replace=False) as place:
        (place / "a").write_text("mine")
    assert (folder / "a").read_text() == "mine"
    with pytest.raises(OSError, match="not empty"), in_place_of(folder, partial, replace=False) as place:
        (place / "a").write_text("other")
    assert (folder / "a").read_text() == "mine"


def test_a_run_has_its_folder_alone(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(DpoError, match="another run is at work in it: wait"), held(tmp_path):
        pass
    with held(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_lets_go_of_its_folder(tmp_path: Path) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with held(tmp_path):
            os.write(tell, b"held")
            signal.pause()
    assert os.read(told, 4) == b"held"
    try:
        RunRecord(tmp_path).update(status="running", process={**this_process(), "pid": 0})
        with pytest.raises(DpoError, match="at work in it: wait"), held(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
    with held(tmp_path):
        pass


def test_a_copy_of_a_run_at_work_is_free(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with held(tmp_path):
        RunRecord(tmp_path / "copy").update(status="running", process=this_process())
        with held(tmp_path / "copy"):
            pass


def test_a_run_is_seen_by_its_record_where_folders_have_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    parent = os.getppid()
    fields = Path("/proc", str(parent), "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    record = RunRecord(tmp_path)
    record.update(status="running", process={**this_process(), "pid": parent, "began": fields[19]})
    with pytest.raises(DpoError, match=rf"at work in it \(process {parent} on "), held(tmp_path):
        pass
    record.update(status="done")
    with held(tmp_path):
        pass


def test_a_cache_without_locks_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(DpoError, match=r"can't be written to \(its file system keeps no locks: No locks .* DPO_CACHE"):
        cache_folder(str(tmp_path / "cache"))
    assert not list(tmp_path.iterdir())


def test_versions_that_differ_are_named() -> None:
    now = identity()["versions"]
    assert differing_versions(now) == differing_versions({}) == ""
    assert differing_versions({**now, "torch": "1.0", "gone": "2"}) == f"torch {now['torch']}, not 1.0"


def test_what_an_output_has_no_letters_for_is_written_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoding, words in (
        ("ascii", ["--help"]),
        ("utf-8", ["report", os.fsdecode(os.fsencode(tmp_path) + b"/\xff")]),
    ):
        if words[0] == "report":
            make_run(Path(words[1]), steps=2)
        output = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, encoding=encoding, errors="strict"))
        assert main(words) == 0
        sys.stdout.flush()
        assert (b"usage: dpo" if encoding == "ascii" else b"\\udcff") in output.getvalue()
