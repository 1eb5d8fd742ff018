"""The usual run by each launcher: the same run, and one dead rank ends all of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from helpers import hosts, slurm
from helpers.hosts import Hosts, two_hosts
from helpers.runs import Ended, Place, assert_same_curve, record
from helpers.slurm import Slurm, one_node

pytestmark = pytest.mark.slow


def environment(place: Place, **changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "DPO", "HF_"))}
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    return {**kept, **own, "DPO_CACHE": str(place.root / "cache"), **changes}


def words(place: Place, run_dir: Path, *more: str) -> list[str]:
    given = {**place.arguments(), "run_dir": run_dir}
    return ["train", *(f"{key}={'null' if value is None else value}" for key, value in given.items()), *more]


def start(command: Sequence[str], variables: Mapping[str, str], cwd: Path, said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as log:
        return subprocess.Popen(command, env=variables, cwd=cwd, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], said: Path, seconds: float = 300) -> Ended:
    """To its end; nothing of it is left running."""
    try:
        process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Ended(process.returncode, "", said.read_text())


def wait_for_metrics(run_dir: Path, process: subprocess.Popen[bytes], said: Path) -> None:
    """Until there is a line of an update."""
    deadline = time.monotonic() + 200
    while not (run_dir / "metrics.jsonl").exists() or '"loss"' not in (run_dir / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, said.read_text()
        time.sleep(0.05)


def ranks_of(run_dir: Path, rank: int) -> list[int]:
    """Processes of this rank of the run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            arguments = (folder / "cmdline").read_text()
        except OSError:
            continue
        if f"RANK={rank}".encode() in variables and "_rank" in arguments and str(run_dir.parent) in arguments:
            found.append(int(folder.name))
    return found


def test_torchrun_makes_the_same_run(place: Place, whole: Path, tmp_path: Path) -> None:
    run_dir, said = tmp_path / "run", tmp_path / "said"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dpo_cli"]
    command = [*torchrun, *words(place, run_dir, "launch=torchrun")]
    ended = finish(start(command, environment(place), tmp_path, said), said)
    assert ended.code == 0, ended.err
    assert_same_curve(run_dir, whole, 1e-5)
    assert len(list(tmp_path.glob("run*"))) == 1
    assert ended.err.count("12 updates of 6 pairs") == 1


# -- two machines


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := hosts.why_not():
        pytest.skip(f"two hosts on one machine: {reason}")
    with two_hosts(tmp_path_factory.mktemp("net") / "hosts") as found:
        yield found


def on_two_hosts(two: Hosts, place: Place, run_dir: Path, said: Path) -> subprocess.Popen[bytes]:
    hostfile = run_dir.parent / "hostfile"
    hostfile.write_text("one slots=1\ntwo slots=1\n")
    variables = environment(
        place, PATH=two.path, GLOO_SOCKET_IFNAME="eth0", HF_TOKEN="hidden", PYTHONPATH=os.pathsep.join(sys.path)
    )
    command = words(place, run_dir, "launch=hostfile", f"launch.hostfile={hostfile}")
    return start(two.on_first(sys.executable, "-m", "dpo_cli", *command), variables, run_dir.parent, said)


def test_two_hosts_make_the_same_run(place: Place, whole: Path, two: Hosts, tmp_path: Path) -> None:
    run_dir, said = tmp_path / "run", tmp_path / "said"
    process = on_two_hosts(two, place, run_dir, said)
    wait_for_metrics(run_dir, process, said)
    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.parent.exists()]
    assert not any(b"hidden" in line for line in lines)
    assert any(b"_rank" in line for line in lines)
    passed = [(file.read_text(), oct(file.parent.stat().st_mode)) for file in tmp_path.glob(".launch-*/environ*")]
    assert len(passed) == 1
    assert "GLOO_SOCKET_IFNAME" in passed[0][0]
    assert "hidden" not in passed[0][0]
    assert passed[0][1].endswith("700")
    ended = finish(process, said)
    assert ended.code == 0, ended.err
    assert_same_curve(run_dir, whole, 1e-5)
    assert ended.err.count("12 updates of 6 pairs") == 1
    assert "launch.py" not in ended.err
    assert not list(tmp_path.glob(".launch-*"))


def test_a_dead_rank_ends_all_hosts(place: Place, two: Hosts, tmp_path: Path) -> None:
    run_dir, said = tmp_path / "run", tmp_path / "said"
    process = on_two_hosts(two, place, run_dir, said)
    wait_for_metrics(run_dir, process, said)
    (victim,) = ranks_of(run_dir, 1)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    ended = finish(process, said, 60)
    assert time.monotonic() - began < 60
    assert ended.code == 70, ended.err
    (first,) = re.findall(r"^dpo: .*", ended.err, flags=re.MULTILINE)
    assert re.match(r"dpo: rank 1 on \S+ ended without a word \(on two one died of signal 9", first)
    assert "Traceback" not in ended.err
    assert ranks_of(run_dir, 0) == ranks_of(run_dir, 1) == []
    assert not list(tmp_path.glob(".launch-*"))


def test_a_host_that_can_not_be_used_is_named(place: Place, two: Hosts, tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("one slots=1\nthree slots=1\n")
    said = tmp_path / "said"
    command = words(place, tmp_path / "run", "launch=hostfile", f"launch.hostfile={hostfile}")
    process = start(
        two.on_first(sys.executable, "-m", "dpo_cli", *command), environment(place, PATH=two.path), tmp_path, said
    )
    ended = finish(process, said)
    assert ended.code == 2
    assert re.fullmatch(r"dpo: host three can not be used over ssh: .*resolve hostname three.*\n", ended.err)


# -- Slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := slurm.why_not():
        pytest.skip(f"a Slurm of one node: {reason}")
    with one_node(tmp_path_factory.mktemp("cluster") / "slurm") as found:
        yield found


def test_a_job_of_slurms_is_preempted_and_goes_on_by_itself(
    place: Place, whole: Path, cluster: Slurm, tmp_path: Path
) -> None:
    """The signal is the one that Slurm sends near the time limit, sent by hand."""
    run_dir, said = tmp_path / "run", tmp_path / "said"
    more = ["launch=slurm", "launch.processes_per_node=2", "launch.cpus_per_process=1", "launch.time=0:10:00"]
    variables = environment(place, **cluster.environment, PYTHONPATH=os.pathsep.join(sys.path))
    process = start([sys.executable, "-m", "dpo_cli", *words(place, run_dir, *more)], variables, tmp_path, said)
    ended = finish(process, said)
    assert ended.code == 0, ended.err
    job = re.search(r"submitted as job (\d+); its output: (\S+)", ended.err)
    log = Path(job[2])
    assert log == run_dir / "slurm" / f"{job[1]}.log"
    deadline = time.monotonic() + 200
    while not (run_dir / "metrics.jsonl").exists() or '"loss"' not in (run_dir / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    cluster.ask("scancel", "--batch", "--signal=USR2", job[1])
    cluster.wait(job[1], "PENDING")
    assert record(run_dir)["status"] == "preempted"
    cluster.start_now(job[1])
    assert cluster.wait(job[1], "COMPLETED", "FAILED", seconds=240) == "COMPLETED", log.read_text()
    assert "going on from" in log.read_text()
    assert_same_curve(run_dir, whole, 1e-5)
