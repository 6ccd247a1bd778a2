"""The search: its space and tables without a cluster; real searches on the tiny sample, disturbed and undisturbed."""

import contextlib
import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from kp_ray.config.load import build_config, load_config
from kp_ray.config.schema import Config, TrainConfig
from kp_ray.errors import KpRayError
from kp_ray.storage import writer_lock
from kp_ray.store.plan import plan
from kp_ray.store.write import write_store
from kp_ray.tuning.plots import importance, write_plots
from kp_ray.tuning.schedulers import build_scheduler
from kp_ray.tuning.search import is_finished, tune
from kp_ray.tuning.searcher import TrialSearcher
from kp_ray.tuning.space import APPLIED, METRICS, apply_params, best_config, first_points, point_of, space, steps_of
from kp_ray.tuning.trials import choose_best, read_trials, write_tables
from tests.helpers.clusters import free_port
from tests.helpers.data import tiny_config

DACON = build_config({"preset": "dacon"})
OWN: dict[str, Any] = {"own": None}
SETS = {"own": None, "crops": ("RandomCrop_1",)}

shares = st.floats(0, 1)
drawn = st.fixed_dictionaries(
    {
        "base_lr": st.floats(1e-5, 1), "weight_decay": st.floats(1e-6, 1), "warmup": shares,
        "schedule": st.sampled_from(["multistep", "cosine"]), "num_steps": st.integers(0, 8), "first_step": shares,
        "step_spacing": shares, "gamma": st.floats(0.01, 1), "flip": st.booleans(),
        "recipes": st.sampled_from(list(SETS)),
    }
)  # fmt: skip


def test_the_published_schedule_is_tried_first_and_comes_back_unchanged() -> None:
    point = first_points(DACON, OWN)[0]
    assert apply_params(DACON, point, OWN, max_iter=10000).train == DACON.train
    demo = build_config({"preset": "demo"})
    own, published = first_points(demo, OWN)
    assert (own["schedule"], own["base_lr"]) == ("cosine", 0.0015)
    assert steps_of(published, 10000) == [3000, 4000, 5000, 6000, 7000, 8000]
    assert {**published, "flip": True} == {**point, "flip": True}


@given(params=drawn, max_iter=st.integers(1, 20000))
def test_any_draw_is_a_run_whose_steps_lie_inside_it(params: dict[str, Any], max_iter: int) -> None:
    chosen = apply_params(DACON, params, SETS, max_iter=max_iter)
    steps = chosen.train.steps
    assert list(steps) == sorted(set(steps))
    assert all(0 < step < max_iter for step in steps)
    assert len(steps) <= params["num_steps"]
    assert chosen.train.warmup_iters <= max_iter
    assert chosen.train.recipes == (SETS[params["recipes"]] or DACON.train.recipes)
    assert (chosen.train.members, chosen.model) == (DACON.train.members, DACON.model)


@given(params=drawn)
def test_a_setting_moves_into_the_space_and_back(params: dict[str, Any]) -> None:
    config = build_config(
        {"tune": {"base_lr": [1e-5, 1], "weight_decay": [1e-6, 1], "gamma": [0.01, 1], "num_steps": [0, 8]}}
    )
    distributions = space(config, OWN)
    for train in (apply_params(config, {**params, "recipes": "own"}, OWN).train, TrainConfig()):
        point = point_of(train, config)
        assert set(point) == set(distributions)
        for name, value in point.items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value)), name
        assert point["base_lr"] == train.base_lr


def test_given_weights_follow_the_members_to_their_new_names() -> None:
    members, weights = [{"name": "a"}, {"name": "b"}], {"a": 2, "b": {"nose": 0.5}}
    config = build_config(
        {"preset": "dacon", "train": {"members": members}, "predict": {"weights": weights}, "tune": {"recipes": {}}}
    )
    best = best_config(config, {"params": json.dumps(point_of(config.train, config))})
    assert best.predict.weights == {"a-tuned": 2, "b-tuned": {"nose": 0.5}}
    assert [member.name for member in best.train.members] == ["a-tuned", "b-tuned"]


def test_a_set_of_recipes_is_that_of_every_member() -> None:
    members = [{"name": "a", "recipes": ["Original"]}, {"name": "b"}]
    config = build_config({"preset": "dacon", "train": {"members": members}})
    point = point_of(config.train, config)
    assert apply_params(config, point, SETS).train.members == config.train.members
    crops = apply_params(config, {**point, "recipes": "crops"}, SETS).train
    assert (crops.recipes, [member.recipes for member in crops.members]) == (("RandomCrop_1",), [None, None])


def test_points_to_try_first_follow_in_order_and_only_once() -> None:
    config = build_config(
        {"preset": "dacon", "tune": {"points": [{"base_lr": 0.002}, {"gamma": 0.8}, {"flip": False}]}}
    )
    points = first_points(config, OWN)
    assert [(point["base_lr"], point["flip"]) for point in points] == [(0.001, True), (0.002, True), (0.001, False)]


FIXED = {
    "weight_decay": [1e-4, 1e-4], "warmup": [0.1, 0.1], "num_steps": [6, 6], "first_step": [0.3, 0.3],
    "step_spacing": [0.1, 0.1], "flips": [True], "recipes": {},
}  # fmt: skip


def test_a_grid_has_every_combination_once() -> None:
    section = {"num_trials": 16, "sampler": "grid", **FIXED, "base_lr": [1e-4, 1e-2], "gamma": [0.5, 0.8]}
    values = {"preset": "dacon", "tune": section}
    points = first_points(build_config(values), OWN)
    assert len(points) == 3 + 9  # gamma does not matter to a cosine schedule
    assert points[0]["gamma"] == 0.8
    lrs = sorted({round(point["base_lr"], 6) for point in points})
    assert lrs == [1e-4, 1e-3, 1e-2]
    assert len({json.dumps(point) for point in points}) == 12


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"points": [{"bse_lr": 1}]}, r"tune\.points\.0: bse_lr is not searched; what is: base_lr, "),
        ({"points": [{}, {"base_lr": 1}]}, r"tune\.points\.1: base_lr 1 is not in its range: .*0\.0001"),
        ({"points": [{"base_lr": "x"}]}, r"tune\.points\.0: base_lr x is not in its range"),
        ({"points": [{"num_steps": 2.5}]}, r"num_steps 2\.5 is not in its range"),
        ({"points": [{"recipes": "all"}]}, r"recipes all is not in its range"),
        ({"sampler": "grid"}, r"the grid has \d+ points, tune\.num_trials is 16: fix parameters"),
        ({"flips": []}, "flips: name at least one"),
        ({"gamma": [0.5, 1.5]}, "gamma: at most 1"),
        ({"weight_decay": [0, 1]}, r"weight_decay: a range is \[low, high\] with 0 < low"),
        ({"metric": "rsme"}, r"tune\.metric: Input should be 'rmse', "),
        ({"recipes": {"own": ["Original"]}}, "recipes: `own` is the config's own set"),
    ],
)
def test_a_wrong_search_is_one_line(section: dict[str, Any], said: str) -> None:
    with pytest.raises(KpRayError, match=said) as caught:
        first_points(build_config({"tune": section}), OWN)
    assert "\n" not in str(caught.value)


def test_importance_finds_what_matters() -> None:
    rng = np.random.default_rng(0)
    points = [
        {"base_lr": 10 ** rng.uniform(-4, -2), "warmup": rng.uniform(0, 0.2), "schedule": rng.choice(["a", "b"]).item(),
         "flip": bool(rng.integers(2)), "recipes": "own"}
        for _ in range(40)
    ]  # fmt: skip
    values = [(math.log10(point["base_lr"]) + 3) ** 2 + 0.5 * point["flip"] for point in points]
    found = importance(points, values)
    assert list(found)[:2] == ["base_lr", "flip"]
    assert found["base_lr"] > found["flip"] > 0.1 > found["schedule"]
    assert "recipes" not in found  # it did not vary
    assert set(importance(points[:4], values[:4]).values()) <= {0.0}
    assert set(importance(points, [1.0] * 40).values()) == {0.0}
    assert importance([], []) == {}


def row(trial: str, iterations: int, value: float | None) -> dict[str, Any]:
    return {"trial": trial, "iterations": iterations, "rmse": value, "pck_0.1": value}


def test_the_best_is_chosen_among_those_that_went_farthest() -> None:
    rows = [row("a", 8, 30.0), row("b", 8, 20.0), row("c", 4, 10.0), row("d", 8, None)]
    assert choose_best(rows, DACON.tune) is rows[1]
    assert choose_best(rows, build_config({"tune": {"metric": "pck_0.1"}}).tune) is rows[0]
    assert choose_best([row("d", 8, None)], DACON.tune) is None


def leave_trial(config: Config, name: str, began: float, evaluations: dict[int, float], **end: Any) -> None:
    """What a trial leaves in its folder; `params` may be given, the rest is of its end."""
    home = Path(config.run_dir, "tune", "trials", name)
    home.mkdir(parents=True)
    facts = dict.fromkeys(APPLIED) | {
        "base_lr": began / 1000, "warmup_iters": 1, "schedule": "multistep", "num_steps": 1, "steps": "[6]",
        "gamma": 0.5, "weight_decay": 0.1, "flip": True, "recipes": "own", "max_iter": 8, "began": began,
        "params": end.pop("params", {**point_of(config.train, config), "base_lr": began / 1000}),
    }  # fmt: skip
    (home / "trial.json").write_text(json.dumps(facts))
    lines = [{"iteration": at - 1, "total_loss": 1.0, "val/rmse": value} for at, value in evaluations.items()]
    (home / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in [{"iteration": 0}, *lines]))
    if end:
        (home / "end.json").write_text(json.dumps({"reason": "", "lasting": True} | end))


def leave_log(config: Config, *reports: tuple[str, int, float | None]) -> None:
    """What a search notes of the reports of its trials."""
    lines = [{"trial": name, "iteration": at, config.tune.metric: value, "seconds": 1.0}
             for name, at, value in reports]  # fmt: skip
    Path(config.path("tune", "log.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_tables_say_what_every_trial_left(tmp_path: Path) -> None:
    config = build_config({"run_dir": str(tmp_path)})
    leave_trial(config, "late", 3.0, {2: 50.0, 4: 40.0})
    leave_trial(config, "early", 1.0, {2: 60.0, 4: 45.0, 8: 30.0})
    leave_trial(config, "broken", 2.0, {2: 90.0}, reason="the loss is no longer finite")
    leave_trial(config, "nothing", 4.0, {})
    log = [
        {"trial": "late", "iteration": 2, "seconds": 5.0, "rmse": 50.0},
        {"trial": "late", "iteration": 4, "seconds": 9.5, "rmse": 40.0},
    ]
    (tmp_path / "tune" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    rows = read_trials(config)
    assert [(one["trial"], one["status"], one["iterations"], one["rmse"]) for one in rows] == [
        ("early", "finished", 8, 30.0), ("broken", "failed", 2, None), ("late", "stopped", 4, 40.0),
    ]  # fmt: skip
    assert [one["status"] for one in read_trials(config, live={"late", "nothing"})][2:] == ["running", "running"]
    write_tables(config, rows)
    table = pd.read_csv(tmp_path / "tune" / "trials.csv")
    assert list(table.seconds.dropna()) == [9.5]
    assert table.reason[1] == "the loss is no longer finite"
    parquet = pq.read_table(tmp_path / "tune" / "trials.parquet")
    assert list(table) == parquet.column_names[: len(table.columns)]
    assert parquet.column_names[len(table.columns) :] == ["began", "params", "evaluations"]
    assert [one["rmse"] for one in parquet["evaluations"][0].as_py()] == [60.0, 45.0, 30.0]
    assert set(parquet["evaluations"][0].as_py()[0]) == {"iteration", *METRICS}
    for path in write_plots(config, rows):
        assert Path(path).read_bytes().lstrip().startswith(b"<?xml")


Make = Callable[..., Config]


@pytest.fixture(scope="module")
def store(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """One store for all searches of this file."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("stored"))
    write_store(plan(config))
    return Path(config.path("store"))


@pytest.fixture(scope="module")
def make(sample_data: dict[str, Any], store: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a config with a run folder of its own over the store."""

    def made(**sections: Any) -> Config:
        run_dir = tmp_path_factory.mktemp("run")
        (run_dir / "store").symlink_to(store)
        return tiny_config(sample_data, run_dir, **sections)

    return made


SEARCH = {
    "num_trials": 4, "max_iter": 4, "eval_period": 2, "metric": "pck_0.1", "base_lr": [1e-4, 1e12],
    "points": [{"base_lr": 1e12, "warmup": 0}],
}  # fmt: skip


@pytest.fixture(scope="module")
def searched(make: Make) -> tuple[Config, dict[str, Any], list[list[dict[str, Any]]]]:
    """A search of four trials, one of which diverges; what `tune` said at the end and on the way."""
    config = make(tune=SEARCH, train={"optimizer": "sgd", "checkpoint_period": 3})
    told: list[list[dict[str, Any]]] = []
    return config, tune(config, lambda _, rows: told.append(rows)), told


def lines_of(config: Config, *names: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(config.path("tune", *names)).read_text().splitlines()]


Searched = tuple[Config, dict[str, Any], list[list[dict[str, Any]]]]


@pytest.mark.slow
def test_a_search_leaves_its_trials_as_detectron2_ran_them(searched: Searched) -> None:
    config, result, told = searched
    table = pd.read_parquet(config.path("tune", "trials.parquet"))
    assert len(table) == result["trials"] == 4
    assert set(table.status) <= {"finished", "stopped", "failed"}
    for one in table[table.status != "failed"].itertuples():
        log = lines_of(config, "trials", one.trial, "metrics.json")
        assert len(log) == one.trained
        assert one.trained == one.iterations or one.status == "stopped"  # it trains on until its end reaches it
        assert [evaluation["iteration"] for evaluation in one.evaluations] == list(range(2, one.iterations + 1, 2))
        assert max(line["lr"] for line in log) <= one.base_lr * (1 + 1e-9)
    assert [len(rows) for rows in told] == sorted(len(rows) for rows in told)
    assert any(row["status"] == "running" for rows in told for row in rows)
    log = lines_of(config, "log.jsonl")
    told = [(line["trial"], line["iteration"]) for line in log if line["iteration"]]
    seen = {(one.trial, at["iteration"]): one.status for one in table.itertuples() for at in one.evaluations}
    assert len(set(told)) == len(told)
    assert {at for at, status in seen.items() if status != "stopped"} <= set(told) <= set(seen)
    assert result["iterations"] == table.trained.sum() <= result["iterations_without_stops"] == 16
    assert not list(Path(config.path("tune", "trials")).glob("*/checkpoint_0*"))


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_with_its_reason_and_the_search_goes_on(searched: Searched) -> None:
    config, result, _ = searched
    table = pd.read_csv(config.path("tune", "trials.csv"))
    failed = table[table.status == "failed"]
    assert 1e12 in set(failed.base_lr)
    assert all("no longer finite" in reason for reason in failed.reason)
    assert result["failed"] == len(failed) < 4


@pytest.mark.slow
def test_the_best_trial_is_a_config_that_train_takes(searched: Searched) -> None:
    config, result, _ = searched
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert result["best"] == pytest.approx(table[table.iterations == 4]["pck_0.1"].max())
    best = load_config(result["config"])
    assert best.train.base_lr == pytest.approx(result["params"]["base_lr"])
    assert (best.train.max_iter, best.train.eval_period) == (config.train.max_iter, config.train.eval_period)
    assert [member.name for member in best.train.members] == ["a-tuned"]


@pytest.mark.slow
def test_a_finished_search_is_not_repeated_and_one_with_other_settings_is_refused(searched: Searched) -> None:
    config, result, _ = searched
    files = {path: path.stat().st_mtime_ns for path in Path(config.path("tune", "trials")).rglob("*")}
    assert tune(config) == result
    assert {path: path.stat().st_mtime_ns for path in Path(config.path("tune", "trials")).rglob("*")} == files
    values = config.to_dict()
    values["tune"]["base_lr"] = [0.001, 0.01]
    with pytest.raises(KpRayError, match=r"holds a search with tune\.base_lr \[0.0001, 1000000000000.0\], now") as said:
        tune(build_config(values))
    assert "\n" not in str(said.value)
    values = config.to_dict()
    values["train"]["cpus_per_worker"] = 1
    assert is_finished(build_config(values))  # where it runs does not matter


@pytest.mark.slow
def test_nothing_of_a_trial_stays_in_the_cluster(searched: Searched) -> None:
    assert_nothing_left()


def assert_nothing_left() -> None:
    import ray
    from ray.util.state import list_actors, list_placement_groups

    address = ray.get_runtime_context().gcs_address  # there may be other clusters on the machine
    deadline = time.monotonic() + 60
    while True:
        actors = [one.class_name for one in list_actors(address, [("state", "!=", "DEAD")])]
        groups = [one.state for one in list_placement_groups(address, [("state", "!=", "REMOVED")])]
        if not groups and set(actors) <= {"_StatsActor", "_AutoscalingCoordinatorActor"}:  # Ray Data's, one a cluster
            return
        assert time.monotonic() < deadline, f"left behind: {actors}, placement groups {groups}"
        time.sleep(0.5)


ONE_AXIS = {
    "num_trials": 4, "max_iter": 4, "eval_period": 2, **FIXED, "schedules": ["cosine"], "gamma": [0.5, 0.5],
    "base_lr": [1e-4, 1e-2],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [{"sampler": "random", "scheduler": "median"}, {"sampler": "grid", "scheduler": "none"}, {"scheduler": "asha"}],
    ids=lambda section: section["scheduler"],
)
def test_every_sampler_and_scheduler_brings_a_search_to_its_end(section: dict[str, str], make: Make) -> None:
    config = make(tune={**ONE_AXIS, **section})
    result = tune(config)
    table = pd.read_csv(config.path("tune", "trials.csv"))
    grid = section.get("sampler") == "grid"  # its three values; the config's own is the middle one
    assert result["trials"] == len(table) == len(set(table.base_lr.round(9))) == (3 if grid else 4)
    assert set(table.status) <= {"finished", "stopped"}
    if grid:
        assert sorted(table.base_lr.round(9)) == [1e-4, 1e-3, 1e-2]
        assert list(table.status) == ["finished"] * 3
    load_config(result["config"])


@pytest.mark.slow
def test_trials_that_the_machines_ended_are_tried_again_and_their_own_faults_are_not(make: Make) -> None:
    train = {"max_failures": 0}
    config = make(tune={**EVEN, "num_trials": 2, "max_iter": 12, "max_concurrent": 1}, train=train)
    search = start(config)
    for number in range(2):
        wait_for(config, lambda seen, least=number: len(seen) > least and seen.iterations[least] >= 2)
        kill_one("RayTrainWorker", search.pid)
    _, err = search.communicate(timeout=500)
    assert search.returncode == 2
    assert "no trial reported rmse, the first because: " in err
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert list(table.status) == ["failed"] * 2
    assert all(table.reason.str.contains("training stopped: a process or a node of Ray died"))
    finish(start(config))
    again = assert_whole(config, 2, 12)
    assert list(again.trial) == list(table.trial)


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("with_log", [True, False], ids=["log", "no_log"])
def test_a_scheduler_is_told_again_what_ended_trials_had_reached(name: str, with_log: bool, make: Make) -> None:
    config = make(tune={"num_trials": 6, "max_iter": 8, "eval_period": 2, "scheduler": name, "metric": "rmse"})
    decisions = []
    for ended in (0, 4):
        for number in range(ended):
            leave_trial(config, f"trial-{number:03d}", 1.0, {2: 10.0 + number, 4: 5.0, 8: 1.0}, lasting=True)
        if ended and with_log:
            leave_log(config, *((f"trial-{number:03d}", 2, 10.0 + number) for number in range(ended)))
        scheduler = build_scheduler(config)
        late = trial_of(5)
        scheduler.on_trial_add(None, late)
        decisions.append(scheduler.on_trial_result(None, late, {"iteration": 2, "rmse": 90.0}))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def trial_of(number: int) -> Trial:
    """As Ray Tune gives a trial to a scheduler."""
    return Trial("running", config={"number": number}, trial_id=f"of-ray-{number}", stub=True)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_goes_on_is_not_judged_again_by_those_that_came_later(name: str, make: Make) -> None:
    config = make(tune={"num_trials": 6, "max_iter": 8, "eval_period": 2, "scheduler": name, "metric": "rmse"})
    leave_trial(config, "trial-000", 1.0, {2: 50.0, 4: 20.0})
    later = [f"trial-{number:03d}" for number in range(1, 5)]
    for trial in later:
        leave_trial(config, trial, 2.0, {2: 20.0, 4: 10.0, 6: 1.0}, lasting=True)  # it trained on while it was stopped
    leave_log(config, ("trial-000", 2, 50.0), ("trial-000", 4, 15.0), *((trial, 2, 40.0) for trial in later))
    scheduler = build_scheduler(config)
    best, new = trial_of(0), trial_of(5)
    for trial in (best, new):
        scheduler.on_trial_add(None, trial)
    if name == "asha":
        assert {at: len(told) for at, told in scheduler._brackets[0]._rungs} == {8: 0, 4: 1, 2: 5}
    assert scheduler.on_trial_result(None, best, {"iteration": 6, "rmse": 8.0}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, new, {"iteration": 2, "rmse": 60.0}) == TrialScheduler.STOP


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_is_taken_up_draws_what_it_would_have_drawn(sampler: str, make: Make) -> None:
    section = {"num_trials": 9, "max_iter": 8, "metric": "rmse", "sampler": sampler}
    config, drawn = make(tune=section), []

    def go(searcher: TrialSearcher, ends: dict[str, Any] | None) -> None:
        """Run the next trial, as far as this end."""
        suggested = searcher.suggest("next")
        assert suggested
        number, params = suggested["number"], suggested["params"]
        drawn.append(json.dumps([number, params]))
        rmse = 50 + 10 * abs(math.log10(params["base_lr"]) + 3) + number
        shutil.rmtree(config.path("tune", "trials", f"trial-{number:03d}"), ignore_errors=True)
        leave_trial(config, f"trial-{number:03d}", number, {8: rmse}, params=params, **ends or {})
        searcher.on_trial_complete("next", {"rmse": math.inf if ends and ends.get("reason") else rmse})

    whole = TrialSearcher(config)
    for number in range(9):
        go(whole, {"lasting": True, "reason": "the loss" if number == 3 else ""})
    undisturbed, drawn = drawn, []
    assert len(set(undisturbed)) == 9
    assert not TrialSearcher(config).left
    shutil.rmtree(config.path("tune"))
    for number in range(9):
        go(TrialSearcher(config), {"lasting": False, "reason": "a node died"} if number % 2 else None)
        go(TrialSearcher(config), {"lasting": True, "reason": "the loss" if number == 3 else ""})
    assert drawn[::2] == drawn[1::2] == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_over_damaged_parts_goes_on_when_they_are_mended(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", tune={**EVEN, "num_trials": 1})
    write_store(plan(config))
    whole = {part: part.read_bytes() for part in Path(config.path("store")).rglob("*.parquet")}
    for part, content in whole.items():
        middle = len(content) // 2  # in the images
        part.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(KpRayError, match=r"no trial reported rmse, the first because: .*\.parquet: damaged") as said:
        tune(config)
    assert "\n" not in str(said.value)
    for part, content in whole.items():
        part.write_bytes(content)
    result = tune(config)
    assert (result["trials"], result["failed"]) == (1, 0)
    assert_whole(config, 1, 6)


DAMAGED = [
    *((f"trials/trial-001/{name}", content) for name in ("trial.json", "end.json") for content in ("", "5", "{}")),
    *(("trials/trial-001/metrics.json", content) for content in ('{"cut', "5", "{}")),
    *(("log.jsonl", content) for content in ('{"cut', "5", "{}")),
    *(("settings.json", content) for content in ("", '{"cut', "5")),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_file_of_a_search_is_one_line(name: str, content: str, make: Make) -> None:
    config = make(tune=EVEN)
    leave_trial(config, "trial-001", 1.0, {2: 1.0}, lasting=True)
    leave_log(config, ("trial-001", 2, 1.0))
    path = Path(config.path("tune", name))
    path.write_text(content)
    fix = f"delete {path.parent}, and " if "trials" in name else "delete this file and "
    with pytest.raises(KpRayError, match=rf"{path}: damaged \(.*\): {fix}") as said:
        tune(config)
    assert "\n" not in str(said.value)


def test_a_second_search_of_a_run_folder_is_refused(make: Make) -> None:
    config = make(tune=EVEN)
    with writer_lock(config.path("tune")), pytest.raises(KpRayError, match="another process is writing here"):
        tune(config)


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_that_cannot_be_is_refused_before_it_starts(
    make: Make, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run", split={"fraction": 0})
    write_store(plan(config))
    with pytest.raises(KpRayError, match=r"set split\.fraction above 0"):
        tune(config)
    with pytest.raises(KpRayError, match=r"the cluster has 4 CPUs .* lower train\.num_workers"):
        tune(make(train={"num_workers": 6, "cpus_per_worker": 1}, tune={"recipes": {}}))
    with pytest.raises(KpRayError, match=r"holds no recipe 'Rotate46'"):
        tune(make(tune={"recipes": {"odd": ["Rotate46"]}}))
    with pytest.raises(KpRayError, match=r"give train\.num_workers a number"):
        tune(make(train={"num_workers": {"min": 1, "max": 2}}))
    with pytest.raises(KpRayError, match=r"tune\.recipes\.own: \d+ training rows, a step needs 400"):
        tune(make(train={"ims_per_batch": 400}))


# Searches that are disturbed, and clusters that are small, grow and shrink.

KP_RAY = str(Path(sys.executable).with_name("kp-ray"))
EVEN = {"num_trials": 3, "max_iter": 6, "eval_period": 2, "scheduler": "none"}
"""Every trial to its end."""


def start(config: Config, *sets: str) -> subprocess.Popen[str]:
    """`kp-ray tune` of the config in a process of its own."""
    path = Path(config.run_dir, "c.yaml")
    path.write_text(config.to_yaml())
    command = [KP_RAY, "tune", str(path), "--json", *(part for one in sets for part in ("--set", one))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The figures it printed."""
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


def wait_for(config: Config, told: Callable[[pd.DataFrame], bool]) -> pd.DataFrame:
    """Wait until the table of trials says so."""
    path = Path(config.path("tune", "trials.csv"))
    deadline = time.monotonic() + 400
    while True:
        table = pd.read_csv(path) if path.exists() else None
        if table is not None and told(table):
            return table
        assert time.monotonic() < deadline, f"it does not come to that: {table}"
        time.sleep(0.1)


def assert_whole(config: Config, num_trials: int, iterations: int) -> pd.DataFrame:
    """Every trial ran to its end, and no iteration of it twice."""
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert list(table.status) == ["finished"] * num_trials
    assert set(table.max_iter) == {iterations}
    for name in table.trial:
        log = lines_of(config, "trials", name, "metrics.json")
        assert [line["iteration"] for line in log] == list(range(iterations))
    return table


@pytest.mark.slow
def test_a_killed_driver_is_taken_up_by_the_same_command(make: Make) -> None:
    config = make(tune={**EVEN, "max_concurrent": 1})
    first = start(config)
    table = wait_for(config, lambda seen: len(seen) > 1 and seen.status[0] == "finished" and seen.iterations[1] >= 2)
    first.kill()
    first.wait()
    before = Path(config.path("tune", "trials", table.trial[0]))
    files = {path: path.stat().st_mtime_ns for path in before.rglob("*") if path.is_file()}
    result = finish(start(config, "tune.max_concurrent=2"))  # how many at once may change, what decides may not
    assert result["trials"] == 3
    after = assert_whole(config, 3, 6)
    assert list(after.trial[:2]) == list(table.trial[:2])
    assert all(path.stat().st_mtime_ns == at for path, at in files.items() if path.exists())
    assert {path for path in files if not path.exists()} == {path for path in files if "checkpoint_0" in str(path)}
    log = lines_of(config, "log.jsonl")
    assert len({(line["trial"], line["iteration"]) for line in log}) == len(log) == 9


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_trial_are_taken_up(make: Make) -> None:
    config = make(tune={**EVEN, "num_trials": 1, "max_iter": 12})
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: outcome.update(tune(config)))
    thread.start()
    for iterations, kind in ((2, "RayTrainWorker"), (6, r"ray::(Trial|ResourceTrainable)")):
        wait_for(config, lambda seen, least=iterations: bool(len(seen)) and seen.iterations[0] >= least)
        kill_one(kind)
    thread.join()
    assert outcome["trials"] == 1
    assert_whole(config, 1, 12)
    assert_nothing_left()


def kill_one(kind: str, under: int | None = None) -> None:
    """Kill the one process of its kind below another, by default below this one."""
    victims = []
    for one in psutil.Process(under).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if re.search(kind, " ".join([one.name(), *one.cmdline()])):
                victims.append(one)
    assert len(victims) == 1, victims
    victims[0].kill()


@pytest.mark.slow
def test_trials_of_two_workers_that_need_every_cpu_run_one_after_the_other(make: Make) -> None:
    workers = {"num_workers": 2, "cpus_per_worker": 0.75, "ims_per_batch": 2}
    config = make(tune={**EVEN, "num_trials": 2, "max_iter": 12}, train=workers, cluster={"num_cpus": 2})
    result = finish(start(config))
    table = assert_whole(config, 2, 6)  # Detectron2's rule: twice the batch, half the iterations, twice the LR
    assert table.base_lr[0] == pytest.approx(2 * config.train.base_lr)
    assert load_config(result["config"]).train.base_lr in [pytest.approx(one / 2) for one in table.base_lr]


@pytest.mark.slow
def test_more_trials_run_when_a_node_joins_and_all_end_when_it_leaves(make: Make) -> None:
    from ray.cluster_utils import Cluster

    config = make(tune={**EVEN, "num_trials": 4, "max_iter": 12})
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}  # its default has one here already
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        search = start(config, f"cluster.address={cluster.address}")
        table = wait_for(config, lambda seen: bool(len(seen)) and seen.iterations[0] >= 2)
        assert list(table.status) == ["running"]
        node = cluster.add_node(num_cpus=1)
        wait_for(config, lambda seen: sum(seen.status == "running") == 2)
        wait_for(config, lambda seen: sum((seen.status == "running") & (seen.iterations >= 2)) == 2)
        cluster.remove_node(node, allow_graceful=False)
        assert finish(search)["trials"] == 4
    finally:
        cluster.shutdown()
    assert_whole(config, 4, 12)


@pytest.mark.slow
def test_workers_that_fit_the_cluster_but_not_its_nodes_are_refused(make: Make) -> None:
    from ray.cluster_utils import Cluster

    config = make(tune=EVEN, train={"num_workers": 4, "cpus_per_worker": 2, "ims_per_batch": 1})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3)
        search = start(config, f"cluster.address={cluster.address}")
        _, err = search.communicate(timeout=300)
    finally:
        cluster.shutdown()
    assert search.returncode == 2
    assert "the nodes have room for 3 workers of 2 CPUs each, training asks for 4" in err
