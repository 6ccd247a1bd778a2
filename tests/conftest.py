"""Fixtures for all tests: one Ray cluster and one generated data set per test process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # clusters of tests are short-lived and listen on loopback only
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # the default of 2 s delays the end of short runs
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")  # two busy test processes delay starts
os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "180")  # 60 s are too few beside two other clusters
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves clusters beside the other test process
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import warns if there is no network

from kp_ray.config.schema import Config
from kp_ray.synthetic.dataset import make_sample
from tests.helpers.data import tiny_config

# A shell starts its background jobs with SIGINT ignored, and processes of the tests would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine takes longer than Hypothesis' default deadline of 200 ms.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
settings.register_profile("siege", deadline=None, max_examples=12_000)  # used by `make test-faults`

LONGEST_FIRST = ("test_api.py", "test_jobs.py", "faults", "training", "tuning", "prediction", "test_pipeline.py")
"""Files and folders in `tests/` whose tests take minutes, the slowest first."""


class FolderScheduling(LoadFileScheduling):
    """Runs the tests of a file in one process, and all of `tests/training`, whose files share trained members."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/training" if nodeid.startswith("tests/training/") else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FolderScheduling | None:
    """Schedule by `FolderScheduling` where pytest-xdist would schedule by file."""
    return FolderScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that the test processes finish at about the same time."""
    tests = Path(__file__).parent
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(tests).parts[0], len(rank)))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray cluster with 4 logical CPUs on any machine."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Generate 12 labelled and 10 test frames of 320x180 pixels; return the `data` section of a config."""
    folder = tmp_path_factory.mktemp("sample")
    return make_sample(str(folder), num_images=12, width=320, height=180, seed=3, num_processes=1).data


@pytest.fixture
def sample_config(sample_data: dict[str, Any], tmp_path: Path) -> Config:
    """Build a config for the generated frames, so small that every stage takes seconds."""
    return tiny_config(sample_data, tmp_path / "run")
