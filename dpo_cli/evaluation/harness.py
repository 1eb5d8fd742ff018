"""Standard tasks, by lm-evaluation-harness (``pip install 'dpo-cli[harness]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpo_cli.errors import DpoError, one_line
from dpo_cli.model.attention import GROUP_ATTENTION, own_attention
from dpo_cli.model.policy import Policy

Scores = dict[str, dict[str, dict[str, float | None]]]
"""By task and metric ``value`` and, where the harness gives one, its standard error ``error``."""


def check_harness() -> None:
    """Whether the harness is there.

    Raises:
        DpoError: it is not installed.
    """
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise DpoError(
            f"eval.tasks needs lm-evaluation-harness ({one_line(str(error))}): pip install 'dpo-cli[harness]'"
        ) from error


def run_tasks(
    policy: Policy,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    shots: int | None,
    limit: int | None,
    folder: Path | None = None,
) -> Scores:
    """What a model scores on tasks of the harness.

    Args:
        policy: the model; its own attention is used, and is put back as it was.
        tokenizer: the model's.
        tasks: by the harness's names.
        shots: examples before each question; None = as the task has it.
        limit: documents per task; None = all.
        folder: of further task files. They can run code: none that a configuration names.

    Raises:
        DpoError: the harness is not installed, has no such task, or can't get its data.
    """
    check_harness()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = policy.model
    attention = model.config._attn_implementation
    was_training = model.training
    model.eval()
    model.set_attn_implementation(own_attention(model) if attention == GROUP_ATTENTION else attention)
    try:
        manager = TaskManager(include_path=None if folder is None else str(folder))
        if unknown := [task for task in tasks if not manager.match_tasks([task])]:
            raise DpoError(f"eval.tasks: lm-evaluation-harness has no task {unknown[0]}")
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=policy.precision == "bf16"):
            found = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
                tasks=list(tasks),
                num_fewshot=shots,
                limit=limit,
                task_manager=manager,
                log_samples=False,
            )
    except DpoError:
        raise
    except Exception as error:  # of the harness, or of the many that it loads data with
        raise DpoError(f"eval.tasks={','.join(tasks)}: {type(error).__name__}: {one_line(str(error))}") from error
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
    return {task: _scores(values) for task, values in found["results"].items()}


def _scores(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """The harness says ``acc,none`` and ``acc_stderr,none``."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric} ({kind})"
        found[name] = {"value": float(value), "error": float(error) if isinstance(error, int | float) else None}
    return found
