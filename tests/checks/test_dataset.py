"""Findings about all images together: places that mean "no label", and coordinates of another scale."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from kp_ray.checks.dataset import find_sentinels
from kp_ray.checks.findings import Finding
from kp_ray.checks.labels import check_labels
from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_annotations
from kp_ray.keypoints import DACON24, FloatArray
from tests.helpers.data import SHARED
from tests.helpers.labels import NUM_KEYPOINTS, make_labels, make_person

IMAGE_SIZE = (1920, 1080)


def make_people(num_images: int = 40) -> Annotations:
    """Make images of different people at different places in the image, each image a scene of its own."""
    rng = np.random.default_rng(0)
    poses = np.array([make_person(seed) for seed in range(num_images)])
    poses += rng.uniform([-700, -250], [900, 250], (num_images, 1, 2))
    return make_labels([f"{number}.jpg" for number in range(num_images)], poses)


def put_at(labels: Annotations, place: Sequence[float], points: list[tuple[int, int]]) -> Annotations:
    """Move the points (image, keypoint) to a place; they stay labelled."""
    keypoints = labels.keypoints.copy()
    for row, point in points:
        keypoints[row, point, :2] = place
    return replace(labels, keypoints=keypoints)


def change_points(labels: Annotations, change: Callable[[FloatArray], FloatArray]) -> Annotations:
    """Replace all points (N, K, 2)."""
    keypoints = labels.keypoints.copy()
    keypoints[..., :2] = change(keypoints[..., :2])
    return replace(labels, keypoints=keypoints)


def select_kind(findings: list[Finding], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


class TestSentinels:
    """Coordinates that stand for a missing label, e.g. -1, -1, are reported once for all images."""

    @pytest.mark.parametrize("place", [(0, 0), (-1, -1), (-100, -100), (-0.5, -0.5)])
    @pytest.mark.parametrize("points", [[(3, 0)], [(3, 0), (3, 1), (3, 2)], [(row, row % 24) for row in range(40)]])
    def test_the_corner_and_two_equal_negative_coordinates_are_found_even_with_one_point_there(self, place, points):
        findings = check_labels(put_at(make_people(), place, points), IMAGE_SIZE)
        assert [finding.kind for finding in findings] == ["sentinel"]
        assert findings[0].image == ""
        num_images = len({row for row, _ in points})
        assert findings[0].message.startswith(f"{len(points)} points in {num_images} of 40 images are at exactly ")
        assert findings[0].fix.endswith(f"data.missing_values: [[{place[0]}, {place[1]}]]")

    @pytest.mark.parametrize("place", [(9999, 9999), (0, 1080), (1919, 0), (-1, 1080), (1e6, 1e6), (-9, -1)])
    def test_any_other_place_far_from_the_bodies_is_found_if_several_images_share_it(self, place):
        labels = put_at(make_people(), place, [(row, 5) for row in range(8)])
        assert [finding.kind for finding in check_labels(labels)] == ["sentinel"]
        assert find_sentinels(put_at(make_people(), place, [(row, 5) for row in range(4)])) == []

    def test_a_place_inside_the_bodies_needs_several_points_per_image_or_many_keypoints(self):
        labels = change_points(make_people(), lambda xy: xy - xy.mean(axis=1, keepdims=True) + [960, 540])
        two_points_per_image = put_at(labels, (960, 540), [(row, point) for row in range(6) for point in (3, 9)])
        twelve_keypoints = put_at(labels, (960, 540), [(row, row) for row in range(12)])
        for changed_labels in (two_points_per_image, twelve_keypoints):
            assert [sentinel.place for sentinel in find_sentinels(changed_labels)] == [(960, 540)]

    def test_several_places_are_named_in_one_setting(self):
        labels = put_at(make_people(), (0, 0), [(row, 0) for row in range(9)])
        labels = put_at(labels, (-1, -1), [(row, 1) for row in range(3)])
        findings = select_kind(check_labels(labels), "sentinel")
        assert len(findings) == 2
        assert "nose" in findings[0].message
        assert {finding.fix.partition("add to ")[2] for finding in findings} == {
            "data.missing_values: [[0, 0], [-1, -1]]"
        }

    def test_a_foot_that_stands_still_through_a_clip_is_no_sentinel(self):
        left_ankle = DACON24.names.index("left_ankle")
        labels = change_points(make_people(), lambda xy: xy - xy[:, [left_ankle]] + [900.0, 700.0])
        assert find_sentinels(labels) == []

    def test_points_on_one_edge_of_the_image_are_no_sentinels(self):
        labels = make_people()
        keypoints = labels.keypoints.copy()
        keypoints[:, 9, 0] = 0
        assert find_sentinels(replace(labels, keypoints=keypoints)) == []

    def test_other_findings_that_a_sentinel_causes_are_not_reported(self):
        points = [(row, point) for row in range(20) for point in range(24)]  # these images have no other points
        points += [(row, point) for row in range(20, 40) for point in (5, 6, 11)]
        findings = check_labels(put_at(make_people(), (-1, -1), points), IMAGE_SIZE)
        assert [finding.kind for finding in findings] == ["sentinel"]

    def test_the_setting_that_is_advised_removes_the_finding_and_the_labels(self, tmp_path):
        labels = put_at(make_people(), (0, 0), [(row, point) for row in range(30) for point in (0, 3)])
        path = tmp_path / "labels.csv"
        lines = [",".join(["image", *labels.skeleton.columns])]
        for image, points in zip(labels.images, labels.keypoints, strict=True):
            lines.append(",".join([image, *(f"{value:g}" for value in points[:, :2].ravel())]))
        path.write_text("\n".join(lines))
        assert len(find_sentinels(load_annotations(str(path)))) == 1
        corrected_labels = load_annotations(str(path), missing_values=[(0, 0)])
        assert find_sentinels(corrected_labels) == []
        assert (corrected_labels.keypoints[:30, [0, 3], 2] == 0).all()
        assert np.isnan(corrected_labels.keypoints[:30, [0, 3], :2]).all()
        assert int((corrected_labels.keypoints[..., 2] == 0).sum()) == 60


class TestScale:
    """Coordinates that are not pixels of the images are one finding, not one per image."""

    @pytest.mark.parametrize("sizes", [IMAGE_SIZE, None])
    @pytest.mark.parametrize("offset", [0.0, 0.2])
    def test_fractions_are_found_with_and_without_image_sizes(self, sizes, offset):
        labels = change_points(make_people(), lambda xy: xy / IMAGE_SIZE + offset)
        (finding,) = check_labels(labels, sizes)
        assert finding.kind == "scale"
        assert "fractions" in finding.message
        assert finding.fix == "multiply x by the image's width and y by its height"

    def test_fractions_in_some_of_the_images_are_counted(self):
        def divide_first_seven(xy):
            xy = xy.copy()
            xy[:7] /= IMAGE_SIZE
            return xy

        (finding,) = select_kind(check_labels(change_points(make_people(), divide_first_seven), IMAGE_SIZE), "scale")
        assert "the coordinates of 7 of 40 images are fractions" in finding.message

    def test_fractions_in_some_of_the_images_hide_no_finding_about_the_others(self):
        def divide_first_seven_and_move_the_last(xy):
            xy = xy.copy()
            xy[:7] /= IMAGE_SIZE
            xy[-1] += 5 * IMAGE_SIZE[0]
            return xy

        labels = change_points(make_people(), divide_first_seven_and_move_the_last)
        findings = check_labels(labels, IMAGE_SIZE)
        assert {finding.image for finding in findings if finding.kind in ("outside", "tiny")} == {labels.images[-1]}

    def test_fractions_and_a_corner_sentinel_are_both_found(self):
        labels = change_points(make_people(), lambda xy: xy / IMAGE_SIZE)
        findings = check_labels(put_at(labels, (0, 0), [(row, 2) for row in range(9)]), IMAGE_SIZE)
        assert [finding.kind for finding in findings] == ["sentinel", "scale"]

    def test_percentages_are_found_if_the_sizes_are_known(self):
        labels = change_points(make_people(), lambda xy: xy / IMAGE_SIZE * 100)
        (finding,) = check_labels(labels, IMAGE_SIZE)
        assert "percentages" in finding.message

    @pytest.mark.parametrize("factor", [1 / 2, 1 / 3, 1 / 4])
    def test_labels_that_were_made_on_smaller_images_are_found(self, factor):
        labels = change_points(make_people(), lambda xy: np.abs(xy) * factor)
        sizes = dict.fromkeys(labels.images, IMAGE_SIZE)
        (finding,) = check_labels(labels, sizes)
        assert finding.kind == "scale"
        assert "upper left part" in finding.message

    @pytest.mark.parametrize("factor", [2, 4])
    def test_labels_that_were_made_on_larger_images_cause_one_scale_finding(self, factor):
        labels = change_points(make_people(), lambda xy: xy % IMAGE_SIZE * factor)
        findings = check_labels(labels, IMAGE_SIZE)
        assert [finding.kind for finding in findings if finding.kind in ("scale", "outside")] == ["scale"]
        assert "larger images" in findings[0].fix

    def test_exchanged_x_and_y_are_found(self):
        labels = change_points(make_people(), lambda xy: (xy % IMAGE_SIZE)[..., ::-1])
        (finding,) = select_kind(check_labels(labels, IMAGE_SIZE), "scale")
        assert "x and y are exchanged" in finding.message + finding.fix

    def test_people_of_a_few_pixels_are_found(self):
        labels = change_points(make_people(), lambda xy: xy % 7 + [1500, 800])
        (finding,) = select_kind(check_labels(labels, IMAGE_SIZE), "scale")
        assert "smaller than" in finding.message

    def test_the_finding_about_a_single_person_of_a_few_pixels_names_the_image(self):
        labels = make_people()
        keypoints = labels.keypoints.copy()
        keypoints[7, :, :2] = keypoints[7, :, :2] / 1000
        findings = check_labels(replace(labels, keypoints=keypoints), IMAGE_SIZE)
        assert [(finding.kind, finding.image) for finding in findings if finding.kind == "tiny"] == [("tiny", "7.jpg")]

    @pytest.mark.parametrize("size", [(96, 96), (150, 1000)])
    def test_small_images_have_no_scale_finding(self, size):
        labels = change_points(make_people(), lambda xy: np.abs(xy) % size)
        assert select_kind(check_labels(labels, size), "scale") == []

    def test_a_few_people_in_the_same_corner_cause_no_finding(self):
        labels = change_points(make_people(6), lambda xy: np.abs(xy) % [900, 500])
        assert select_kind(check_labels(labels, IMAGE_SIZE), "scale") == []

    def test_unlabelled_images_and_unknown_sizes_cause_no_scale_finding(self):
        labels = make_labels(["a.jpg"], np.full((1, NUM_KEYPOINTS, 2), np.nan))
        assert [finding.kind for finding in check_labels(labels, IMAGE_SIZE)] == ["unlabelled"]
        assert check_labels(make_people(), {}) == []


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason=f"the label files of the competition are not in {SHARED}")
class TestRealLabels:
    """Correct real labels have no finding about all images; a sentinel that is put into them is found."""

    def test_correct_labels_have_no_findings_about_all_images(self):
        labels = load_annotations(str(SHARED / "dacon" / "train_df.csv"))
        assert [finding for finding in check_labels(labels, IMAGE_SIZE) if not finding.image] == []

    @pytest.mark.parametrize("place", [(0, 0), (-1, -1), (5000, 5000), (960, 540)])
    def test_a_sentinel_in_a_hundredth_of_the_points_is_found(self, place):
        labels = load_annotations(str(SHARED / "dacon" / "train_df.csv"))
        is_replaced = np.random.default_rng(0).random(labels.keypoints.shape[:2]) < 0.01
        labels.keypoints[is_replaced, :2] = place
        (sentinel,) = find_sentinels(labels)
        np.testing.assert_array_equal(sentinel.at_place, is_replaced)
