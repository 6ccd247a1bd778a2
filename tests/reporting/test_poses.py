"""Section "Poses and visibility"."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.reporting import poses
from kp_ray.reporting.poses import pose_section
from kp_ray.reporting.run_files import RunFiles, read_run_files
from tests.helpers.run_folders import make_config
from tests.helpers.stores import HEIGHT


@pytest.fixture(scope="module")
def files(whole_run: Config) -> RunFiles:
    """Read the files of `whole_run`."""
    return read_run_files(whole_run)


def test_poses_are_compared_by_split_and_with_the_predictions(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {}
    monkeypatch.setattr(poses, "plot_poses", lambda poses_by_label, *_: groups.update(poses_by_label) or b"")
    section = pose_section(files)
    assert section is not None
    assert section.max_variants == 6
    assert {label: len(group) for label, group in groups.items()} == {
        "trained on": 3,
        "validated on": 3,
        "predicted": 6,
    }
    for group in groups.values():
        assert np.abs(group.mean(axis=1)).max() < 1e-9
        assert np.allclose(np.sqrt((group**2).sum(axis=2).mean(axis=1)), 1)


def test_the_tilt_of_the_torso_is_measured_clockwise_from_upright(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    values_by_title = {}
    monkeypatch.setattr(
        poses, "plot_distributions", lambda names, values, *labels: values_by_title.update({labels[1]: values}) or b""
    )
    sample = files.samples["Original"]
    keypoints = sample.keypoints.copy()
    keypoints[:, [DACON24.names.index(name) for name in ("left_hip", "right_hip")], :2] = [100, 100]
    keypoints[:, DACON24.names.index("neck"), :2] = [130, 70]  # to the right of the hips and above them
    pose_section(replace(files, samples={"Original": replace(sample, keypoints=keypoints)}))
    (tilts,) = values_by_title["Tilt of the torso"]
    assert np.allclose(tilts, 45)
    (heights,) = values_by_title["Size of the person"]
    assert np.allclose(heights, 100 * (sample.boxes[:, 3] - sample.boxes[:, 1]) / HEIGHT)


def test_a_run_without_a_store_has_no_section(tmp_path: Path) -> None:
    assert pose_section(read_run_files(make_config(tmp_path))) is None
