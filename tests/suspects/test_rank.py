"""Wrong labels are ranked first, with the kind of their mistake."""

from dataclasses import replace

import numpy as np
import pytest

from kp_ray.checks.labels import is_crossed
from kp_ray.data.annotations import Annotations, parse_name
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.suspects.evidence import SUSPICIOUS_SCORE, Judgement
from kp_ray.suspects.rank import Suspect, _join, rank_suspects

NUM_IMAGES = 60
FLIP = list(DACON24.flip_indices)


def make_labels() -> Annotations:
    """Make labels of NUM_IMAGES images, each in its own scene, of people who differ in place and pose."""
    rng = np.random.default_rng(0)
    body = rng.uniform(-1, 1, (24, 2)) * (60, 150)
    xy = body + rng.normal(0, 25, (NUM_IMAGES, 24, 2)) + rng.uniform(200, 600, (NUM_IMAGES, 1, 2))
    images = tuple(f"scene{number}_A-0000001.jpg" for number in range(NUM_IMAGES))
    scenes, cameras, frames = zip(*map(parse_name, images), strict=True)
    return Annotations(DACON24, images, np.dstack([xy, np.full((NUM_IMAGES, 24), 2.0)]), scenes, cameras, frames)


@pytest.fixture(scope="module")
def labels() -> Annotations:
    """Return correct labels of NUM_IMAGES images."""
    return make_labels()


@pytest.fixture(scope="module")
def predicted(labels: Annotations) -> dict[str, FloatArray]:
    """Return predictions that deviate by a few pixels, and more at the wrists."""
    noise = np.random.default_rng(1).normal(0, 3, (NUM_IMAGES, 24, 2))
    noise[:, [9, 10]] *= 10
    return dict(zip(labels.images, labels.keypoints[..., :2] + noise, strict=True))


def rank(labels: Annotations, predicted: dict[str, FloatArray], **changed_points: FloatArray) -> list[Suspect]:
    """Rank the labels after replacing points: the keyword argument `image7` holds points (24, 2) of image number 7."""
    keypoints = labels.keypoints.copy()
    for name, xy in changed_points.items():
        keypoints[int(name.removeprefix("image")), :, :2] = xy
    return rank_suspects(replace(labels, keypoints=keypoints), predicted, {name: np.ones(24) for name in predicted})


def test_mistakes_of_four_kinds_are_ranked_first_with_their_corrections(
    labels: Annotations, predicted: dict[str, FloatArray]
) -> None:
    xy = labels.keypoints[..., :2]
    moved_nose = xy[4].copy()
    moved_nose[0] += (0, 120)
    ranked = rank(
        labels, predicted, image1=xy[1][FLIP], image2=xy[2] + (70, -40), image3=xy[50] + 0.5, image4=moved_nose
    )
    suspects = {suspect.image: suspect for suspect in ranked[:4]}
    images = [labels.images[number] for number in (1, 2, 3, 4)]
    assert set(suspects) == set(images)
    assert [suspects[image].kind for image in images] == ["left_right", "shifted", "other_image", "points"]
    swapped, shifted, other_image, single_point = (suspects[image] for image in images)
    assert {row[2]: row[3:] for row in swapped.corrections} == {
        DACON24.names[k]: pytest.approx(xy[1][k], abs=0.01) for k in range(24) if FLIP[k] != k
    }
    moved_back = np.array([row[3:] for row in shifted.corrections], dtype=float)
    assert np.abs(moved_back - xy[2]).max() < 5
    assert labels.images[50] in other_image.reason
    assert other_image.corrections == ((images[2], "drop", "", None, None),)
    assert single_point.points == (DACON24.names[0],)
    assert single_point.corrections == ((images[3], "point", DACON24.names[0], None, None),)


def test_exchanged_sides_are_found_if_only_one_side_is_labelled(
    labels: Annotations, predicted: dict[str, FloatArray]
) -> None:
    right_side = [k for k in range(24) if FLIP[k] < k]
    keypoints = labels.keypoints.copy()
    keypoints[1, :, :2] = keypoints[1, FLIP, :2]
    keypoints[1, right_side] = (np.nan, np.nan, 0)
    suspect = rank(replace(labels, keypoints=keypoints), predicted)[0]
    assert (suspect.image, suspect.kind) == (labels.images[1], "left_right")
    assert {"left_ankle", "right_ankle"} <= set(suspect.points) < set(DACON24.names)


def test_crossed_sides_add_a_reason_and_change_neither_kind_nor_corrections(
    labels: Annotations, predicted: dict[str, FloatArray]
) -> None:
    image, xy = labels.images[4], labels.keypoints[4, :, :2].copy()
    xy[0] += (0, 120)
    uncrossed_suspect = rank(labels, predicted, image4=xy)[0]
    hips = [DACON24.names.index(name) for name in ("left_hip", "right_hip")]
    shoulders = [DACON24.names.index(name) for name in ("left_shoulder", "right_shoulder")]
    crossed_prediction = labels.keypoints[4, :, :2].copy()
    crossed_prediction[hips] = xy[hips] = xy[shoulders][::-1] + np.array([0, 80])
    assert is_crossed(DACON24, xy)
    suspect = rank(labels, {**predicted, image: crossed_prediction}, image4=xy)[0]
    assert (suspect.image, suspect.kind) == (image, uncrossed_suspect.kind)
    assert suspect.corrections == uncrossed_suspect.corrections
    assert "point in opposite directions" in suspect.reason


def test_an_image_with_few_labelled_points_is_never_of_kind_shifted_or_other_image(
    labels: Annotations, predicted: dict[str, FloatArray]
) -> None:
    xy = np.full((24, 2), np.nan)
    xy[0] = labels.keypoints[5, 0, :2] + (200, 0)
    suspects = {suspect.image: suspect for suspect in rank(labels, predicted, image5=xy)}
    assert suspects[labels.images[5]].kind == "points"


def test_judgements_of_the_same_kind_join_their_points() -> None:
    joined = _join(Judgement(4.0, "points", (0,), "nose"), Judgement(5.0, "points", (9,), "wrist"))
    assert (joined.score, joined.kind, joined.points, joined.reason) == (9.0, "points", (0, 9), "nose; wrist")
    assert _join(Judgement(4.0, "left_right", (), "all"), Judgement(1.0, "left_right", (3,), "one")).points == ()


def test_an_error_that_is_usual_for_its_keypoint_is_not_suspicious(
    labels: Annotations, predicted: dict[str, FloatArray]
) -> None:
    xy = labels.keypoints[..., :2].copy()
    moved_wrist, moved_nose = xy[7].copy(), xy[8].copy()
    moved_wrist[9] += (45, 0)
    moved_nose[0] += (45, 0)
    ranked = rank(labels, predicted, image7=moved_wrist, image8=moved_nose)
    ranks = {suspect.image: number for number, suspect in enumerate(ranked)}
    assert ranks[labels.images[8]] == 0
    assert ranked[ranks[labels.images[7]]].score < SUSPICIOUS_SCORE


def agreement(labels: Annotations) -> dict[str, FloatArray]:
    """Return the same disagreement of the members for every point, by image."""
    return {image: np.ones(24) for image in labels.images}


def move_prediction(predicted: dict[str, FloatArray], labels: Annotations, row: int, offset_px: float) -> None:
    """Put the predicted nose of one image at this distance from its label, in place."""
    image = labels.images[row]
    predicted[image] = predicted[image].copy()
    predicted[image][0] = labels.keypoints[row, 0, :2] + (offset_px, 0)


def test_an_error_that_is_usual_where_the_members_disagree_is_less_suspicious(labels: Annotations) -> None:
    noise = np.random.default_rng(2).normal(0, 3, (NUM_IMAGES, 24, 2))
    noise[::3] *= 6  # the images in which the members disagree
    predicted = dict(zip(labels.images, labels.keypoints[..., :2] + noise, strict=True))
    for row in (9, 46):
        move_prediction(predicted, labels, row, offset_px=45)
    disagreement = {image: np.full(24, 1.0 if row % 3 else 9.0) for row, image in enumerate(labels.images)}
    scores = {suspect.image: suspect.score for suspect in rank_suspects(labels, predicted, disagreement)}
    assert next(iter(scores)) == labels.images[46]
    assert scores[labels.images[9]] < SUSPICIOUS_SCORE < scores[labels.images[46]]


def test_an_error_that_is_usual_for_the_size_of_the_person_is_less_suspicious(labels: Annotations) -> None:
    scale = np.where(np.arange(NUM_IMAGES) % 3, 1.0, 0.25)  # the person of every third image is small
    keypoints = labels.keypoints.copy()
    keypoints[..., :2] *= scale[:, None, None]
    noise = np.random.default_rng(2).normal(0, 3, (NUM_IMAGES, 24, 2))  # the same in pixels for every size
    predicted = dict(zip(labels.images, keypoints[..., :2] + noise, strict=True))
    scaled_labels = replace(labels, keypoints=keypoints)
    for row in (9, 46):
        move_prediction(predicted, scaled_labels, row, offset_px=45 * scale[row])  # the same in body sizes
    ranked = rank_suspects(scaled_labels, predicted, agreement(labels))
    scores = {suspect.image: suspect.score for suspect in ranked}
    assert next(iter(scores)) == labels.images[46]
    assert scores[labels.images[9]] < SUSPICIOUS_SCORE < scores[labels.images[46]]


def make_still_clip(labels: Annotations, first_row: int, frames: tuple[int, ...]) -> Annotations:
    """Make successive images the frames of one clip, in which the person moves by 3 px from row to row."""
    rows = slice(first_row, first_row + len(frames))
    names, numbers = list(labels.scenes), list(labels.frames)
    names[rows], numbers[rows] = [f"clip {first_row}"] * len(frames), frames
    keypoints = labels.keypoints.copy()
    keypoints[rows, :, :2] = keypoints[first_row, :, :2] + 3 * np.arange(len(frames))[:, None, None] * (1, 0)
    return replace(labels, keypoints=keypoints, scenes=tuple(names), frames=tuple(numbers))


def test_an_error_of_all_frames_of_a_clip_is_less_suspicious_than_that_of_one_frame(labels: Annotations) -> None:
    clips = make_still_clip(make_still_clip(labels, 10, (1, 2, 3, 4, 5)), 30, (1, 2, 3, 4, 5))
    noise = np.random.default_rng(2).normal(0, 3, (NUM_IMAGES, 24, 2))
    predicted = dict(zip(clips.images, clips.keypoints[..., :2] + noise, strict=True))
    for row in (*range(10, 15), 34):
        move_prediction(predicted, clips, row, offset_px=45)
    scores = {suspect.image: suspect.score for suspect in rank_suspects(clips, predicted, agreement(clips))}
    assert next(iter(scores)) == clips.images[34]
    assert scores[clips.images[14]] < SUSPICIOUS_SCORE < scores[clips.images[34]]


def test_a_prediction_counts_less_for_an_image_that_fits_the_frames_before_and_after(labels: Annotations) -> None:
    noise = np.random.default_rng(2).normal(0, 3, (NUM_IMAGES, 24, 2))
    scores = []
    for frames in ((1, 2, 3), (1, 3, 2)):  # row 8 is between the other two, then at the clip's end
        clip = make_still_clip(labels, 7, frames)
        predicted = dict(zip(clip.images, clip.keypoints[..., :2] + noise, strict=True))
        move_prediction(predicted, clip, 8, offset_px=60)
        ranked = rank_suspects(clip, predicted, agreement(clip))
        scores += [suspect.score for suspect in ranked if suspect.image == clip.images[8]]
    inner_score, end_score = scores
    assert end_score > SUSPICIOUS_SCORE
    assert inner_score == pytest.approx(0.6 * end_score)


def test_few_correct_labels_reach_the_suspicious_score(labels: Annotations, predicted: dict[str, FloatArray]) -> None:
    ranked = rank(labels, predicted)
    assert len(ranked) == NUM_IMAGES
    assert sum(suspect.score >= SUSPICIOUS_SCORE for suspect in ranked) <= 2


def make_clip(num_frames: int) -> Annotations:
    """Make a clip of a person who walks to the right by 20 px per frame."""
    labels = make_labels()
    xy = labels.keypoints[0, :, :2] + np.arange(num_frames)[:, None, None] * (20.0, 0.0)
    images = tuple(f"walk_A-{frame:07d}.jpg" for frame in range(num_frames))
    scenes, cameras, frames = zip(*map(parse_name, images), strict=True)
    return Annotations(DACON24, images, np.dstack([xy, np.full((num_frames, 24), 2.0)]), scenes, cameras, frames)


def test_without_predictions_only_images_that_contradict_the_motion_or_repeat_labels_are_ranked() -> None:
    clip = make_clip(9)
    keypoints = clip.keypoints.copy()
    keypoints[2, :, :2] += (0, 400)
    keypoints[4] = keypoints[4][FLIP]
    keypoints[7] = keypoints[6]
    ranked = rank_suspects(replace(clip, keypoints=keypoints), {}, {})
    kinds = {clip.images.index(suspect.image): suspect.kind for suspect in ranked}
    assert kinds == {2: "far", 4: "left_right", 6: "repeated", 7: "repeated"}
    assert rank_suspects(clip, {}, {}) == []


def test_the_image_that_its_prediction_contradicts_comes_before_its_duplicate() -> None:
    clip = make_clip(30)
    noise = np.random.default_rng(1).normal(0, 2, (30, 24, 2))
    predicted = dict(zip(clip.images, clip.keypoints[..., :2] + noise, strict=True))
    keypoints = clip.keypoints.copy()
    keypoints[10] = keypoints[20]
    ranked = rank_suspects(replace(clip, keypoints=keypoints), predicted, {image: np.ones(24) for image in clip.images})
    assert ranked[0].image == clip.images[10]
    assert ranked[0].corrections == ((clip.images[10], "drop", "", None, None),)
    (correctly_labelled,) = (suspect for suspect in ranked if suspect.image == clip.images[20])
    assert correctly_labelled.corrections == ()


def test_equal_labels_of_a_group_without_frame_numbers_are_suspicious(labels: Annotations) -> None:
    keypoints = labels.keypoints.copy()
    keypoints[7] = keypoints[3]
    group = replace(
        labels,
        keypoints=keypoints,
        scenes=("room",) * NUM_IMAGES,
        cameras=("",) * NUM_IMAGES,
        frames=(-1,) * NUM_IMAGES,
    )
    ranked = rank_suspects(group, {}, {})
    suspicious_images = {suspect.image for suspect in ranked if suspect.score >= SUSPICIOUS_SCORE}
    assert suspicious_images == {labels.images[3], labels.images[7]}
