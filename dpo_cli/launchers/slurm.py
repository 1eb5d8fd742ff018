"""``launch=slurm``: a batch script for a run, and its submission.

The script is data of the configuration in fixed lines of ours; nothing of a configuration is shell code in it. When the
time limit is near, Slurm signals the script, which has the ranks save and puts the job back into the queue; after a
preemption or a failed node Slurm does that itself. The job's configuration says resume=auto, so that it goes on.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.config import EvaluateConfig, TrainConfig
from dpo_cli.config_launch import SlurmConfig, TorchrunConfig
from dpo_cli.errors import DpoError, ExitCode, StorageError
from dpo_cli.run_folder import check_free, new_run_dir

_SCRIPT = """\
#!/bin/bash
{options}

# Where the ranks meet.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then MASTER_ADDR=127.0.0.1; fi
export MASTER_ADDR MASTER_PORT

# Near the time limit: all ranks save and end, and the job goes back into the queue.
limit=0
save() {{ limit=1; scancel --signal=TERM "$SLURM_JOB_ID.0"; }}
trap save USR2

cd {folder} || exit {io}
srun --kill-on-bad-exit=1{srun} {python} -m dpo_cli _rank {command} {file} &
wait $!; code=$?
# The signal ends a wait, not the job; 127: the job had ended by then.
if [ $limit = 1 ]; then wait $!; again=$?; [ $again = 127 ] || code=$again; fi
# The code is the highest of the ranks': one that had saved already may have been ended by srun.
if [ $limit = 1 ] && {{ [ $code = {preempted} ] || [ $code = 143 ]; }}; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then scontrol requeue "$SLURM_JOB_ID" && exit 0; fi
  echo "dpo: not queued again: launch.max_requeues={requeues}" >&2
fi
exit $code
"""


@dataclass(frozen=True)
class Job:
    """A script, and what became of it."""

    script: Path
    log: str
    """Where its output will be; ``%j`` is its number."""
    number: str | None
    """Given by Slurm; None = it was not submitted."""


def run(command: str, config: TrainConfig | EvaluateConfig) -> int:
    """Submit a run, and say so; returns the exit code.

    Raises:
        DpoError: if Slurm does not take it.
    """
    job = submit(command, config)
    if job.number is None:
        print(job.script.read_text(encoding="utf-8"), end="")
        print(f"dpo: not submitted; submit it with `sbatch {job.script}`", file=sys.stderr)
    else:
        print(f"submitted as job {job.number}; its output: {job.log.replace('%j', job.number)}")
    return int(ExitCode.DONE)


def submit(command: str, config: TrainConfig | EvaluateConfig) -> Job:
    """Write a run's script and configuration into its folder, and hand it to Slurm.

    Raises:
        DpoError: if there is no Slurm, or it does not take the job.
    """
    launch = config.launch
    assert isinstance(launch, SlurmConfig)
    if launch.submit and shutil.which("sbatch") is None:
        raise DpoError("launch=slurm: there is no sbatch on this machine; launch.submit=false writes the script alone")
    changes: dict[str, object] = {"launch": TorchrunConfig(name="torchrun")}
    if isinstance(config, TrainConfig) and command == "train":
        if config.run_dir is not None and config.resume == "none":
            check_free(Path(config.run_dir))
        run_dir = new_run_dir(config.loss.name) if config.run_dir is None else Path(config.run_dir)
        # A run that begins from a checkpoint elsewhere does so once; a job that is queued again goes on in its folder.
        if config.resume not in ("none", "auto"):
            raise DpoError(f"resume={config.resume}: launch=slurm goes on in run_dir by itself; expected none or auto")
        changes |= {"run_dir": str(run_dir.absolute()), "resume": "auto"}
    else:
        run_dir = new_run_dir(command)
    folder = run_dir.absolute() / "slurm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config.model_copy(update=changes).model_dump_json(), encoding="utf-8")
        file = folder / "job.sh"
        file.write_text(script(command, launch, folder, Path.cwd()), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from None
    return Job(file, log_of(folder.parent), _sbatch(file) if launch.submit else None)


def script(command: str, launch: SlurmConfig, folder: Path, cwd: Path) -> str:
    """The batch script.

    Args:
        command: ``train`` or another.
        launch: what the job asks for.
        folder: of script, configuration and output; absolute.
        cwd: where the job runs.
    """
    processes = launch.processes_per_node
    if processes == "auto":
        processes = launch.gpus_per_node or 1
    options: dict[str, object] = {
        "job-name": job_name(folder.parent),
        "dependency": "singleton",
        "nodes": launch.nodes,
        "ntasks-per-node": processes,
        "gpus-per-node": launch.gpus_per_node,
        "cpus-per-task": launch.cpus_per_process,
        "mem": launch.memory,
        "time": launch.time,
        "partition": launch.partition,
        "account": launch.account,
        "output": log_of(folder.parent),
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR2@{launch.save_before_end}" if launch.save_before_end else None,
        **launch.extra,
    }
    lines = [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={_word(str(value))}"
        for name, value in options.items()
        if value is not None and value is not False
    ]
    cpus = "" if launch.cpus_per_process is None else f" --cpus-per-task={launch.cpus_per_process}"
    return _SCRIPT.format(
        options="\n".join(lines),
        folder=shlex.quote(str(cwd)),
        srun=cpus,
        python=shlex.quote(sys.executable),
        command=command,
        file=shlex.quote(str(folder / "config.json")),
        io=int(ExitCode.IO),
        preempted=int(ExitCode.PREEMPTED),
        requeues=launch.max_requeues,
    )


def job_name(run_dir: Path) -> str:
    """Of a run's job. One at a time has it: a second one of the same folder waits, and goes on from where that ended.

    Args:
        run_dir: absolute.
    """
    digest = hashlib.sha256(str(run_dir / "slurm").encode()).hexdigest()[:8]
    return f"dpo-{re.sub(r'[^A-Za-z0-9.=-]+', '_', run_dir.name)[:60]}-{digest}"


def log_of(run_dir: Path) -> str:
    """Where a run's output will be; ``%j`` is its job's number."""
    return str(run_dir / "slurm" / "%j.log")


def _word(value: str) -> str:
    """As sbatch reads an option: quoted where it has blanks."""
    if not re.search(r"[\s\"'\\#]", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _sbatch(file: Path) -> str:
    """Submit a script; returns the job's number."""
    answer = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True)
    if answer.returncode:
        said = " ".join(answer.stderr.replace("sbatch: error: ", "").split())
        raise DpoError(f"sbatch did not take {file}: {said}")
    return answer.stdout.strip().partition(";")[0]
