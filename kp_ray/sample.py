"""A generated data set with exact labels: people in varied poses, seen by several cameras.

A scene is one person doing one motion in one room; a clip is a scene seen by one camera; its frames are consecutive
moments. A person is a 3D skeleton posed by joint angles and clothed in lofted surfaces (rings of ellipses). Surfaces
and labels go through the same camera, so a label is exact to the last digit.

World coordinates are metres: the person stands at the origin on the floor z = 0, x ahead, y to the person's left,
z up. Pictures are BGR, pixels are OpenCV indices (an integer is a pixel's centre).
"""

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import simplejpeg
import yaml

from kp_ray.config import InputError, join, write_bytes
from kp_ray.keypoints import DACON24, FloatArray

Picture = npt.NDArray[np.uint8]
Surface = tuple[FloatArray, FloatArray]
"""Quads (N, 4, 3), counter-clockwise from outside, and their BGR colours (N, 3) in 0-255."""
Joints = dict[str, FloatArray]

# A pose is 24 numbers in degrees (lift in cm): trunk (pitch, lift, bend, lean, twist, nod, tilt, turn), then for the
# left and the right side: arm (forward, sideways, turn), elbow, leg (forward, sideways, turn), knee.
_POSES: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    "stand": ((0, 0, 2, 0, 0, 2, 0, 0), (4, 10, 0, 14, 0, 5, 8, 3), (4, 10, 0, 14, 0, 5, 8, 3)),
    "relaxed": ((0, 0, 0, 5, 8, 0, 4, 12), (8, 38, -75, 105, 6, 12, 15, 12), (0, 12, 0, 20, 0, 5, 8, 2)),
    "stride": ((4, 0, 2, 0, 10, 0, 0, 0), (-28, 10, 0, 18, 32, 2, 4, 8), (32, 8, 0, 35, -18, 2, 4, 22)),
    "pass": ((3, 0, 2, 0, 0, 0, 0, 0), (0, 9, 0, 22, 22, 2, 4, 52), (4, 9, 0, 22, 2, 2, 4, 6)),
    "squat": ((28, 0, 12, 0, 0, -16, 0, 0), (88, 12, 0, 8, 108, 18, 18, 98), (88, 12, 0, 8, 108, 18, 18, 98)),
    "sumo": ((14, 0, 6, 0, 0, -6, 0, 0), (30, 40, -40, 100, 70, 40, 40, 78), (30, 40, -40, 100, 70, 40, 40, 78)),
    "lunge": ((4, 0, 4, 0, 0, 0, 0, 0), (6, 42, -80, 100, 78, 4, 4, 84), (6, 42, -80, 100, -18, 4, 4, 52)),
    "warrior": ((2, 0, 0, 0, 0, 0, 0, 20), (0, 88, 0, 4, 58, 28, 24, 66), (0, 88, 0, 4, -14, 30, 20, 8)),
    "arms_up": ((0, 0, -6, 0, 0, -10, 0, 0), (4, 160, 0, 14, 0, 8, 8, 2), (4, 160, 0, 14, 0, 8, 8, 2)),
    "cross": ((0, 0, 0, 0, 0, 0, 0, 0), (0, 88, 0, 6, 0, 14, 8, 2), (0, 88, 0, 6, 0, 14, 8, 2)),
    "cactus": ((0, 0, 0, 0, 0, 0, 0, 0), (0, 86, 88, 88, 0, 10, 8, 2), (0, 86, 88, 88, 0, 10, 8, 2)),
    "lean": ((0, 0, 0, 42, 0, 0, 14, 0), (8, 24, 0, 16, 0, 20, 10, 4), (4, 165, 0, 30, 0, 20, 10, 4)),
    "star": ((0, 16, 0, 0, 0, -8, 0, 0), (0, 138, 0, 6, 4, 30, 8, 6), (0, 138, 0, 6, 4, 30, 8, 6)),
    "wave": ((0, 0, 0, -4, 0, 0, -6, 8), (4, 112, 84, 66, 0, 8, 8, 2), (4, 10, 0, 16, 0, 6, 8, 6)),
    "on_head": ((0, 0, 0, 0, 0, 0, 0, 0), (30, 118, 100, 128, 0, 8, 8, 4), (30, 118, 100, 128, 0, 8, 8, 4)),
}  # fmt: skip
_TRUNK_MIRROR = np.array([1, 1, 1, -1, -1, 1, -1, -1])
_MOTIONS = (
    ("stride", "pass", "mirror stride", "mirror pass"), ("stand", "squat"), ("stand", "arms_up"), ("lunge", "relaxed"),
    ("cross", "cactus", "arms_up"), ("lean", "arms_up", "mirror lean"), ("star", "stand"), ("wave", "relaxed"),
    ("warrior", "cross", "mirror warrior"), ("sumo", "cactus"), ("on_head", "cross"), ("relaxed", "stand", "wave"),
)  # fmt: skip
_SIDE_LOW, _SIDE_HIGH = (-60, 4, -95, 3, -30, 2, -5, 0), (180, 172, 105, 140, 115, 72, 45, 140)
_POSE_LOW = np.array([-25, 0, -15, -45, -55, -25, -25, -55, *_SIDE_LOW, *_SIDE_LOW], dtype=float)
_POSE_HIGH = np.array([65, 30, 45, 45, 55, 30, 25, 55, *_SIDE_HIGH, *_SIDE_HIGH], dtype=float)
_TABLES = {
    "annotations": "train_df.csv", "sample_submission": "sample_submission.csv", "truth": "truth/test_df.csv",
}  # fmt: skip
_SKINS = ((198, 214, 240), (172, 196, 232), (140, 172, 218), (112, 146, 198), (78, 108, 162), (56, 78, 124))
_SHOE_AT = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 18))
_SHOE = (  # along from heel to toe, half width, half height
    (0, 0.02, 0.08, 0.3, 0.5, 0.75, 0.9, 0.97, 1),
    (0, 0.022, 0.036, 0.04, 0.045, 0.05, 0.043, 0.028, 0),
    (0, 0.03, 0.05, 0.062, 0.045, 0.034, 0.028, 0.02, 0),
)
_HAIRS = ((24, 22, 22), (30, 38, 52), (34, 56, 92), (52, 96, 150), (110, 172, 206), (120, 120, 124), (30, 48, 110))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `rotation` (3, 3) rows are its right, down and ahead axes in the world."""

    position: FloatArray
    rotation: FloatArray
    focal_px: float
    centre: tuple[float, float]

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """World points (..., 3) -> pixel indices (..., 2) and depths (...) in metres."""
        seen = (points - self.position) @ self.rotation.T
        return seen[..., :2] / seen[..., 2:] * self.focal_px + self.centre, seen[..., 2]


def make_sample(
    folder: str,
    *,
    num_images: int,
    num_test: int | None = None,
    width: int = 1920,
    height: int = 1080,
    seed: int = 0,
    num_processes: int | None = None,
    progress: Callable[[int], None] | None = None,
    run_dir: str | None = None,
) -> dict[str, Any]:
    """Write a competition-like data set into a local folder.

    `train_imgs/*.jpg` with `train_df.csv`, `test_imgs/*.jpg` with `sample_submission.csv` (zeros), the test labels
    apart in `truth/test_df.csv`, and a `config.yaml` that every verb of kp-ray takes. All 24 points of every person
    are labelled, also hidden ones and those outside the frame. Test scenes are other people, rooms and cameras than
    training scenes. Equal arguments give equal bytes, whatever `num_processes` is.

    Args:
        folder: made if needed; it may hold nothing but files of an earlier call with the same numbers of images.
        num_images: of the training set.
        num_test: of the test set; None: a fifth of `num_images`, at least 10.
        width, height: of the frames, in pixels.
        seed: not negative.
        num_processes: None: the number of CPUs. More than one needs the `if __name__ == "__main__":` guard in a script.
        progress: called with the number of images written so far.
        run_dir: the run folder that `config.yaml` names; None: `run` in the folder.

    Returns:
        `num_train`, `num_test`, `num_scenes`, `config`, and the paths `annotations`, `images`, `test_images`,
        `sample_submission`, `truth` (the names of the config's `data` section).

    Raises:
        InputError: a number is out of range, or the folder holds other files.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    num_test = max(10, num_images // 5) if num_test is None else num_test
    for name, value, low in (
        ("num_images", num_images, 1), ("num_test", num_test, 0), ("width", width, 64), ("height", height, 64),
        ("seed", seed, 0), ("num_processes", 1 if num_processes is None else num_processes, 1),
    ):  # fmt: skip
        if value < low:
            raise InputError(f"sample: {name} must be at least {low}, got {value}")
    clips = [*_plan("train", num_images, seed), *_plan("test", num_test, seed)]
    _refuse_other_files(folder, {"config.yaml", *_TABLES.values(), *(name for clip in clips for name in clip.files)})
    labels: dict[str, FloatArray] = {}
    for written in _run([(clip, folder, width, height) for clip in clips], num_processes):
        labels.update(written)
        if progress is not None:
            progress(len(labels))
    train, test = ({k: v for k, v in labels.items() if k.startswith(split)} for split in ("train", "test"))
    paths = {key: join(folder, name) for key, name in _TABLES.items()}
    _write_csv(paths["annotations"], train)
    _write_csv(paths["truth"], test)
    _write_csv(paths["sample_submission"], {name: np.zeros_like(xy) for name, xy in test.items()})
    paths |= {"images": join(folder, "train_imgs"), "test_images": join(folder, "test_imgs")}
    num_scenes = len({(clip.split, clip.scene) for clip in clips})
    config = join(folder, "config.yaml")
    settings = {"preset": "demo", "run_dir": run_dir or join(folder, "run"), "data": paths}
    write_bytes(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    return {"num_train": num_images, "num_test": num_test, "num_scenes": num_scenes, "config": config, **paths}


@dataclass(frozen=True)
class _Clip:
    """What one task draws."""

    split: str
    seed: int
    scene: int
    camera: int
    frames: tuple[int, ...]

    @property
    def files(self) -> list[str]:
        """Paths inside the data set, named like the competition's."""
        number, group = (self.scene + 1, 1) if self.split == "train" else (self.scene + 601, 2)
        place = self.scene * 7 % 150 + 1
        stem = f"{number:03d}-{group}-1-{self.motion + 1:02d}-Z{place}_{'ABCDE'[self.camera]}"
        return [f"{self.split}_imgs/{stem}-{frame:07d}.jpg" for frame in self.frames]

    @property
    def motion(self) -> int:
        """Index in `_MOTIONS`; the factor 5 walks through all of them."""
        return (5 * self.scene + self.seed + 11 * (self.split == "test")) % len(_MOTIONS)

    def random(self, *made: int) -> np.random.Generator:
        """A generator of its own for whatever is made."""
        return np.random.default_rng([self.seed, self.split == "test", self.scene, *made])


def _plan(split: str, count: int, seed: int) -> list[_Clip]:
    """Clips of together `count` frames: more images give first more scenes, then more cameras, then longer clips."""
    num_cameras, num_frames = min(5, max(2, count // 150)), min(8, max(2, count // 200))
    clips: list[_Clip] = []
    scene = 0
    while count > 0:
        for camera in sorted((scene + k) % 5 for k in range(num_cameras)):
            frames = tuple(range(1, 2 * min(num_frames, count), 2))
            if frames:
                clips.append(_Clip(split, seed, scene, camera, frames))
            count -= len(frames)
        scene += 1
    return clips


def _refuse_other_files(folder: str, planned: set[str]) -> None:
    if "://" in folder:
        raise InputError(f"{folder}: the sample is written to a local folder; give a path without ://")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder}: is a file; give the name of a new folder")
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in sorted(names)):
            if os.path.relpath(path, folder).replace(os.sep, "/") not in planned:
                raise InputError(f"{path}: not a file of this sample; give a new or empty folder")


def _write_csv(path: str, labels: dict[str, FloatArray]) -> None:
    table = pd.DataFrame([xy.ravel() for xy in labels.values()], columns=DACON24.columns)
    table.insert(0, "image", [os.path.basename(name) for name in labels])
    write_bytes(path, table.to_csv(index=False, float_format="%.4f").encode())


def _run(jobs: Sequence[tuple[_Clip, str, int, int]], num_processes: int | None) -> Iterator[dict[str, FloatArray]]:
    """The labels of each job, in order. A new process takes a second to start, so a few clips are drawn in this one."""
    workers = min(num_processes or os.cpu_count() or 1, -(-len(jobs) // 4) if num_processes is None else len(jobs))
    if workers == 1:
        yield from map(_draw_clip, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the caller's threads' locks
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            yield from pool.map(_draw_clip, jobs)
    except BrokenProcessPool as error:
        raise InputError(
            'sample: a drawing process died; guard the script with if __name__ == "__main__": or use num_processes=1'
        ) from error


def _draw_clip(job: tuple[_Clip, str, int, int]) -> dict[str, FloatArray]:
    """Draw and write one clip; its labels (24, 2) by path inside the data set."""
    clip, folder, width, height = job
    stage = _Stage.of(clip, width, height)
    background = stage.background()
    labels = {}
    for name, frame in zip(clip.files, clip.frames, strict=True):
        picture, labels[name] = stage.draw(frame, background)
        write_bytes(join(folder, name), simplejpeg.encode_jpeg(picture, 90, "BGR", "420"))
    return labels


@dataclass(frozen=True)
class _Person:
    """Proportions (1 is usual), clothes (`sleeve`, `trouser`: their length in limbs) and BGR colours by name."""

    size: float
    girth: float
    legs: float
    sleeve: float
    trouser: float
    pattern: int
    headgear: int
    colours: dict[str, FloatArray]

    @classmethod
    def of(cls, rng: np.random.Generator, wall: FloatArray) -> "_Person":
        """A random person whose clothes stand out from the wall's colour (3,)."""
        shirt, trouser = _apart(rng, wall, 250), _apart(rng, wall, 190)
        skin, hair = (np.array(tones[rng.integers(len(tones))]) for tones in (_SKINS, _HAIRS))
        size, girth, legs = rng.uniform((0.9, 0.88, 0.95), (1.1, 1.2, 1.06))
        colours = {"shirt": shirt, "trouser": trouser, "skin": skin, "hair": hair}
        colours["print"] = _apart(rng, shirt, 250)
        # Pads, wristbands and shoes are warm on the left and cold on the right: left and right is the slowest thing to
        # learn for a network that starts from nothing, and the demo has minutes.
        colours["left"], colours["right"] = _hue(rng, (0, 24)), _hue(rng, (86, 120))
        sleeve, leg = rng.choice([0.62, 0.62, 1.7, 2.1]), rng.choice([0.75, 1.1, 2.1, 2.1])
        return cls(size, girth, legs, sleeve, leg, int(rng.integers(5)), int(rng.integers(3)), colours)


def _colour(rng: np.random.Generator, saturation: tuple[int, int], value: tuple[int, int]) -> FloatArray:
    hsv = np.array([[[rng.integers(180), rng.integers(*saturation), rng.integers(*value)]]], dtype=np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], dtype=float)


def _hue(rng: np.random.Generator, hues: tuple[int, int]) -> FloatArray:
    hsv = np.array([[[rng.integers(*hues), rng.integers(190, 256), rng.integers(205, 256)]]], dtype=np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], dtype=float)


def _apart(rng: np.random.Generator, other: FloatArray, brightest: int) -> FloatArray:
    """Of three random colours the one furthest from `other`."""
    options = [_colour(rng, (10, 110), (60, brightest)) for _ in range(3)]
    return max(options, key=lambda option: float(np.abs(option - other).sum()))


def _pose(clip: _Clip, frame: int) -> FloatArray:
    """The joint angles (24,) of a scene's person at a frame: between two key poses of the motion."""
    rng = clip.random(1)
    keys = []
    for name in _MOTIONS[clip.motion]:
        trunk, left, right = (np.array(part, dtype=float) for part in _POSES[name.removeprefix("mirror ")])
        if name.startswith("mirror "):
            trunk, left, right = trunk * _TRUNK_MIRROR, right, left
        keys.append(np.concatenate([trunk, left, right]) + rng.normal(0, 5, 24) * (np.arange(24) != 1))
    if rng.random() < 0.5:
        keys = [np.concatenate([key[:8] * _TRUNK_MIRROR, key[16:], key[8:16]]) for key in keys]
    phase = rng.uniform(0, len(keys)) + frame * rng.uniform(0.03, 0.06)
    ease = 0.5 - 0.5 * np.cos(np.pi * (phase % 1))
    now, after = keys[int(phase) % len(keys)], keys[(int(phase) + 1) % len(keys)]
    return np.asarray(np.clip((1 - ease) * now + ease * after, _POSE_LOW, _POSE_HIGH))


def _turn(forward: float, side: float, twist: float) -> FloatArray:
    """The rotation Rx(side) Ry(forward) Rz(twist), in degrees."""
    (a, b, c), (d, e, f) = (turn(np.radians([side, forward, twist])) for turn in (np.cos, np.sin))
    about_x, about_y = [[1, 0, 0], [0, a, -d], [0, d, a]], [[b, 0, e], [0, 1, 0], [-e, 0, b]]
    return np.asarray(np.array(about_x) @ about_y @ [[c, -f, 0], [f, c, 0], [0, 0, 1]])


def _joints(pose: FloatArray, person: _Person) -> tuple[Joints, Joints]:
    """Forward kinematics: joint positions (3,) and body part orientations (3, 3), by name; the lowest part at z = 0."""
    size, leg = person.size, person.size * person.legs
    pitch, lift, bend, lean, twist, nod, tilt, turn = pose[:8]
    turns = {"pelvis": _turn(pitch, -lean * 0.2, 0)}
    turns["waist"] = turns["pelvis"] @ _turn(bend / 2, -lean * 0.4, twist / 2)
    turns["chest"] = turns["waist"] @ _turn(bend / 2, -lean * 0.4, twist / 2)
    turns["head"] = turns["chest"] @ _turn(nod, -tilt, turn)
    at = {"pelvis": np.zeros(3)}

    def put(name: str, parent: str, orientation: FloatArray, offset: Sequence[float], unit: float = size) -> None:
        at[name] = at[parent] + orientation @ np.array(offset) * unit

    put("spine1(waist)", "pelvis", turns["pelvis"], (0, 0, 0.14))
    put("spine2(back)", "spine1(waist)", turns["waist"], (0, 0, 0.17))
    put("neck", "spine2(back)", turns["chest"], (0, 0, 0.22))
    put("skull", "neck", turns["chest"], (0.01, 0, 0.05))
    put("head", "skull", turns["head"], (0.02, 0, 0.135))
    put("nose", "head", turns["head"], (0.112, 0, -0.028))
    for side, sign, (forward, out, roll, elbow, hip, spread, toes, knee) in (
        ("left", 1, pose[8:16]), ("right", -1, pose[16:]),
    ):  # fmt: skip
        put(f"{side}_eye", "head", turns["head"], (0.086, sign * 0.034, 0.012))
        put(f"{side}_ear", "head", turns["head"], (-0.005, sign * 0.084, -0.005))
        arm = turns["chest"] @ _turn(-forward, sign * out, sign * roll)
        forearm = arm @ _turn(-elbow, 0, 0)
        put(f"{side}_shoulder", "neck", turns["chest"], (0, sign * 0.172, -0.05 + 0.04 * max(out, forward) / 170))
        put(f"{side}_elbow", f"{side}_shoulder", arm, (0, 0, -0.28))
        put(f"{side}_wrist", f"{side}_elbow", forearm, (0, 0, -0.25))
        put(f"{side}_palm", f"{side}_wrist", forearm, (0.01, 0, -0.085))
        thigh = turns["pelvis"] @ _turn(-hip, sign * spread, sign * toes)
        shin = thigh @ _turn(knee, 0, 0)
        foot = shin @ _turn(float(np.clip(hip - knee - pitch, -25, 45)), 0, 0)
        put(f"{side}_hip", "pelvis", turns["pelvis"], (0, sign * 0.1, 0))
        put(f"{side}_knee", f"{side}_hip", thigh, (0, 0, -0.43), leg)
        put(f"{side}_ankle", f"{side}_knee", shin, (0, 0, -0.41), leg)
        put(f"{side}_instep", f"{side}_ankle", foot, (0.085, 0, -0.035))
        put(f"{side}_heel", f"{side}_ankle", foot, (-0.06, 0, -0.085))
        put(f"{side}_toe", f"{side}_ankle", foot, (0.19, 0, -0.085))
        turns |= {f"{side}_forearm": forearm, f"{side}_foot": foot}
    soles = [at[f"{side}_{part}"][2] for side in ("left", "right") for part in ("heel", "toe")]
    low = min([*soles, *(at[f"{side}_knee"][2] - 0.06 for side in ("left", "right")), at["pelvis"][2] - 0.14])
    return {name: point + np.array([0, 0, lift / 100 - low]) for name, point in at.items()}, turns


def _loft(centres: FloatArray, right: FloatArray, front: FloatArray, colours: FloatArray) -> Surface:
    """The surface through R rings: `centres`, half-axes `right` and `front` (R, 3); colours to (R-1, S, 3)."""
    angles = np.linspace(0, 2 * np.pi, (colours.shape[1] if colours.ndim == 3 and colours.shape[1] > 1 else 24) + 1)
    points = centres[:, None] + np.cos(angles)[:, None] * right[:, None] + np.sin(angles)[:, None] * front[:, None]
    quads = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)
    return quads.reshape(-1, 4, 3), np.broadcast_to(colours, (*quads.shape[:2], 3)).reshape(-1, 3)


def _tube(
    start: FloatArray, end: FloatArray, radii: Sequence[float], colour: FloatArray, *,
    sleeve: tuple[float, FloatArray] | None = None, flat: float = 1.0, across: FloatArray | None = None,
) -> Surface:  # fmt: skip
    """A limb from `start` to `end` with round ends and radii spread evenly along it, in metres.

    `sleeve`: cloth of a colour over this share of its length. `flat`: thickness in `across` direction over width.
    """
    axis, length = (end - start) / np.linalg.norm(end - start), float(np.linalg.norm(end - start))
    bow, middle = np.linspace(0, np.pi / 2, 6), np.linspace(0, 1, 16)[1:-1]
    inner = np.interp(middle, np.linspace(0, 1, len(radii)), radii)
    along = np.concatenate([-radii[0] * np.cos(bow), middle * length, length + radii[-1] * np.cos(bow[::-1])])
    radius = np.concatenate([radii[0] * np.sin(bow), inner, radii[-1] * np.sin(bow[::-1])])
    covered = along < (sleeve[0] * length if sleeve and sleeve[0] > 0 else -1)
    radius = radius + covered * (radius > 0) * 0.009
    reference = across if across is not None else np.array([0.31, 0.87, 0.38])
    front = reference - axis * (reference @ axis)
    front /= np.linalg.norm(front)
    right = np.cross(front, axis)
    colours = np.where(covered[1:, None], sleeve[1] if sleeve else colour, colour)[:, None]
    return _loft(start + along[:, None] * axis, radius[:, None] * right, radius[:, None] * flat * front, colours)


def _ball(centre: FloatArray, turn: FloatArray, radii: Sequence[float], colour: FloatArray) -> Surface:
    """An ellipsoid with half-axes `radii` along the columns of `turn`; `colour` (3,) or by unit direction (R, S, 3)."""
    colour = colour if colour.ndim == 3 else np.broadcast_to(colour, (8, 14, 3))
    polar = np.linspace(-np.pi / 2, np.pi / 2, colour.shape[0] + 1)
    ring = np.cos(polar)[:, None]
    centres = centre + np.sin(polar)[:, None] * turn[:, 2] * radii[2]
    return _loft(centres, ring * -turn[:, 1] * radii[1], ring * turn[:, 0] * radii[0], colour)


def _body(at: Joints, turns: Joints, person: _Person) -> list[Surface]:
    """The surfaces of a posed person."""
    s, g, tone = person.size, person.size * person.girth, person.colours
    skin, shirt, cloth = tone["skin"], tone["shirt"], tone["trouser"]
    parts = [_trunk(at, turns, person), *_head(at, turns["head"], person)]
    parts.append(_tube(at["neck"], at["skull"] + turns["head"][:, 2] * 0.04 * s, (0.056 * g, 0.05 * g), tone["skin"]))
    for side in ("left", "right"):
        shoulder, elbow, wrist, palm = (at[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist", "palm"))
        hip, knee, ankle = (at[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        forearm, foot = turns[f"{side}_forearm"], turns[f"{side}_foot"]
        parts.append(_tube(shoulder, elbow, (0.056 * g, 0.054 * g, 0.042 * g), skin, sleeve=(person.sleeve, shirt)))
        parts.append(_tube(elbow, wrist, (0.042 * g, 0.043 * g, 0.028 * g), skin, sleeve=(person.sleeve - 1.15, shirt)))
        tips = palm + (palm - wrist) * 0.95 + forearm[:, 0] * 0.02 * s
        width = (0.024 * s, 0.042 * s, 0.041 * s, 0.024 * s)
        parts.append(_tube(wrist, tips, width, skin, flat=0.45, across=forearm[:, 1]))
        thumb = palm + forearm @ (0.058, 0, -0.01) * s
        parts.append(_tube(wrist + (palm - wrist) * 0.4, thumb, (0.016 * s, 0.012 * s), skin))
        parts.append(_tube(hip, knee, (0.088 * g, 0.084 * g, 0.058 * g), skin, sleeve=(person.trouser, cloth)))
        profile = (0.054 * g, 0.061 * g, 0.052 * g, 0.038 * g)
        parts.append(_tube(knee, ankle, profile, skin, sleeve=(person.trouser - 1.1, cloth)))
        heel, toe = (at[f"{side}_{end}"] + foot[:, 2] * 0.032 * s for end in ("heel", "toe"))
        wide, tall = (np.interp(_SHOE_AT, _SHOE[0], row)[:, None] * s for row in _SHOE[1:])
        spine = heel + _SHOE_AT[:, None] * (toe - heel) + (tall - 0.032 * s) * foot[:, 2]
        parts.append(_loft(spine, wide * foot[:, 1], tall * foot[:, 2], tone[side]))
        for joint, size in ((shoulder, 0.075), (elbow, 0.062), (hip, 0.105), (knee, 0.08)):
            parts.append(_ball(joint, np.eye(3), (size * g,) * 3, tone[side]))
        cuff = (palm - wrist) * 0.45
        parts.append(_tube(wrist - cuff, wrist + cuff * 0.3, (0.044 * g, 0.042 * g), tone[side]))
    return parts


def _trunk(at: Joints, turns: Joints, person: _Person) -> Surface:
    """Hips to neck in one surface, with belt, pattern and chest print."""
    s, g, tone = person.size, person.girth, person.colours
    pelvis, chest = turns["pelvis"], turns["chest"]
    up = at["neck"] - at["spine2(back)"]
    knots = np.array([
        at["pelvis"] - pelvis[:, 2] * 0.1 * s, at["pelvis"] - pelvis[:, 2] * 0.06 * s, at["pelvis"],
        at["spine1(waist)"], at["spine2(back)"], at["spine2(back)"] + up * 0.62,
        at["neck"] - up * 0.08, at["neck"] + up * 0.12,
    ])  # fmt: skip
    wide = np.array([0.03, 0.15, 0.176, 0.146 * g, 0.17 * g, 0.188, 0.16, 0.056]) * s
    deep = np.array([0.03, 0.1, 0.118 * g, 0.104 * g, 0.118 * g, 0.1, 0.075, 0.056]) * s
    blend = np.array([0, 0, 0, 0.5, 1, 1, 1, 1])[:, None, None]
    turn = (1 - blend) * pelvis + blend * chest
    rows, segments = 34, 40
    where = np.linspace(0, 7, rows + 1)

    def spread(values: FloatArray) -> FloatArray:
        dense = np.stack([np.interp(where, np.arange(8), column) for column in values.T], axis=1)
        return np.asarray(cv2.GaussianBlur(dense, (1, 7), 1.2, borderType=cv2.BORDER_REPLICATE))

    colours = np.broadcast_to(tone["shirt"], (rows, segments, 3)).copy()
    row, angle = np.meshgrid((where[1:] + where[:-1]) / 2, (np.arange(segments) + 0.5) * 360 / segments, indexing="ij")
    if person.pattern == 0:
        colours[(row * 3 % 2 < 1) & (row > 2.7)] = tone["print"]
    elif person.pattern == 1:
        colours[(row > 4.1) & (row < 4.9)] = tone["print"]
    elif person.pattern == 2:  # an open jacket shows what is under it, in front only
        colours[abs(angle - 90) < 22] = tone["print"]
    else:
        colours[(abs(angle - 90) < 40) & (row > 3.6) & (row < 5.1)] = tone["print"]
    colours[row < 2.55] = tone["trouser"]
    colours[abs(row - 2.62) < 0.1] = (50, 60, 70)
    return _loft(spread(knots), spread(-turn[:, :, 1] * wide[:, None]), spread(turn[:, :, 0] * deep[:, None]), colours)


def _head(at: Joints, turn: FloatArray, person: _Person) -> list[Surface]:
    """Skull with hair or cap, and a face."""
    s, tone, centre = person.size, person.colours, at["head"]
    tall, angle = np.meshgrid(np.sin(np.linspace(-1.52, 1.52, 26)), np.arange(0.5, 36) * np.pi / 18, indexing="ij")
    ahead = np.sin(angle) * np.sqrt(1 - tall**2)
    hairy = (tall > 0.58 - 0.1 * (ahead < 0.4)) | ((ahead < 0.02) & (tall > -0.62)) | ((ahead < 0.28) & (tall > 0.12))
    colours = np.where(hairy[..., None], tone["hair"], tone["skin"])
    if person.headgear == 0:  # a cap
        colours[tall > 0.5] = tone["print"]
    parts = [_ball(centre, turn, (0.103 * s, 0.08 * s, 0.126 * s), colours)]
    white, dark = np.full(3, 245.0), np.array([30.0, 26, 24])

    def place(*offset: float) -> FloatArray:
        return np.asarray(centre + turn @ np.array(offset) * s)

    for side, sign in (("left", 1), ("right", -1)):
        eye, ear = at[f"{side}_eye"], at[f"{side}_ear"]
        parts.append(_ball(eye, turn, (0.007 * s, 0.0155 * s, 0.0095 * s), white))
        parts.append(_ball(eye + turn[:, 0] * 0.005 * s, turn, (0.0055 * s, 0.0075 * s, 0.0085 * s), dark))
        parts.append(_ball(ear, turn, (0.02 * s, 0.01 * s, 0.03 * s), tone["skin"] * 0.93))
        if person.headgear == 1:  # long hair falls behind the ears
            top, tip = place(-0.05, sign * 0.05, 0.02), place(-0.075, sign * 0.055, -0.2)
            parts.append(_tube(top, tip, (0.05 * s, 0.05 * s, 0.03 * s), tone["hair"]))
    if person.headgear == 0:
        parts.append(_ball(place(0.1, 0, 0.07), turn, (0.085 * s, 0.07 * s, 0.012 * s), tone["print"] * 0.85))
    parts.append(_tube(place(0.1, 0, 0.012), place(0.108, 0, -0.028), (0.006 * s, 0.014 * s), tone["skin"] * 0.97))
    lips = (0.006 * s, 0.008 * s, 0.006 * s)
    parts.append(
        _tube(place(0.088, -0.022, -0.066), place(0.088, 0.022, -0.066), lips, tone["skin"] * (0.62, 0.6, 0.86))
    )
    return parts


def _paint(
    picture: Picture, camera: Camera, parts: list[Surface], light: FloatArray, step: FloatArray | float = 1.0
) -> None:
    """Draw surfaces into `picture` (H, W, 3) in place, far quads first, shaded, twofold supersampled.

    Args:
        light: unit vector towards the lamp.
        step: the camera's pixels per pixel of the picture.
    """
    quads, colours = (np.concatenate(group) for group in zip(*parts, strict=True))
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    xy, depth = camera.project(quads)
    xy = (xy + 0.5) / step - 0.5
    to_eye = camera.position - quads.mean(axis=1)
    facing = np.einsum("ij,ij->i", normals, to_eye) / np.linalg.norm(to_eye, axis=1)
    order = np.argsort(-depth.mean(axis=1), kind="stable")
    order = order[((facing > 0) & (depth.min(axis=1) > 0.3))[order]]
    corners = xy[order].reshape(-1, 2)
    size = picture.shape[1::-1]
    if not len(order):
        return
    low, high = (np.clip(edge, 0, size).astype(int) for edge in (corners.min(axis=0) - 2, corners.max(axis=0) + 3))
    if (high <= low).any():
        return
    shade = 0.42 + 0.62 * np.maximum(normals @ light, 0) + 0.16 * facing
    tones = np.column_stack([np.clip(colours * shade[:, None], 0, 255), np.full(len(colours), 255.0)])
    # An index i of the picture is the middle of indices 2i and 2i + 1 of the twofold canvas.
    points = np.rint(((xy - low) * 2 + 0.5) * 16).clip(-(2**26), 2**26).astype(np.int32)
    canvas = np.zeros((*(2 * (high - low))[::-1], 4), dtype=np.uint8)
    for quad, tone in zip(points[order], tones[order].tolist(), strict=True):
        cv2.fillConvexPoly(canvas, quad, tone, shift=4)
    drawn = cv2.resize(canvas, tuple(high - low), interpolation=cv2.INTER_AREA)
    window = picture[low[1] : high[1], low[0] : high[0]]
    keep = cv2.merge([cv2.bitwise_not(drawn[..., 3])] * 3)
    window[:] = cv2.add(cv2.multiply(window, keep, scale=1 / 255), drawn[..., :3])


@dataclass(frozen=True)
class _Stage:
    """One clip's room (its lowest and highest corner, (2, 3)), person, lamp direction and camera."""

    clip: _Clip
    size: tuple[int, int]
    person: _Person
    wall: FloatArray
    room: FloatArray
    outdoors: bool
    light: FloatArray
    camera: Camera

    @classmethod
    def of(cls, clip: _Clip, width: int, height: int) -> "_Stage":
        """The stage of a clip with frames of `width` x `height`."""
        rng = clip.random(0)
        outdoors = bool(rng.random() < 0.35)
        reach = rng.uniform(11, 16, 4) if outdoors else rng.uniform(5.6, 8, 4)
        room = np.array([[*-reach[:2], 0], [*reach[2:], 9 if outdoors else rng.uniform(2.7, 3.6)]])
        wall = np.array([110.0, 130, 120]) if outdoors else _colour(rng, (5, 90), (110, 235))
        person = _Person.of(rng, wall)
        # The lamp stands where most cameras stand, so that faces are lit.
        light = np.array([*rng.uniform((0.3, -1), (1, 1)), rng.uniform(1.1, 2)])
        # Five cameras on an arc before the person; which letter stands where changes with the scene.
        places = rng.permutation([-40.0, -20, 0, 20, 40]) + rng.uniform(-9, 9, 5)
        body = np.concatenate([list(_joints(_pose(clip, frame), person)[0].values()) for frame in clip.frames])
        camera = _aim(clip.random(2, clip.camera), body, np.radians(places[clip.camera]), width, height)
        return cls(clip, (width, height), person, wall, room, outdoors, light / np.linalg.norm(light), camera)

    def draw(self, frame: int, background: Picture) -> tuple[Picture, FloatArray]:
        """A finished frame (H, W, 3) and its keypoints (24, 2)."""
        at, turns = _joints(_pose(self.clip, frame), self.person)
        parts = _body(at, turns, self.person)
        rng = self.clip.random(6, self.clip.camera)
        picture = self._shadow(background, parts)
        if rng.random() < 0.12:  # a pole or a crate between the camera and the person
            ahead = self.camera.position * (1, 1, 0) / np.linalg.norm(self.camera.position[:2])
            place = ahead * rng.uniform(1, 1.3) + np.cross((0, 0, 1), ahead) * rng.uniform(-0.5, 0.5)
            half, tall = (rng.uniform(0.03, 0.07), 3.0) if rng.random() < 0.5 else rng.uniform(0.2, 0.6, 2)
            parts.append(_block(place, half, tall, rng.uniform(0, 1.6), _colour(rng, (10, 90), (60, 220))))
        _paint(picture, self.camera, parts, self.light)
        labels = self.camera.project(np.stack([at[name] for name in DACON24.names]))[0]
        return self._develop(picture, frame), labels

    def background(self) -> Picture:
        """The empty room (H, W, 3), drawn at half size: that is as sharp as a lens leaves it."""
        small = (self.size[0] // 2, self.size[1] // 2)
        step = np.array(self.size) / small
        middles = zip(small, step, self.camera.centre, strict=True)
        x, y = (((np.arange(n) + 0.5) * s - 0.5 - c) / self.camera.focal_px for n, s, c in middles)
        right, down, ahead = self.camera.rotation
        rays = [((x * right[k])[None] + (y * down[k] + ahead[k] + 1e-9)[:, None]).astype(np.float32) for k in range(3)]
        start = self.camera.position.astype(np.float32)
        ends = [np.where(ray > 0, self.room[1, k], self.room[0, k]).astype(np.float32) for k, ray in enumerate(rays)]
        reach = [(end - start[k]) / ray for k, (end, ray) in enumerate(zip(ends, rays, strict=True))]
        distance = np.minimum(np.minimum(reach[0], reach[1]), reach[2])
        hits = [start[k] - np.float32(self.room[0, k]) + rays[k] * distance for k in range(3)]
        picture = np.zeros((*small[::-1], 3), dtype=np.uint8)
        for axis, far in np.ndindex(3, 2):
            mask = ((reach[axis] == distance) & ((rays[axis] > 0) == far)).astype(np.uint8)
            if cv2.hasNonZero(mask):
                texture, scale = self._texture(axis, far)
                u, v = (hits[k] * np.float32(scale) for k in range(3) if k != axis)
                v = texture.shape[0] - 1 - v if axis < 2 else v
                x0, y0, wide, tall = cv2.boundingRect(mask)
                part = np.s_[y0 : y0 + tall, x0 : x0 + wide]
                drawn = cv2.remap(texture, u[part], v[part], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
                cv2.copyTo(drawn, mask[part], picture[part])
        furniture = self._furniture()
        if furniture:
            _paint(picture, self.camera, furniture, self.light, step)
        return np.asarray(cv2.resize(picture, self.size, interpolation=cv2.INTER_CUBIC))

    def _texture(self, axis: int, far: int) -> tuple[Picture, float]:
        """The picture on a plane of the room and its pixels per metre."""
        rng = self.clip.random(3, axis, far)
        if axis == 2 and far:
            return np.full(
                (8, 8, 3), (238, 206, 176) if self.outdoors else np.minimum(self.wall + 30, 245), np.uint8
            ), 1.0
        if axis == 2:
            return _floor(rng, self.outdoors), 90.0
        width, height = int((self.room[1] - self.room[0])[1 - axis] * 72) + 1, int(self.room[1, 2] * 72) + 1
        return (_landscape(rng, width, height) if self.outdoors else _wall(rng, width, height, self.wall)), 72.0

    def _furniture(self) -> list[Surface]:
        """Boxes and plants that stand behind the person, seen from this camera."""
        rng = self.clip.random(5)
        parts: list[Surface] = []
        for _ in range(8):
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(2.4, 5)
            place = np.array([np.cos(angle), np.sin(angle), 0]) * distance
            half, tall = rng.uniform((0.25, 0.4), (0.6, 1.4))
            block = _block(place, half, tall, angle, _colour(rng, (10, 90), (70, 210)))
            drawn = _plant(rng, place) if rng.random() < 0.5 else [block]
            if place @ self.camera.position < 0:
                parts += drawn
        return parts

    def _shadow(self, background: Picture, parts: list[Surface]) -> Picture:
        """The background under the person's soft shadow, worked out at quarter size."""
        width, height = self.size
        mask = np.zeros((-(-height // 4), -(-width // 4)), dtype=np.uint8)
        for quads, _ in parts:
            xy, depth = self.camera.project(quads[:, 0] - self.light * (quads[:, 0, 2:] / self.light[2]))
            if depth.min() > 0.3:
                hull = cv2.convexHull((((xy + 0.5) / 4 - 0.5) * 16).clip(-(2**20), 2**20).astype(np.int32))
                cv2.fillConvexPoly(mask, hull, 140, shift=4)
        shade = cv2.resize(cv2.bitwise_not(cv2.GaussianBlur(mask, (0, 0), max(0.8, width / 800))), self.size)
        return np.asarray(cv2.multiply(background, cv2.merge([shade] * 3), scale=1 / 255))

    def _develop(self, picture: Picture, frame: int) -> Picture:
        """What lens, sensor and camera settings do: vignette, gain, tint, blur, noise."""
        width, height = self.size
        rng = self.clip.random(7, self.clip.camera)
        gain, edge = rng.uniform(0.8, 1.0) * rng.uniform(0.92, 1.0, 3), rng.uniform(0, 0.3)
        blur, noise = rng.choice([0.0, 0.0, 0.0, 0.8, 1.6]) * height / 1080 + 0.45, rng.uniform(0.8, 2.5)
        x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        vignette = 1 - np.float32(edge / 2) * (x * x + y * y)
        film = cv2.merge([cv2.convertScaleAbs(vignette, alpha=float(255 * tone)) for tone in gain])
        exposed = cv2.GaussianBlur(cv2.multiply(picture, film, scale=1.1 / 255), (0, 0), blur)
        quantiles = [NormalDist(8, noise).inv_cdf((k + 0.5) / 256) for k in range(256)]
        dice = self.clip.random(8, self.clip.camera, frame).integers(0, 256, (height, width), dtype=np.uint8)
        grain = cv2.LUT(dice, np.rint(quantiles).clip(0, 255).astype(np.uint8))
        return np.asarray(cv2.addWeighted(exposed, 1.0, cv2.merge([grain] * 3), 1.0, -8.0))


def _aim(rng: np.random.Generator, body: FloatArray, around: float, width: int, height: int) -> Camera:
    """A camera at azimuth `around` that sees all points `body` (N, 3), 60 to 92 % of the frame high, mostly uncut."""
    eye = np.array([np.cos(around), np.sin(around), 0]) * rng.uniform(3.2, 5.2) + (0, 0, rng.uniform(0.7, 1.9))
    ahead = (body.min(axis=0) + body.max(axis=0)) / 2 - eye
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    unit = Camera(eye, rotation, 1.0, (0.0, 0.0)).project(body)[0]
    low, high = unit.min(axis=0), unit.max(axis=0)
    focal = min(rng.uniform(0.6, 0.92) * height / (high - low)[1], 0.9 * width / (high - low)[0])
    spare = np.maximum(np.array([width, height]) - (high - low) * focal, 0) / 2
    shift = rng.uniform(-0.6, 0.6, 2) * spare
    if rng.random() < 0.05:  # the frame cuts the person
        shift[1] = np.sign(shift[1]) * (spare[1] + rng.uniform(0.03, 0.12) * (high - low)[1] * focal)
    centre = np.array([width - 1, height - 1]) / 2 + shift - (low + high) / 2 * focal
    return Camera(eye, rotation, float(focal), (float(centre[0]), float(centre[1])))


def _noise(rng: np.random.Generator, width: int, height: int, cells: Sequence[int]) -> FloatArray:
    """Smooth noise (height, width, 1) of several grains, about -1 to 1."""
    total = np.zeros((height, width), dtype=np.float32)
    for k, cell in enumerate(cells):
        grid = rng.normal(0, 0.5 / 1.5**k, (height // cell + 2, width // cell + 2)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(total[..., None])


def _floor(rng: np.random.Generator, outdoors: bool) -> Picture:
    """A 5 m square of planks, tiles, carpet, grass or asphalt that can be repeated."""
    side = 450
    kind = int(rng.integers(3, 5) if outdoors else rng.integers(3))
    base = ((60, 96, 140), (190, 196, 200), (120, 110, 105), (60, 120, 90), (140, 146, 150))[kind]
    colours = np.array(base) * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    colours = colours + (26 if kind == 3 else 13) * _noise(rng, side, side, (75, 20, 5, 2))
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    if kind == 0:
        plank = ((x + y // 15 * 61) % side // 150, y // 15)
        colours *= rng.uniform(0.8, 1.15, (3, 30))[plank][..., None] * np.where(y % 15 == 0, 0.75, 1)[..., None]
    elif kind == 1:
        colours *= np.where((x % 45 < 2) | (y % 45 < 2), 0.75, 1)[..., None]
    return np.clip(colours, 0, 255).astype(np.uint8)


def _wall(rng: np.random.Generator, width: int, height: int, colour: FloatArray) -> Picture:
    """An indoor wall with windows, pictures, doors and shelves."""
    stripes = np.where(np.arange(width) // 18 % 2, 1.0, rng.choice([1.0, 1.0, 0.92]))[:, None]
    fall = np.linspace(1.05, 0.85, height)[:, None, None] * rng.uniform(0.82, 1.08) * stripes
    canvas = np.clip(colour * fall + 7 * _noise(rng, width, height, (120, 30, 4)), 0, 255).astype(np.uint8)
    canvas[-8:] = np.minimum(colour * 0.7 + 60, 255)
    x = int(rng.integers(10, 120))
    while x < width - 160:
        kind, wide, top = int(rng.integers(5)), int(rng.integers(60, 150)), height - int(rng.uniform(1.9, 2.3) * 72)
        tone, trim = _colour(rng, (10, 130), (60, 220)), _colour(rng, (10, 130), (20, 130))
        area = canvas[top : top + (height if kind >= 3 else int(rng.integers(50, 100))), x : x + wide]
        tall = area.shape[0]
        if kind == 0:
            area[:] = np.clip(tone + 50 * _noise(rng, wide, tall, (25, 9)), 0, 255)
        elif kind in (1, 2):
            area[:] = np.linspace((250, 240, 226), (208, 220, 210), tall)[:, None]
            trim = np.full(3, 248.0)
            area[:, wide // 2 - 2 : wide // 2 + 2] = trim
        elif kind == 3:
            area[:] = tone * 0.8
        else:
            books = tone * 0.4 + rng.uniform(20, 150, (tall // 28 + 1, wide // 7, 3))
            area[:] = cv2.resize(books.astype(np.uint8), (wide, tall), interpolation=cv2.INTER_NEAREST)
            area[np.arange(tall) % 28 < 5] = trim * 0.6
        cv2.rectangle(canvas, (x, top), (x + wide, top + tall), trim.tolist(), 4)
        x += wide + int(rng.integers(30, 220))
    return canvas


def _landscape(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Sky, houses and trees, out of focus."""
    sky = np.linspace((238, 206, 176), (245, 238, 230), height)[:, None]
    canvas = np.clip(sky + 12 * _noise(rng, width, height, (260, 90)), 0, 255).astype(np.uint8)
    for _ in range(3):
        x, top, wide = int(rng.integers(width)), int(height - rng.uniform(2.5, 6) * 72), int(rng.integers(200, 420))
        canvas[top:, x : x + wide] = _colour(rng, (8, 80), (110, 215))
        for left, up in itertools.product(range(x + 20, x + wide - 40, 64), range(top + 20, height - 60, 80)):
            canvas[up : up + 44, left : left + 30] = (120, 104, 92)
    for _ in range(20):
        x, crown = int(rng.integers(width)), height - int(rng.uniform(0.4, 3.6) * 72)
        tone = rng.uniform((40, 90, 60), (80, 140, 110))
        cv2.line(canvas, (x, crown), (x, height), (50, 70, 90), 9)
        for dx, dy, radius, shine in rng.normal((0, 0, 14, 1), (34, 30, 3, 0.13), (40, 4)):
            cv2.circle(canvas, (int(x + dx), int(crown + dy)), max(1, int(radius)), (tone * shine).tolist(), -1)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(2, 4)))


def _block(place: FloatArray, half: float, tall: float, angle: float, colour: FloatArray) -> Surface:
    """A box standing at `place`; `half` is half its diagonal."""
    ring, side = np.array([half, half, 1e-3])[:, None], np.array([np.cos(angle), np.sin(angle), 0])
    heights = place + np.outer((0, tall, tall), (0, 0, 1))
    return _loft(heights, ring * side, ring * np.cross((0, 0, 1.0), side), np.broadcast_to(colour, (2, 4, 3)))


def _plant(rng: np.random.Generator, place: FloatArray) -> list[Surface]:
    """A pot with leaves."""
    parts = [_tube(place, place + np.array([0, 0, 0.4]), (0.13, 0.18), _colour(rng, (20, 90), (80, 200)))]
    for _ in range(14):
        centre, turn = place + rng.normal((0, 0, 1), (0.17, 0.17, 0.28)), _turn(*rng.uniform(-70, 70, 3))
        tone = rng.uniform((30, 90, 40), (70, 150, 90))
        parts.append(_ball(centre, turn, (0.22, 0.08, 0.015), np.broadcast_to(tone, (4, 10, 3))))
    return parts
