"""The preflight says what is there and what to do about what is not."""

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config

from kp_ray.doctor import check_cluster, check_machine


def test_a_sound_machine_passes_and_the_disk_is_compared_with_the_store(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    checks = {check.name: check for check in check_machine(tiny_config(sample_data, tmp_path / "run"))}
    assert all(check.ok for check in checks.values()), checks
    assert "12 images" in checks["disk"].found
    assert checks["data.annotations"].found == sample_data["annotations"]


def test_a_missing_input_and_a_run_folder_that_cannot_be_made_are_named_with_the_fix(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_config({**sample_data, "truth": str(tmp_path / "none.csv")}, tmp_path / "file" / "run")
    bad = {check.name: check for check in check_machine(config) if not check.ok}
    assert {"data.truth", "run_dir"} <= set(bad)
    assert all(check.fix for check in bad.values())


@pytest.mark.usefixtures("ray_cluster")
def test_the_cluster_is_asked_node_by_node(sample_data: dict[str, Any], tmp_path: Path) -> None:
    checks = {check.name: check for check in check_cluster(tiny_config(sample_data, tmp_path / "run"))}
    assert all(check.ok for check in checks.values()), checks
    assert checks["cpus"].found == "4"
    greedy = tiny_config(sample_data, tmp_path / "run", train={"use_gpu": True, "num_workers": 8})
    bad = [check for check in check_cluster(greedy) if not check.ok]
    assert [check.name for check in bad] == ["gpus"]
