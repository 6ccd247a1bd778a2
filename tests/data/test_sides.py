"""Names of left and right keypoints, compared with the flip pairs."""

import re

import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.data.sides import check_flips, unpaired_sides
from kp_ray.errors import ConfigError
from kp_ray.keypoints import DACON24, Skeleton


def make_skeleton(names: list[str], flip_pairs: list[tuple[str, str]]) -> Skeleton:
    return Skeleton(tuple(names), tuple(flip_pairs), (0.1,) * len(names))


def make_config(train_flip: bool = False, tune_flips: tuple[bool, ...] = (False,), tta: tuple[str, ...] = ()) -> Config:
    return build_config({"train": {"flip": train_flip}, "tune": {"flips": tune_flips}, "predict": {"tta": tta}})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_paw", "right_paw"), ("paw_left", "paw_right"), ("Left Paw", "Right Paw"), ("leftPaw", "rightPaw"),
        ("LeftPaw", "RightPaw"), ("l_paw", "r_paw"), ("paw.L", "paw.R"), ("paw (l)", "paw (r)"), ("LPaw", "RPaw"),
        ("front_left_paw", "front_right_paw"), ("left-paw-2", "right-paw-2"), ("L_Paw", "R_Paw"),
        ("LEFT_PAW", "RIGHT_PAW"),
    ],
)  # fmt: skip
def test_names_that_differ_only_in_their_side_are_listed_unless_they_are_a_flip_pair(left: str, right: str) -> None:
    assert unpaired_sides(make_skeleton(["nose", right, left], [])) == [(left, right)]
    assert unpaired_sides(make_skeleton(["nose", right, left], [(left, right)])) == []
    assert unpaired_sides(make_skeleton(["nose", right, left], [(right, left)])) == []


@pytest.mark.parametrize(
    "names",
    [
        ["nose", "neck"],
        ["left_paw", "right_ear"],
        ["left_paw", "left_ear"],
        ["lap", "rap"],
        ["ball", "barr"],
        ["l", "nose"],
    ],
)
def test_names_without_a_counterpart_are_not_listed(names: list[str]) -> None:
    assert unpaired_sides(make_skeleton(names, [])) == []


def test_the_skeleton_of_the_competition_has_every_flip_pair() -> None:
    assert unpaired_sides(DACON24) == []


def test_if_flip_pairs_are_wrong_the_correct_pairs_are_listed() -> None:
    names = ["left_eye", "right_eye", "left_ear", "right_ear"]
    skeleton = make_skeleton(names, [("left_eye", "right_ear"), ("left_ear", "right_eye")])
    assert unpaired_sides(skeleton) == [("left_eye", "right_eye"), ("left_ear", "right_ear")]


@pytest.mark.parametrize(
    ("verb", "flips", "setting"),
    [
        ("train", {"train_flip": True}, "train.flip: false"),
        ("tune", {"tune_flips": (True, False)}, "tune.flips: [false]"),
        ("predict", {"tta": ("flip",)}, "flip out of predict.tta"),
    ],
)
def test_each_verb_refuses_only_its_own_flip_setting_and_the_advice_works(verb, flips, setting) -> None:
    skeleton = make_skeleton(["left_paw", "right_paw", "tail"], [])
    with pytest.raises(ConfigError, match=r"^skeleton\.flip_pairs: left_paw and right_paw ") as caught:
        check_flips(make_config(**flips), skeleton, verb)
    assert setting in str(caught.value)
    assert 'set skeleton.flip_pairs: [["left_paw", "right_paw"]]' in str(caught.value)
    for verb_without_flip in {"train", "tune", "predict"} - {verb}:
        check_flips(make_config(**flips), skeleton, verb_without_flip)
    check_flips(make_config(), skeleton, verb)
    check_flips(
        make_config(**flips), make_skeleton(["left_paw", "right_paw", "tail"], [("left_paw", "right_paw")]), verb
    )


def test_the_advised_pairs_keep_correct_pairs_and_replace_wrong_pairs() -> None:
    names = ["left_eye", "right_eye", "left_ear", "right_ear", "left_paw", "right_paw"]
    skeleton = make_skeleton(names, [("left_eye", "right_eye"), ("left_ear", "right_paw"), ("left_paw", "right_ear")])
    with pytest.raises(ConfigError) as caught:
        check_flips(make_config(train_flip=True), skeleton, "train")
    pairs = re.findall(r'\["(\w+)", "(\w+)"\]', str(caught.value))
    assert unpaired_sides(make_skeleton(names, pairs)) == []
