"""The generated data set: reproducible, competition-like, and labelled exactly."""

import hashlib
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from kp_ray.errors import KpRayError
from kp_ray.keypoints import DACON24, inside
from kp_ray.synthetic.body import joints_of
from kp_ray.synthetic.dataset import _plan, make_sample
from kp_ray.synthetic.motion import pose_at
from kp_ray.synthetic.render import ball, paint
from kp_ray.synthetic.scene import Stage

SIZE = {"width": 320, "height": 180}
NAME = re.compile(r"(?P<scene>\d{3}-\d-\d-\d{2}-Z\d+)_(?P<camera>[A-E])-(?P<frame>\d{7})\.jpg")


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "config.yaml")  # has paths
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read(path: str) -> tuple[list[str], np.ndarray]:
    table = pd.read_csv(path)
    return list(table["image"]), table[DACON24.columns].to_numpy(float).reshape(-1, len(DACON24), 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sample")
    return make_sample(str(folder), num_images=20, num_test=4, seed=3, num_processes=1, **SIZE).to_json()


@pytest.fixture(scope="module")
def clips() -> list[Any]:
    return _plan("train", 96, 11)


def test_one_process_and_two_write_the_same_bytes(tmp_path: Path) -> None:
    for processes in (1, 2):
        make_sample(str(tmp_path / str(processes)), num_images=4, num_test=2, seed=7, num_processes=processes, **SIZE)
    one = _digests(tmp_path / "1")
    assert len(one) == 4 + 2 + 3
    assert one == _digests(tmp_path / "2")


def test_writing_again_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    options = {"num_images": 2, "num_test": 1, "num_processes": 1, **SIZE}
    make_sample(str(tmp_path / "a"), seed=1, **options)
    first = _digests(tmp_path / "a")
    make_sample(str(tmp_path / "a"), seed=1, **options)
    assert _digests(tmp_path / "a") == first
    make_sample(str(tmp_path / "b"), seed=2, **options)
    assert not set(_digests(tmp_path / "b").values()) & {v for k, v in first.items() if k != "sample_submission.csv"}


def test_every_row_has_its_image_and_the_header_is_the_competitions(made: dict[str, Any]) -> None:
    assert (made["num_train"], made["num_test"]) == (20, 4)
    for table, folder in (("annotations", "images"), ("truth", "test_images")):
        assert list(pd.read_csv(made[table]).columns) == ["image", *DACON24.columns]
        names, points = _read(made[table])
        assert sorted(names) == sorted(path.name for path in Path(made[folder]).iterdir())
        assert np.isfinite(points).all()
    names, points = _read(made["sample_submission"])
    assert names == _read(made["truth"])[0]
    assert not points.any()


def test_names_are_the_competitions_and_test_scenes_are_other_scenes(made: dict[str, Any]) -> None:
    train, test = ([NAME.fullmatch(name) for name in _read(made[key])[0]] for key in ("annotations", "truth"))
    assert all(train)
    assert all(test)
    scenes = [{match["scene"] for match in split if match} for split in (train, test)]
    assert not scenes[0] & scenes[1]
    assert len(scenes[0]) + len(scenes[1]) == made["num_scenes"]
    assert {match["camera"] for match in train if match} == set("ABCDE")
    assert {int(match["frame"]) for match in train if match} == {1, 3}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 59, 200, 601, 4000])
def test_a_plan_has_as_many_distinct_frames_as_asked_for(count: int) -> None:
    names = [name for clip in _plan("train", count, 0) for name in clip.files]
    assert len(set(names)) == len(names) == count


def test_a_clip_is_a_small_motion(made: dict[str, Any]) -> None:
    names, points = _read(made["annotations"])
    moves = [
        np.sqrt(((points[k] - points[k + 1]) ** 2).mean()) * 1080 / SIZE["height"]
        for k in range(len(names) - 1)
        if names[k].rsplit("-", 1)[0] == names[k + 1].rsplit("-", 1)[0]
    ]
    assert len(moves) == 10
    assert min(moves) > 0.05
    assert np.median(moves) < 30
    assert max(moves) < 90


def test_people_vary_in_size_and_are_mostly_in_the_frame(clips: list[Any]) -> None:
    points = np.stack([stage.camera.project(joints)[0] for stage, joints in map(_pose, clips)])
    heights = np.ptp(points[..., 1], axis=1) / 1080
    assert heights.min() > 0.25
    assert heights.max() < 0.9
    assert heights.std() > 0.08
    assert inside(points, 1920, 1080).mean() > 0.96


def test_the_cameras_stand_on_an_arc_before_the_person(clips: list[Any]) -> None:
    places = np.array([stage.camera.position for stage, _ in map(_pose, clips)])
    around = np.degrees(np.arctan2(places[:, 1], places[:, 0]))
    assert np.abs(around).max() <= 49
    assert around.min() < -30
    assert around.max() > 30


def _pose(clip: Any) -> tuple[Any, np.ndarray]:
    """A clip's stage and its keypoints (24, 3) in the world."""
    stage = Stage.of(clip, 1920, 1080)
    at, _ = joints_of(pose_at(clip, 1), stage.person)
    return stage, np.stack([at[name] for name in DACON24.names])


@pytest.mark.parametrize("size", [(1920, 1080), (321, 181)])
def test_what_is_drawn_at_a_joint_lies_where_its_label_says(clips: list[Any], size: tuple[int, int]) -> None:
    width, height = size
    for clip in clips[::12]:
        stage = Stage.of(clip, width, height)
        _, labels = stage.draw(1, np.zeros((height, width, 3), np.uint8))
        joints = _pose(clip)[1]
        depth = stage.camera.project(joints)[1]
        for joint, label, distance in zip(joints, labels, depth, strict=True):
            if not (12 <= label[0] < width - 12 and 12 <= label[1] < height - 12):
                continue
            dot = ball(joint, np.eye(3), (3.5 * distance / stage.camera.focal_px,) * 3, np.full(3, 255.0))
            canvas = np.zeros((height, width, 3), np.uint8)
            lamp = stage.camera.position - joint  # at the eye, so that the dot's light centre is its centre
            paint(canvas, stage.camera, [dot], lamp / np.linalg.norm(lamp))
            moments = cv2.moments(canvas[..., 0])
            centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
            assert np.abs(centre - label).max() < 0.15  # a ball's picture is not quite centred on its centre's


def test_labels_in_the_table_lie_on_the_person_in_the_picture(made: dict[str, Any]) -> None:
    names, points = _read(made["annotations"])
    table = dict(zip(names, points, strict=True))
    on, off = [], []
    for clip in _plan("train", 20, 3)[:6]:
        stage = Stage.of(clip, **SIZE)
        empty = stage._develop(stage.background(), 1).astype(int)
        name = Path(clip.files[0]).name
        picture = cv2.imread(str(Path(made["images"]) / name)).astype(int)
        for spots, result in ((table[name], on), (table[name] + (90, 0), off), (table[name] - (90, 0), off)):
            spots = np.rint(spots[inside(spots, SIZE["width"] - 1, SIZE["height"] - 1)]).astype(int)
            result.append(np.abs(picture - empty).sum(axis=2)[spots[:, 1], spots[:, 0]] > 45)
    assert np.concatenate(on).mean() > 0.85
    assert np.concatenate(off).mean() < 0.2


def test_left_and_right_are_the_persons_own(clips: list[Any]) -> None:
    index = {name: k for k, name in enumerate(DACON24.names)}
    seen = 0
    for stage, joints in map(_pose, clips):
        x = stage.camera.project(joints)[0][:, 0]
        azimuth = np.degrees(np.arctan2(stage.camera.position[1], stage.camera.position[0]))
        if abs(azimuth) < 25:
            seen += 1
            assert x[index["left_hip"]] > x[index["right_hip"]]
    assert seen > 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_images": 0}, "num_images"),
        ({"num_images": 1, "num_test": -1}, "num_test"),
        ({"num_images": 1, "width": 10}, "width"),
        ({"num_images": 1, "height": 10}, "height"),
        ({"num_images": 1, "seed": -1}, "seed"),
        ({"num_images": 1, "num_processes": 0}, "num_processes"),
    ],
)
def test_a_number_out_of_range_is_named(tmp_path: Path, options: dict[str, int], named: str) -> None:
    with pytest.raises(KpRayError, match=rf"^sample: {named} must be at least \d+, got -?\d+$"):
        make_sample(str(tmp_path), **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(KpRayError, match=r"thesis\.txt: not a file of this sample"):
        make_sample(str(tmp_path), num_images=1, **SIZE)
    with pytest.raises(KpRayError, match="is a file"):
        make_sample(str(tmp_path / "thesis.txt"), num_images=1, **SIZE)
    with pytest.raises(KpRayError, match="local folder"):
        make_sample("s3://bucket/sample", num_images=1, **SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_progress_counts_up_to_every_image(tmp_path: Path) -> None:
    counts: list[int] = []
    make_sample(str(tmp_path), num_images=3, num_test=1, num_processes=1, progress=counts.append, **SIZE)
    assert counts == sorted(counts)
    assert counts[-1] == 4
