"""Sections of the configuration that describe a run's inputs: files, skeleton and split."""

from typing import Annotated, Literal

from pydantic import Field

from kp_ray.config.types import AnyPath, Section, Seed


class DataConfig(Section):
    """Input files: local paths or URLs. A stage refuses to start if the setting of a file that it needs is null."""

    annotations: AnyPath | None = None
    """Labels: COCO keypoints JSON (`.json`), a native CSV, or a CSV of DeepLabCut or Lightning Pose."""
    images: AnyPath | None = None
    """Folder of the labelled images."""
    test_images: AnyPath | None = None
    """Folder of the images to predict."""
    sample_submission: AnyPath | None = None
    """CSV with the columns, the row set and the row order that a submission must have."""
    truth: AnyPath | None = None
    """Labels of the test images, in the formats of `annotations`, for `evaluate`."""
    corrections: AnyPath | None = None
    """CSV of corrections (image, action, keypoint, x, y) that are applied whenever the labels are read."""
    missing_values: tuple[tuple[float, float], ...] = ()
    """Coordinates [x, y] that stand for a missing label, e.g. [[0, 0], [-1, -1]]: a point with exactly these
    coordinates is read as unlabelled. An empty cell, and v 0 in COCO, always mark a missing label."""
    people: Literal["error", "largest"] = "error"
    """Images with several labelled people: `error` refuses them, `largest` keeps the person with the largest box. With
    `largest` the other people stay in the image, unlabelled, so training teaches the model to ignore them."""


class SkeletonConfig(Section):
    """Skeleton of the labels. Required if a keypoint's name is not among the competition's 24, or if a left or
    right keypoint has no counterpart in the labels; otherwise it overrides the built-in flip pairs and sigmas."""

    flip_pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of left and right names that a horizontal mirror exchanges; null: the competition's pairs."""
    sigmas: tuple[float, ...] | None = None
    """OKS standard deviation per keypoint, relative to the square root of the person's area, in the order of the
    keypoints: the competition's if the labels have exactly its 24 names, else the order of the labels' file. null: the
    built-in sigmas of the competition's keypoints, the first 17 of which are COCO's."""


class SplitConfig(Section):
    """Choice of the sources to validate on: a fixed share of them, or for each member one of several folds."""

    by: Literal["scene", "clip", "frame"] = "scene"
    """Unit that is held out as a whole. Frames of a scene are alike: only `scene` tests a model on unseen poses."""
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the sources to hold out; 0 holds out none, and then there is no evaluation and no search. Not used with
    `folds`."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Number of folds to which the units are dealt; every member trains on all folds but one. With a member for each
    fold, the ensemble trains on every label, and `crossval` scores every label. null: hold out `fraction` from all
    members."""
    seed: Seed | None = None
    """Seed of the choice; null: the run's `seed`."""
