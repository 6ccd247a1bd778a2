"""Generate a person: proportions and colors, joints from a pose, and surfaces around the joints."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kp_ray.keypoints import FloatArray
from kp_ray.synthetic.surfaces import Surface, ellipsoid, loft, rotation_matrix, tube
from kp_ray.synthetic.textures import random_color

Joints = dict[str, FloatArray]
"""Name of a joint or body part -> its position (3,) in metres or its orientation (3, 3)."""
_SKIN_TONES = ((198, 214, 240), (172, 196, 232), (140, 172, 218), (112, 146, 198), (78, 108, 162), (56, 78, 124))
_SHOE_RINGS = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 18))  # positions of a shoe's rings, from 0 (heel) to 1 (toe)
_SHOE = (  # positions from 0 (heel) to 1 (toe); half width and half height there, in metres
    (0, 0.02, 0.08, 0.3, 0.5, 0.75, 0.9, 0.97, 1),
    (0, 0.022, 0.036, 0.04, 0.045, 0.05, 0.043, 0.028, 0),
    (0, 0.03, 0.05, 0.062, 0.045, 0.034, 0.028, 0.02, 0),
)
_HAIR_TONES = ((24, 22, 22), (30, 38, 52), (34, 56, 92), (52, 96, 150), (110, 172, 206), (120, 120, 124), (30, 48, 110))


@dataclass(frozen=True, eq=False)
class BodyShape:
    """Proportions, clothes and colors of a person.

    Attributes:
        size: scale factor of the whole body.
        girth: additional scale factor of the body's width.
        legs: additional scale factor of the legs' length.
        sleeve, trouser: length of cloth on an arm or leg: 1 covers the upper half, about 2 the whole limb.
        pattern: 0 is a shirt with stripes, 1 with a band, 2 an open jacket, 3 and 4 a shirt with a rectangle.
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
        skin, hair = (np.array(tones[rng.integers(len(tones))]) for tones in (_SKIN_TONES, _HAIR_TONES))
        size, girth, legs = rng.uniform((0.9, 0.88, 0.95), (1.1, 1.2, 1.06))
        colors = {"shirt": shirt, "trouser": trouser, "skin": skin, "hair": hair}
        colors["print"] = _contrasting_color(rng, shirt, 250)
        # Pads, wristbands and shoes have warm colors on the left and cold colors on the right. Otherwise a network
        # could not learn to tell left from right in the demo's few minutes of training.
        colors["left"], colors["right"] = _vivid_color(rng, (0, 24)), _vivid_color(rng, (86, 120))
        sleeve_length, trouser_length = rng.choice([0.62, 0.62, 1.7, 2.1]), rng.choice([0.75, 1.1, 2.1, 2.1])
        return cls(size, girth, legs, sleeve_length, trouser_length, int(rng.integers(5)), int(rng.integers(3)), colors)


def _vivid_color(rng: np.random.Generator, hues: tuple[int, int]) -> FloatArray:
    """Sample a bright, saturated BGR color (3,) with a hue in [low, high) of `hues`, on OpenCV's scale of 0-179."""
    hsv = np.array([[[rng.integers(*hues), rng.integers(190, 256), rng.integers(205, 256)]]], dtype=np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], dtype=float)


def _contrasting_color(rng: np.random.Generator, reference: FloatArray, max_brightness: int) -> FloatArray:
    """Sample three colors and return the one that differs most from `reference` (3,)."""
    options = [random_color(rng, (10, 110), (60, max_brightness)) for _ in range(3)]
    return max(options, key=lambda option: float(np.abs(option - reference).sum()))


def forward_kinematics(pose: FloatArray, person: BodyShape) -> tuple[Joints, Joints]:
    """Compute the positions of the joints in metres and the orientations of the body parts.

    Args:
        pose: (24,) joint angles and the lift, as `motion.pose_at` returns them.
        person: the proportions.

    Returns:
        Positions in metres, and orientations. The lowest part of the body is at the height of the pose's lift.
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
    for side, sign, angles in (("left", 1, pose[8:16]), ("right", -1, pose[16:])):
        forward, out, roll, elbow, hip, spread, toes, knee = angles
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
    lowest_z = min([*soles, *knees, positions["pelvis"][2] - 0.14])
    return {name: point + np.array([0, 0, lift / 100 - lowest_z]) for name, point in positions.items()}, orientations


def body_surfaces(positions: Joints, orientations: Joints, person: BodyShape) -> list[Surface]:
    """Make the surfaces of a person from the positions of joints and the orientations of body parts."""
    size, width, palette = person.size, person.size * person.girth, person.colors
    skin, shirt, cloth = palette["skin"], palette["shirt"], palette["trouser"]
    surfaces = [_trunk(positions, orientations, person), *_head(positions, orientations["head"], person)]
    throat_end = positions["skull"] + orientations["head"][:, 2] * 0.04 * size
    surfaces.append(tube(positions["neck"], throat_end, (0.056 * width, 0.05 * width), skin))
    for side in ("left", "right"):
        shoulder, elbow, wrist, palm = (positions[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist", "palm"))
        hip, knee, ankle = (positions[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        forearm, foot = orientations[f"{side}_forearm"], orientations[f"{side}_foot"]
        surfaces.append(
            tube(shoulder, elbow, (0.056 * width, 0.054 * width, 0.042 * width), skin, sleeve=(person.sleeve, shirt))
        )
        surfaces.append(
            tube(
                elbow, wrist, (0.042 * width, 0.043 * width, 0.028 * width), skin, sleeve=(person.sleeve - 1.15, shirt)
            )
        )
        tips = palm + (palm - wrist) * 0.95 + forearm[:, 0] * 0.02 * size
        palm_radii = (0.024 * size, 0.042 * size, 0.041 * size, 0.024 * size)
        surfaces.append(tube(wrist, tips, palm_radii, skin, thickness=0.45, across=forearm[:, 1]))
        thumb = palm + forearm @ (0.058, 0, -0.01) * size
        surfaces.append(tube(wrist + (palm - wrist) * 0.4, thumb, (0.016 * size, 0.012 * size), skin))
        surfaces.append(
            tube(hip, knee, (0.088 * width, 0.084 * width, 0.058 * width), skin, sleeve=(person.trouser, cloth))
        )
        calf_radii = (0.054 * width, 0.061 * width, 0.052 * width, 0.038 * width)
        surfaces.append(tube(knee, ankle, calf_radii, skin, sleeve=(person.trouser - 1.1, cloth)))
        heel, toe = (positions[f"{side}_{end}"] + foot[:, 2] * 0.032 * size for end in ("heel", "toe"))
        half_width, half_height = (np.interp(_SHOE_RINGS, _SHOE[0], row)[:, None] * size for row in _SHOE[1:])
        centres = heel + _SHOE_RINGS[:, None] * (toe - heel) + (half_height - 0.032 * size) * foot[:, 2]
        surfaces.append(loft(centres, half_width * foot[:, 1], half_height * foot[:, 2], palette[side]))
        for joint, radius in ((shoulder, 0.075), (elbow, 0.062), (hip, 0.105), (knee, 0.08)):
            surfaces.append(ellipsoid(joint, np.eye(3), (radius * width,) * 3, palette[side]))
        cuff = (palm - wrist) * 0.45
        surfaces.append(tube(wrist - cuff, wrist + cuff * 0.3, (0.044 * width, 0.042 * width), palette[side]))
    return surfaces


def _trunk(positions: Joints, orientations: Joints, person: BodyShape) -> Surface:
    """Make the surface of the trunk from hips to neck, with the belt and the shirt's pattern."""
    size, girth, palette = person.size, person.girth, person.colors
    pelvis, chest = orientations["pelvis"], orientations["chest"]
    hips, back, neck = (positions[name] for name in ("pelvis", "spine2(back)", "neck"))
    up = neck - back
    knots = np.array(
        [
            hips - pelvis[:, 2] * 0.1 * size,
            hips - pelvis[:, 2] * 0.06 * size,
            hips,
            positions["spine1(waist)"],
            back,
            back + up * 0.62,
            neck - up * 0.08,
            neck + up * 0.12,
        ]
    )
    half_widths = np.array([0.03, 0.15, 0.176, 0.146 * girth, 0.17 * girth, 0.188, 0.16, 0.056]) * size
    half_depths = np.array([0.03, 0.1, 0.118 * girth, 0.104 * girth, 0.118 * girth, 0.1, 0.075, 0.056]) * size
    chest_weights = np.array([0, 0, 0, 0.5, 1, 1, 1, 1])[:, None, None]
    axes = (1 - chest_weights) * pelvis + chest_weights * chest
    rows, segments = 34, 40
    ring_knots = np.linspace(0, 7, rows + 1)  # position of each ring on the scale of the 8 knots

    def interpolate(values: FloatArray) -> FloatArray:
        """Interpolate 8 values (8, n) at the knots to all rings (rows + 1, n), and smooth them."""
        dense = np.stack([np.interp(ring_knots, np.arange(8), column) for column in values.T], axis=1)
        return np.asarray(cv2.GaussianBlur(dense, (1, 7), 1.2, borderType=cv2.BORDER_REPLICATE))

    colors = np.broadcast_to(palette["shirt"], (rows, segments, 3)).copy()
    # `knot` and `angle` (90 degrees is the front) are the middle of each quad.
    knot, angle = np.meshgrid(
        (ring_knots[1:] + ring_knots[:-1]) / 2, (np.arange(segments) + 0.5) * 360 / segments, indexing="ij"
    )
    if person.pattern == 0:  # horizontal stripes
        colors[(knot * 3 % 2 < 1) & (knot > 2.7)] = palette["print"]
    elif person.pattern == 1:  # a band around the chest
        colors[(knot > 4.1) & (knot < 4.9)] = palette["print"]
    elif person.pattern == 2:  # an open jacket
        colors[abs(angle - 90) < 22] = palette["print"]
    else:  # a rectangle on the chest
        colors[(abs(angle - 90) < 40) & (knot > 3.6) & (knot < 5.1)] = palette["print"]
    colors[knot < 2.55] = palette["trouser"]
    colors[abs(knot - 2.62) < 0.1] = (50, 60, 70)  # the belt
    right, front = -axes[:, :, 1] * half_widths[:, None], axes[:, :, 0] * half_depths[:, None]
    return loft(interpolate(knots), interpolate(right), interpolate(front), colors)


def _head(positions: Joints, orientation: FloatArray, person: BodyShape) -> list[Surface]:
    """Make the surfaces of the head: skull with hair or cap, eyes, ears, nose and lips."""
    size, palette, centre = person.size, person.colors, positions["head"]
    # Points on the unit sphere: x is 1 at the nose and -1 at the back of the head, z is 1 at the top.
    z, angle = np.meshgrid(np.sin(np.linspace(-1.52, 1.52, 26)), np.arange(0.5, 36) * np.pi / 18, indexing="ij")
    x = np.sin(angle) * np.sqrt(1 - z**2)
    # Hair covers the top of the head (less of it in front), the back, and the sides above the ears.
    is_hair = (z > 0.58 - 0.1 * (x < 0.4)) | ((x < 0.02) & (z > -0.62)) | ((x < 0.28) & (z > 0.12))
    colors = np.where(is_hair[..., None], palette["hair"], palette["skin"])
    if person.headgear == 0:  # a cap
        colors[z > 0.5] = palette["print"]
    surfaces = [ellipsoid(centre, orientation, (0.103 * size, 0.08 * size, 0.126 * size), colors)]
    white, dark = np.full(3, 245.0), np.array([30.0, 26, 24])

    def place(*offset: float) -> FloatArray:
        return np.asarray(centre + orientation @ np.array(offset) * size)

    for side, sign in (("left", 1), ("right", -1)):
        eye, ear = positions[f"{side}_eye"], positions[f"{side}_ear"]
        surfaces.append(ellipsoid(eye, orientation, (0.007 * size, 0.0155 * size, 0.0095 * size), white))
        surfaces.append(
            ellipsoid(
                eye + orientation[:, 0] * 0.005 * size, orientation, (0.0055 * size, 0.0075 * size, 0.0085 * size), dark
            )
        )
        surfaces.append(ellipsoid(ear, orientation, (0.02 * size, 0.01 * size, 0.03 * size), palette["skin"] * 0.93))
        if person.headgear == 1:  # long hair falls behind the ears
            top, tip = place(-0.05, sign * 0.05, 0.02), place(-0.075, sign * 0.055, -0.2)
            surfaces.append(tube(top, tip, (0.05 * size, 0.05 * size, 0.03 * size), palette["hair"]))
    if person.headgear == 0:
        surfaces.append(
            ellipsoid(
                place(0.1, 0, 0.07), orientation, (0.085 * size, 0.07 * size, 0.012 * size), palette["print"] * 0.85
            )
        )
    surfaces.append(
        tube(place(0.1, 0, 0.012), place(0.108, 0, -0.028), (0.006 * size, 0.014 * size), palette["skin"] * 0.97)
    )
    lips = (0.006 * size, 0.008 * size, 0.006 * size)
    surfaces.append(
        tube(place(0.088, -0.022, -0.066), place(0.088, 0.022, -0.066), lips, palette["skin"] * (0.62, 0.6, 0.86))
    )
    return surfaces
