"""The settings with which kp_ray uses Ray Data."""

import warnings

import ray.data
from ray.util.annotations import RayDeprecationWarning

from kp_ray.cluster.tasks import ray_data_settings


def test_settings_of_ray_data_are_restored_after_the_context() -> None:
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
