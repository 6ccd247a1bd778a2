"""The settings with which kp_ray uses Ray Data."""

import warnings

import pytest
import ray.data
from ray.util.annotations import RayDeprecationWarning

from kp_ray.cluster.tasks import ray_data_settings

SETTINGS = ("op_resource_reservation_enabled", "enable_progress_bars", "print_on_execution_start")


def test_settings_and_warnings_of_ray_data_are_changed_only_inside_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    outer_context = ray.data.DataContext.get_current()
    for name in SETTINGS:  # tests set some of them to False, see tests/conftest.py
        monkeypatch.setattr(outer_context, name, True)
    warning_filters = list(warnings.filters)
    with ray_data_settings():
        context = ray.data.DataContext.get_current()
        assert [getattr(context, name) for name in SETTINGS] == [False, False, False]
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.warn("deprecated", RayDeprecationWarning, stacklevel=1)
        assert not caught_warnings
    assert ray.data.DataContext.get_current() is outer_context
    assert [getattr(outer_context, name) for name in SETTINGS] == [True, True, True]
    assert warnings.filters == warning_filters
