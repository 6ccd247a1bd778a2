"""Settings of Ray Data that every dataset of kp_ray uses."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

MAX_RETRIES = 3
"""Retries of a task whose worker died."""


@contextlib.contextmanager
def ray_data_settings() -> Iterator[None]:
    """Apply kp_ray's Ray Data settings to every dataset that is created inside this context.

    Ray Data copies its settings when a dataset is created. With these, it prints no progress of its own and leaves no
    CPU idle. Warnings about deprecated arguments are suppressed, because Ray 2.60 bounds retries in no other way.
    """
    context = ray.data.DataContext.get_current().copy()
    # By default Ray Data delays tasks to reserve memory for their results, but kp_ray's results are small (measured
    # while a store was written on 2 cores: 12.9-14.2 sources/s with the reservation, 16.2-17.3 without).
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with (
        ray.data.DataContext.current(context),
        warnings.catch_warnings(action="ignore", category=RayDeprecationWarning),
    ):
        yield


def bounded_retries() -> dict[str, Any]:
    """Return the options of a Ray task that bound its retries; pass this function as `ray_remote_args_fn`.

    By default Ray Data retries a task whose worker died without end, so an image that crashes its worker would hang the
    run. `ray_remote_args_fn` is deprecated in Ray 2.60, which has no other way to set `max_retries`.
    """
    return {"max_retries": MAX_RETRIES}
