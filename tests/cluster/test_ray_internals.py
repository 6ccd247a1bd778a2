"""The private and deprecated parts of Ray that kp_ray uses: each test fails when a part is gone or has changed."""

import importlib.util
import inspect
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package
from ray.util.annotations import RayDeprecationWarning

from kp_ray.cluster.ray_internals import (
    MAX_RETRIES,
    bounded_actor_retries,
    bounded_task_retries,
    dashboard_url,
    is_head,
    keep_credentials_out_of_tune_logs,
    node_resource,
    upload_limit_bytes,
    upload_size_bytes,
)
from tests.helpers.data import ROOT


class Identity:
    """A class for `map`; the dataset is never executed."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


PRIVATE = re.compile(r"\bray\.(\w+\.)*_[a-z]|ray_remote_args|max_task_retries|class_cache")


def test_only_one_module_uses_private_and_deprecated_parts_of_ray() -> None:
    paths = [path for path in (ROOT / "kp_ray").rglob("*.py") if path.name != "ray_internals.py"]
    assert [path.name for path in paths if PRIVATE.search(path.read_text())] == []


def test_retries_of_tasks_are_bounded_by_an_argument_that_ray_still_has() -> None:
    # If this fails, Ray has removed `ray_remote_args_fn` (planned for 2.64): set `max_retries` by its replacement.
    ((name, options),) = bounded_task_retries().items()
    assert name in inspect.signature(ray.data.Dataset.map).parameters
    assert name in inspect.signature(ray.data.Dataset.map_batches).parameters
    assert options() == {"max_retries": MAX_RETRIES}


@pytest.mark.usefixtures("ray_cluster")
def test_retries_of_actor_calls_are_bounded_by_an_argument_that_ray_still_has() -> None:
    # `max_task_retries` reaches `map` as one of the deprecated `**ray_remote_args`. When Ray removes these (planned for
    # 2.64), `map` raises a TypeError instead of warning.
    with pytest.warns(RayDeprecationWarning, match=r"ray_remote_args.*2\.64"):
        ray.data.range(1).map(Identity, compute=ray.data.ActorPoolStrategy(size=1), **bounded_actor_retries())


@pytest.mark.usefixtures("ray_cluster")
def test_the_dashboard_the_head_and_a_nodes_own_resource_are_found() -> None:
    (node,) = ray.nodes()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", dashboard_url())
    assert is_head(node)
    assert node_resource(node) == f"node:{node['NodeManagerAddress']}"


def test_credentials_can_be_removed_from_the_variables_that_ray_tune_copies() -> None:
    if importlib.util.find_spec("ray.tune") is None:
        pytest.skip("Ray Tune is not installed")
    from ray.tune.execution import class_cache

    original_names = set(class_cache.ENV_VARS_TO_PROPAGATE)
    try:
        assert "AWS_SECRET_ACCESS_KEY" in original_names
        keep_credentials_out_of_tune_logs(["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
        assert not {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"} & class_cache.ENV_VARS_TO_PROPAGATE
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE.update(original_names)


def test_the_upload_limit_is_that_of_the_installed_job_server() -> None:
    server_module = Path(ray.__file__).parent / "dashboard" / "http_server_head.py"
    assert "client_max_size=ray_constants.DASHBOARD_CLIENT_MAX_SIZE" in server_module.read_text()
    assert upload_limit_bytes() == ray_constants.DASHBOARD_CLIENT_MAX_SIZE == 100 << 20


def test_the_size_of_an_upload_is_that_of_the_files_that_ray_packs(tmp_path: Path) -> None:
    folder, limit = tmp_path / "project", upload_limit_bytes()
    for name in (".git/a", "cache/b", "code/c", "code/data.bin", "d"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000))
    (folder / "cache" / ".gitignore").write_text("*\n")  # as in .mypy_cache
    (folder / ".rayignore").write_text("*.bin\n")
    create_package(str(folder), tmp_path / "upload.zip", include_gitignore=True, excludes=[".git"])
    with zipfile.ZipFile(tmp_path / "upload.zip") as package:
        packed_sizes = {info.filename: info.compress_size for info in package.infolist()}
    assert set(packed_sizes) == {".rayignore", "code/c", "d"}
    assert upload_size_bytes(str(folder), [".git"], limit) == sum(packed_sizes.values())
    assert upload_size_bytes(str(folder), [], limit) == sum(packed_sizes.values()) + 1000
    # Counting ends with the file that passes the limit.
    assert 1500 <= upload_size_bytes(str(folder), [], limit=1500) < 3000
