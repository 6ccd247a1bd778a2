"""Describe the clips of a generated data set, and compute the poses in a clip as joint angles."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from kp_ray.keypoints import FloatArray

# A pose has 24 numbers: angles in degrees, and the lift in cm. The first 8 are for the trunk: pitch, lift, bend, lean,
# twist, nod, tilt, turn. Then come 8 for the left side and 8 for the right side: arm (forward, sideways, turn), elbow,
# leg (forward, sideways, turn), knee.
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
}
_TRUNK_MIRROR = np.array([1, 1, 1, -1, -1, 1, -1, -1])
MOTIONS = (
    ("stride", "pass", "mirror stride", "mirror pass"), ("stand", "squat"), ("stand", "arms_up"), ("lunge", "relaxed"),
    ("cross", "cactus", "arms_up"), ("lean", "arms_up", "mirror lean"), ("star", "stand"), ("wave", "relaxed"),
    ("warrior", "cross", "mirror warrior"), ("sumo", "cactus"), ("on_head", "cross"), ("relaxed", "stand", "wave"),
)  # fmt: skip
"""Names of the key poses of each motion, in order; "mirror" exchanges the left and the right side."""
# Lower and upper limits of the 24 numbers of a pose.
_SIDE_LOW, _SIDE_HIGH = (-60, 4, -95, 3, -30, 2, -5, 0), (180, 172, 105, 140, 115, 72, 45, 140)
_POSE_LOW = np.array([-25, 0, -15, -45, -55, -25, -25, -55, *_SIDE_LOW, *_SIDE_LOW], dtype=float)
_POSE_HIGH = np.array([65, 30, 45, 45, 55, 30, 25, 55, *_SIDE_HIGH, *_SIDE_HIGH], dtype=float)


class Purpose(IntEnum):
    """Purposes of random generators; each has its own random stream. Changing a number changes every data set."""

    SCENE = 0
    MOTION = 1
    CAMERA = 2
    TEXTURE = 3
    FURNITURE = 5
    OBSTACLE = 6
    EXPOSURE = 7
    NOISE = 8


@dataclass(frozen=True)
class SyntheticClip:
    """The frames of one scene from one camera.

    Attributes:
        subset: "train" or "test".
        seed: seed of the data set.
        scene: number of the scene within the subset, from 0.
        camera: number of the camera, 0 to 4.
        frames: frame numbers.
    """

    subset: str
    seed: int
    scene: int
    camera: int
    frames: tuple[int, ...]

    @property
    def files(self) -> list[str]:
        """Paths of the frames inside the data set, named in the competition's format."""
        # Scene numbers from 601 and group 2 are for test scenes only, so no scene name is in both subsets.
        number, group = (self.scene + 1, 1) if self.subset == "train" else (self.scene + 601, 2)
        zone = self.scene * 7 % 150 + 1
        stem = f"{number:03d}-{group}-1-{self.motion + 1:02d}-Z{zone}_{'ABCDE'[self.camera]}"
        return [f"{self.subset}_imgs/{stem}-{frame:07d}.jpg" for frame in self.frames]

    @property
    def motion(self) -> int:
        """Index in `MOTIONS`; it grows by 5 from scene to scene, so that 12 scenes show all 12 motions."""
        return (5 * self.scene + self.seed + 11 * (self.subset == "test")) % len(MOTIONS)

    def generator(self, purpose: Purpose, *numbers: int) -> np.random.Generator:
        """Make the scene's random generator for a purpose.

        Args:
            purpose: selects the random stream.
            numbers: select one of the purpose's streams, e.g. the numbers of a camera and a frame.
        """
        return np.random.default_rng([self.seed, self.subset == "test", self.scene, purpose, *numbers])


def pose_at(clip: SyntheticClip, frame: int) -> FloatArray:
    """Compute the pose (24,) of a scene's person at a frame, by interpolation between two key poses of the motion."""
    rng = clip.generator(Purpose.MOTION)
    key_poses = []
    for name in MOTIONS[clip.motion]:
        trunk, left, right = (np.array(part, dtype=float) for part in _POSES[name.removeprefix("mirror ")])
        if name.startswith("mirror "):
            trunk, left, right = trunk * _TRUNK_MIRROR, right, left
        jitter_deg = rng.normal(0, 5, 24) * (np.arange(24) != 1)  # index 1 is the lift, not an angle
        key_poses.append(np.concatenate([trunk, left, right]) + jitter_deg)
    if rng.random() < 0.5:
        key_poses = [np.concatenate([pose[:8] * _TRUNK_MIRROR, pose[16:], pose[8:16]]) for pose in key_poses]
    phase = rng.uniform(0, len(key_poses)) + frame * rng.uniform(0.03, 0.06)
    weight = 0.5 - 0.5 * np.cos(np.pi * (phase % 1))  # the person moves slowly near a key pose
    start, end = (key_poses[(int(phase) + step) % len(key_poses)] for step in (0, 1))
    return np.asarray(np.clip((1 - weight) * start + weight * end, _POSE_LOW, _POSE_HIGH))
