"""Settings of Ray Data that every dataset of kp_ray uses."""

import contextlib
import warnings
from collections.abc import Iterator

import ray
from ray.util.annotations import RayDeprecationWarning


@contextlib.contextmanager
def ray_data_settings() -> Iterator[None]:
    """Apply kp_ray's Ray Data settings to every dataset that is created inside this context.

    The dataset keeps the settings after the context ends. They stop Ray Data from printing progress and from leaving
    CPUs idle. Warnings about deprecated arguments are hidden, because Ray 2.60 needs such arguments to bound retries
    (`ray_internals`).
    """
    context = ray.data.DataContext.get_current().copy()
    # By default Ray Data delays tasks to reserve memory for their results, but kp_ray's results are small: a store was
    # written a fifth faster without it.
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with (
        ray.data.DataContext.current(context),
        warnings.catch_warnings(action="ignore", category=RayDeprecationWarning),
    ):
        yield
