"""Settings of Ray Data, and the deprecated part of Ray that bounds retries."""

import inspect
import warnings

import ray.data
from ray.util.annotations import RayDeprecationWarning

from kp_ray.cluster.tasks import MAX_RETRIES, bounded_retries, ray_data_settings


def test_settings_hold_inside_and_only_there() -> None:
    outside = ray.data.DataContext.get_current()
    before = outside.op_resource_reservation_enabled, outside.enable_progress_bars
    with ray_data_settings():
        context = ray.data.DataContext.get_current()
        assert not context.op_resource_reservation_enabled
        assert not context.enable_progress_bars
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("deprecated", RayDeprecationWarning, stacklevel=1)
        assert not caught
    assert ray.data.DataContext.get_current() is outside
    assert (outside.op_resource_reservation_enabled, outside.enable_progress_bars) == before


def test_retries_are_bounded_by_an_argument_that_ray_still_has() -> None:
    # When this fails, Ray has removed the argument (planned for 2.64): set `max_retries` the way that replaces it.
    assert bounded_retries() == {"max_retries": MAX_RETRIES}
    assert "ray_remote_args_fn" in inspect.signature(ray.data.Dataset.map).parameters
