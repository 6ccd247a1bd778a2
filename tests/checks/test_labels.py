"""Findings about the labels of single images."""

from collections import defaultdict

import numpy as np
import pytest

from kp_ray.checks.findings import Finding
from kp_ray.checks.labels import check_labels
from kp_ray.data.load import load_annotations
from kp_ray.keypoints import DACON24
from tests.helpers.data import SHARED
from tests.helpers.labels import make_clips, make_labels, make_person


def kinds_and_images(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.image) for finding in findings]


@pytest.mark.parametrize("cameras", ["A", "ABCDE"])
def test_correct_labels_have_no_findings(cameras):
    assert check_labels(make_clips(cameras), (1920, 1080)) == []


def test_mistakes_in_one_image_are_warnings_that_name_the_points_or_the_earlier_image():
    xy = np.stack([make_person(seed) for seed in range(5)])
    xy[1] = xy[0]
    xy[2, 4] = [1920, 500]
    xy[3, 7] = xy[3, 12]
    xy[4] = np.nan
    labels = make_labels(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], xy)
    findings = check_labels(labels, dict.fromkeys(labels.images, (1920, 1080)))
    assert kinds_and_images(findings) == [
        ("repeated", "b.jpg"),
        ("outside", "c.jpg"),
        ("coincident", "d.jpg"),
        ("unlabelled", "e.jpg"),
    ]
    assert "a.jpg" in findings[0].message
    assert "right_ear" in findings[1].message
    assert "left_elbow = right_hip" in findings[2].message
    assert {finding.level for finding in findings} == {"warning"}


def test_equal_labels_of_one_or_two_points_are_no_repetition():
    xy = np.stack([make_person(0)] * 2)
    xy[:, 3:] = np.nan
    labels = make_labels(["a.jpg", "b.jpg"], xy)
    assert [finding.kind for finding in check_labels(labels)] == ["repeated"]
    xy[:, 2] = np.nan
    assert check_labels(make_labels(["a.jpg", "b.jpg"], xy)) == []


def test_points_outside_the_image_are_found_only_if_its_size_is_known():
    labels = make_labels(["a.jpg"], make_person()[None] + 1e5)
    assert check_labels(labels) == []
    assert check_labels(labels, {"b.jpg": (1920, 1080)}) == []
    assert kinds_and_images(check_labels(labels, (1920, 1080))) == [("outside", "a.jpg")]


def test_a_mirrored_upper_body_is_found_in_a_single_image():
    xy = make_person()
    upper_body = [
        k for k, name in enumerate(DACON24.names) if any(part in name for part in ("shoulder", "elbow", "wrist"))
    ]
    mirrored_xy = xy.copy()
    mirrored_xy[upper_body] = xy[DACON24.flip_indices][upper_body]
    labels = make_labels(["a.jpg"], mirrored_xy[None])
    assert kinds_and_images(check_labels(labels)) == [("left_right", "a.jpg")]


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason=f"the label files of the competition are not in {SHARED}")
def test_the_known_mistakes_in_the_competition_labels_are_among_few_findings():
    labels = load_annotations(str(SHARED / "dacon" / "train_df.csv"))
    images_by_kind = defaultdict(list)
    for finding in check_labels(labels, (1920, 1080)):
        images_by_kind[finding.kind].append(finding.image)
    assert len(images_by_kind["repeated"]) == 202
    assert "outside" not in images_by_kind
    assert "218-2-1-12-Z36_A-0000001.jpg" in images_by_kind["jump"]
    assert "049-1-1-03-Z17_C-0000021.jpg" in images_by_kind["left_right"]
    assert len(images_by_kind["jump"]) + len(images_by_kind["left_right"]) < 42  # fewer than one row in a hundred
