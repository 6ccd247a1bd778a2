"""Section "Configuration"."""

from pathlib import Path

import kp_ray
from kp_ray.reporting.configuration import configuration_section
from tests.helpers.run_folders import make_config


def test_the_config_of_the_run_folder_is_shown_without_credentials(tmp_path: Path) -> None:
    config = make_config(tmp_path, seed=4711)
    assert configuration_section(config).config_yaml == config.to_yaml()
    Path(config.path("config.yaml")).write_text("data: {images: 's3://KEY:SECRET@bucket/x'}\n")
    assert configuration_section(config).config_yaml == "data: {images: 's3://***@bucket/x'}\n"


def test_installed_versions_are_listed(tmp_path: Path) -> None:
    versions = dict(configuration_section(make_config(tmp_path)).versions)
    assert versions["kp_ray"] == kp_ray.__version__
    assert {"Python", "numpy", "pyarrow"} <= versions.keys()
