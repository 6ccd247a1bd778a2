"""Draw textures of floors, walls and landscapes, and sample random colors."""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from kp_ray.images import Image
from kp_ray.keypoints import FloatArray

PIXELS_PER_M = 72
"""Resolution of the textures of walls and landscapes, in pixels per metre."""


def random_color(rng: np.random.Generator, saturation: tuple[int, int], value: tuple[int, int]) -> FloatArray:
    """Sample a BGR color (3,) of any hue; saturation and value are uniform in [low, high), on a scale of 0-255."""
    hsv = np.array([[[rng.integers(180), rng.integers(*saturation), rng.integers(*value)]]], dtype=np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], dtype=float)


def _noise(rng: np.random.Generator, width: int, height: int, cells: Sequence[int]) -> FloatArray:
    """Sum smooth noise of each grain size in `cells` (pixels); return (height, width, 1) of about -1 to 1."""
    total = np.zeros((height, width), dtype=np.float32)
    for k, cell in enumerate(cells):
        grid = rng.normal(0, 0.5 / 1.5**k, (height // cell + 2, width // cell + 2)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(total[..., None])


def draw_floor(rng: np.random.Generator, outdoors: bool) -> Image:
    """Draw a square of 5 m x 5 m of planks, tiles, carpet, grass or asphalt, at 90 pixels per metre."""
    side = 450
    kind = int(rng.integers(3, 5) if outdoors else rng.integers(3))
    base = ((60, 96, 140), (190, 196, 200), (120, 110, 105), (60, 120, 90), (140, 146, 150))[kind]
    colors = np.array(base) * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    colors = colors + (26 if kind == 3 else 13) * _noise(rng, side, side, (75, 20, 5, 2))
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    if kind == 0:  # planks
        plank = ((x + y // 15 * 61) % side // 150, y // 15)
        colors *= rng.uniform(0.8, 1.15, (3, 30))[plank][..., None] * np.where(y % 15 == 0, 0.75, 1)[..., None]
    elif kind == 1:  # tiles
        colors *= np.where((x % 45 < 2) | (y % 45 < 2), 0.75, 1)[..., None]
    return np.clip(colors, 0, 255).astype(np.uint8)


def draw_wall(rng: np.random.Generator, width: int, height: int, color: FloatArray) -> Image:
    """Draw an indoor wall with windows, paintings, doors and shelves, at PIXELS_PER_M."""
    stripes = np.where(np.arange(width) // 18 % 2, 1.0, rng.choice([1.0, 1.0, 0.92]))[:, None]
    brightness = np.linspace(1.05, 0.85, height)[:, None, None] * rng.uniform(0.82, 1.08) * stripes
    canvas = np.clip(color * brightness + 7 * _noise(rng, width, height, (120, 30, 4)), 0, 255).astype(np.uint8)
    canvas[-8:] = np.minimum(color * 0.7 + 60, 255)
    x = int(rng.integers(10, 120))
    while x < width - 160:
        kind, item_width = int(rng.integers(5)), int(rng.integers(60, 150))
        top = height - int(rng.uniform(1.9, 2.3) * PIXELS_PER_M)
        tone, trim = random_color(rng, (10, 130), (60, 220)), random_color(rng, (10, 130), (20, 130))
        area = canvas[top : top + (height if kind >= 3 else int(rng.integers(50, 100))), x : x + item_width]
        item_height = area.shape[0]
        if kind == 0:  # a painting
            area[:] = np.clip(tone + 50 * _noise(rng, item_width, item_height, (25, 9)), 0, 255)
        elif kind in (1, 2):  # a window
            area[:] = np.linspace((250, 240, 226), (208, 220, 210), item_height)[:, None]
            trim = np.full(3, 248.0)
            area[:, item_width // 2 - 2 : item_width // 2 + 2] = trim
        elif kind == 3:  # a door
            area[:] = tone * 0.8
        else:  # a shelf
            books = tone * 0.4 + rng.uniform(20, 150, (item_height // 28 + 1, item_width // 7, 3))
            area[:] = cv2.resize(books.astype(np.uint8), (item_width, item_height), interpolation=cv2.INTER_NEAREST)
            area[np.arange(item_height) % 28 < 5] = trim * 0.6
        cv2.rectangle(canvas, (x, top), (x + item_width, top + item_height), trim.tolist(), 4)
        x += item_width + int(rng.integers(30, 220))
    return canvas


def draw_landscape(rng: np.random.Generator, width: int, height: int) -> Image:
    """Draw a landscape of sky, houses and trees, out of focus, at PIXELS_PER_M."""
    sky = np.linspace((238, 206, 176), (245, 238, 230), height)[:, None]
    canvas = np.clip(sky + 12 * _noise(rng, width, height, (260, 90)), 0, 255).astype(np.uint8)
    for _ in range(3):
        x, top = int(rng.integers(width)), int(height - rng.uniform(2.5, 6) * PIXELS_PER_M)
        house_width = int(rng.integers(200, 420))
        canvas[top:, x : x + house_width] = random_color(rng, (8, 80), (110, 215))
        for left, up in itertools.product(range(x + 20, x + house_width - 40, 64), range(top + 20, height - 60, 80)):
            canvas[up : up + 44, left : left + 30] = (120, 104, 92)
    for _ in range(20):
        x, crown = int(rng.integers(width)), height - int(rng.uniform(0.4, 3.6) * PIXELS_PER_M)
        tone = rng.uniform((40, 90, 60), (80, 140, 110))
        cv2.line(canvas, (x, crown), (x, height), (50, 70, 90), 9)
        for dx, dy, radius, shine in rng.normal((0, 0, 14, 1), (34, 30, 3, 0.13), (40, 4)):
            cv2.circle(canvas, (int(x + dx), int(crown + dy)), max(1, int(radius)), (tone * shine).tolist(), -1)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(2, 4)))
