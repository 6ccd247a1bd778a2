"""A generated person: proportions and colors, joints from a pose, and surfaces around the joints."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kp_ray.keypoints import FloatArray
from kp_ray.synthetic.surfaces import Surface, ball, loft, rotation_matrix, tube
from kp_ray.synthetic.textures import random_color

Joints = dict[str, FloatArray]
"""Name of a joint or body part -> its position (3,) in metres or its orientation (3, 3)."""
_SKINS = ((198, 214, 240), (172, 196, 232), (140, 172, 218), (112, 146, 198), (78, 108, 162), (56, 78, 124))
_SHOE_AT = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 18))  # positions of a shoe's rings, from 0 (heel) to 1 (toe)
_SHOE = (  # positions from 0 (heel) to 1 (toe); half width and half height there, in metres
    (0, 0.02, 0.08, 0.3, 0.5, 0.75, 0.9, 0.97, 1),
    (0, 0.022, 0.036, 0.04, 0.045, 0.05, 0.043, 0.028, 0),
    (0, 0.03, 0.05, 0.062, 0.045, 0.034, 0.028, 0.02, 0),
)
_HAIRS = ((24, 22, 22), (30, 38, 52), (34, 56, 92), (52, 96, 150), (110, 172, 206), (120, 120, 124), (30, 48, 110))


@dataclass(frozen=True, eq=False)
class BodyShape:
    """Proportions, clothes and colors of a person.

    Attributes:
        size, girth, legs: scale factors of the whole body, of its width, and of the length of the legs.
        sleeve, trouser: part of an arm or leg that cloth covers: 1 is the upper half, about 2 the whole limb.
        pattern: number of the shirt's pattern, 0 to 4.
        headgear: 0 is a cap, 1 long hair, 2 nothing.
        colors: name of a piece of clothing or body part -> BGR color (3,).
    """

    size: float
    girth: float
    legs: float
    sleeve: float
    trouser: float
    pattern: int
    headgear: int
    colors: dict[str, FloatArray]

    @classmethod
    def sample(cls, rng: np.random.Generator, wall: FloatArray) -> "BodyShape":
        """Sample a person whose clothes contrast with the wall's BGR color (3,)."""
        shirt, trouser = _contrasting_color(rng, wall, 250), _contrasting_color(rng, wall, 190)
        skin, hair = (np.array(tones[rng.integers(len(tones))]) for tones in (_SKINS, _HAIRS))
        size, girth, legs = rng.uniform((0.9, 0.88, 0.95), (1.1, 1.2, 1.06))
        colors = {"shirt": shirt, "trouser": trouser, "skin": skin, "hair": hair}
        colors["print"] = _contrasting_color(rng, shirt, 250)
        # Pads, wristbands and shoes have warm colors on the left and cold ones on the right: without this help a
        # network needs more training to tell left from right than the few minutes of the demo.
        colors["left"], colors["right"] = _vivid_color(rng, (0, 24)), _vivid_color(rng, (86, 120))
        sleeve, leg = rng.choice([0.62, 0.62, 1.7, 2.1]), rng.choice([0.75, 1.1, 2.1, 2.1])
        return cls(size, girth, legs, sleeve, leg, int(rng.integers(5)), int(rng.integers(3)), colors)


def _vivid_color(rng: np.random.Generator, hues: tuple[int, int]) -> FloatArray:
    """Sample a bright, saturated BGR color (3,) with a hue in [low, high) of `hues`, on OpenCV's scale of 0-179."""
    hsv = np.array([[[rng.integers(*hues), rng.integers(190, 256), rng.integers(205, 256)]]], dtype=np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], dtype=float)


def _contrasting_color(rng: np.random.Generator, reference: FloatArray, max_value: int) -> FloatArray:
    """Sample three colors and return the one that differs most from `reference` (3,)."""
    options = [random_color(rng, (10, 110), (60, max_value)) for _ in range(3)]
    return max(options, key=lambda option: float(np.abs(option - reference).sum()))


def forward_kinematics(pose: FloatArray, person: BodyShape) -> tuple[Joints, Joints]:
    """Compute the positions of the joints and the orientations of the body parts.

    Args:
        pose: (24,) joint angles, as `motion.pose_at` returns them.
        person: the proportions.

    Returns:
        Positions in metres and orientations. The lowest part of the body is at z = 0 plus the lift of the pose.
    """
    size, leg = person.size, person.size * person.legs
    pitch, lift, bend, lean, twist, nod, tilt, turn = pose[:8]
    orientations = {"pelvis": rotation_matrix(pitch, -lean * 0.2, 0)}
    orientations["waist"] = orientations["pelvis"] @ rotation_matrix(bend / 2, -lean * 0.4, twist / 2)
    orientations["chest"] = orientations["waist"] @ rotation_matrix(bend / 2, -lean * 0.4, twist / 2)
    orientations["head"] = orientations["chest"] @ rotation_matrix(nod, -tilt, turn)
    positions: Joints = {"pelvis": np.zeros(3)}

    def put(name: str, parent: str, orientation: FloatArray, offset: Sequence[float], unit: float = size) -> None:
        positions[name] = positions[parent] + orientation @ np.array(offset) * unit

    put("spine1(waist)", "pelvis", orientations["pelvis"], (0, 0, 0.14))
    put("spine2(back)", "spine1(waist)", orientations["waist"], (0, 0, 0.17))
    put("neck", "spine2(back)", orientations["chest"], (0, 0, 0.22))
    put("skull", "neck", orientations["chest"], (0.01, 0, 0.05))
    put("head", "skull", orientations["head"], (0.02, 0, 0.135))
    put("nose", "head", orientations["head"], (0.112, 0, -0.028))
    for side, sign, (forward, out, roll, elbow, hip, spread, toes, knee) in (
        ("left", 1, pose[8:16]), ("right", -1, pose[16:]),
    ):  # fmt: skip
        put(f"{side}_eye", "head", orientations["head"], (0.086, sign * 0.034, 0.012))
        put(f"{side}_ear", "head", orientations["head"], (-0.005, sign * 0.084, -0.005))
        arm = orientations["chest"] @ rotation_matrix(-forward, sign * out, sign * roll)
        forearm = arm @ rotation_matrix(-elbow, 0, 0)
        rise = 0.04 * max(out, forward) / 170  # a raised arm lifts the shoulder
        put(f"{side}_shoulder", "neck", orientations["chest"], (0, sign * 0.172, -0.05 + rise))
        put(f"{side}_elbow", f"{side}_shoulder", arm, (0, 0, -0.28))
        put(f"{side}_wrist", f"{side}_elbow", forearm, (0, 0, -0.25))
        put(f"{side}_palm", f"{side}_wrist", forearm, (0.01, 0, -0.085))
        thigh = orientations["pelvis"] @ rotation_matrix(-hip, sign * spread, sign * toes)
        shin = thigh @ rotation_matrix(knee, 0, 0)
        foot = shin @ rotation_matrix(float(np.clip(hip - knee - pitch, -25, 45)), 0, 0)
        put(f"{side}_hip", "pelvis", orientations["pelvis"], (0, sign * 0.1, 0))
        put(f"{side}_knee", f"{side}_hip", thigh, (0, 0, -0.43), leg)
        put(f"{side}_ankle", f"{side}_knee", shin, (0, 0, -0.41), leg)
        put(f"{side}_instep", f"{side}_ankle", foot, (0.085, 0, -0.035))
        put(f"{side}_heel", f"{side}_ankle", foot, (-0.06, 0, -0.085))
        put(f"{side}_toe", f"{side}_ankle", foot, (0.19, 0, -0.085))
        orientations |= {f"{side}_forearm": forearm, f"{side}_foot": foot}
    sides = ("left", "right")
    soles = [positions[f"{side}_{part}"][2] for side in sides for part in ("heel", "toe")]
    knees = [positions[f"{side}_knee"][2] - 0.06 for side in sides]
    low = min([*soles, *knees, positions["pelvis"][2] - 0.14])
    return {name: point + np.array([0, 0, lift / 100 - low]) for name, point in positions.items()}, orientations


def body_surfaces(positions: Joints, orientations: Joints, person: BodyShape) -> list[Surface]:
    """Make the surfaces of a person from the positions of joints and the orientations of body parts."""
    s, g, tone = person.size, person.size * person.girth, person.colors
    skin, shirt, cloth = tone["skin"], tone["shirt"], tone["trouser"]
    surfaces = [_trunk(positions, orientations, person), *_head(positions, orientations["head"], person)]
    throat_end = positions["skull"] + orientations["head"][:, 2] * 0.04 * s
    surfaces.append(tube(positions["neck"], throat_end, (0.056 * g, 0.05 * g), skin))
    for side in ("left", "right"):
        shoulder, elbow, wrist, palm = (positions[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist", "palm"))
        hip, knee, ankle = (positions[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        forearm, foot = orientations[f"{side}_forearm"], orientations[f"{side}_foot"]
        surfaces.append(tube(shoulder, elbow, (0.056 * g, 0.054 * g, 0.042 * g), skin, sleeve=(person.sleeve, shirt)))
        surfaces.append(
            tube(elbow, wrist, (0.042 * g, 0.043 * g, 0.028 * g), skin, sleeve=(person.sleeve - 1.15, shirt))
        )
        tips = palm + (palm - wrist) * 0.95 + forearm[:, 0] * 0.02 * s
        width = (0.024 * s, 0.042 * s, 0.041 * s, 0.024 * s)
        surfaces.append(tube(wrist, tips, width, skin, flat=0.45, across=forearm[:, 1]))
        thumb = palm + forearm @ (0.058, 0, -0.01) * s
        surfaces.append(tube(wrist + (palm - wrist) * 0.4, thumb, (0.016 * s, 0.012 * s), skin))
        surfaces.append(tube(hip, knee, (0.088 * g, 0.084 * g, 0.058 * g), skin, sleeve=(person.trouser, cloth)))
        profile = (0.054 * g, 0.061 * g, 0.052 * g, 0.038 * g)
        surfaces.append(tube(knee, ankle, profile, skin, sleeve=(person.trouser - 1.1, cloth)))
        heel, toe = (positions[f"{side}_{end}"] + foot[:, 2] * 0.032 * s for end in ("heel", "toe"))
        wide, tall = (np.interp(_SHOE_AT, _SHOE[0], row)[:, None] * s for row in _SHOE[1:])
        spine = heel + _SHOE_AT[:, None] * (toe - heel) + (tall - 0.032 * s) * foot[:, 2]
        surfaces.append(loft(spine, wide * foot[:, 1], tall * foot[:, 2], tone[side]))
        for joint, size in ((shoulder, 0.075), (elbow, 0.062), (hip, 0.105), (knee, 0.08)):
            surfaces.append(ball(joint, np.eye(3), (size * g,) * 3, tone[side]))
        cuff = (palm - wrist) * 0.45
        surfaces.append(tube(wrist - cuff, wrist + cuff * 0.3, (0.044 * g, 0.042 * g), tone[side]))
    return surfaces


def _trunk(positions: Joints, orientations: Joints, person: BodyShape) -> Surface:
    """Make the surface of the trunk from hips to neck, with the belt and the shirt's pattern."""
    s, g, tone = person.size, person.girth, person.colors
    pelvis, chest = orientations["pelvis"], orientations["chest"]
    hips, back, neck = (positions[name] for name in ("pelvis", "spine2(back)", "neck"))
    up = neck - back
    knots = np.array([
        hips - pelvis[:, 2] * 0.1 * s, hips - pelvis[:, 2] * 0.06 * s, hips,
        positions["spine1(waist)"], back, back + up * 0.62,
        neck - up * 0.08, neck + up * 0.12,
    ])  # fmt: skip
    wide = np.array([0.03, 0.15, 0.176, 0.146 * g, 0.17 * g, 0.188, 0.16, 0.056]) * s
    deep = np.array([0.03, 0.1, 0.118 * g, 0.104 * g, 0.118 * g, 0.1, 0.075, 0.056]) * s
    blend = np.array([0, 0, 0, 0.5, 1, 1, 1, 1])[:, None, None]
    axes = (1 - blend) * pelvis + blend * chest
    rows, segments = 34, 40
    ring_knots = np.linspace(0, 7, rows + 1)  # position of each ring on the scale of the 8 knots

    def interpolate(values: FloatArray) -> FloatArray:
        """Interpolate 8 values (8, n) at the knots to all rings (rows + 1, n), and smooth them."""
        dense = np.stack([np.interp(ring_knots, np.arange(8), column) for column in values.T], axis=1)
        return np.asarray(cv2.GaussianBlur(dense, (1, 7), 1.2, borderType=cv2.BORDER_REPLICATE))

    colors = np.broadcast_to(tone["shirt"], (rows, segments, 3)).copy()
    # `knot` and `angle` (90 degrees is the front) are the middle of each quad.
    knot, angle = np.meshgrid(
        (ring_knots[1:] + ring_knots[:-1]) / 2, (np.arange(segments) + 0.5) * 360 / segments, indexing="ij"
    )
    if person.pattern == 0:  # horizontal stripes
        colors[(knot * 3 % 2 < 1) & (knot > 2.7)] = tone["print"]
    elif person.pattern == 1:  # a band around the chest
        colors[(knot > 4.1) & (knot < 4.9)] = tone["print"]
    elif person.pattern == 2:  # an open jacket
        colors[abs(angle - 90) < 22] = tone["print"]
    else:  # a rectangle on the chest
        colors[(abs(angle - 90) < 40) & (knot > 3.6) & (knot < 5.1)] = tone["print"]
    colors[knot < 2.55] = tone["trouser"]
    colors[abs(knot - 2.62) < 0.1] = (50, 60, 70)  # the belt
    right, front = -axes[:, :, 1] * wide[:, None], axes[:, :, 0] * deep[:, None]
    return loft(interpolate(knots), interpolate(right), interpolate(front), colors)


def _head(positions: Joints, orientation: FloatArray, person: BodyShape) -> list[Surface]:
    """Make the surfaces of the head: skull with hair or cap, eyes, ears, nose and lips."""
    s, tone, centre = person.size, person.colors, positions["head"]
    tall, angle = np.meshgrid(np.sin(np.linspace(-1.52, 1.52, 26)), np.arange(0.5, 36) * np.pi / 18, indexing="ij")
    ahead = np.sin(angle) * np.sqrt(1 - tall**2)
    hairy = (tall > 0.58 - 0.1 * (ahead < 0.4)) | ((ahead < 0.02) & (tall > -0.62)) | ((ahead < 0.28) & (tall > 0.12))
    colors = np.where(hairy[..., None], tone["hair"], tone["skin"])
    if person.headgear == 0:  # a cap
        colors[tall > 0.5] = tone["print"]
    surfaces = [ball(centre, orientation, (0.103 * s, 0.08 * s, 0.126 * s), colors)]
    white, dark = np.full(3, 245.0), np.array([30.0, 26, 24])

    def place(*offset: float) -> FloatArray:
        return np.asarray(centre + orientation @ np.array(offset) * s)

    for side, sign in (("left", 1), ("right", -1)):
        eye, ear = positions[f"{side}_eye"], positions[f"{side}_ear"]
        surfaces.append(ball(eye, orientation, (0.007 * s, 0.0155 * s, 0.0095 * s), white))
        surfaces.append(
            ball(eye + orientation[:, 0] * 0.005 * s, orientation, (0.0055 * s, 0.0075 * s, 0.0085 * s), dark)
        )
        surfaces.append(ball(ear, orientation, (0.02 * s, 0.01 * s, 0.03 * s), tone["skin"] * 0.93))
        if person.headgear == 1:  # long hair falls behind the ears
            top, tip = place(-0.05, sign * 0.05, 0.02), place(-0.075, sign * 0.055, -0.2)
            surfaces.append(tube(top, tip, (0.05 * s, 0.05 * s, 0.03 * s), tone["hair"]))
    if person.headgear == 0:
        surfaces.append(ball(place(0.1, 0, 0.07), orientation, (0.085 * s, 0.07 * s, 0.012 * s), tone["print"] * 0.85))
    surfaces.append(tube(place(0.1, 0, 0.012), place(0.108, 0, -0.028), (0.006 * s, 0.014 * s), tone["skin"] * 0.97))
    lips = (0.006 * s, 0.008 * s, 0.006 * s)
    surfaces.append(
        tube(place(0.088, -0.022, -0.066), place(0.088, 0.022, -0.066), lips, tone["skin"] * (0.62, 0.6, 0.86))
    )
    return surfaces
