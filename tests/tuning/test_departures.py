"""Departures from Ray Tune's documented use, as far as they can be tested without a search."""

import asyncio
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import ray.tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as RayTrial

from kp_ray.errors import StorageError
from kp_ray.tuning.departures import (
    TrialSampler,
    find_callback_error,
    prepare_environment,
    read_trial_error,
)
from kp_ray.tuning.reports import ReportCallback, ReportQueue


def test_no_credential_of_the_driver_is_copied_to_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-the-tests")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    prepare_environment()
    actor_class = class_cache._ActorClassCache().get(type("Trial", (ray.tune.Trainable,), {}))
    variables = actor_class._default_options["runtime_env"]["env_vars"]
    assert "a-secret-of-the-tests" not in variables.values()
    assert variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.3"  # Ray Train's settings are still copied


def test_environment_variables_that_the_user_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "0")
    monkeypatch.delenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", raising=False)
    prepare_environment()
    assert (os.environ["TUNE_DISABLE_SIGINT_HANDLER"], os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"]) == ("0", "1")


def test_rays_trials_have_the_files_from_which_an_error_is_read() -> None:
    assert isinstance(RayTrial.pickled_error_file, property)
    assert isinstance(RayTrial.error_file, property)


def test_the_error_of_a_trial_is_its_pickled_exception_or_else_rays_text(tmp_path: Path) -> None:
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(StorageError("/full: no space")))
    (tmp_path / "error.txt").write_text("the actor died")
    files = {"error_file": str(tmp_path / "error.txt"), "pickled_error_file": str(tmp_path / "error.pkl")}
    error = read_trial_error(SimpleNamespace(**files))
    assert (type(error), str(error)) == (StorageError, "/full: no space")
    assert str(read_trial_error(SimpleNamespace(**files | {"pickled_error_file": None}))) == "the actor died"


def test_the_error_of_a_callback_is_found_behind_rays_tune_error() -> None:
    callback_error, ray_error = StorageError("/full: no space"), ray.tune.TuneError("a callback failed")
    ray_error.__context__ = callback_error
    assert find_callback_error(ray_error) is callback_error
    error_without_cause = ray.tune.TuneError("no cause")
    assert find_callback_error(error_without_cause) is error_without_cause


def test_a_trials_sample_depends_on_its_number_and_not_on_earlier_samples() -> None:
    distribution = optuna.distributions.FloatDistribution(0, 1)

    def sample(*numbers: int) -> list[float]:
        sampler = TrialSampler(lambda number: optuna.samplers.TPESampler(seed=number))
        study = optuna.create_study(sampler=sampler)
        values = []
        for number in numbers:
            sampler.select_trial(number)
            values.append(study.ask({"x": distribution}).params["x"])
        return values

    assert sample(0, 1, 2)[2] == sample(2)[0]
    assert len(set(sample(0, 1, 2))) == 3


def test_reports_wait_in_order_until_the_trial_fetches_them() -> None:
    async def send_and_fetch() -> list[int]:
        queue = ReportQueue()
        first_get = asyncio.create_task(queue.get())
        for iteration in (2, 4, 6):
            await queue.put(iteration)
        return [await first_get, await queue.get(), await queue.get()]

    assert asyncio.run(send_and_fetch()) == [2, 4, 6]


def test_a_report_of_all_workers_is_sent_once() -> None:
    iterations: list[int] = []
    handle = SimpleNamespace(put=SimpleNamespace(remote=iterations.append))
    ReportCallback(handle).after_report(None, [{"iteration": 2}, {"iteration": 2}], None)
    assert iterations == [2]
