"""One person: proportions and colours, joints from a pose, surfaces around the joints."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kp_ray.keypoints import FloatArray
from kp_ray.synthetic.render import Surface, ball, loft, tube

Joints = dict[str, FloatArray]
_SKINS = ((198, 214, 240), (172, 196, 232), (140, 172, 218), (112, 146, 198), (78, 108, 162), (56, 78, 124))
_SHOE_AT = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 18))
_SHOE = (  # along from heel to toe, half width, half height
    (0, 0.02, 0.08, 0.3, 0.5, 0.75, 0.9, 0.97, 1),
    (0, 0.022, 0.036, 0.04, 0.045, 0.05, 0.043, 0.028, 0),
    (0, 0.03, 0.05, 0.062, 0.045, 0.034, 0.028, 0.02, 0),
)
_HAIRS = ((24, 22, 22), (30, 38, 52), (34, 56, 92), (52, 96, 150), (110, 172, 206), (120, 120, 124), (30, 48, 110))


@dataclass(frozen=True)
class BodyShape:
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
    def of(cls, rng: np.random.Generator, wall: FloatArray) -> "BodyShape":
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


def _turn(forward: float, side: float, twist: float) -> FloatArray:
    """The rotation Rx(side) Ry(forward) Rz(twist), in degrees."""
    (a, b, c), (d, e, f) = (turn(np.radians([side, forward, twist])) for turn in (np.cos, np.sin))
    about_x, about_y = [[1, 0, 0], [0, a, -d], [0, d, a]], [[b, 0, e], [0, 1, 0], [-e, 0, b]]
    return np.asarray(np.array(about_x) @ about_y @ [[c, -f, 0], [f, c, 0], [0, 0, 1]])


def joints_of(pose: FloatArray, person: BodyShape) -> tuple[Joints, Joints]:
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


def body_surfaces(at: Joints, turns: Joints, person: BodyShape) -> list[Surface]:
    """The surfaces of a posed person."""
    s, g, tone = person.size, person.size * person.girth, person.colours
    skin, shirt, cloth = tone["skin"], tone["shirt"], tone["trouser"]
    parts = [_trunk(at, turns, person), *_head(at, turns["head"], person)]
    parts.append(tube(at["neck"], at["skull"] + turns["head"][:, 2] * 0.04 * s, (0.056 * g, 0.05 * g), tone["skin"]))
    for side in ("left", "right"):
        shoulder, elbow, wrist, palm = (at[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist", "palm"))
        hip, knee, ankle = (at[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        forearm, foot = turns[f"{side}_forearm"], turns[f"{side}_foot"]
        parts.append(tube(shoulder, elbow, (0.056 * g, 0.054 * g, 0.042 * g), skin, sleeve=(person.sleeve, shirt)))
        parts.append(tube(elbow, wrist, (0.042 * g, 0.043 * g, 0.028 * g), skin, sleeve=(person.sleeve - 1.15, shirt)))
        tips = palm + (palm - wrist) * 0.95 + forearm[:, 0] * 0.02 * s
        width = (0.024 * s, 0.042 * s, 0.041 * s, 0.024 * s)
        parts.append(tube(wrist, tips, width, skin, flat=0.45, across=forearm[:, 1]))
        thumb = palm + forearm @ (0.058, 0, -0.01) * s
        parts.append(tube(wrist + (palm - wrist) * 0.4, thumb, (0.016 * s, 0.012 * s), skin))
        parts.append(tube(hip, knee, (0.088 * g, 0.084 * g, 0.058 * g), skin, sleeve=(person.trouser, cloth)))
        profile = (0.054 * g, 0.061 * g, 0.052 * g, 0.038 * g)
        parts.append(tube(knee, ankle, profile, skin, sleeve=(person.trouser - 1.1, cloth)))
        heel, toe = (at[f"{side}_{end}"] + foot[:, 2] * 0.032 * s for end in ("heel", "toe"))
        wide, tall = (np.interp(_SHOE_AT, _SHOE[0], row)[:, None] * s for row in _SHOE[1:])
        spine = heel + _SHOE_AT[:, None] * (toe - heel) + (tall - 0.032 * s) * foot[:, 2]
        parts.append(loft(spine, wide * foot[:, 1], tall * foot[:, 2], tone[side]))
        for joint, size in ((shoulder, 0.075), (elbow, 0.062), (hip, 0.105), (knee, 0.08)):
            parts.append(ball(joint, np.eye(3), (size * g,) * 3, tone[side]))
        cuff = (palm - wrist) * 0.45
        parts.append(tube(wrist - cuff, wrist + cuff * 0.3, (0.044 * g, 0.042 * g), tone[side]))
    return parts


def _trunk(at: Joints, turns: Joints, person: BodyShape) -> Surface:
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
    return loft(spread(knots), spread(-turn[:, :, 1] * wide[:, None]), spread(turn[:, :, 0] * deep[:, None]), colours)


def _head(at: Joints, turn: FloatArray, person: BodyShape) -> list[Surface]:
    """Skull with hair or cap, and a face."""
    s, tone, centre = person.size, person.colours, at["head"]
    tall, angle = np.meshgrid(np.sin(np.linspace(-1.52, 1.52, 26)), np.arange(0.5, 36) * np.pi / 18, indexing="ij")
    ahead = np.sin(angle) * np.sqrt(1 - tall**2)
    hairy = (tall > 0.58 - 0.1 * (ahead < 0.4)) | ((ahead < 0.02) & (tall > -0.62)) | ((ahead < 0.28) & (tall > 0.12))
    colours = np.where(hairy[..., None], tone["hair"], tone["skin"])
    if person.headgear == 0:  # a cap
        colours[tall > 0.5] = tone["print"]
    parts = [ball(centre, turn, (0.103 * s, 0.08 * s, 0.126 * s), colours)]
    white, dark = np.full(3, 245.0), np.array([30.0, 26, 24])

    def place(*offset: float) -> FloatArray:
        return np.asarray(centre + turn @ np.array(offset) * s)

    for side, sign in (("left", 1), ("right", -1)):
        eye, ear = at[f"{side}_eye"], at[f"{side}_ear"]
        parts.append(ball(eye, turn, (0.007 * s, 0.0155 * s, 0.0095 * s), white))
        parts.append(ball(eye + turn[:, 0] * 0.005 * s, turn, (0.0055 * s, 0.0075 * s, 0.0085 * s), dark))
        parts.append(ball(ear, turn, (0.02 * s, 0.01 * s, 0.03 * s), tone["skin"] * 0.93))
        if person.headgear == 1:  # long hair falls behind the ears
            top, tip = place(-0.05, sign * 0.05, 0.02), place(-0.075, sign * 0.055, -0.2)
            parts.append(tube(top, tip, (0.05 * s, 0.05 * s, 0.03 * s), tone["hair"]))
    if person.headgear == 0:
        parts.append(ball(place(0.1, 0, 0.07), turn, (0.085 * s, 0.07 * s, 0.012 * s), tone["print"] * 0.85))
    parts.append(tube(place(0.1, 0, 0.012), place(0.108, 0, -0.028), (0.006 * s, 0.014 * s), tone["skin"] * 0.97))
    lips = (0.006 * s, 0.008 * s, 0.006 * s)
    parts.append(
        tube(place(0.088, -0.022, -0.066), place(0.088, 0.022, -0.066), lips, tone["skin"] * (0.62, 0.6, 0.86))
    )
    return parts
