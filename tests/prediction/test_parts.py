"""Test parts: finding the missing images, and merging."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError, StorageError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.parts import find_missing_images, is_found, merge_parts, part_schema
from kp_ray.prediction.predictions import read_predictions
from kp_ray.prediction.settings import lowest_threshold
from kp_ray.storage import write_parquet

MEMBERS = ["a", "b"]
REFS = [ImageRef(f"s_A-{frame}.jpg", f"/{frame}.jpg", None, "v1") for frame in (2, 1)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return build_config({"run_dir": str(tmp_path), "predict": {"person": "score", "score_threshold": 0.5}})


def make_row(image: str, member: str, score: float, **changes: Any) -> dict[str, Any]:
    """Make one row of a part. All numbers of its keypoints equal the score, or are NaN if the score is 0."""
    keypoints = np.full(3 * len(DACON24), score if score else np.nan)
    row = {"image": image, "version": "v1", "member": member, "score": score, "bbox_xyxy": [0.0, 0.0, 9.0, 9.0],
           "keypoints": keypoints, "width": 64, "height": 48, "reason": ""}  # fmt: skip
    return row | changes


def write_part(config: Config, name: str, *rows: dict[str, Any]) -> None:
    table = pa.Table.from_pylist(list(rows), schema=part_schema(len(DACON24)))
    write_parquet(config.path("parts", f"{name}.parquet"), table)


def merge(config: Config) -> None:
    merge_parts(config, config.path("parts"), REFS, MEMBERS, DACON24, config.path("predictions.parquet"))


def test_merged_rows_are_ordered_by_image_and_member_and_hold_the_best_detection(config: Config) -> None:
    first_image, second_image = REFS[0].image, REFS[1].image
    write_part(config, "1", make_row(second_image, "b", 0.0), make_row(second_image, "a", 0.4))
    write_part(
        config, "2", make_row(first_image, "a", 0.6), make_row(first_image, "a", 0.9), make_row(first_image, "b", 0.7)
    )
    merge(config)
    predictions = read_predictions(config.path("predictions.parquet"))
    assert (predictions.images, predictions.members) == ((first_image, second_image), ("a", "b"))
    assert predictions.scores.tolist() == [[0.9, 0.4], [0.7, 0.0]]
    assert predictions.keypoints[:, :, 0, 0].tolist()[0] == [0.9, 0.4]
    assert np.isnan(predictions.keypoints[1, 1]).all()
    assert predictions.sizes == ((64, 48), (64, 48))
    choices = predictions.person_choices
    assert (choices.rule, choices.several, choices.other_than_best_score) == ("score", 1, 0)


def test_if_two_parts_hold_an_image_the_part_with_the_usable_image_is_merged(config: Config) -> None:
    first_image, second_image = REFS[0].image, REFS[1].image
    unusable = {"reason": "cut short", "width": 0, "height": 0}
    write_part(config, "1", *(make_row(first_image, member, 0.0, **unusable) for member in MEMBERS))
    write_part(config, "2", *(make_row(first_image, member, 0.8) for member in MEMBERS))
    write_part(config, "3", *(make_row(second_image, member, 0.0, **unusable) for member in MEMBERS))
    merge(config)
    predictions = read_predictions(config.path("predictions.parquet"))
    assert predictions.reasons == ("", "cut short")
    assert predictions.scores[:, 0].tolist() == [0.8, 0.8]
    assert find_missing_images(config.path("parts"), REFS) == [REFS[1]], "an unusable image is tried again"


def test_a_part_of_another_version_of_an_image_is_ignored(config: Config) -> None:
    write_part(config, "1", *(make_row(REFS[0].image, member, 0.8, version="v0") for member in MEMBERS))
    assert find_missing_images(config.path("parts"), REFS) == REFS
    write_part(config, "2", *(make_row(REFS[1].image, member, 0.8) for member in MEMBERS))
    with pytest.raises(RunStateError, match="the parts of some images are missing"):
        merge(config)


def test_without_a_folder_of_parts_every_image_is_missing(config: Config) -> None:
    assert find_missing_images(config.path("parts"), REFS) == REFS


def test_the_error_about_a_damaged_part_names_its_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.parquet").write_bytes(b"cut")
    with pytest.raises(StorageError, match=r"1\.parquet"):
        find_missing_images(config.path("parts"), REFS)


def test_a_score_of_zero_counts_as_not_found_at_any_threshold(config: Config) -> None:
    config_without_threshold = build_config({"predict": {"score_threshold": 0.0}})
    assert is_found(np.array([0.0, 0.4, 0.5]), config).tolist() == [False, False, True]
    assert is_found(np.array([0.0, 0.4]), config_without_threshold).tolist() == [False, True]
    assert lowest_threshold(config) == config.predict.fallback_threshold
    assert lowest_threshold(config_without_threshold) == 0
