"""Findings about the motion within clips."""

from dataclasses import replace

import numpy as np
import pytest

from kp_ray.checks.findings import Finding
from kp_ray.checks.motion import motion_findings
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import DACON24
from tests.helpers.labels import make_clips, replace_points


def list_findings(labels: Annotations) -> list[Finding]:
    return list(motion_findings(labels))


def kinds_and_images(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.image) for finding in findings]


@pytest.mark.parametrize("cameras", ["A", "ABC"])
def test_left_and_right_exchanged_in_one_frame_are_found_by_comparison_with_its_neighbours(cameras):
    labels = make_clips(cameras)
    image = "walk_A-0000004.jpg"
    points = labels.keypoints[labels.images.index(image)][DACON24.flip_indices]
    findings = list_findings(replace_points(labels, image, points))
    assert kinds_and_images(findings) == [("left_right", image)]
    assert "left_shoulder/right_shoulder" in findings[0].message


@pytest.mark.parametrize("frame", [0, 4, 8])
def test_a_person_who_is_elsewhere_in_one_frame_is_a_jump(frame):
    labels = make_clips()
    image = f"walk_A-{frame:07d}.jpg"
    moved_points = labels.keypoints[frame] + [300, 0, 0]
    assert kinds_and_images(list_findings(replace_points(labels, image, moved_points))) == [("jump", image)]


def test_one_point_that_is_elsewhere_in_one_frame_is_a_jump_with_its_name():
    labels = make_clips()
    points = labels.keypoints[4].copy()
    points[9, :2] += 150
    findings = list_findings(replace_points(labels, labels.images[4], points))
    assert kinds_and_images(findings) == [("jump", labels.images[4])]
    assert "left_wrist" in findings[0].message


def test_a_leap_that_every_camera_saw_is_not_a_finding():
    labels = make_clips("ABC")
    leap = labels.keypoints.copy()
    leap[[frame == 4 for frame in labels.frames], :, 1] -= 300
    assert list_findings(replace(labels, keypoints=leap)) == []


def test_cameras_with_gaps_do_not_turn_motion_into_a_finding():
    labels = make_clips("ABCD")
    wrist = DACON24.names.index("left_wrist")
    keypoints = labels.keypoints.copy()
    keypoints[[frame == 4 for frame in labels.frames], wrist, :2] += 150
    assert list_findings(replace(labels, keypoints=keypoints)) == []
    gap = labels.images.index("walk_D-0000004.jpg")
    keypoints[gap, wrist] = [np.nan, np.nan, 0]
    assert list_findings(replace(labels, keypoints=keypoints)) == []
    is_after_end = [camera == "D" and frame > 4 for camera, frame in zip(labels.cameras, labels.frames, strict=True)]
    shorter_labels = replace(labels, keypoints=keypoints).select(np.flatnonzero(~np.array(is_after_end)))
    assert list_findings(shorter_labels) == []


def test_points_of_another_frame_are_found_by_comparison_with_other_cameras_even_in_fast_motion():
    labels = make_clips("ABCDE", num_frames=12, step_px=90)
    image = "walk_C-0000003.jpg"
    # 0.25 px: the points are nearly, not exactly, those of frame 8.
    points = labels.keypoints[labels.images.index("walk_C-0000008.jpg")] + [0.25, 0.25, 0]
    misplaced_findings = [
        finding
        for finding in list_findings(replace_points(labels, image, points))
        if "another frame" in finding.message
    ]
    assert kinds_and_images(misplaced_findings) == [("jump", image)]
    assert misplaced_findings[0].message.endswith("frame 8")


def test_clips_with_unlabelled_rows_or_few_frames_have_no_findings():
    labels = make_clips("ABC", num_frames=7)
    keypoints = labels.keypoints.copy()
    keypoints[[2, 3, 8]] = [np.nan, np.nan, 0]
    assert list_findings(replace(labels, keypoints=keypoints)) == []
    keypoints[:] = [np.nan, np.nan, 0]
    assert list_findings(replace(labels, keypoints=keypoints)) == []
    assert list_findings(make_clips("AB", num_frames=2)) == []
