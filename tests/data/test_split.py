"""The split into train and val or into folds, and the check that no unit is on both sides."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kp_ray.data.annotations import Annotations, parse_name
from kp_ray.data.split import deal_folds, name_source_units, refuse_leaks, split_sources
from kp_ray.errors import ConfigError, DataError
from kp_ray.keypoints import DACON24

UNITS = ["scene", "clip", "frame"]


def make_sources(counts: list[int], cameras: str = "AB") -> Annotations:
    """Make scenes s0, s1, ... with `counts` frames per camera."""
    names = [
        f"s{n}_{camera}-{frame}.jpg" for n, count in enumerate(counts) for camera in cameras for frame in range(count)
    ]
    scenes, camera_names, frames = zip(*map(parse_name, names), strict=True)
    return Annotations(DACON24, tuple(names), np.full((len(names), 24, 3), 2.0), scenes, camera_names, frames)


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=8),
    st.sampled_from(UNITS),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63),
    st.randoms(use_true_random=False),
)
def test_units_stay_whole_both_sides_have_sources_and_the_row_order_does_not_matter(counts, by, fraction, seed, random):
    labels = make_sources(counts)
    splits = split_sources(labels, by=by, fraction=fraction, seed=seed)
    assert set(splits) == {"train", "val"}
    refuse_leaks(name_source_units(labels, by), splits, labels.images)
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled_splits = split_sources(labels.select(order), by=by, fraction=fraction, seed=seed)
    assert shuffled_splits == [splits[row] for row in order]


@pytest.mark.parametrize("by", UNITS)
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_share_held_out_is_the_closest_that_whole_units_allow(by, fraction):
    labels = make_sources([3] * 20)
    num_val = Counter(split_sources(labels, by=by, fraction=fraction, seed=1))["val"]
    unit_size = {"scene": 6, "clip": 3, "frame": 1}[by]
    assert abs(num_val - fraction * len(labels)) <= unit_size / 2


def test_the_same_seed_always_chooses_the_same_units():
    labels = make_sources([1] * 8, cameras="A")
    val_scenes = [
        scene
        for scene, side in zip(labels.scenes, split_sources(labels, by="scene", fraction=0.25, seed=42), strict=True)
        if side == "val"
    ]
    assert val_scenes == ["s0", "s7"]
    all_splits = {tuple(split_sources(labels, by="scene", fraction=0.25, seed=seed)) for seed in range(20)}
    assert len(all_splits) > 5


def test_a_unit_larger_than_the_fraction_leaves_sources_on_both_sides():
    splits = Counter(split_sources(make_sources([50, 1]), by="scene", fraction=0.9, seed=0))
    assert splits["train"] > 0
    assert splits["val"] > 0


def test_fraction_zero_holds_out_nothing_even_from_a_single_unit():
    assert split_sources(make_sources([3]), by="scene", fraction=0, seed=0) == ["train"] * 6


def test_a_single_unit_cannot_be_split_and_the_message_names_the_setting():
    with pytest.raises(ConfigError, match=r"one scene: set split\.by=frame, or set split\.fraction=0"):
        split_sources(make_sources([3]), by="scene", fraction=0.1, seed=0)
    with pytest.raises(ConfigError, match=r"one frame: set split\.fraction=0"):
        split_sources(make_sources([1], cameras="A"), by="frame", fraction=0.1, seed=0)


def test_a_unit_or_image_on_both_sides_is_refused_with_its_name():
    with pytest.raises(DataError, match=r"the unit attic is in train and in val \(and 1 more\)"):
        refuse_leaks(["kitchen", "kitchen", "attic", "attic"], ["train", "val", "val", "train"], ["a", "b", "c", "d"])
    with pytest.raises(DataError, match="the image a is in train and in val"):
        refuse_leaks(["x", "y"], ["train", "val"], ["a", "a"])


def test_a_side_other_than_train_and_val_is_refused():
    with pytest.raises(DataError, match="'test' is not a side of a split"):
        refuse_leaks(["x"], ["test"], ["a"])


def test_variants_of_one_source_on_one_side_are_accepted():
    refuse_leaks(["x", "x", "y"], ["train", "train", "val"], ["a", "a", "b"])


@given(
    st.lists(st.integers(1, 6), min_size=4, max_size=12),
    st.sampled_from(UNITS),
    st.integers(2, 4),
    st.integers(0, 2**63),
    st.randoms(use_true_random=False),
)
def test_every_unit_is_in_one_fold_and_fold_sizes_differ_by_at_most_one_unit(counts, by, num_folds, seed, random):
    labels = make_sources(counts)
    folds = deal_folds(labels, by=by, num_folds=num_folds, seed=seed)
    sizes = Counter(name_source_units(labels, by))
    assert sorted(unit for fold in folds for unit in fold) == sorted(sizes)
    totals = [sum(sizes[unit] for unit in fold) for fold in folds]
    assert max(totals) - min(totals) <= max(sizes.values())
    order = list(range(len(labels)))
    random.shuffle(order)
    assert deal_folds(labels.select(order), by=by, num_folds=num_folds, seed=seed) == folds


def test_units_of_equal_size_are_dealt_evenly_and_another_seed_deals_other_folds():
    labels = make_sources([3] * 10)
    folds = deal_folds(labels, by="scene", num_folds=5, seed=42)
    assert [len(fold) for fold in folds] == [2] * 5
    assert folds == (("s6", "s7"), ("s4", "s9"), ("s1", "s8"), ("s0", "s2"), ("s3", "s5")), "the same on any machine"
    assert deal_folds(labels, by="scene", num_folds=5, seed=7) != folds


def test_more_folds_than_units_are_refused_with_the_setting_to_change():
    with pytest.raises(ConfigError, match=r"split\.folds: .*5 folds .*of 3 scenes\): set split\.by=frame"):
        deal_folds(make_sources([3] * 3), by="scene", num_folds=5, seed=0)
