"""Loading and caching labels of any format, and refusing files without a usable label."""

import json

import numpy as np
import pytest

from kp_ray.config.load import build_config
from kp_ray.data.load import load_annotations, load_labels, load_truth
from kp_ray.errors import ConfigError, DataError, StorageError
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
    config_with_sigmas = build_config({"data": {"annotations": path}, "skeleton": {"sigmas": [0.5] * NUM_KEYPOINTS}})
    assert load_labels(config_with_sigmas).skeleton.sigmas == (0.5,) * NUM_KEYPOINTS


def test_cached_labels_are_read_only(write):
    config = build_config({"data": {"annotations": write(f"{HEADER}\na.jpg,{CELLS}\n")}})
    with pytest.raises(ValueError, match="read-only"):
        load_labels(config).keypoints[0, 0, 0] = 1


def test_a_config_without_annotations_is_refused():
    with pytest.raises(ConfigError, match=r"data\.annotations"):
        load_labels(build_config({}))


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason=f"the label files of the competition are not in {SHARED}")
def test_the_competition_labels_have_53_scenes_of_5_cameras():
    labels = load_annotations(str(SHARED / "dacon" / "train_df.csv"))
    assert len(labels) == 4195
    assert (len(set(labels.scenes)), set(labels.cameras)) == (53, set("ABCDE"))


class TestNoUsableLabel:
    """Labels without a point that training could use are refused when they are read."""

    @pytest.mark.parametrize("num_images", [1, 3])
    def test_empty_cells_alone_are_no_labels(self, write, num_images):
        rows = "".join(f"{number}.jpg{',' * 2 * NUM_KEYPOINTS}\n" for number in range(num_images))
        path = write(f"{HEADER}\n{rows}")
        with pytest.raises(DataError, match=rf"^{path}: none of its {num_images} images has a labelled point: "):
            load_annotations(path)

    @pytest.mark.parametrize("place", [(0, 0), (-1, -1), (960, 540)])
    def test_all_points_at_one_place_are_no_labels(self, write, place):
        cells = f",{place[0]},{place[1]}" * NUM_KEYPOINTS
        path = write(f"{HEADER}\na.jpg{cells}\nb.jpg{cells}\n")
        with pytest.raises(
            DataError, match=rf"all 48 points of its 2 images are at {place[0]}, {place[1]}, .* data\.annotations must"
        ):
            load_annotations(path)
        with pytest.raises(DataError, match=r"no label: data\.truth must name the labels, not e\.g\. the sample"):
            load_truth(build_config({"data": {"truth": str(path)}}))
        with pytest.raises(DataError, match=r"no.* labelled point except at data\.missing_values"):
            load_annotations(path, missing_values=[place])

    def test_coco_without_annotations_or_with_v_0_alone_has_no_labels(self, write):
        category = {"id": 1, "name": "person", "keypoints": ["a", "b"]}
        image = {"id": 1, "file_name": "a.jpg"}
        unlabelled_person = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [5, 5, 0, 7, 7, 0]}
        for people in ([], [unlabelled_person]):
            content = json.dumps({"images": [image], "annotations": people, "categories": [category]})
            with pytest.raises(DataError, match="none of its 1 images has a labelled point"):
                load_annotations(write(content, "labels.json"), flip_pairs=[], sigmas=[0.1, 0.1])

    def test_corrections_that_remove_the_last_label_are_refused(self, write):
        path = write("image,a_x,a_y\na.jpg,1,2\nb.jpg,,\n")
        corrections = write("image,action,keypoint,x,y\na.jpg,point,a,,\n", "corrections.csv")
        with pytest.raises(DataError, match="has a labelled point"):
            load_annotations(path, corrections=corrections, flip_pairs=[], sigmas=[0.1])

    def test_the_same_place_in_two_images_is_accepted_if_each_has_one_labelled_point(self, write):
        labels = load_annotations(write("image,a_x,a_y\na.jpg,1,2\nb.jpg,1,2\nc.jpg,,\n"), flip_pairs=[], sigmas=[0.1])
        assert labels.keypoints[:, 0, 2].tolist() == [2, 2, 0]

    def test_a_min_visible_above_every_image_is_refused_and_the_message_names_a_value_that_works(self, write):
        path = write("image,a_x,a_y,b_x,b_y,c_x,c_y\na.jpg,1,2,3,4,,\nb.jpg,1,2,,,,\n")
        settings = {"data": {"annotations": path}, "skeleton": {"flip_pairs": [], "sigmas": [0.1] * 3}}
        with pytest.raises(ConfigError, match=r"^augment\.min_visible: .*at most 2 .*\(got 3\): set it to 2 or less"):
            load_labels(build_config({**settings, "augment": {"min_visible": 3}}))
        assert len(load_labels(build_config({**settings, "augment": {"min_visible": 2}}))) == 2


def test_missing_values_of_the_config_are_read_as_unlabelled_points(write):
    path = write("image,a_x,a_y,b_x,b_y\na.jpg,0,0,3,4\nb.jpg,-1,-1.0,0,5\n")
    values = {"data": {"annotations": path, "missing_values": [[0, 0], [-1, -1]]}}
    labels = load_labels(build_config({**values, "skeleton": {"flip_pairs": [], "sigmas": [0.1, 0.1]}}))
    np.testing.assert_array_equal(labels.keypoints[..., 2], [[0, 2], [0, 2]])
    np.testing.assert_array_equal(labels.keypoints[:, 0, :2], np.nan)
    np.testing.assert_array_equal(labels.keypoints[1, 1], [0, 5, 2])
