"""The settings with which kp_ray uses Ray Data."""

import warnings

import ray.data
from ray.util.annotations import RayDeprecationWarning

from kp_ray.cluster.tasks import ray_data_settings


def test_settings_and_warnings_of_ray_data_are_changed_only_inside_the_context() -> None:
    outer_context = ray.data.DataContext.get_current()
    settings = outer_context.op_resource_reservation_enabled, outer_context.enable_progress_bars
    with ray_data_settings():
        context = ray.data.DataContext.get_current()
        assert not context.op_resource_reservation_enabled
        assert not context.enable_progress_bars
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.warn("deprecated", RayDeprecationWarning, stacklevel=1)
        assert not caught_warnings
    assert ray.data.DataContext.get_current() is outer_context
    assert (outer_context.op_resource_reservation_enabled, outer_context.enable_progress_bars) == settings
