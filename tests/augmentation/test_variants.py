"""What augmenting writes: pictures and keypoints that belong together, whatever the source is."""

import io
from functools import cache
from typing import Any

import albumentations as A  # noqa: N812
import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from kp_ray.augmentation.recipes import RECIPES, Recipe, resolve_recipes
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.augmentation.variants import Source, augment_source
from kp_ray.augmentation.warp import relight
from kp_ray.errors import KpRayError
from kp_ray.images import MAX_PIXELS, MAX_SIDE, decode
from kp_ray.keypoints import FloatArray, apply_affine, inside
from kp_ray.store.manifest import row_schema

pytestmark = [
    pytest.mark.filterwarnings("ignore:Got processor for keypoints"),  # of pipelines without geometry
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # of damaged files
]
SIZES = [(480, 270), (333, 500)]
COPIES = 3
MARGIN_PX = 6
BGR = npt.NDArray[np.uint8]


def background(width: int, height: int) -> FloatArray:
    """Clouds of light, from grain to large, and of colour, (H, W, 3)."""
    rng = np.random.default_rng(width)
    clouds: Any = [cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), sigma) * sigma for sigma in (1.5, 6, 20)]
    colours = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)), (0, 0), 12) * 12 * np.sqrt(12)
    light = sum(clouds) / np.std(sum(clouds))
    return np.asarray((120 + 22 * light[..., None] + 8 * colours / np.std(colours)).clip(60, 180))


@cache
def labels(width: int, height: int) -> FloatArray:
    """24 keypoints (24, 3): 20 apart from each other inside the frame, two outside it, two unlabelled."""
    rng = np.random.default_rng(height)
    columns, rows = (6, 4) if width > height else (4, 6)
    across, down = np.linspace(24, width - 25, columns), np.linspace(24, height - 25, rows)
    xy = np.array([(x, y) for y in down for x in across]) + rng.uniform(-5, 5, (24, 2))
    xy[3], xy[9] = (-7.5, height / 3), (width / 2, height + 0.25)
    xy[[5, 20]] = np.nan
    return np.column_stack([xy, np.where(np.isnan(xy[:, 0]), 0, np.where(np.arange(24) % 3 == 0, 1, 2))])


def planted(width: int, height: int) -> npt.NDArray[np.bool_]:
    """Which keypoints have a dot in the picture."""
    return inside(labels(width, height)[:, :2], width, height)


@cache
def picture(width: int, height: int, dots: bool = True) -> BGR:
    """The background; with a Gaussian dot, sigma 2.5 px, bright on dark or dark on bright, at every keypoint."""
    made = background(width, height)
    ys, xs = np.mgrid[:height, :width]
    for number, (x, y, _) in enumerate(labels(width, height)):
        if dots and planted(width, height)[number]:
            dot = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 2.5**2))
            here = made[round(y), round(x)].mean()
            made = made + (60 if here < 120 else -60) * dot[..., None]
    return np.rint(made.clip(0, 255)).astype(np.uint8)


def as_jpeg(bgr: BGR, quality: int = 98) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(bgr), quality, "BGR", "444"))


def rows_of(
    content: bytes, keypoints: FloatArray, recipes: list[tuple[Recipe, int]], **options: Any
) -> list[dict[str, Any]]:
    source = Source("a/001_B-0000007.jpg", "001", "B", 7, "train", keypoints)
    usual = {"seed": 5, "jpeg_quality": 95, "scale_with_frame": True, "box_margin_px": 0.0}
    rows, refused = augment_source(content, source, recipes, **{**usual, **options})
    if refused:
        raise KpRayError(next(iter(refused.values())))
    return rows


@cache
def variants(width: int, height: int, dots: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The rows of every named recipe."""
    every = [(recipe, COPIES) for recipe in RECIPES.values()]
    rows = rows_of(as_jpeg(picture(width, height, dots)), labels(width, height), every)
    return {name: [row for row in rows if row["recipe"] == name] for name in RECIPES}


def bgr_of(row: dict[str, Any]) -> BGR:
    return np.asarray(simplejpeg.decode_jpeg(row["image"], "BGR", strict=True))


def keypoints_of(row: dict[str, Any]) -> FloatArray:
    return np.asarray(row["keypoints"], dtype=np.float64).reshape(24, 3)


def dot_errors(
    row: dict[str, Any], without: dict[str, Any], has_dot: npt.NDArray[np.bool_], scale: float
) -> list[float]:
    """How far, in pixels, each dot's centroid lies from its keypoint; only dots well inside the picture."""
    shown = np.abs(bgr_of(row).astype(float).mean(axis=2) - bgr_of(without).astype(float).mean(axis=2))
    reach = int(np.ceil(9 * max(scale, 0.5)))
    errors = []
    for (x, y, v), dot in zip(keypoints_of(row), has_dot, strict=True):
        deep = MARGIN_PX < x < row["width"] - 1 - MARGIN_PX and MARGIN_PX < y < row["height"] - 1 - MARGIN_PX
        if not (dot and v > 0 and deep):
            continue
        left, top = max(0, round(x) - reach), max(0, round(y) - reach)
        window = shown[top : round(y) + reach + 1, left : round(x) + reach + 1].copy()
        assert window.max() > 20, "the dot is not there"
        window[window < 0.15 * window.max()] = 0
        ys, xs = np.mgrid[: window.shape[0], : window.shape[1]]
        centre = np.array([(xs * window).sum(), (ys * window).sum()]) / window.sum() + (left, top)
        errors.append(float(np.hypot(*(centre - (x, y)))))
    return errors


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_keypoint_lies_on_what_it_marks(name: str, width: int, height: int) -> None:
    errors: list[float] = []
    for row, without in zip(variants(width, height)[name], variants(width, height, dots=False)[name], strict=True):
        assert np.array_equal(row["affine"], without["affine"])
        scale = np.sqrt(abs(np.linalg.det(row["affine"].reshape(2, 3)[:, :2])))
        errors += dot_errors(row, without, planted(width, height), scale)
    assert errors
    assert max(errors) < 0.3


DOT_SIGMA_PX = 2.5
SHOWS = 14
"""How much, of 255, a dot changes a pixel that counts as its own; a JPEG's loss changes others by less."""


@cache
def random_scene(width: int, height: int, seed: int) -> tuple[FloatArray, BGR, BGR]:
    """24 keypoints anywhere, the picture with a dot at those inside it, and the picture without.

    The keypoints are apart from each other; some lie at an edge, some outside, about a quarter are unlabelled.
    """
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(-0.5, width / 30 + 1), np.arange(-0.5, height / 30 + 1))
    cells = rng.permutation(np.stack([across.ravel(), down.ravel()], axis=1))[:18]
    xy = np.full((24, 2), np.nan)
    xy[rng.permutation(24)[: len(cells)]] = cells * 30 + rng.uniform(-3, 3, cells.shape)
    grain = rng.uniform(108, 148, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    plain = np.asarray(cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float64)
    ys, xs = np.mgrid[:height, :width]
    dotted = plain.copy()
    for x, y in xy[inside(xy, width, height)]:
        dot = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * DOT_SIGMA_PX**2))
        dotted += rng.choice([-70, 70]) * dot[..., None]
    keypoints = np.column_stack([xy, np.where(np.isnan(xy[:, 0]), 0, rng.integers(1, 3, 24))])
    return keypoints, *(np.rint(made.clip(0, 255)).astype(np.uint8) for made in (dotted, plain))  # type: ignore[return-value]


def folded(xy: FloatArray, width: int, height: int) -> FloatArray:
    """Points (N, 2) outside a frame brought into it as reflect-101 does."""
    last = np.array([width - 1, height - 1])
    return np.asarray(last - np.abs(np.mod(xy, 2 * last) - last))


def strays(row: dict[str, Any], without: dict[str, Any], dots: FloatArray, width: int, height: int) -> int:
    """How many changed pixels show neither a dot of the source nor, beyond the source's edge, a dot's mirror image."""
    changed = np.abs(bgr_of(row).astype(float).mean(axis=2) - bgr_of(without).astype(float).mean(axis=2)) > SHOWS
    home = np.linalg.inv(np.vstack([row["affine"].reshape(2, 3), [0, 0, 1]]))[:2]
    pixels = folded(apply_affine(home, np.argwhere(changed)[:, ::-1].astype(float)), width, height)
    scale = np.sqrt(abs(np.linalg.det(row["affine"].reshape(2, 3)[:, :2])))
    reach = 2.2 * DOT_SIGMA_PX + 1.5 / scale  # as far as a dot shows, and a pixel of the variant for its resampling
    gaps = np.linalg.norm(pixels[:, None] - dots[None], axis=2)
    return int((gaps.min(axis=1, initial=np.inf) > reach).sum())


@pytest.mark.parametrize("name", RECIPES)
@given(st.integers(96, 480), st.integers(96, 480), st.integers(0, 2**32 - 1))
@settings(max_examples=10, derandomize=True, database=None, deadline=None)
def test_markers_show_at_the_stored_keypoints_and_nowhere_else(name: str, width: int, height: int, seed: int) -> None:
    keypoints, dotted, plain = random_scene(width, height, seed)
    (row, again), (without, _) = (
        rows_of(as_jpeg(made), keypoints, [(RECIPES[name], 2)], seed=seed, jpeg_quality=98) for made in (dotted, plain)
    )
    assert again["seed"] != row["seed"]
    affine, stored = row["affine"].reshape(2, 3), keypoints_of(row)
    home = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]
    np.testing.assert_allclose(apply_affine(home, stored[:, :2]), keypoints[:, :2], atol=1e-3, rtol=0)
    seen = inside(stored[:, :2], row["width"], row["height"])
    assert stored[:, 2].tolist() == np.where(seen, keypoints[:, 2], 0).tolist()
    has_dot = inside(keypoints[:, :2], width, height)
    assert strays(row, without, keypoints[has_dot, :2], width, height) == 0
    # A dot at the source's edge runs into its mirror image: its centre is not its keypoint.
    whole = inside(keypoints[:, :2] - 10, width - 20, height - 20)
    errors = dot_errors(row, without, whole, np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    assert max(errors, default=0) < 0.5


def test_a_stray_marker_and_a_shifted_one_would_be_noticed() -> None:
    width, height = 300, 200
    keypoints, dotted, plain = random_scene(width, height, 1)
    row, without = (rows_of(as_jpeg(made), keypoints, [(RECIPES["Rotate45"], 1)])[0] for made in (dotted, plain))
    dots = keypoints[inside(keypoints[:, :2], width, height), :2]
    assert strays(row, without, dots, width, height) == 0
    assert strays(row, without, dots[1:], width, height) > 0
    assert strays(row, without, dots + 6, width, height) > 0
    moved = {**row, "keypoints": row["keypoints"] + np.tile([0.7, 0, 0], 24).astype(np.float32)}
    assert max(dot_errors(moved, without, inside(keypoints[:, :2] - 10, width - 20, height - 20), 1.0)) > 0.5


EDGES = [
    (-1e-3, False), (-1e-50, True), (-0.0, True), (0.0, True), (1e-3, True), (-1.0, False), (-0.5, False),
    ("last", True), ("half", True), ("just", False), ("end", False), ("beyond", False),
]  # fmt: skip
"""A coordinate, or where it is from the frame's end, and whether the keypoint is in the picture."""


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_keypoint_at_the_border_is_visible_by_its_stored_number(width: int, height: int, axis: int) -> None:
    end = float((width, height)[axis])
    # "just" is below the end as a double and on it as the float that is stored.
    ends = {"last": end - 1, "half": end - 0.5, "just": np.nextafter(end, 0), "end": end, "beyond": end + 1e-3}
    keypoints = np.full((24, 3), 2.0)
    keypoints[:, :2] = 30.0
    keypoints[: len(EDGES), axis] = [ends.get(where, where) for where, _ in EDGES]  # type: ignore[call-overload]
    keypoints[len(EDGES) :] = np.nan
    keypoints[len(EDGES) :, 2] = 0
    row = rows_of(as_jpeg(picture(width, height)), keypoints, [(RECIPES["Original"], 1)])[0]
    assert row["keypoints"].dtype == np.float32
    visible = keypoints_of(row)[:, 2]
    assert visible[: len(EDGES)].tolist() == [2.0 if shown else 0.0 for _, shown in EDGES]
    assert row["num_visible"] == sum(shown for _, shown in EDGES)
    assert row["bbox_xyxy"][[axis, axis + 2]].tolist() == [0, end]
    assert row["bbox_xyxy"][[1 - axis, 3 - axis]].tolist() == [30, 30]


@pytest.mark.parametrize("name", ["CenterCrop_1", "RandomCrop_1", "RandomSquare_2"])
def test_a_keypoint_at_the_border_of_a_crop_is_visible_in_it(name: str) -> None:
    width, height = SIZES[0]
    first = rows_of(as_jpeg(picture(width, height)), np.full((24, 3), np.nan), [(RECIPES[name], 1)])[0]
    left, top = -first["affine"].reshape(2, 3)[:, 2]
    right, bottom = left + first["width"], top + first["height"]
    shown = {
        (left, top): True, (right - 1, bottom - 1): True, (right - 0.5, bottom - 0.5): True, (right, top): False,
        (left, bottom): False, (left - 0.001, top): False, (left, top - 0.001): False, (right - 0.001, top): True,
    }  # fmt: skip
    keypoints = np.full((24, 3), np.nan)
    keypoints[:, 2] = 0
    keypoints[: len(shown)] = [(x, y, 1) for x, y in shown]
    row = rows_of(as_jpeg(picture(width, height)), keypoints, [(RECIPES[name], 1)])[0]
    assert keypoints_of(row)[: len(shown), 2].tolist() == [float(is_shown) for is_shown in shown.values()]
    assert row["bbox_xyxy"].tolist() == [0, 0, row["width"], row["height"]]


def test_a_box_of_points_outside_is_clipped_to_the_picture() -> None:
    keypoints = np.full((24, 3), np.nan)
    keypoints[:2] = (-50, -20, 2), (-10, 40, 2)
    row = rows_of(as_jpeg(picture(*SIZES[0])), keypoints, [(RECIPES["Original"], 1)])[0]
    assert row["bbox_xyxy"].tolist() == [0, 0, 0, 40]
    assert row["num_visible"] == 0


def test_a_recipe_listed_twice_gives_two_pictures_each_with_its_own_labels() -> None:
    chosen = resolve_recipes(["Rotate45_CenterCrop", "Original", "Rotate45_CenterCrop"])
    content, keypoints = as_jpeg(picture(*SIZES[0])), labels(*SIZES[0])
    with_dots, bare = (rows_of(as_jpeg(picture(*SIZES[0], dots)), keypoints, chosen) for dots in (True, False))
    assert [(row["recipe"], row["copy"]) for row in with_dots] == [
        ("Rotate45_CenterCrop", 0), ("Rotate45_CenterCrop", 1), ("Original", 0),
    ]  # fmt: skip
    one, two = with_dots[:2]
    assert not np.array_equal(one["affine"], two["affine"])
    assert one["image"] != two["image"]
    for row, without in zip(with_dots, bare, strict=True):
        assert max(dot_errors(row, without, planted(*SIZES[0]), 1.0)) < 0.3
    swapped = {**one, "keypoints": two["keypoints"]}
    with pytest.raises(AssertionError):
        assert max(dot_errors(swapped, bare[0], planted(*SIZES[0]), 1.0)) < 5
    assert with_dots[2]["image"] == content


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_visibility_count_box_and_size_follow_from_the_stored_keypoints(name: str, width: int, height: int) -> None:
    source = labels(width, height)
    for row in variants(width, height)[name]:
        points = keypoints_of(row)
        affine = row["affine"].reshape(2, 3)
        np.testing.assert_allclose(points[:, :2], apply_affine(affine, source[:, :2]), atol=1e-3, rtol=1e-6)
        seen = [0 <= x < row["width"] and 0 <= y < row["height"] for x, y, _ in points]
        assert points[:, 2].tolist() == np.where(seen, source[:, 2], 0).tolist()
        assert row["num_visible"] == sum(seen)
        labelled = points[~np.isnan(points[:, 0]), :2]
        size = np.array([row["width"], row["height"]])
        expected = np.concatenate([labelled.min(axis=0).clip(0, size), labelled.max(axis=0).clip(0, size)])
        np.testing.assert_allclose(row["bbox_xyxy"], expected, rtol=1e-6)
        assert bgr_of(row).shape == (row["height"], row["width"], 3)


@pytest.mark.parametrize("name", RECIPES)
def test_the_picture_is_one_clean_resampling_of_the_source(name: str) -> None:
    width, height = SIZES[0]
    source = decode(as_jpeg(picture(width, height)))[0][..., :3]
    for row in variants(width, height)[name]:
        if RECIPES[name].brightness_contrast:
            continue
        size = (row["width"], row["height"])
        affine = row["affine"].reshape(2, 3)
        best = cv2.warpAffine(source, affine, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        difference = np.abs(bgr_of(row).astype(int) - best)
        # Out of 255, the JPEG's loss (0.95) included. Linear and cubic differ most where a picture is made small.
        assert difference.mean() < (2.5 if RECIPES[name].then_scale < 1 else 1.6)
        assert np.percentile(difference, 99.9) < 12


def test_a_third_of_a_pixel_would_be_noticed() -> None:
    source = picture(*SIZES[0])
    moved = cv2.warpAffine(source, np.array([[1, 0, 0.33], [0, 1, 0.33]]), SIZES[0], flags=cv2.INTER_CUBIC)
    assert np.abs(moved.astype(int) - source)[8:-8, 8:-8].mean() > 2.5


def test_rows_fit_the_schema_and_name_their_source() -> None:
    import pyarrow as pa

    width, height = SIZES[0]
    rows = rows_of(
        as_jpeg(picture(width, height)), labels(width, height), [(RECIPES["Original"], 1), (RECIPES["Rotate45"], 2)]
    )
    table = pa.Table.from_pylist(rows, schema=row_schema(24))
    assert set(table.column_names) == set(rows[0])
    assert [(row["recipe"], row["copy"]) for row in rows] == [("Original", 0), ("Rotate45", 0), ("Rotate45", 1)]
    for row in rows:
        taken = [row[key] for key in ("source", "scene", "camera", "frame", "split")]
        assert taken == ["a/001_B-0000007.jpg", "001", "B", 7, "train"]
    assert len({row["seed"] for row in rows}) == 3
    assert rows[1]["image"] != rows[2]["image"]


def test_the_box_margin_widens_the_box_only() -> None:
    content, keypoints = as_jpeg(picture(*SIZES[0])), labels(*SIZES[0])
    keypoints = np.where(np.arange(24)[:, None] % 2, np.nan, keypoints)  # the odd ones lie at the frame's edge
    plain = rows_of(content, keypoints, [(RECIPES["CenterCrop_1"], 1)])[0]
    wide = rows_of(content, keypoints, [(RECIPES["CenterCrop_1"], 1)], box_margin_px=4.5)[0]
    size = [plain["width"], plain["height"]] * 2
    expected = (plain["bbox_xyxy"] + np.array([-4.5, -4.5, 4.5, 4.5])).clip(0, size)
    np.testing.assert_allclose(wide["bbox_xyxy"], expected, rtol=1e-5)
    assert wide["image"] == plain["image"]
    assert np.array_equal(wide["keypoints"], plain["keypoints"], equal_nan=True)


def test_a_picture_without_labels_has_variants_without_a_box() -> None:
    for row in rows_of(as_jpeg(picture(*SIZES[0])), np.full((24, 3), np.nan), [(RECIPES["Rotate45"], 1)]):
        assert row["num_visible"] == 0
        assert row["bbox_xyxy"].tolist() == [0, 0, 0, 0]
        assert keypoints_of(row)[:, 2].tolist() == [0] * 24


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    width, height = SIZES[0]
    content, keypoints = as_jpeg(picture(width, height)), labels(width, height)
    every = [(recipe, 1) for recipe in RECIPES.values()]
    one, again, other = (rows_of(content, keypoints, every, seed=seed) for seed in (5, 5, 6))
    for first, second, third in zip(one, again, other, strict=True):
        assert first["image"] == second["image"]
        assert np.array_equal(first["keypoints"], second["keypoints"], equal_nan=True)
        fixed = first["recipe"] in ("Original", "CenterCrop_1", "CenterCrop_2")
        assert (first["image"] == third["image"]) is fixed, first["recipe"]


def test_a_variant_does_not_depend_on_the_recipes_beside_it() -> None:
    width, height = SIZES[0]
    content, keypoints = as_jpeg(picture(width, height)), labels(width, height)
    for name in ("Rescale_CenterCrop", "Rotate45", "RandomCrop_1"):
        alone = rows_of(content, keypoints, [(RECIPES[name], 1)])[0]
        assert alone["image"] == variants(width, height)[name][0]["image"]
        assert np.array_equal(alone["affine"], variants(width, height)[name][0]["affine"])


def test_original_keeps_the_bytes_of_a_jpeg() -> None:
    content = as_jpeg(picture(*SIZES[0]))
    for row in rows_of(content, labels(*SIZES[0]), [(RECIPES["Original"], 2)], jpeg_quality=10):
        assert row["image"] == content
        assert np.array_equal(row["affine"].reshape(2, 3), np.eye(2, 3))


def test_a_recipe_too_large_for_the_frame_is_refused_when_sizes_are_fixed() -> None:
    with pytest.raises(KpRayError, match="1280x720 px, larger than the 480x270 px") as raised:
        rows_of(as_jpeg(picture(*SIZES[0])), labels(*SIZES[0]), [(RECIPES["CenterCrop_1"], 1)], scale_with_frame=False)
    assert str(raised.value).startswith("recipe CenterCrop_1 ")  # the store puts the image's name before it


def test_brightness_and_contrast_are_albumentations() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    bgrx = np.repeat(levels[..., None], 4, axis=2)
    for seed in range(200):
        drawn = sample_parameters(RECIPES["RandomBrightnessContrast"], 16, 16, seed)
        theirs = A.RandomBrightnessContrast(p=1).apply(levels, alpha=drawn.contrast, beta=255 * drawn.brightness)
        ours = relight(bgrx, drawn)
        assert np.abs(ours[..., :3].astype(int) - theirs[..., None]).max() <= 1


def test_brightness_and_contrast_reach_the_stored_picture() -> None:
    flat = np.full((64, 64, 3), 100, np.uint8)
    for row in rows_of(as_png(flat), np.full((24, 3), np.nan), [(RECIPES["RandomBrightnessContrast"], 5)]):
        drawn = sample_parameters(RECIPES["RandomBrightnessContrast"], 64, 64, row["seed"])
        assert abs(bgr_of(row).mean() - (100 * drawn.contrast + 255 * drawn.brightness)) < 1.5


# --- a user's own pipeline


def user_recipe(*steps: Any, **options: Any) -> list[tuple[Recipe, int]]:
    return [(resolve_recipes(["mine"], {"mine": A.to_dict(A.Compose(list(steps), **options))})[0][0], 4)]


def test_a_users_pipeline_with_a_reflect_border_keeps_each_keypoint_once() -> None:
    width, height = SIZES[0]
    recipes = user_recipe(
        A.OneOf(
            [
                A.Rotate(limit=(15, 40), border_mode=cv2.BORDER_REFLECT_101, p=1),
                A.Affine(rotate=(-40, -15), border_mode=cv2.BORDER_REFLECT_101, p=1),
            ],
            p=1,
        ),
        A.RandomScale(scale_limit=(-0.2, 0.3), p=1),
        A.RandomCrop(height=180, width=320, p=1),
        A.RandomBrightnessContrast(p=0.5),
    )
    rows, without = (
        rows_of(as_jpeg(picture(width, height, dots)), labels(width, height), recipes) for dots in (True, False)
    )
    errors: list[float] = []
    for row, bare in zip(rows, without, strict=True):
        affine, points = row["affine"].reshape(2, 3), keypoints_of(row)
        scale = np.sqrt(np.linalg.det(affine[:, :2]))
        assert 0.79 < scale < 1.31
        source = labels(width, height)
        np.testing.assert_allclose(apply_affine(affine, source[:, :2]), points[:, :2], atol=0.05, rtol=0)
        seen = inside(points[:, :2], row["width"], row["height"])
        assert points[:, 2].tolist() == np.where(seen, source[:, 2], 0).tolist()
        assert (row["width"], row["height"]) == (320, 180)
        errors += dot_errors(row, bare, planted(width, height), scale)
    assert len(errors) >= 20
    # Albumentations resizes pictures and keypoints by conventions that differ by up to 0.3 px.
    assert max(errors) < 1.0


def test_a_users_steps_draw_independently_and_the_same_each_time() -> None:
    recipe, _ = user_recipe(A.Rotate(limit=(-30, 30), p=1), A.RandomScale(scale_limit=(-0.3, 0.3), p=1))[0]
    content, nobody = as_png(np.zeros((24, 32, 3), np.uint8)), np.full((24, 3), np.nan)
    rows = rows_of(content, nobody, [(recipe, 150)])
    affines = np.array([row["affine"].reshape(2, 3)[:, :2] for row in rows])
    angles, scales = np.arctan2(affines[:, 0, 1], affines[:, 0, 0]), np.linalg.det(affines)
    assert np.ptp(angles) > np.deg2rad(50)
    assert np.ptp(scales) > 1
    assert abs(np.corrcoef(angles, scales)[0, 1]) < 0.25
    again = rows_of(content, nobody, [(recipe, 150)])
    assert [row["image"] for row in again] == [row["image"] for row in rows]


def test_a_users_pipeline_runs_as_often_as_it_says() -> None:
    recipe, _ = user_recipe(A.InvertImg(p=1), p=0.5)[0]
    rows = rows_of(as_png(np.zeros((16, 16, 3), np.uint8)), np.full((24, 3), np.nan), [(recipe, 60)])
    assert 15 < sum(bgr_of(row).mean() > 128 for row in rows) < 45


def test_a_users_pixel_step_leaves_the_keypoints_and_a_bent_one_has_no_affine() -> None:
    content, source = as_jpeg(picture(*SIZES[0])), labels(*SIZES[0])
    blurred = rows_of(content, source, user_recipe(A.GaussianBlur(sigma_limit=(2, 3), p=1)))[0]
    np.testing.assert_allclose(blurred["affine"].reshape(2, 3), np.eye(2, 3), atol=1e-6)
    np.testing.assert_allclose(keypoints_of(blurred)[:, :2], source[:, :2], rtol=1e-6)
    assert blurred["image"] != content
    bent = rows_of(content, source, user_recipe(A.Perspective(scale=(0.1, 0.2), p=1)))[0]
    assert np.isnan(bent["affine"]).all()
    assert np.isnan(keypoints_of(bent)[:, 0]).tolist() == np.isnan(source[:, 0]).tolist()


@pytest.mark.parametrize("step", [A.ToFloat(p=1), A.GridDistortion(distort_limit=(0.2, 0.3), p=1)])
def test_a_users_pipeline_that_gives_no_picture_or_loses_keypoints_is_refused(step: Any) -> None:
    with pytest.raises(KpRayError, match="must keep every keypoint and give an 8-bit colour picture"):
        rows_of(as_jpeg(picture(*SIZES[0])), labels(*SIZES[0]), user_recipe(step))


def test_a_user_recipe_that_fails_on_a_picture_says_why() -> None:
    with pytest.raises(KpRayError, match="the user recipe fails on it: CropSizeError"):
        rows_of(as_jpeg(picture(320, 180)), labels(320, 180), user_recipe(A.RandomCrop(540, 540)))


def test_a_user_recipe_that_mirrors_by_its_numbers_is_refused() -> None:
    mirror = A.Affine(scale={"x": (-1, -1), "y": (1, 1)}, p=1)
    with pytest.raises(KpRayError, match="the user recipe mirrors it"):
        rows_of(as_jpeg(picture(*SIZES[0])), labels(*SIZES[0]), user_recipe(mirror))


def test_a_picture_longer_than_a_jpeg_can_be_is_refused_by_the_recipes_that_keep_its_length() -> None:
    long, points = as_png(np.zeros((8, MAX_SIDE + 1, 3), np.uint8)), np.full((24, 3), 5.0)
    with pytest.raises(KpRayError, match=f"{MAX_SIDE + 1}x8 px is more than a JPEG's {MAX_SIDE} on a side"):
        rows_of(long, points, [(RECIPES["Original"], 1)])
    assert len(rows_of(long, points, [(RECIPES["CenterCrop_1"], 1)])) == 1


# --- kinds of source


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_png(bgr: BGR) -> bytes:
    return saved(Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])), "PNG")


def as_shown(content: bytes) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB as Pillow shows it."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def scene(mode: str = "RGB") -> Image.Image:
    """A picture whose corners differ: red, green, blue, yellow."""
    corners = np.array([[(230, 20, 20), (20, 220, 30)], [(30, 30, 210), (220, 210, 20)]], np.uint8)
    return Image.fromarray(cv2.resize(corners, (96, 64), interpolation=cv2.INTER_LINEAR)).convert(mode)


SOURCES = {
    "JPEG": saved(scene(), "JPEG", quality=95),
    "progressive JPEG": saved(scene(), "JPEG", quality=95, progressive=True),
    "4:4:4 JPEG": saved(scene(), "JPEG", quality=95, subsampling=0),
    "grey JPEG": saved(scene("L"), "JPEG", quality=95),
    "CMYK JPEG": saved(scene("CMYK"), "JPEG", quality=95),
    **{f"JPEG turned by EXIF {n}": saved(scene(), "JPEG", quality=95, exif=turned(n)) for n in range(1, 9)},
    "grey JPEG turned": saved(scene("L"), "JPEG", quality=95, exif=turned(6)),
    "PNG": saved(scene(), "PNG"),
    "PNG with alpha": saved(Image.merge("RGBA", [*scene().split(), scene("L")]), "PNG"),
    "PNG with a palette": saved(scene().quantize(64), "PNG"),
    "PNG turned": saved(scene(), "PNG", exif=turned(8)),
    "grey PNG": saved(scene("L"), "PNG"),
    "black and white PNG": saved(scene("1"), "PNG"),
    "lossless WEBP": saved(scene(), "WEBP", lossless=True),
    "WEBP": saved(scene(), "WEBP"),
    "BMP": saved(scene(), "BMP"),
    "TIFF": saved(scene(), "TIFF"),
    "GIF": saved(scene(), "GIF"),
}
CARRIED = {"JPEG", "progressive JPEG", "4:4:4 JPEG", "grey JPEG", "JPEG turned by EXIF 1"}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_upright_and_in_its_colours(kind: str) -> None:
    shown = as_shown(SOURCES[kind])
    bgrx, as_it_is = decode(SOURCES[kind])
    assert bgrx.shape == (*shown.shape[:2], 4)
    np.testing.assert_allclose(bgrx[..., 2::-1].astype(int), shown, atol=2)
    assert as_it_is is (kind in CARRIED)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_stored_original_shows_the_source(kind: str) -> None:
    shown = as_shown(SOURCES[kind])
    height, width = shown.shape[:2]
    row = rows_of(SOURCES[kind], np.full((24, 3), 5.0), [(RECIPES["Original"], 1)])[0]
    assert (row["width"], row["height"]) == (width, height)
    assert (row["image"] == SOURCES[kind]) is (kind in CARRIED)
    # What a reader that knows nothing of EXIF sees.
    stored = simplejpeg.decode_jpeg(row["image"], "RGB")
    assert np.abs(stored.astype(int) - shown).mean() < (8 if kind == "black and white PNG" else 3)


def test_sixteen_bits_of_grey_keep_their_brightness() -> None:
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    bgrx, as_it_is = decode(saved(Image.fromarray(levels), "PNG"))
    assert not as_it_is
    np.testing.assert_array_equal(bgrx[..., :3], np.repeat((levels >> 8)[..., None], 3, axis=2))


def png_header_claiming(width: int, height: int) -> bytes:
    from struct import pack
    from zlib import crc32

    header = b"IHDR" + pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + header + pack(">I", crc32(header)) + SOURCES["PNG"][33:]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"image,nose_x,nose_y\n", "is not a picture"),
        (b"\xff\xd8\xff", "is not a picture"),
        (SOURCES["JPEG"][: len(SOURCES["JPEG"]) // 2], "cannot be decoded: "),
        (SOURCES["JPEG"][:-40], "cannot be decoded: "),
        (SOURCES["CMYK JPEG"][: len(SOURCES["CMYK JPEG"]) // 2], "cannot be decoded: "),
        (SOURCES["PNG"][: len(SOURCES["PNG"]) // 2], "cannot be decoded: "),
        (SOURCES["WEBP"][: len(SOURCES["WEBP"]) // 2], "cannot be decoded: "),
        (png_header_claiming(MAX_PIXELS // 10000 + 1, 10000), f"10001x10000 px is more than {MAX_PIXELS} pixels"),
        (png_header_claiming(100_000, 100_000), "cannot be decoded: "),
        (saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "mode F are not supported"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(content: bytes, told: str) -> None:
    for use in (decode, lambda given: rows_of(given, np.full((24, 3), 5.0), [(RECIPES["Original"], 1)])):
        with pytest.raises(KpRayError) as raised:
            use(content)
        assert told in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
        assert " at 0x" not in str(raised.value)


@given(st.sampled_from(sorted(SOURCES)), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_decoded_or_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(SOURCES[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        bgrx, _ = decode(bytes(content))
    except KpRayError:
        return
    assert bgrx.dtype == np.uint8
    assert bgrx.shape[2] == 4


@pytest.mark.parametrize(("width", "height"), [(213, 120), (120, 213), (119, 213)])
def test_a_picture_of_odd_size_is_encoded_from_its_own_pixels_alone(width: int, height: int) -> None:
    edged = np.full((height, width, 3), 255, np.uint8)
    edged[:, 0] = edged[0] = 0  # what lies behind the end of a row, or of the picture, if one reads on
    recipes = [(RECIPES["Original"], 1), (RECIPES["RandomBrightnessContrast"], 1)]
    nobody = np.full((24, 3), np.nan)
    first = rows_of(as_png(edged), nobody, recipes, jpeg_quality=30)
    assert bgr_of(first[0])[height // 2 :, width // 2 :].min() >= 254
    for filling in range(0, 256, 32):
        behind = [np.full(edged.size // 3, filling, np.uint8) for _ in range(8)]
        del behind  # memory that the next pictures are made in
        again = rows_of(as_png(edged), nobody, recipes, jpeg_quality=30)
        assert [row["image"] for row in again] == [row["image"] for row in first]


def test_the_source_itself_is_left_alone() -> None:
    keypoints = labels(*SIZES[0]).copy()
    rows_of(as_jpeg(picture(*SIZES[0])), keypoints, [(RECIPES["Rotate45"], 1), (RECIPES["RandomCrop_1"], 1)])
    assert np.array_equal(keypoints, labels(*SIZES[0]), equal_nan=True)


@given(st.integers(3, 60), st.integers(3, 60), st.sampled_from(list(RECIPES)))
@settings(max_examples=60, deadline=None)
def test_tiny_and_narrow_pictures_have_variants_too(width: int, height: int, name: str) -> None:
    content = as_png(np.full((height, width, 3), 77, np.uint8))
    row = rows_of(content, np.full((24, 3), 1.0), [(RECIPES[name], 1)])[0]
    stored = bgr_of(row)
    assert stored.shape == (row["height"], row["width"], 3)
    if not RECIPES[name].brightness_contrast:  # no border shows anywhere
        assert np.abs(stored.astype(int) - 77).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(36, 9), (9, 36)])
@pytest.mark.parametrize(
    "name", ["Rotate45", "Rotate45_RandomCrop_3", "Rescale_RandomCrop_1", "Rescale_Rotate45_RandomCrop_3"]
)
def test_no_border_darkens_the_edge_of_a_variant(name: str, width: int, height: int) -> None:
    flat = as_png(np.full((height, width, 3), 200, np.uint8))
    for row in rows_of(flat, np.full((24, 3), 1.0), [(RECIPES[name], 300)]):
        assert bgr_of(row).min() >= 197
