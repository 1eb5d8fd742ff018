"""Settings that differ, seeds together, and the best run with how sure that is, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.run_folders import config

from dpo_cli.config import TrainConfig, valid_keys
from dpo_cli.metric_names import lower_is_better
from dpo_cli.reporting.compare import (
    MISSING,
    ONLY_LOOKS,
    Goal,
    common_goal,
    default_metric,
    differences,
    estimates,
    sampling_error,
    seed_groups,
    seeds_of,
    short_key,
    t_975,
    telling,
    verdict,
)
from dpo_cli.reporting.runs import Run, Status


def run(name: str, final: dict[str, float], status: str = "done", **settings) -> Run:
    record = {"status": status, "final": final, "data": {"held_out": {"groups": 400}}}
    return Run(Path(name), name, config(**settings), record, {}, [], {}, Status(status))


def test_differences_are_those_of_the_training_alone() -> None:
    configs = [
        config(run_dir="a", tracker={"name": "wandb"}),
        config(run_dir="b", loss__beta=0.3),
        config(resume="auto", loss={"name": "ipo", "beta": 0.1}, optim__betas=[0.9, 0.99]),
    ]
    assert differences(configs) == {
        "loss.name": ["dpo", "dpo", "ipo"],
        "loss.beta": ["0.1", "0.3", "0.1"],
        "loss.label_smoothing": ["0", "0", MISSING],
        "optim.betas": ["[0.9, 0.95]", "[0.9, 0.95]", "[0.9, 0.99]"],
    }
    assert differences(configs[:1]) == {}


def test_keys_are_short_where_that_is_clear() -> None:
    keys = ["loss.name", "loss.beta", "optim.lr", "data.path", "model.path"]
    assert [short_key(key, keys) for key in keys] == ["loss", "beta", "lr", "data.path", "model.path"]
    deep = ["model.adapter.name", "train.stop.kl", "model.adapter.r", "seed"]
    assert [short_key(key, deep) for key in deep] == ["adapter", "stop.kl", "adapter.r", "seed"]


def test_runs_of_other_seeds_are_a_group() -> None:
    runs = [run(f"{beta}-{seed}", {}, loss__beta=beta, seed=seed) for seed in (0, 1) for beta in (10.0, 0.5, 2.0)]
    groups = seed_groups(runs)
    assert [group.name for group in groups] == ["beta=0.5", "beta=2", "beta=10"]  # by number, not by letter
    assert [group.runs for group in groups] == [(1, 4), (2, 5), (0, 3)]
    assert [group.name for group in seed_groups(runs[:1])] == ["10.0-0"]


def test_runs_without_a_configuration_are_not_taken_for_seeds() -> None:
    runs = [replace(run(name, {}), config={}) for name in ("a", "b")]
    assert [group.runs for group in seed_groups(runs)] == [(0,), (1,)]


@pytest.mark.parametrize("freedom", [1, 2, 5, 15, 16, 20, 50, 1000])
def test_quantiles_of_t(freedom: int) -> None:
    """The density integrated up to the quantile is 0.475 more than a half."""
    points = np.linspace(0.0, t_975(freedom), 200_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
    assert float(np.trapezoid(density, points)) == pytest.approx(0.475, abs=1e-4)


def test_an_interval_over_seeds() -> None:
    runs = [run(str(seed), {"m": value}, seed=seed) for seed, value in enumerate((0.80, 0.84, 0.85))]
    (found,) = estimates(runs, seed_groups(runs), Goal("m"))
    assert found.mean == pytest.approx(0.83)
    assert found.error == pytest.approx(math.sqrt(((0.03) ** 2 + 0.01**2 + 0.02**2) / 2 / 3))
    assert found.half == pytest.approx(4.303 * found.error)
    assert (found.seeds, str(found)) == (3, "0.83 ± 0.066")


def test_runs_of_one_seed_count_once() -> None:
    """A run done again is no further seed, whatever else it looked at: two seeds, of which one ran twice."""
    values = [(0, 0.80), (0, 0.82), (1, 0.85)]
    runs = [run(str(place), {"m": value}, seed=seed) for place, (seed, value) in enumerate(values)]
    runs[1].config["train"] = {**runs[1].config["train"], "save_every": 5}
    (group,) = seed_groups(runs)
    (found,) = estimates(runs, [group], Goal("m"))
    assert (found.seeds, found.runs) == (2, 3)
    assert found.mean == pytest.approx(0.83)
    assert found.error == pytest.approx(0.02)  # 0.81 and 0.85: deviation 0.04 / sqrt 2, of two
    assert seeds_of(runs) == 2
    text = verdict(runs, Goal("m"))
    assert "(95 % interval over 2 seeds; 3 runs, of which those of one seed count as one)" in text
    (twice,) = estimates(runs[:2], seed_groups(runs[:2]), Goal("m"))
    assert (twice.seeds, twice.half) == (1, None)
    assert "(one seed: no interval; 2 runs, of which those of one seed count as one)" in verdict(runs[:2], Goal("m"))


def test_keys_that_only_look_exist_and_tell_no_trainings_apart() -> None:
    assert set(ONLY_LOOKS) - set(valid_keys(TrainConfig)) == set()
    assert telling({"train.save_every": ["1", "2"], "optim.lr": ["1", "2"]}) == {"optim.lr": ["1", "2"]}


def test_settings_that_take_long_to_tell_apart_are_called_by_their_runs() -> None:
    names = ["first", "second", "third"]
    paths = ["a" * 40, "a" * 40, "b" * 40]
    runs = [
        run(name, {}, model__path=path, seed=seed) for name, path, seed in zip(names, paths, (0, 1, 0), strict=True)
    ]
    assert [group.name for group in seed_groups(runs)] == ["path=" + path for path in paths[1:]]
    longer = [
        run(name, {}, model__path=path, data__path=f"rows/{path}", seed=seed)
        for name, path, seed in zip(names, paths, (0, 1, 0), strict=True)
    ]
    assert [group.name for group in seed_groups(longer)] == ["first and 1 more", "third"]


def test_what_one_run_leaves_open() -> None:
    one = run("a", {"eval/rewards/accuracies": 0.9, "samples/kl": 1.0, "samples/kl_error": 0.1})
    assert sampling_error(one, "eval/rewards/accuracies") == pytest.approx(math.sqrt(0.9 * 0.1 / 400))
    assert sampling_error(one, "samples/kl") == 0.1
    assert sampling_error(one, "eval/loss") is None
    rows = [{"step": step, "true_reward": value} for step, value in ((0, 0.0), (0, 9.0), (5, 0.2), (5, 0.6))]
    assert sampling_error(replace(one, samples=rows), "samples/true_reward") == pytest.approx(0.2)  # 0.4/√2/√2


def test_the_best_and_how_sure() -> None:
    values = {0.1: (0.70, 0.72), 0.3: (0.90, 0.91), 1.0: (0.60,)}
    runs = [
        run(f"{beta}-{seed}", {"m": value}, loss__beta=beta, seed=seed)
        for beta, found in values.items()
        for seed, value in enumerate(found)
    ]
    text = verdict(runs, Goal("m"), "quality")
    assert text.startswith(
        "Best by quality: beta=0.3, 0.905 ± 0.064 (95 % interval over 2 seeds). Next: beta=0.1, 0.71 ±"
    )
    # Welch: variances of the means 2.5e-5 and 1e-4, so 1.25e-4² / (2.5e-5² + 1e-4²) = 1.4706 degrees of freedom.
    half = t_975(1.4706) * math.sqrt(1.25e-4)
    assert f"the difference is 0.2 ± {half:.2g}." in text
    assert "Next" not in verdict(runs[:2], Goal("m"))  # one group has nothing to be compared with
    assert verdict(runs, Goal("nothing")) == verdict([], Goal(None)) == "No run has a metric to choose the best by."


def test_what_chance_explains_is_said() -> None:
    close = [
        run(str(beta), {"eval/rewards/accuracies": value}, loss__beta=beta) for beta, value in ((1, 0.90), (2, 0.91))
    ]
    assert "too small to tell the two apart" in verdict(close, Goal("eval/rewards/accuracies"))
    far = [
        run(str(beta), {"eval/rewards/accuracies": value}, loss__beta=beta) for beta, value in ((1, 0.60), (2, 0.91))
    ]
    assert "the difference is 0.31 ± 0.056." in verdict(far, Goal("eval/rewards/accuracies"))


def test_unfinished_runs_are_not_the_best_while_others_are_finished() -> None:
    runs = [run("a", {"m": 0.5}, loss__beta=1.0), run("b", {"m": 0.9}, "failed", loss__beta=2.0)]
    assert "Best by m: a, 0.5" in verdict(runs, Goal("m"))
    assert "Best by m: b, 0.9" in verdict(runs[1:], Goal("m"))


def test_directions_and_the_metric_of_choice() -> None:
    assert [
        name for name in ("eval/loss", "loss/sft", "samples/kl", "memory/rss_gib") if not lower_is_better(name)
    ] == []
    assert not lower_is_better("eval/rewards/accuracies")
    runs = [run("a", {"loss": 1.0}), run("b", {"loss": 1.0, "eval/loss": 1.0, "eval/rewards/accuracies": 0.5})]
    assert default_metric(runs) == "loss"  # all have it
    assert default_metric(runs[1:]) == "eval/rewards/accuracies"
    assert default_metric([run("c", {})]) is None
    losses = [run("a", {"m/loss": 1.0}, loss__beta=1.0), run("b", {"m/loss": 2.0}, loss__beta=2.0)]
    assert "Best by m/loss: beta=1" in verdict(losses, Goal("m/loss"))


def test_keys_that_one_loss_lacks_tell_nothing_apart() -> None:
    found = {"loss.name": ["dpo", "sft"], "loss.beta": ["1", MISSING], "loss.wpo": ["false", MISSING]}
    assert telling({**found, "lr": ["1", "2"]}) == {"loss.name": ["dpo", "sft"], "lr": ["1", "2"]}


def test_a_direction_that_was_asked_for_goes_before_the_name() -> None:
    runs = [run("a", {"loss": 1.0}, loss__beta=1.0), run("b", {"loss": 2.0}, loss__beta=2.0)]
    assert "Best by loss: beta=1," in verdict(runs, Goal("loss"))
    assert "Best by loss: beta=2," in verdict(runs, Goal("loss", lower=False))
    assert "Best by loss: beta=1," in verdict(runs, Goal("loss", lower=True))


def test_what_the_runs_of_a_sweep_were_told_to_go_by() -> None:
    def told(*sweeps: dict[str, str]) -> Goal:
        return common_goal([run(str(place), {"m": 1.0}, sweep=sweep) for place, sweep in enumerate(sweeps)])

    up, down = {"metric": "m", "direction": "auto"}, {"metric": "m", "direction": "minimize"}
    assert told(up, up) == Goal("m", None)
    assert told(down, down) == Goal("m", True)
    assert told({"metric": "m", "direction": "maximize"}) == Goal("m", False)
    assert told(up, down) == told(up, {}) == told({}) == Goal(None)  # they don't agree, or were told nothing
    assert told({"metric": "other", "direction": "auto"}) == Goal(None)  # none has it


def test_settings_of_the_sweep_tell_no_runs_apart() -> None:
    runs = [run(str(n), {}, seed=n, sweep={"parallel": n}) for n in (1, 2)]
    assert [group.runs for group in seed_groups(runs)] == [(0, 1)]
