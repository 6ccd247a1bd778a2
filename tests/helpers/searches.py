"""Settings of searches, writers and readers of their files, and `kp-ray tune` as a process."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import strategies as st
from ray.tune.experiment import Trial as RayTrial

from kp_ray.config.schema import Config
from kp_ray.tuning.space import Point, to_point
from tests.helpers.processes import set_options, start_kp_ray, wait_until

OWN_SET: dict[str, tuple[str, ...] | None] = {"own": None}
"""Sets of recipes with which a search always keeps the config's own recipes."""
FIXED_RANGES = {
    "weight_decay": [1e-4, 1e-4],
    "warmup": [0.1, 0.1],
    "num_steps": [6, 6],
    "first_step": [0.3, 0.3],
    "step_spacing": [0.1, 0.1],
    "flips": [True],
    "recipes": {},
}
"""Values of a `tune` section that fix every parameter but the base learning rate, the schedule and gamma."""
FULL_TRIALS = {"num_trials": 3, "max_iter": 6, "eval_period": 2, "scheduler": "none"}
"""Values of a `tune` section in which every trial runs to its end."""


def points_of_any_schedule(recipes: st.SearchStrategy[str]) -> st.SearchStrategy[Point]:
    """Return a Hypothesis strategy of points of the search space; `recipes` draws the name of their set of recipes."""
    shares = st.floats(0, 1)
    return st.builds(
        Point,
        base_lr=st.floats(1e-5, 1),
        weight_decay=st.floats(1e-6, 1),
        warmup=shares,
        num_steps=st.integers(0, 8),
        first_step=shares,
        step_spacing=shares,
        gamma=st.floats(0.01, 1),
        recipes=recipes,
    )


def write_trial(
    config: Config,
    name: str,
    began: float,
    evaluations: dict[int, float],
    *,
    params: Point | None = None,
    end: dict[str, Any] | None = None,
) -> None:
    """Write the files of a trial of 8 iterations.

    Args:
        config: the search's config.
        name: the trial's name.
        began: Unix time of the start; a thousandth of it is the solver's base learning rate.
        evaluations: number of iterations trained before an evaluation -> its RMSE.
        params: the trial's point; None: the config's own settings with that learning rate.
        end: values that replace those of the default `end.json`, by which the trial ended without a reason and is
            not retried; None: the trial has no `end.json`, because it has not ended.
    """
    folder = Path(config.run_dir, "tune", "trials", name)
    folder.mkdir(parents=True)
    params = params or replace(to_point(config.train, config), base_lr=began / 1000)
    start = {
        "base_lr": began / 1000,
        "warmup_iters": 1,
        "schedule": "multistep",
        "num_steps": 1,
        "steps": "[6]",
        "gamma": 0.5,
        "weight_decay": 0.1,
        "flip": True,
        "recipes": "own",
        "max_iter": 8,
        "began": began,
        "params": asdict(params),
    }
    (folder / "trial.json").write_text(json.dumps(start))
    lines = [{"iteration": i - 1, "total_loss": 1.0, "val/rmse": rmse} for i, rmse in evaluations.items()]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in [{"iteration": 0}, *lines]))
    if end is not None:
        (folder / "end.json").write_text(json.dumps({"reason": "", "lasting": True} | end))


def write_search_log(config: Config, *reports: tuple[str, int, float | None]) -> None:
    """Write the search's log.

    Args:
        config: the search's config.
        reports: trial, iteration and value of each line.
    """
    lines = [{"trial": name, "iteration": i, config.tune.metric: value, "seconds": 1.0} for name, i, value in reports]
    Path(config.path("tune", "log.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in lines))


def ray_trial(number: int) -> RayTrial:
    """Build a trial as Ray Tune passes it to a scheduler."""
    return RayTrial("running", config={"number": number}, trial_id=f"ray-{number}", stub=True)


def read_lines(config: Config, *names: str) -> list[dict[str, Any]]:
    """Read the JSON lines of a file in `tune`; `names` are the parts of its path."""
    return [json.loads(line) for line in Path(config.path("tune", *names)).read_text().splitlines()]


def start_search(config: Config, *settings: str) -> subprocess.Popen[str]:
    """Start `kp-ray tune --json` as a process; `settings` ("a.b=value") override those of the config."""
    path = Path(config.run_dir, "search.yaml")
    path.write_text(config.to_yaml())
    return start_kp_ray("tune", str(path), "--json", *set_options(*settings))


def wait_for_table(
    config: Config, condition: Callable[[pd.DataFrame], bool], process: subprocess.Popen[str] | None = None
) -> pd.DataFrame:
    """Wait until the table of trials meets a condition; return the table.

    Args:
        config: the search's config.
        condition: returns True for the table to wait for.
        process: the search, which must not end before that.
    """
    path = Path(config.path("tune", "trials.csv"))

    def matching_table() -> list[pd.DataFrame]:
        table = pd.read_csv(path) if path.exists() else None
        return [table] if table is not None and condition(table) else []

    return wait_until(matching_table, process, timeout_s=400, poll_s=0.1)[0]


def assert_all_finished(config: Config, num_trials: int, iterations: int) -> pd.DataFrame:
    """Assert that every trial ran to its end without repeating an iteration; return the table of trials."""
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert list(table.status) == ["finished"] * num_trials
    assert set(table.max_iter) == {iterations}
    for name in table.trial:
        log = read_lines(config, "trials", name, "metrics.json")
        assert [line["iteration"] for line in log] == list(range(iterations))
    return table
