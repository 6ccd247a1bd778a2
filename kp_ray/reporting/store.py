"""The report's sections on the data, the store and its poses."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError, RunStateError
from kp_ray.images import Image, decode_bgr
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.reporting.formatting import figure, jpeg_uri, read_csv_table, read_optional_json
from kp_ray.reporting.predictions import Answers
from kp_ray.storage import join
from kp_ray.store.read import RowReader, read_part
from kp_ray.visualization.plots import plot_poses, plot_ranges, plot_shares
from kp_ray.visualization.skeletons import crop_resize, draw_skeleton, transform

NUM_PARTS = 8
"""Parts of a recipe that its poses are counted from, spread over all of them."""
_NUM_POSES = 400


@dataclass
class VariantSample:
    """Some of a recipe's variants: n rows, K keypoints.

    Attributes:
        keypoints: (n, K, 3) x, y, v in the variant's pixels.
        boxes: (n, 4) x1, y1, x2, y2.
        sizes: (n, 2) width and height.
        splits, cameras: n names.
        picture: of one of them, small, with its skeleton; None when no part could be read.
        unread: parts that could not be read.
    """

    keypoints: FloatArray
    boxes: FloatArray
    sizes: FloatArray
    splits: npt.NDArray[np.str_]
    cameras: tuple[str, ...]
    picture: Image | None
    unread: tuple[str, ...]

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """(n, K)."""
        return np.asarray(self.keypoints[..., 2] > 0)


def store_skeleton(path: str, config: Config, manifest: Mapping[str, Any]) -> Skeleton:
    try:
        return config.build_skeleton(manifest.get("skeleton") or [])
    except KpRayError as error:
        raise RunStateError(f"{path}: {error}") from error


def read_variants(config: Config, manifest: Mapping[str, Any] | None) -> dict[str, VariantSample]:
    """By recipe, the rows of a few parts spread over the store."""
    if not manifest or not manifest.get("skeleton"):
        return {}
    skeleton = store_skeleton(config.path("store", "manifest.json"), config, manifest)
    found = {}
    for recipe in manifest.get("recipes") or []:
        parts = [part["path"] for part in manifest.get("parts") or [] if part["recipe"] == recipe["name"]]
        chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, NUM_PARTS).astype(int))] if parts else []
        found[recipe["name"]] = _read_parts(config.path("store"), chosen, skeleton)
    return found


def _read_parts(store: str, paths: Sequence[str], skeleton: Skeleton) -> VariantSample:
    rows: list[dict[str, Any]] = []
    unread, picture = [], None
    for path in paths:
        try:
            columns = ["keypoints", "bbox_xyxy", "width", "height", "split", "camera", "source"]
            found = read_part(join(store, path), columns).to_pylist()
            if any(len(row["keypoints"]) != 3 * len(skeleton) for row in found):
                raise RunStateError(f"{path}: another skeleton's keypoints")
            if picture is None and found:
                picture = _sample_variant(join(store, path), found, skeleton)
        except KpRayError:
            unread.append(path)
            continue
        rows += found
    return VariantSample(
        keypoints=np.array([row["keypoints"] for row in rows], dtype=float).reshape(-1, len(skeleton), 3),
        boxes=np.array([row["bbox_xyxy"] for row in rows], dtype=float).reshape(-1, 4),
        sizes=np.array([[row["width"], row["height"]] for row in rows], dtype=float).reshape(-1, 2),
        splits=np.array([row["split"] for row in rows], dtype=str),
        cameras=tuple(sorted({row["camera"] for row in rows})),
        picture=picture,
        unread=tuple(unread),
    )


def _sample_variant(path: str, rows: Sequence[Mapping[str, Any]], skeleton: Skeleton) -> Image | None:
    """The part's first variant that has a visible point, with its skeleton."""
    points = [np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows]
    index = next((index for index, keypoints in enumerate(points) if (keypoints[:, 2] > 0).any()), 0)
    image = decode_bgr(RowReader(["image"]).read(path, index)["image"])
    if image is None:
        return None
    small, affine = crop_resize(image, None, 360)
    return draw_skeleton(small, transform(points[index], affine), skeleton)


def data_section(
    config: Config, manifest: Mapping[str, Any] | None, variants: Mapping[str, VariantSample]
) -> dict[str, Any] | None:
    """What `check` found, counted by kind, and the sources that the store and the split took."""
    findings = read_csv_table(config.path("check.csv"))
    if findings is None and manifest is None:
        return None
    by_kind: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in (findings or ([], []))[1]:
        by_kind[row.get("level", ""), row.get("kind", "")].append(row)
    kinds = [
        {"level": level, "kind": kind, "count": len(rows), "examples": rows[:3]}
        for (level, kind), rows in sorted(by_kind.items(), key=lambda item: (item[0][0] != "error", -len(item[1])))
    ]
    seen = [one for one in variants.values() if len(one.sizes)]
    original = variants.get("Original")
    frames = sorted({(int(w), int(h)) for w, h in original.sizes}) if original else []
    return {
        "checked": findings is not None,
        "num_findings": sum(kind["count"] for kind in kinds),
        "kinds": kinds,
        "num_sources": (manifest or {}).get("num_sources"),
        "units": {side: len(units) for side, units in ((manifest or {}).get("units") or {}).items()},
        "split_rows": (manifest or {}).get("num_rows_by_split") or {},
        "cameras": sorted({camera for one in seen for camera in one.cameras if camera}),
        "frames": [f"{w}x{h}" for w, h in frames[:3]] + (["..."] if len(frames) > 3 else []),
        "num_keypoints": len((manifest or {}).get("skeleton") or []),
        "split": config.split,
    }


def store_section(
    config: Config, manifest: Mapping[str, Any] | None, variants: Mapping[str, VariantSample]
) -> dict[str, Any] | None:
    """The variants by recipe, how fast they were made, one of each with its skeleton, and what was put aside."""
    if manifest is None:
        return None
    parts = manifest.get("parts") or []
    recipes = []
    for recipe in manifest.get("recipes") or []:
        of_recipe = [part for part in parts if part["recipe"] == recipe["name"]]
        sums = {key: sum(part.get(key) or 0 for part in of_recipe) for key in ("num_rows", "num_bytes")}
        found = variants.get(recipe["name"])
        count = found.visible.sum(axis=1) if found and len(found.visible) else None
        visible = None if count is None else float(count.mean())
        few = None if count is None else float((count < config.augment.min_visible).mean())
        picture = jpeg_uri(found.picture) if found and found.picture is not None else None
        told = {"num_parts": len(of_recipe), "visible": visible, "few": few, "picture": picture}
        recipes.append({**recipe, **sums, **told})
    return {
        "manifest": manifest,
        "recipes": recipes,
        "num_bytes": sum(recipe["num_bytes"] for recipe in recipes),
        "pictures": [recipe for recipe in recipes if recipe["picture"]],
        "min_visible": config.augment.min_visible,
        "unread": [path for one in variants.values() for path in one.unread],
    }


def poses_section(config: Config, variants: Mapping[str, VariantSample], answers: "Answers") -> dict[str, Any] | None:
    """Which poses there are, and what each recipe makes of them: points in the picture, tilt and size."""
    shown = {name: one for name, one in variants.items() if len(one.keypoints)}
    if not shown:
        return None
    manifest = read_optional_json(config.path("store", "manifest.json")) or {}
    skeleton = store_skeleton(config.path("store", "manifest.json"), config, manifest)
    names = list(shown)
    shares = np.array([one.visible.mean(axis=0) for one in shown.values()])
    grid = plot_shares(names, skeleton.names, shares, "Points inside the picture, in percent")
    figures = []
    tilts = [_tilt_deg(one.keypoints, skeleton) for one in shown.values()]
    if any(np.isfinite(tilt).any() for tilt in tilts):
        svg = plot_ranges(names, tilts, "degrees from upright (right: +)", "Tilt of the torso")
        figures.append(figure(svg, "How far the torso tilts, by recipe"))
    heights = [100 * (one.boxes[:, 3] - one.boxes[:, 1]) / one.sizes[:, 1] for one in shown.values()]
    svg = plot_ranges(names, heights, "box height, % of the picture's", "Size of the person")
    figures.append(figure(svg, "How large the person is, by recipe"))
    groups = {}
    if "Original" in shown:
        original = shown["Original"]
        sides = {"train": "trained on", "val": "validated on"}
        groups = {told: original.keypoints[original.splits == side] for side, told in sides.items()}
    if answers.fused is not None and answers.fused.skeleton.names == skeleton.names:
        groups["predicted"] = answers.fused.keypoints
    groups = {told: _normalised(points[:_NUM_POSES]) for told, points in groups.items() if len(points)}
    if groups:
        svg = plot_poses(groups, skeleton, "Poses of the originals, one over the other")
        figures.insert(0, figure(svg, "Skeletons laid over each other, by split"))
    return {
        "grid": figure(grid, "Share of variants in which a keypoint is inside the picture, by recipe"),
        "figures": figures,
        "num": max(len(one.keypoints) for one in shown.values()),
    }


def _tilt_deg(keypoints: FloatArray, skeleton: Skeleton) -> FloatArray:
    """(n,) angle of hips to neck (or shoulders) from upright, clockwise positive; NaN without those points."""
    tops = ["neck"] if "neck" in skeleton.names else ["left_shoulder", "right_shoulder"]
    ends = [tops, ["left_hip", "right_hip"]]
    if not {name for end in ends for name in end} <= set(skeleton.names):
        return np.full(len(keypoints), np.nan)
    top, hips = (keypoints[:, [skeleton.names.index(name) for name in end], :2].mean(axis=1) for end in ends)
    x, y = (top - hips).T
    return np.asarray(np.degrees(np.arctan2(x, -y)))


def _normalised(keypoints: FloatArray) -> FloatArray:
    """(n, K, 2) about each pose's mean point, in units of its points' root mean square distance from it."""
    labelled = keypoints[..., 2:] > 0
    xy = np.where(labelled, keypoints[..., :2], np.nan)
    count = np.maximum(labelled.sum(axis=1, keepdims=True), 1)
    xy = xy - np.nansum(xy, axis=1, keepdims=True) / count
    spread = np.sqrt(np.nansum(xy**2, axis=(1, 2), keepdims=True) / count)
    return np.asarray(xy / np.maximum(spread, 1e-9))
