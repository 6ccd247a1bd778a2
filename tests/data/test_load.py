"""Labels read from any format, and read once."""

import numpy as np
import pytest

from kp_ray.config.load import build_config
from kp_ray.data.load import load_annotations, load_labels
from kp_ray.errors import ConfigError, StorageError
from tests.helpers.data import SHARED
from tests.helpers.labels import CELLS, HEADER, NUM_KEYPOINTS


def test_a_missing_file_is_named():
    with pytest.raises(StorageError, match=r"^/nowhere/x\.csv: there is no such file"):
        load_annotations("/nowhere/x.csv")


def test_another_skeleton_needs_its_flip_pairs_and_sigmas(write):
    path = write("image,paw_l_x,paw_l_y,paw_r_x,paw_r_y\ncat.png,1,2,3,4\n")
    with pytest.raises(ConfigError, match=r"labels.csv: .*flip_pairs"):
        load_annotations(path)
    labels = load_annotations(path, flip_pairs=[("paw_l", "paw_r")], sigmas=[0.1, 0.1])
    assert labels.skeleton.names == ("paw_l", "paw_r")


def test_labels_are_read_again_only_if_a_file_or_the_skeleton_changed(write):
    path = write(f"{HEADER}\na.jpg,{CELLS}\n")
    corrections = write("image,action,keypoint,x,y\n", "corrections.csv")
    config = build_config({"data": {"annotations": path, "corrections": corrections}})
    labels = load_labels(config)
    assert load_labels(config) is labels
    write("image,action,keypoint,x,y\na.jpg,point,nose,7,8\n", "corrections.csv")
    np.testing.assert_array_equal(load_labels(config).keypoints[0, 0], [7, 8, 2])
    write(f"{HEADER}\nb.jpg,{CELLS}\na.jpg,{CELLS}\n")
    assert load_labels(config).images == ("b.jpg", "a.jpg")
    other = build_config({"data": {"annotations": path}, "skeleton": {"sigmas": [0.5] * NUM_KEYPOINTS}})
    assert load_labels(other).skeleton.sigmas == (0.5,) * NUM_KEYPOINTS


def test_shared_labels_cannot_be_changed(write):
    config = build_config({"data": {"annotations": write(f"{HEADER}\na.jpg,{CELLS}\n")}})
    with pytest.raises(ValueError, match="read-only"):
        load_labels(config).keypoints[0, 0, 0] = 1


def test_labels_that_are_not_set_are_a_mistake_in_the_config():
    with pytest.raises(ConfigError, match=r"data\.annotations"):
        load_labels(build_config({}))


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason=f"the label files of the competition are not in {SHARED}")
def test_the_competition_labels_have_53_scenes_of_5_cameras():
    labels = load_annotations(str(SHARED / "dacon" / "train_df.csv"))
    assert len(labels) == 4195
    assert (len(set(labels.scenes)), set(labels.cameras)) == (53, set("ABCDE"))
