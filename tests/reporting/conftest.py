"""Fixtures: a run folder with the files of every stage, and its report."""

import pytest

from kp_ray.config.schema import Config
from tests.helpers.pages import Page, write_page
from tests.helpers.run_folders import write_run_folder


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Fill a run folder with the files of every stage; return its config. Tests only read the folder.

    The tests expect the values that the functions of `tests/helpers/run_folders.py` write.
    """
    return write_run_folder(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def whole_page(whole_run: Config) -> Page:
    """Write and parse the report of `whole_run`."""
    return write_page(whole_run)
