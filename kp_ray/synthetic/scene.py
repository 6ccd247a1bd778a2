"""Render the frames of a clip: a room or landscape, furniture, the person, shadow, lens and sensor."""

from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from kp_ray.images import Image
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.synthetic.body import BodyShape, body_surfaces, forward_kinematics
from kp_ray.synthetic.motion import Purpose, SyntheticClip, pose_at
from kp_ray.synthetic.render import Camera, paint
from kp_ray.synthetic.surfaces import Surface, box, ellipsoid, rotation_matrix, tube
from kp_ray.synthetic.textures import PIXELS_PER_M, draw_floor, draw_landscape, draw_wall, random_color


@dataclass(frozen=True, eq=False)
class SceneRenderer:
    """Renders the frames of a clip.

    Attributes:
        clip: the clip, whose random generators decide all details.
        size: (width, height) of the frames in pixels.
        person: proportions and clothes of the person.
        wall_color: BGR color (3,) of the walls.
        room: (2, 3) minimum and maximum of x, y and z in the room, in metres; the person stands at the origin.
        outdoors: True if the walls show a landscape.
        light: unit vector (3,) towards the lamp.
        camera: the camera of the clip.
    """

    clip: SyntheticClip
    size: tuple[int, int]
    person: BodyShape
    wall_color: FloatArray
    room: FloatArray
    outdoors: bool
    light: FloatArray
    camera: Camera

    @classmethod
    def from_clip(cls, clip: SyntheticClip, width: int, height: int) -> "SceneRenderer":
        """Set up the scene of a clip for frames of `width` x `height` pixels."""
        rng = clip.generator(Purpose.SCENE)
        outdoors = bool(rng.random() < 0.35)
        # Distances of the four walls from the person, and the height of the walls, in metres.
        distances = rng.uniform(11, 16, 4) if outdoors else rng.uniform(5.6, 8, 4)
        room = np.array([[*-distances[:2], 0], [*distances[2:], 9 if outdoors else rng.uniform(2.7, 3.6)]])
        wall_color = np.array([110.0, 130, 120]) if outdoors else random_color(rng, (5, 90), (110, 235))
        person = BodyShape.sample(rng, wall_color)
        # The lamp stands on the side of the cameras, so that faces are lit.
        light = np.array([*rng.uniform((0.3, -1), (1, 1)), rng.uniform(1.1, 2)])
        # Five cameras stand on an arc in front of the person, 20 degrees apart with a random deviation of up to 9
        # degrees. The order of the cameras changes with the scene.
        azimuths_deg = rng.permutation([-40.0, -20, 0, 20, 40]) + rng.uniform(-9, 9, 5)
        joints = [forward_kinematics(pose_at(clip, frame), person)[0] for frame in clip.frames]
        body = np.concatenate([list(positions.values()) for positions in joints])
        camera_rng = clip.generator(Purpose.CAMERA, clip.camera)
        camera = _aim_camera(camera_rng, body, np.radians(azimuths_deg[clip.camera]), width, height)
        return cls(clip, (width, height), person, wall_color, room, outdoors, light / np.linalg.norm(light), camera)

    def render_frame(self, frame: int, background: Image) -> tuple[Image, FloatArray]:
        """Render a frame (H, W, 3) BGR over `background`, and project its keypoints to pixel indices (24, 2)."""
        positions, orientations = forward_kinematics(pose_at(self.clip, frame), self.person)
        surfaces = body_surfaces(positions, orientations, self.person)
        rng = self.clip.generator(Purpose.OBSTACLE, self.clip.camera)
        image = self._draw_shadow(background, surfaces)
        # In 12 % of the clips an obstacle stands 1 to 1.3 m in front of the person: a pole of 3 m, or a crate.
        if rng.random() < 0.12:
            to_camera = self.camera.position * (1, 1, 0) / np.linalg.norm(self.camera.position[:2])
            place = to_camera * rng.uniform(1, 1.3) + np.cross((0, 0, 1), to_camera) * rng.uniform(-0.5, 0.5)
            half_diagonal, height = (rng.uniform(0.03, 0.07), 3.0) if rng.random() < 0.5 else rng.uniform(0.2, 0.6, 2)
            angle, color = rng.uniform(0, 1.6), random_color(rng, (10, 90), (60, 220))
            surfaces.append(box(place, half_diagonal, height, angle, color))
        paint(image, self.camera, surfaces, self.light)
        labels = self.camera.project(np.stack([positions[name] for name in DACON24.names]))[0]
        return self.apply_camera_effects(image, frame), labels

    def render_background(self) -> Image:
        """Render the scene without the person (H, W, 3) at half the resolution, and enlarge it; blur hides the loss."""
        half_size = (self.size[0] // 2, self.size[1] // 2)
        pixel_ratio = np.array(self.size) / half_size
        # Cast a ray through every pixel, find the plane of the room that the ray hits first, and sample its texture.
        axes = zip(half_size, pixel_ratio, self.camera.centre, strict=True)
        # Centres of the small image's pixels, as offsets from the optical centre in focal lengths.
        x, y = (((np.arange(n) + 0.5) * ratio - 0.5 - c) / self.camera.focal_px for n, ratio, c in axes)
        right, down, ahead = self.camera.rotation
        rays = [((x * right[k])[None] + (y * down[k] + ahead[k] + 1e-9)[:, None]).astype(np.float32) for k in range(3)]
        start = self.camera.position.astype(np.float32)
        ends = [np.where(ray > 0, self.room[1, k], self.room[0, k]).astype(np.float32) for k, ray in enumerate(rays)]
        lengths = [(end - start[k]) / ray for k, (end, ray) in enumerate(zip(ends, rays, strict=True))]
        distance = np.minimum(np.minimum(lengths[0], lengths[1]), lengths[2])
        hits = [start[k] - np.float32(self.room[0, k]) + rays[k] * distance for k in range(3)]
        image = np.zeros((*half_size[::-1], 3), dtype=np.uint8)
        for axis, is_upper in np.ndindex(3, 2):
            mask = ((lengths[axis] == distance) & ((rays[axis] > 0) == is_upper)).astype(np.uint8)
            if cv2.hasNonZero(mask):
                texture, scale = self._draw_texture(axis, is_upper)
                u, v = (hits[k] * np.float32(scale) for k in range(3) if k != axis)
                v = texture.shape[0] - 1 - v if axis < 2 else v
                x0, y0, width, height = cv2.boundingRect(mask)
                window = np.s_[y0 : y0 + height, x0 : x0 + width]
                patch = cv2.remap(texture, u[window], v[window], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
                cv2.copyTo(patch, mask[window], image[window])
        furniture = self._make_furniture()
        if furniture:
            paint(image, self.camera, furniture, self.light, pixel_ratio)
        return np.asarray(cv2.resize(image, self.size, interpolation=cv2.INTER_CUBIC))

    def _draw_texture(self, axis: int, is_upper: int) -> tuple[Image, float]:
        """Draw the texture of a plane of the room, and return it with its pixels per metre.

        Args:
            axis: axis of the plane's normal: 0 and 1 are walls, 2 is the floor or the ceiling.
            is_upper: 1 for the plane at the room's maximum on this axis, 0 for the plane at its minimum.
        """
        rng = self.clip.generator(Purpose.TEXTURE, axis, is_upper)
        if axis == 2 and is_upper:
            color = (238, 206, 176) if self.outdoors else np.minimum(self.wall_color + 30, 245)
            return np.full((8, 8, 3), color, np.uint8), 1.0
        if axis == 2:
            return draw_floor(rng, self.outdoors), 90.0
        sides_m = (self.room[1] - self.room[0])[1 - axis], self.room[1, 2]
        width, height = (int(side * PIXELS_PER_M) + 1 for side in sides_m)
        if self.outdoors:
            return draw_landscape(rng, width, height), PIXELS_PER_M
        return draw_wall(rng, width, height, self.wall_color), PIXELS_PER_M

    def _make_furniture(self) -> list[Surface]:
        """Make boxes and plants 2.4 to 5 m from the person, only on the side that is away from the camera."""
        rng = self.clip.generator(Purpose.FURNITURE)
        surfaces: list[Surface] = []
        for _ in range(8):
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(2.4, 5)
            place = np.array([np.cos(angle), np.sin(angle), 0]) * distance
            half_diagonal, height = rng.uniform((0.25, 0.4), (0.6, 1.4))
            block = box(place, half_diagonal, height, angle, random_color(rng, (10, 90), (70, 210)))
            piece = _make_plant(rng, place) if rng.random() < 0.5 else [block]
            if place @ self.camera.position < 0:
                surfaces += piece
        return surfaces

    def _draw_shadow(self, background: Image, surfaces: list[Surface]) -> Image:
        """Return a copy of the background with the surfaces' soft shadow, drawn at a quarter of the resolution."""
        width, height = self.size
        mask = np.zeros((-(-height // 4), -(-width // 4)), dtype=np.uint8)
        for quads, _ in surfaces:
            # Project the surface to the floor along the light. Corner 0 of the quads gives every point of the surface
            # except its last ring.
            xy, depth = self.camera.project(quads[:, 0] - self.light * (quads[:, 0, 2:] / self.light[2]))
            if depth.min() > 0.3:
                # Fixed-point numbers in 1/16 pixel (shift=4).
                hull = cv2.convexHull((((xy + 0.5) / 4 - 0.5) * 16).clip(-(2**20), 2**20).astype(np.int32))
                cv2.fillConvexPoly(mask, hull, 140, shift=4)
        shade = cv2.resize(cv2.bitwise_not(cv2.GaussianBlur(mask, (0, 0), max(0.8, width / 800))), self.size)
        return np.asarray(cv2.multiply(background, cv2.merge([shade] * 3), scale=1 / 255))

    def apply_camera_effects(self, image: Image, frame: int) -> Image:
        """Apply the effects of lens and sensor to an image (H, W, 3): vignette, gain, tint, blur, noise."""
        width, height = self.size
        rng = self.clip.generator(Purpose.EXPOSURE, self.clip.camera)
        gain, falloff = rng.uniform(0.8, 1.0) * rng.uniform(0.92, 1.0, 3), rng.uniform(0, 0.3)
        blur, noise = rng.choice([0.0, 0.0, 0.0, 0.8, 1.6]) * height / 1080 + 0.45, rng.uniform(0.8, 2.5)
        x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        vignette = 1 - np.float32(falloff / 2) * (x * x + y * y)
        exposure = cv2.merge([cv2.convertScaleAbs(vignette, alpha=float(255 * value)) for value in gain])
        exposed = cv2.GaussianBlur(cv2.multiply(image, exposure, scale=1.1 / 255), (0, 0), blur)
        # Unsigned bytes cannot be negative, so the noise has a mean of 8, which the last line subtracts again.
        quantiles = [NormalDist(8, noise).inv_cdf((k + 0.5) / 256) for k in range(256)]
        noise_rng = self.clip.generator(Purpose.NOISE, self.clip.camera, frame)
        levels = noise_rng.integers(0, 256, (height, width), dtype=np.uint8)
        grain = cv2.LUT(levels, np.rint(quantiles).clip(0, 255).astype(np.uint8))
        return np.asarray(cv2.addWeighted(exposed, 1.0, cv2.merge([grain] * 3), 1.0, -8.0))


def _aim_camera(rng: np.random.Generator, body: FloatArray, azimuth: float, width: int, height: int) -> Camera:
    """Make a camera in which the person's height is 60 to 92 % of the frame's.

    If the person's width would exceed 90 % of the frame's, the person is smaller. One camera in 20 cuts the person off
    at the upper or lower edge.

    Args:
        rng: source of random numbers.
        body: (N, 3) points of the person in all frames.
        azimuth: direction from the person to the camera, in radians.
        width, height: size of the frame in pixels.
    """
    eye = np.array([np.cos(azimuth), np.sin(azimuth), 0]) * rng.uniform(3.2, 5.2) + (0, 0, rng.uniform(0.7, 1.9))
    ahead = (body.min(axis=0) + body.max(axis=0)) / 2 - eye
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    # At a focal length of 1 the person spans `low` to `high` (x, y); a focal length f multiplies both by f.
    points = Camera(eye, rotation, 1.0, (0.0, 0.0)).project(body)[0]
    low, high = points.min(axis=0), points.max(axis=0)
    focal = min(rng.uniform(0.6, 0.92) * height / (high - low)[1], 0.9 * width / (high - low)[0])
    # Free margin (x, y) on each side of the person; a larger shift cuts the person off.
    margin = np.maximum(np.array([width, height]) - (high - low) * focal, 0) / 2
    shift = rng.uniform(-0.6, 0.6, 2) * margin
    if rng.random() < 0.05:
        shift[1] = np.sign(shift[1]) * (margin[1] + rng.uniform(0.03, 0.12) * (high - low)[1] * focal)
    centre = np.array([width - 1, height - 1]) / 2 + shift - (low + high) / 2 * focal
    return Camera(eye, rotation, float(focal), (float(centre[0]), float(centre[1])))


def _make_plant(rng: np.random.Generator, place: FloatArray) -> list[Surface]:
    """Make a pot with leaves that stands at `place` (3,)."""
    surfaces = [tube(place, place + np.array([0, 0, 0.4]), (0.13, 0.18), random_color(rng, (20, 90), (80, 200)))]
    for _ in range(14):
        centre = place + rng.normal((0, 0, 1), (0.17, 0.17, 0.28))
        orientation = rotation_matrix(*rng.uniform(-70, 70, 3))
        tone = rng.uniform((30, 90, 40), (70, 150, 90))
        surfaces.append(ellipsoid(centre, orientation, (0.22, 0.08, 0.015), np.broadcast_to(tone, (4, 10, 3))))
    return surfaces
