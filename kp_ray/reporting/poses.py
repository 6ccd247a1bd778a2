"""Section "Poses and visibility": poses of the sources, and the visible keypoints, tilts and sizes of each recipe."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.reporting.formatting import Figure, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.reporting.samples import VariantSample
from kp_ray.visualization.plots import plot_distributions, plot_percentages, plot_poses

MAX_POSES = 400
"""Maximum number of poses that a panel draws over each other."""


@dataclass(frozen=True)
class PoseSection:
    """Plots of the store's poses.

    Attributes:
        grid: table, by recipe and keypoint, of the share of variants in which the keypoint is visible.
        figures: plots of the poses, the tilts and the sizes; a plot without data is left out.
        max_variants: largest number of variants of a recipe in the plots.
    """

    grid: Figure
    figures: tuple[Figure, ...]
    max_variants: int


def pose_section(files: RunFiles) -> PoseSection | None:
    """Build the section; None if no variant of a store can be read."""
    samples = {name: sample for name, sample in files.samples.items() if len(sample.keypoints)}
    skeleton = files.store_skeleton
    if not samples or skeleton is None:
        return None
    shares = np.array([sample.is_visible.mean(axis=0) for sample in samples.values()])
    grid = plot_percentages([*samples], skeleton.names, shares, "Points inside the image, in percent")
    figures = [_pose_figure(files, samples, skeleton), _tilt_figure(samples, skeleton), _size_figure(samples)]
    return PoseSection(
        grid=svg_figure(grid, "Share of variants in which a keypoint is inside the image, by recipe"),
        figures=tuple(figure for figure in figures if figure is not None),
        max_variants=max(len(sample.keypoints) for sample in samples.values()),
    )


def _pose_figure(files: RunFiles, samples: Mapping[str, VariantSample], skeleton: Skeleton) -> Figure | None:
    """Plot the poses of the sources by split, and those of a submission with the same keypoints.

    Returns:
        None if there is neither a variant of the recipe Original nor a submission.
    """
    poses: dict[str, FloatArray] = {}
    if "Original" in samples:
        sample = samples["Original"]
        sides = {"train": "trained on", "val": "validated on"}
        poses = {label: sample.keypoints[sample.splits == side] for side, label in sides.items()}
    if files.submission is not None and files.submission.skeleton.names == skeleton.names:
        poses["predicted"] = files.submission.keypoints
    poses = {label: _normalize(keypoints[:MAX_POSES]) for label, keypoints in poses.items() if len(keypoints)}
    if not poses:
        return None
    svg = plot_poses(poses, skeleton, "Poses, drawn over each other")
    return svg_figure(svg, "Skeletons drawn over each other, by split")


def _tilt_figure(samples: Mapping[str, VariantSample], skeleton: Skeleton) -> Figure | None:
    """Plot the tilt of the torso by recipe; None if no variant has the keypoints of the torso."""
    tilts = [_tilt_deg(sample.keypoints, skeleton) for sample in samples.values()]
    if not any(np.isfinite(tilt).any() for tilt in tilts):
        return None
    svg = plot_distributions([*samples], tilts, "degrees from upright (right: +)", "Tilt of the torso")
    return svg_figure(svg, "Tilt of the torso, by recipe")


def _size_figure(samples: Mapping[str, VariantSample]) -> Figure:
    """Plot the height of the person's box by recipe, in percent of the image's height."""
    heights = [100 * (sample.boxes[:, 3] - sample.boxes[:, 1]) / sample.sizes[:, 1] for sample in samples.values()]
    svg = plot_distributions([*samples], heights, "box height, % of the image's", "Size of the person")
    return svg_figure(svg, "Size of the person, by recipe")


def _tilt_deg(keypoints: FloatArray, skeleton: Skeleton) -> FloatArray:
    """Measure the angle between the torso and the vertical, in degrees, positive clockwise.

    The torso is the line from the middle of the hips to the neck, or to the middle of the shoulders if the skeleton has
    no neck.

    Args:
        keypoints: (n, K, 3) x, y, v in pixels.
        skeleton: the K keypoints.

    Returns:
        (n,) angles; NaN if the skeleton lacks the hips or both the neck and the shoulders.
    """
    top_names = ["neck"] if "neck" in skeleton.names else ["left_shoulder", "right_shoulder"]
    ends = [top_names, ["left_hip", "right_hip"]]
    if not {name for end in ends for name in end} <= set(skeleton.names):
        return np.full(len(keypoints), np.nan)
    top, hips = (keypoints[:, [skeleton.names.index(name) for name in end], :2].mean(axis=1) for end in ends)
    x, y = (top - hips).T
    return np.asarray(np.degrees(np.arctan2(x, -y)))


def _normalize(keypoints: FloatArray) -> FloatArray:
    """Move the mean point of each pose to the origin, and scale the pose to an RMS distance of 1 from the origin.

    Args:
        keypoints: (n, K, 3) x, y, v; points with v = 0 are ignored.

    Returns:
        (n, K, 2); NaN for ignored points.
    """
    is_labelled = keypoints[..., 2:] > 0
    xy = np.where(is_labelled, keypoints[..., :2], np.nan)
    count = np.maximum(is_labelled.sum(axis=1, keepdims=True), 1)
    xy = xy - np.nansum(xy, axis=1, keepdims=True) / count
    rms_distance = np.sqrt(np.nansum(xy**2, axis=(1, 2), keepdims=True) / count)
    return np.asarray(xy / np.maximum(rms_distance, 1e-9))
