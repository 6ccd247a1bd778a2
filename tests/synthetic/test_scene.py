"""The labels of a generated frame are where the person's joints are drawn."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from kp_ray.images import decode_preview
from kp_ray.keypoints import DACON24, FloatArray, is_inside_image
from kp_ray.synthetic.body import forward_kinematics
from kp_ray.synthetic.dataset import SampleSummary, plan_clips
from kp_ray.synthetic.motion import SyntheticClip, pose_at
from kp_ray.synthetic.render import paint
from kp_ray.synthetic.scene import SceneRenderer
from kp_ray.synthetic.surfaces import ellipsoid
from tests.helpers.synthetic import SIZE, read_labels


def make_renderer_and_joints(clip: SyntheticClip) -> tuple[SceneRenderer, FloatArray]:
    """Set up a clip's scene at 1920x1080; compute the keypoints (24, 3) of its first frame in metres."""
    renderer = SceneRenderer.from_clip(clip, 1920, 1080)
    positions, _ = forward_kinematics(pose_at(clip, 1), renderer.person)
    return renderer, np.stack([positions[name] for name in DACON24.names])


def test_people_vary_in_size_and_are_mostly_in_the_frame(clips: list[SyntheticClip]) -> None:
    points = np.stack([renderer.camera.project(joints)[0] for renderer, joints in map(make_renderer_and_joints, clips)])
    heights = np.ptp(points[..., 1], axis=1) / 1080
    assert heights.min() > 0.25
    assert heights.max() < 0.9
    assert heights.std() > 0.08
    assert is_inside_image(points, 1920, 1080).mean() > 0.96


def test_the_cameras_stand_on_an_arc_in_front_of_the_person(clips: list[SyntheticClip]) -> None:
    positions = np.array([renderer.camera.position for renderer, _ in map(make_renderer_and_joints, clips)])
    azimuths = np.degrees(np.arctan2(positions[:, 1], positions[:, 0]))
    assert np.abs(azimuths).max() <= 49
    assert azimuths.min() < -30
    assert azimuths.max() > 30


@pytest.mark.parametrize("size", [(1920, 1080), (321, 181)])
def test_a_dot_painted_at_a_joint_is_where_the_label_is(clips: list[SyntheticClip], size: tuple[int, int]) -> None:
    width, height = size
    for clip in clips[::12]:
        renderer = SceneRenderer.from_clip(clip, width, height)
        _, labels = renderer.render_frame(1, np.zeros((height, width, 3), np.uint8))
        joints = make_renderer_and_joints(clip)[1]
        depth = renderer.camera.project(joints)[1]
        for joint, label, distance in zip(joints, labels, depth, strict=True):
            if not (12 <= label[0] < width - 12 and 12 <= label[1] < height - 12):
                continue
            dot = ellipsoid(joint, np.eye(3), (3.5 * distance / renderer.camera.focal_px,) * 3, np.full(3, 255.0))
            canvas = np.zeros((height, width, 3), np.uint8)
            lamp = renderer.camera.position - joint  # a lamp at the camera lights the dot symmetrically
            paint(canvas, renderer.camera, [dot], lamp / np.linalg.norm(lamp))
            moments = cv2.moments(canvas[..., 0])
            centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
            # Perspective moves the centroid of a projected ellipsoid slightly away from its projected centre.
            assert np.abs(centre - label).max() < 0.15


def test_labels_lie_on_the_person(sample: SampleSummary) -> None:
    names, points = read_labels(sample.annotations)
    labels = dict(zip(names, points, strict=True))
    is_changed_at_labels, is_changed_beside = [], []
    for clip in plan_clips("train", 20, 3)[:6]:
        renderer = SceneRenderer.from_clip(clip, **SIZE)
        image_without_person = renderer.apply_camera_effects(renderer.render_background(), 1).astype(int)
        name = Path(clip.files[0]).name
        image = decode_preview((Path(sample.images) / name).read_bytes())
        is_changed = np.abs(image - image_without_person).sum(axis=2) > 45
        for offset_px, results in ((0, is_changed_at_labels), (90, is_changed_beside), (-90, is_changed_beside)):
            xy = labels[name] + (offset_px, 0)
            xy = np.rint(xy[is_inside_image(xy, SIZE["width"] - 1, SIZE["height"] - 1)]).astype(int)
            results.append(is_changed[xy[:, 1], xy[:, 0]])
    assert np.concatenate(is_changed_at_labels).mean() > 0.85
    assert np.concatenate(is_changed_beside).mean() < 0.2


def test_left_and_right_are_those_of_the_person_not_of_the_viewer(clips: list[SyntheticClip]) -> None:
    index = {name: k for k, name in enumerate(DACON24.names)}
    num_frontal = 0
    for renderer, joints in map(make_renderer_and_joints, clips):
        x = renderer.camera.project(joints)[0][:, 0]
        azimuth = np.degrees(np.arctan2(renderer.camera.position[1], renderer.camera.position[0]))
        if abs(azimuth) < 25:
            num_frontal += 1
            assert x[index["left_hip"]] > x[index["right_hip"]]
    assert num_frontal > 5
