"""MLflow, at MLFLOW_TRACKING_URI."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from dpo_cli.errors import ExitCode
from dpo_cli.tracking.backends import Run
from dpo_cli.tracking.progress import finite

_MOST_PARAMS = 100
"""Of one request."""
_LONGEST_PARAM = 500


class MLflow:
    """One run of the experiment that is called as the project."""

    def __init__(self, run: Run) -> None:
        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(run.project)
        number = self._client.create_experiment(run.project) if experiment is None else experiment.experiment_id
        if run.run_id is None:
            tags = {"mlflow.runName": run.name, "group": run.group}
            made = self._client.create_run(number, tags={key: value for key, value in tags.items() if value})
            self.run_id = str(made.info.run_id)
            params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in _flat(run.config)]
            for start in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(self.run_id, params=params[start : start + _MOST_PARAMS])
        else:
            self.run_id = run.run_id
            self._client.update_run(self.run_id, status="RUNNING")
        self.where = f"{mlflow.get_tracking_uri()}, experiment {run.project}, run {self.run_id}"

    def has(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._client.log_dict(self.run_id, {"samples": [dict(row) for row in rows]}, f"samples/step-{step:06}.json")

    def alert(self, title: str, text: str) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(f"alert.{title}", text)])

    def finish(self, record: Mapping[str, Any], exit_code: int) -> None:
        final = finite(record.get("final") or {})
        now = int(time.time() * 1000)
        metrics = [Metric(f"final/{name}", value, now, 0) for name, value in final.items()]
        self._client.log_batch(self.run_id, metrics=metrics)
        ended = {0: "FINISHED", ExitCode.PREEMPTED: "KILLED"}.get(exit_code, "FAILED")
        self._client.set_terminated(self.run_id, status=ended)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
