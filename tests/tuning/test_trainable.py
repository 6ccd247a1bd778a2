"""The class that Ray Tune runs for each trial."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.tuning.records import TrialEnd, read_end, read_start, trial_dir
from kp_ray.tuning.space import to_point
from kp_ray.tuning.trainable import build_trainable
from tests.helpers.searches import write_search_log, write_trial


def test_a_trial_records_its_point_and_the_solvers_settings(make_config: Callable[..., Config]) -> None:
    config = make_config(tune={"num_trials": 1}, train={"num_workers": 2, "ims_per_batch": 2})
    folder, point = Path(trial_dir(config, "trial-000")), to_point(config.train, config)
    folder.mkdir(parents=True)
    (folder / "model_final.pth").touch()  # the trial is trained
    build_trainable(config, use_gpu=False)(config={"number": 0, "params": asdict(point)})
    start = read_start(str(folder))
    assert start
    # Detectron2's rule for two workers: half the iterations, twice the learning rate.
    assert (start.params, start.max_iter, start.solver.base_lr) == (point, 1, 2 * config.train.base_lr)


def test_a_trial_that_cannot_start_records_its_reason_and_may_be_retried(make_config: Callable[..., Config]) -> None:
    config = make_config(tune={"num_trials": 1})
    log = Path(config.path("tune", "log.jsonl"))
    point = to_point(config.train, config)
    write_trial(config, "trial-000", 1.0, {}, params=point, end={"reason": "a node died", "lasting": False})
    log.write_text('{"cut')
    with pytest.raises(StorageError, match="damaged") as caught:
        build_trainable(config, use_gpu=False)(config={"number": 0, "params": asdict(point)})
    folder = trial_dir(config, "trial-000")
    assert read_end(folder) == TrialEnd(str(caught.value), is_final=False)


def test_a_trial_that_is_over_repeats_its_last_report(make_config: Callable[..., Config]) -> None:
    config = make_config(tune={"num_trials": 1, "max_iter": 8})
    write_trial(config, "trial-000", 1.0, {2: 50.0, 8: 30.0}, end={})
    write_search_log(config, ("trial-000", 2, 50.0), ("trial-000", 8, 30.0))
    params = json.loads(Path(trial_dir(config, "trial-000"), "trial.json").read_text())["params"]
    trial = build_trainable(config, use_gpu=False)(config={"number": 0, "params": params})
    report = trial.step()
    assert (report["iteration"], report["rmse"], report["done"]) == (8, 30.0, True)
    assert report["seconds"] >= 1.0  # the log's seconds plus those since this start


def test_a_trial_whose_last_evaluation_has_no_value_reports_the_worst_value_and_its_end(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(tune={"num_trials": 1, "max_iter": 8})
    point = to_point(config.train, config)
    write_trial(config, "trial-000", 1.0, {2: 90.0, 8: math.nan}, params=point)
    folder = trial_dir(config, "trial-000")
    Path(folder, "model_final.pth").touch()
    trial = build_trainable(config, use_gpu=False)(config={"number": 0, "params": asdict(point)})
    first_report, last_report = trial.step(), trial.step()
    assert (first_report["iteration"], first_report["rmse"], first_report["done"]) == (2, 90.0, False)
    assert (last_report["iteration"], last_report["rmse"], last_report["done"]) == (0, math.inf, True)
    end = read_end(folder)
    assert end == TrialEnd(last_report["reason"], is_final=last_report["is_final"])
    assert end == TrialEnd("its last evaluation has no rmse", is_final=True)
