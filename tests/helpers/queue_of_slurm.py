"""Slurm's commands, as far as a smart sweep needs them, over a folder: a job trains nothing and lasts a few looks.

Called by the name of one of them; DPO_TEST_QUEUE is the folder.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

FOLDER = Path(os.environ["DPO_TEST_QUEUE"])


def sbatch(script: str) -> str:
    name = re.search(r"^#SBATCH --job-name=(\S+)$", Path(script).read_text(), re.MULTILINE)
    if (FOLDER / "refuses").exists():
        sys.exit("sbatch: error: invalid partition")
    number = str(len(list(FOLDER.glob("*.job"))) + 1)
    job = {"name": name[1], "run_dir": str(Path(script).parents[1]), "looks": 0, "on_its_way": True}
    (FOLDER / f"{number}.job").write_text(json.dumps(job))
    return f"{number};cluster"


def squeue(*words: str) -> str:
    jobs = {file.stem: json.loads(file.read_text()) for file in FOLDER.glob("*.job")}
    if "-j" not in words:
        name = next(word for word in words if word.startswith("--name=")).partition("=")[2]
        return "\n".join(number for number, job in jobs.items() if job["on_its_way"] and job["name"] == name)
    number = words[words.index("-j") + 1]
    (FOLDER / "most").open("a").write(f"{sum(job['on_its_way'] for job in jobs.values())}\n")
    if (FOLDER / "signals").exists():
        (FOLDER / "signals").unlink()
        os.kill(os.getppid(), signal.SIGTERM)
    return look(number, jobs[number])


def look(number: str, job: dict) -> str:
    """The state of a job; the second look at it is the last one, unless it is told otherwise."""
    job["looks"] += 1
    if job["on_its_way"] and job["looks"] > 1:
        end(number, job, json.loads(os.environ.get("DPO_TEST_CODES", "{}")).get(number, 0))
    (FOLDER / f"{number}.job").write_text(json.dumps(job))
    if not job["on_its_way"] and int(number) % 2:  # Slurm has forgotten it, or still knows it
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    return "RUNNING" if job["on_its_way"] else "COMPLETED"


def end(number: str, job: dict, code: int | None) -> None:
    """None = without a word."""
    job["on_its_way"] = False
    if code is None:
        return
    config = json.loads(Path(job["run_dir"], "slurm", "config.json").read_text())
    status = {0: "done", 75: "preempted"}.get(code, "failed")
    final = {"eval/rewards/accuracies": 1.0 - abs(config["loss"]["beta"] - 0.2)}
    record = {"status": status, "exit_code": code, "final": final}
    Path(job["run_dir"], "run.json").write_text(json.dumps(record))


def scancel(*words: str) -> str:
    number, _, step = words[-1].partition(".")
    job = json.loads((FOLDER / f"{number}.job").read_text())
    if step and (FOLDER / "waiting").exists():
        sys.exit("scancel: error: Kill job error on job step id: Job/step already completing or completed")
    end(number, job, 75 if step else None)
    (FOLDER / f"{number}.job").write_text(json.dumps(job))
    return ""


if __name__ == "__main__":
    called, words = Path(sys.argv[0]).name, sys.argv[1:]
    print({"sbatch": lambda _, script: sbatch(script), "squeue": squeue, "scancel": scancel}[called](*words))
