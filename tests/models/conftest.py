"""The Detectron2 config that the tests of models share."""

from typing import Any

import pytest

from kp_ray.config.load import build_config
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg
from tests.helpers.data import TINY_NET


@pytest.fixture(scope="module")
def cfg() -> Any:
    """Build the config of a small network on the CPU."""
    return build_cfg(build_config({"model": {"preset": "r18", "cfg": TINY_NET}}), DACON24, "cpu")
