"""Section "Poses and visibility": poses of the data, and their position, tilt and size by recipe."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.reporting.formatting import Figure, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.reporting.samples import VariantSample
from kp_ray.visualization.plots import plot_distributions, plot_percentages, plot_poses

MAX_POSES = 400
"""Maximum number of poses drawn over each other."""


@dataclass(frozen=True)
class PoseSection:
    """Plots of the store's poses.

    Attributes:
        grid: table of the share of visible keypoints, by recipe and keypoint.
        figures: overlaid poses, tilt and size, as far as they are known.
        max_variants: largest number of variants of a recipe in the plots.
    """

    grid: Figure
    figures: tuple[Figure, ...]
    max_variants: int


def pose_section(files: RunFiles) -> PoseSection | None:
    """Build the section; None without readable variants."""
    samples = {name: sample for name, sample in files.samples.items() if len(sample.keypoints)}
    skeleton = files.store_skeleton
    if not samples or skeleton is None:
        return None
    shares = np.array([sample.visible.mean(axis=0) for sample in samples.values()])
    grid = plot_percentages([*samples], skeleton.names, shares, "Points inside the picture, in percent")
    figures = [_overlaid_poses(files, samples, skeleton), _tilts(samples, skeleton), _sizes(samples)]
    return PoseSection(
        grid=svg_figure(grid, "Share of variants in which a keypoint is inside the picture, by recipe"),
        figures=tuple(figure for figure in figures if figure is not None),
        max_variants=max(len(sample.keypoints) for sample in samples.values()),
    )


def _overlaid_poses(files: RunFiles, samples: Mapping[str, VariantSample], skeleton: Skeleton) -> Figure | None:
    """Plot the original poses by split, and the predicted ones if they have the same keypoints."""
    poses: dict[str, FloatArray] = {}
    if "Original" in samples:
        original = samples["Original"]
        sides = {"train": "trained on", "val": "validated on"}
        poses = {label: original.keypoints[original.splits == side] for side, label in sides.items()}
    if files.submission is not None and files.submission.skeleton.names == skeleton.names:
        poses["predicted"] = files.submission.keypoints
    poses = {label: _normalize(keypoints[:MAX_POSES]) for label, keypoints in poses.items() if len(keypoints)}
    if not poses:
        return None
    svg = plot_poses(poses, skeleton, "Poses of the originals, one over the other")
    return svg_figure(svg, "Skeletons laid over each other, by split")


def _tilts(samples: Mapping[str, VariantSample], skeleton: Skeleton) -> Figure | None:
    tilts = [_tilt_deg(sample.keypoints, skeleton) for sample in samples.values()]
    if not any(np.isfinite(tilt).any() for tilt in tilts):
        return None
    svg = plot_distributions([*samples], tilts, "degrees from upright (right: +)", "Tilt of the torso")
    return svg_figure(svg, "How far the torso tilts, by recipe")


def _sizes(samples: Mapping[str, VariantSample]) -> Figure:
    heights = [100 * (sample.boxes[:, 3] - sample.boxes[:, 1]) / sample.sizes[:, 1] for sample in samples.values()]
    svg = plot_distributions([*samples], heights, "box height, % of the picture's", "Size of the person")
    return svg_figure(svg, "How large the person is, by recipe")


def _tilt_deg(keypoints: FloatArray, skeleton: Skeleton) -> FloatArray:
    """Measure the angle (n,) of the line from hips to neck (or shoulders) from upright, clockwise positive.

    Args:
        keypoints: (n, K, 3) x, y, v in pixels.
        skeleton: of K keypoints; without those points all angles are NaN.
    """
    top_names = ["neck"] if "neck" in skeleton.names else ["left_shoulder", "right_shoulder"]
    ends = [top_names, ["left_hip", "right_hip"]]
    if not {name for end in ends for name in end} <= set(skeleton.names):
        return np.full(len(keypoints), np.nan)
    top, hips = (keypoints[:, [skeleton.names.index(name) for name in end], :2].mean(axis=1) for end in ends)
    x, y = (top - hips).T
    return np.asarray(np.degrees(np.arctan2(x, -y)))


def _normalize(keypoints: FloatArray) -> FloatArray:
    """Shift poses (n, K, 3) to their mean point and scale them by their RMS distance from it; returns (n, K, 2)."""
    labelled = keypoints[..., 2:] > 0
    xy = np.where(labelled, keypoints[..., :2], np.nan)
    count = np.maximum(labelled.sum(axis=1, keepdims=True), 1)
    xy = xy - np.nansum(xy, axis=1, keepdims=True) / count
    spread = np.sqrt(np.nansum(xy**2, axis=(1, 2), keepdims=True) / count)
    return np.asarray(xy / np.maximum(spread, 1e-9))
