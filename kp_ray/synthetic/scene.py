"""The room or landscape around a person, and its frames."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.synthetic.body import BodyShape, _colour, _turn, body_surfaces, joints_of
from kp_ray.synthetic.motion import SyntheticClip, pose_at
from kp_ray.synthetic.render import Camera, Picture, Surface, ball, loft, paint, tube


@dataclass(frozen=True)
class Stage:
    """One clip's room (its lowest and highest corner, (2, 3)), person, lamp direction and camera."""

    clip: SyntheticClip
    size: tuple[int, int]
    person: BodyShape
    wall: FloatArray
    room: FloatArray
    outdoors: bool
    light: FloatArray
    camera: Camera

    @classmethod
    def of(cls, clip: SyntheticClip, width: int, height: int) -> "Stage":
        """The stage of a clip with frames of `width` x `height`."""
        rng = clip.random(0)
        outdoors = bool(rng.random() < 0.35)
        reach = rng.uniform(11, 16, 4) if outdoors else rng.uniform(5.6, 8, 4)
        room = np.array([[*-reach[:2], 0], [*reach[2:], 9 if outdoors else rng.uniform(2.7, 3.6)]])
        wall = np.array([110.0, 130, 120]) if outdoors else _colour(rng, (5, 90), (110, 235))
        person = BodyShape.of(rng, wall)
        # The lamp stands where most cameras stand, so that faces are lit.
        light = np.array([*rng.uniform((0.3, -1), (1, 1)), rng.uniform(1.1, 2)])
        # Five cameras on an arc before the person; which letter stands where changes with the scene.
        places = rng.permutation([-40.0, -20, 0, 20, 40]) + rng.uniform(-9, 9, 5)
        body = np.concatenate([list(joints_of(pose_at(clip, frame), person)[0].values()) for frame in clip.frames])
        camera = _aim(clip.random(2, clip.camera), body, np.radians(places[clip.camera]), width, height)
        return cls(clip, (width, height), person, wall, room, outdoors, light / np.linalg.norm(light), camera)

    def draw(self, frame: int, background: Picture) -> tuple[Picture, FloatArray]:
        """A finished frame (H, W, 3) and its keypoints (24, 2)."""
        at, turns = joints_of(pose_at(self.clip, frame), self.person)
        parts = body_surfaces(at, turns, self.person)
        rng = self.clip.random(6, self.clip.camera)
        picture = self._shadow(background, parts)
        if rng.random() < 0.12:  # a pole or a crate between the camera and the person
            ahead = self.camera.position * (1, 1, 0) / np.linalg.norm(self.camera.position[:2])
            place = ahead * rng.uniform(1, 1.3) + np.cross((0, 0, 1), ahead) * rng.uniform(-0.5, 0.5)
            half, tall = (rng.uniform(0.03, 0.07), 3.0) if rng.random() < 0.5 else rng.uniform(0.2, 0.6, 2)
            parts.append(_block(place, half, tall, rng.uniform(0, 1.6), _colour(rng, (10, 90), (60, 220))))
        paint(picture, self.camera, parts, self.light)
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
            paint(picture, self.camera, furniture, self.light, step)
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
    return loft(heights, ring * side, ring * np.cross((0, 0, 1.0), side), np.broadcast_to(colour, (2, 4, 3)))


def _plant(rng: np.random.Generator, place: FloatArray) -> list[Surface]:
    """A pot with leaves."""
    parts = [tube(place, place + np.array([0, 0, 0.4]), (0.13, 0.18), _colour(rng, (20, 90), (80, 200)))]
    for _ in range(14):
        centre, turn = place + rng.normal((0, 0, 1), (0.17, 0.17, 0.28)), _turn(*rng.uniform(-70, 70, 3))
        tone = rng.uniform((30, 90, 40), (70, 150, 90))
        parts.append(ball(centre, turn, (0.22, 0.08, 0.015), np.broadcast_to(tone, (4, 10, 3))))
    return parts
