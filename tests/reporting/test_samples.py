"""Samples of a store's variants."""

from pathlib import Path

import numpy as np

from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.reporting.samples import read_samples
from tests.helpers.stores import make_points, write_small_store


def test_a_sample_has_the_rows_of_its_recipe(tmp_path: Path) -> None:
    manifest = write_small_store(tmp_path / "store")
    samples = read_samples(str(tmp_path / "store"), manifest, DACON24)
    sample = samples["Original"]
    assert sample.splits.tolist() == ["train"] * 3 + ["val"] * 3
    assert np.allclose(sample.keypoints[:3, :, :2], [make_points(frame) for frame in range(3)], atol=1e-4)
    assert sample.is_visible.all()
    assert (sample.cameras, sample.unreadable_parts) == (("A",), ())
    assert sample.example is not None
    assert len(samples["Rotate45_CenterCrop"].keypoints) == 3


def test_parts_with_the_keypoints_of_another_skeleton_are_unreadable(tmp_path: Path) -> None:
    manifest = write_small_store(tmp_path / "store")
    nose_skeleton = Skeleton(names=("nose",), flip_pairs=(), sigmas=(0.026,), limbs=())
    sample = read_samples(str(tmp_path / "store"), manifest, nose_skeleton)["Original"]
    assert sample.unreadable_parts == tuple(part.path for part in manifest.parts if part.recipe == "Original")
    assert (len(sample.keypoints), sample.example) == (0, None)
