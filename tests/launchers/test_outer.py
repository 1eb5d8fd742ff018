"""Who this process is by an outer launcher's variables, and an error said once."""

from __future__ import annotations

import os

import pytest

from dpo_cli.errors import DataError, DpoError, ExitCode, LostConnection
from dpo_cli.launchers import outer
from dpo_cli.launchers.outer import Outer, adopt, check_none, find, said_once

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "4",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-vm-123@1",
}


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """An environment of these variables, and none of a launcher beside."""

    def set_to(variables: dict[str, str]) -> None:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_")) or name in TORCHRUN:
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_each_launchers_variables_are_read() -> None:
    assert find(TORCHRUN) == Outer("torchrun", 5, 8, 1, 4)
    assert find(SRUN) == Outer("srun", 3, 4, 3, 4)
    assert find(MPIRUN) == Outer("mpirun", 1, 2, 1, 2)
    assert find({"PATH": "/bin"}) is None


def test_a_batch_script_is_not_one_of_its_ranks() -> None:
    """As Slurm sets them there: what counts is a step's number of tasks."""
    assert find({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77"}) is None


def test_torchrun_inside_srun_wins() -> None:
    assert find({**SRUN, **TORCHRUN}) == find(TORCHRUN)


@pytest.mark.parametrize(("tasks", "node", "expected"), [("4(x2),3", "2", 3), ("4(x2),3", "1", 4), ("2", "0", 2)])
def test_slurms_list_of_tasks_is_read(tasks: str, node: str, expected: int) -> None:
    found = find({**SRUN, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})
    assert found is not None
    assert found.local_world == expected


def test_ranks_of_one_machine_meet_there() -> None:
    others = [adopt({**SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}) for rank in range(4)]
    assert {found["MASTER_ADDR"] for found in others} == {"127.0.0.1"}
    assert len({found["MASTER_PORT"] for found in others}) == 1
    assert [found["RANK"] for found in others] == ["0", "1", "2", "3"]
    assert {found["WORLD_SIZE"] for found in others} == {"4"}
    assert adopt({**SRUN, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != others[0]["MASTER_PORT"]
    assert adopt(MPIRUN)["MASTER_ADDR"] == "127.0.0.1"


def test_what_is_set_already_stays() -> None:
    found = adopt(TORCHRUN)
    assert {name: found[name] for name in TORCHRUN} == TORCHRUN
    assert "GLOO_SOCKET_IFNAME" not in found


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DpoError, match="no launcher has started"):
        adopt({})
    with pytest.raises(DpoError, match=r"MASTER_ADDR is not set.*mpirun -x MASTER_ADDR=HOST"):
        adopt({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    with pytest.raises(DpoError, match="MASTER_PORT is not set"):
        adopt({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"})
    with pytest.raises(DpoError, match="RANK=8 in the environment, but WORLD_SIZE=8"):
        find({**TORCHRUN, "RANK": "8"})
    with pytest.raises(DpoError, match="RANK=first in the environment: expected a number"):
        find({**TORCHRUN, "RANK": "first"})


def test_processes_are_not_started_by_each_of_several(only) -> None:
    only(TORCHRUN)
    with pytest.raises(DpoError, match=r"torchrun.* has started 8 .*add launch=torchrun"):
        check_none("launch=local")
    only({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"})
    check_none("launch=local")
    only({})
    check_none("launch=local")


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(outer.time, "sleep", seconds.append)
    monkeypatch.setattr(outer.signal, "signal", lambda number, handler: None)
    return seconds


def test_rank_0_speaks_first(only, waited: list[float]) -> None:
    only({**TORCHRUN, "RANK": "0"})
    with pytest.raises(DataError, match=r"^no rows$"), said_once():
        raise DataError("no rows")
    assert waited == []
    only({**TORCHRUN, "RANK": "3"})
    with pytest.raises(DpoError, match=r"^rank 3 on .*: no rows$") as found, said_once():
        raise DataError("no rows")
    assert found.value.exit_code == ExitCode.USAGE
    assert len(waited) == 1


@pytest.mark.parametrize("rank", ["0", "3"])
def test_the_rank_that_lost_its_connection_speaks_last(rank: str, only, waited: list[float]) -> None:
    only({**TORCHRUN, "RANK": rank})
    with pytest.raises(LostConnection, match="lost the connection to another rank"), said_once():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:60310")
    assert waited == [outer._SECONDS_FOR_CAUSE]
    assert outer._SECONDS_FOR_CAUSE > outer._SECONDS_FOR_FIRST


def test_alone_nothing_is_waited_for(only, waited: list[float]) -> None:
    only({})
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"), said_once():
        raise RuntimeError("Connection closed by peer")
    assert waited == []


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({"WORLD_SIZE": "4"}, ["WORLD_SIZE"]),
        ({"RANK": "1", "LOCAL_RANK": "abc"}, ["RANK", "LOCAL_RANK"]),
        ({"RANK": "3", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ["RANK"]),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, []),
        ({}, []),
    ],
)
def test_leftovers_of_other_launchers_are_taken_out(environment: dict[str, str], left: list[str]) -> None:
    before = {**environment, "HOME": "/home"}
    after = dict(before)
    assert outer.drop_leftovers(after) == left
    assert after == {name: value for name, value in before.items() if name not in left}
