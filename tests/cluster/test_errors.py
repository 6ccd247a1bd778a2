"""The cause of a Ray error is found inside every wrapper that Ray 2.60 puts around it."""

import os
import pickle
import signal
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from kp_ray.cluster.errors import (
    OUT_OF_MEMORY,
    PROCESS_DIED,
    describe_ray_error,
    error_row,
    raise_error_row,
    root_cause,
)
from kp_ray.cluster.ray_internals import bounded_task_retries
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.errors import DivergedError, StorageError

DISK_FULL = StorageError("/data/part: cannot be written: No space left on device: free some space")


def wrap(cause: Exception) -> RayTaskError:
    """Wrap an error as Ray does when a task raises it."""
    return RayTaskError("task", "Traceback (most recent call last):\nValueError: another error", cause)


class FakeWorkerGroupError(Exception):
    """An error with the attribute of Ray Train's WorkerGroupError."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = dict(enumerate(failures))


class FakeControllerError(Exception):
    """An error with the attribute of Ray Train's ControllerError."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("Training failed due to controller error")
        self.controller_failure = failure


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DISK_FULL, str(DISK_FULL)),
        (wrap(DISK_FULL), str(DISK_FULL)),
        (wrap(wrap(DISK_FULL)), str(DISK_FULL)),
        (wrap(DISK_FULL).as_instanceof_cause(), str(DISK_FULL)),
        (ActorDiedError(wrap(DISK_FULL)), str(DISK_FULL)),
        (wrap(ZeroDivisionError("division by zero")), "ZeroDivisionError: division by zero"),
        (wrap(ValueError("a\nb")), "ValueError: a b"),
        (wrap(AssertionError()), "AssertionError"),
        (OutOfMemoryError("1 worker was killed due to the node running low on memory"), OUT_OF_MEMORY),
        (wrap(OutOfMemoryError("")), OUT_OF_MEMORY),
        (WorkerCrashedError(), PROCESS_DIED),
        (ActorDiedError(), PROCESS_DIED),
    ],
)
def test_an_error_is_described_by_its_cause(error: Exception, text: str) -> None:
    assert describe_ray_error(error) == text
    assert describe_ray_error(pickle.loads(ray.cloudpickle.dumps(error))) == text


@pytest.mark.parametrize(
    ("failures", "text"),
    [
        ((RuntimeError("Connection closed by peer"), ActorDiedError()), PROCESS_DIED),
        ((ActorDiedError(), OutOfMemoryError("")), OUT_OF_MEMORY),
        ((RuntimeError("Connection closed by peer"), DivergedError("the loss is nan")), "the loss is nan"),
        ((RuntimeError("CUDA error"),), "RuntimeError: CUDA error"),
    ],
)
def test_the_most_specific_of_several_workers_failures_is_described(failures: tuple[Exception, ...], text: str) -> None:
    assert describe_ray_error(FakeWorkerGroupError(*failures)) == text
    assert describe_ray_error(FakeControllerError(FakeWorkerGroupError(*failures))) == text


def test_the_fake_errors_have_the_attributes_of_ray_trains_errors() -> None:
    train = pytest.importorskip("ray.train")
    assert train.WorkerGroupError("text", {0: DISK_FULL}).worker_failures == {0: DISK_FULL}
    assert train.ControllerError(DISK_FULL).controller_failure is DISK_FULL


@pytest.mark.parametrize("error", [DISK_FULL, DivergedError("the loss is nan")])
def test_an_error_is_raised_from_its_row_with_its_class(error: Exception) -> None:
    with pytest.raises(type(error)) as error_info:
        raise_error_row(error_row(error))
    assert str(error_info.value) == str(error)


def test_rows_without_an_error_raise_nothing() -> None:
    raise_error_row({"images": 3})
    raise_error_row({"images": 3, "error_class": None, "error_message": None})


# The errors of a real cluster.


@ray.remote
def fail() -> None:
    raise DISK_FULL


@ray.remote
class FailingActor:
    def __init__(self) -> None:
        raise DISK_FULL

    def call(self) -> None: ...


def kill_worker(row: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return row


@pytest.mark.usefixtures("ray_cluster")
def test_the_cause_of_a_failed_task_and_a_failed_actor_constructor_is_found() -> None:
    for call in (fail.remote, FailingActor.remote().call.remote):
        with pytest.raises(ray.exceptions.RayError) as error_info:
            ray.get(call())
        cause = root_cause(error_info.value)
        assert type(cause) is StorageError
        assert describe_ray_error(error_info.value) == str(DISK_FULL)


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_whose_worker_dies_each_time_ends_the_dataset_with_an_error() -> None:
    with ray_data_settings():
        dataset = ray.data.from_items([{"a": 1}]).map(kill_worker, **bounded_task_retries())
    with pytest.raises(ray.exceptions.RayError) as error_info:
        list(dataset.iter_rows())
    assert describe_ray_error(error_info.value) == PROCESS_DIED
