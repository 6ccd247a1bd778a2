"""Test fusing the members' predictions into the submission."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.config.schema import Config
from kp_ray.data.submission import read_sample_submission, read_submission
from kp_ray.errors import DataError, ModelError, RunStateError, StorageError
from kp_ray.keypoints import DACON24, skeleton_for
from kp_ray.prediction.evaluate import evaluate_run
from kp_ray.prediction.fuse import read_run_predictions, write_fused
from kp_ray.prediction.records import PredictionCost
from tests.helpers.linked_runs import configure_run, link_run
from tests.helpers.predictions import write_prediction_arrays

NO_COST = PredictionCost(predicted=0, seconds=0.0, start_up_s=0.0)


@pytest.fixture
def run_without_submission(predicted_run: Config, tmp_path: Path) -> Config:
    """Link members, store and predictions into a run folder without a submission or sample submission."""
    config = link_run(predicted_run, tmp_path / "run", {"sample_submission": None})
    (tmp_path / "run" / "predictions.parquet").symlink_to(predicted_run.path("predictions.parquet"))
    return config


def test_points_outside_the_image_are_clipped_to_it(predicted_run: Config, tmp_path: Path) -> None:
    config = link_run(predicted_run, tmp_path / "run")
    table = pq.read_table(predicted_run.path("predictions.parquet"))
    shifted_keypoints = (np.array(table["keypoints"].to_pylist()) + 1000).tolist()
    column = table.schema.get_field_index("keypoints")
    array = pa.array(shifted_keypoints, table.schema.field("keypoints").type)
    pq.write_table(table.set_column(column, "keypoints", array), config.path("predictions.parquet"))
    write_fused(config, NO_COST)
    sample = read_sample_submission(config.require_input("sample_submission"))
    points = read_submission(config.path("submission.csv"), sample, DACON24)
    assert (points == [319, 179]).all()


def test_a_changed_submission_deletes_the_evaluation_of_the_earlier_submission(run_without_submission: Config) -> None:
    write_fused(run_without_submission, NO_COST)
    evaluate_run(run_without_submission)
    write_fused(run_without_submission, NO_COST)
    assert Path(run_without_submission.path("evaluation.json")).exists()
    section = run_without_submission.predict.model_copy(update={"weights": {"a": 1.0, "b": 0.0}})
    write_fused(run_without_submission.model_copy(update={"predict": section}), NO_COST)
    assert not Path(run_without_submission.path("evaluation.json")).exists()


def test_with_all_weight_on_one_member_the_submission_is_its_prediction(predicted_run: Config, tmp_path: Path) -> None:
    config = link_run(predicted_run, tmp_path / "run", {"sample_submission": None}, weights={"a": 1, "b": 0})
    shutil.copy(predicted_run.path("predictions.parquet"), config.run_dir)
    assert write_fused(config, NO_COST).weights.chosen == "given"
    rows = pq.read_table(config.path("predictions.parquet"), filters=[("member", "=", "a")]).to_pylist()
    table = pd.read_csv(config.path("submission.csv")).to_numpy()
    found_rows = [i for i, row in enumerate(rows) if row["score"] >= config.predict.score_threshold]
    assert found_rows
    for i in found_rows:
        expected = np.clip(np.reshape(rows[i]["keypoints"], (-1, 3))[:, :2], 0, [319, 179])
        np.testing.assert_allclose(table[i, 1:].astype(float).reshape(-1, 2), expected, atol=1e-9)


def test_details_count_fallbacks_per_kind_and_found_people_per_member(predicted_run: Config, tmp_path: Path) -> None:
    config = configure_run(predicted_run, tmp_path, {"sample_submission": None}, score_threshold=0.5)
    (tmp_path / "store").symlink_to(predicted_run.path("store"))
    images = [f"s_A-{frame}.jpg" for frame in range(3)]
    keypoints = np.full((2, 3, 24, 3), 10.0)
    keypoints[0, 2] = keypoints[1, 1:] = np.nan
    write_prediction_arrays(config.path("predictions.parquet"), ["a", "b"], images, keypoints, DACON24.names)
    details = write_fused(config, NO_COST)
    assert {name: counts.found for name, counts in details.by_member.items()} == {"a": 2, "b": 1}
    assert [(row.image, row.how) for row in details.filled] == [(images[2], "frame 1")]
    assert details.fallbacks == {"near frame": 1}
    values = json.loads(Path(config.path("predict.json")).read_text())
    assert list(values) == [
        "images",
        "members",
        "by_member",
        "people",
        "weights",
        "fallbacks",
        "filled",
        "unusable",
        "took",
        "settings",
    ]


def test_nobody_found_in_any_image_is_a_model_error(predicted_run: Config, tmp_path: Path) -> None:
    config = link_run(predicted_run, tmp_path / "run", {"sample_submission": None})
    nobody = np.full((2, 1, 24, 3), np.nan)
    write_prediction_arrays(config.path("predictions.parquet"), ["a", "b"], ["x.jpg"], nobody, DACON24.names)
    with pytest.raises(ModelError, match="nobody was found in any image"):
        write_fused(config, NO_COST)


def test_if_no_image_can_be_used_the_first_reason_is_given(predicted_run: Config, tmp_path: Path) -> None:
    config = link_run(predicted_run, tmp_path / "run", {"sample_submission": None})
    path = config.path("predictions.parquet")
    write_prediction_arrays(path, ["a", "b"], ["x.jpg"], np.full((2, 1, 24, 3), np.nan), DACON24.names)
    table = pq.read_table(path)
    reasons = pa.array(["is a Git LFS pointer"] * len(table))
    pq.write_table(table.set_column(table.column_names.index("reason"), "reason", reasons), path)
    with pytest.raises(DataError, match=r"none of the 1 images can be used, e\.g\. x\.jpg: is a Git LFS pointer"):
        write_fused(config, NO_COST)


def test_predictions_of_other_keypoints_are_refused(run_without_submission: Config) -> None:
    names = tuple(f"p{i}" for i in range(24))
    other_skeleton = skeleton_for(names, flip_pairs=[], sigmas=[0.05] * 24)
    with pytest.raises(RunStateError, match="has other keypoints"):
        read_run_predictions(run_without_submission, other_skeleton)


@pytest.mark.parametrize(
    ("setting", "value"), [("tta", [1.25]), ("decode", "argmax"), ("precision", "bf16"), ("person", "largest")]
)
def test_predictions_of_other_settings_are_refused(predicted_run: Config, setting: str, value: Any) -> None:
    section = predicted_run.predict.model_copy(update={setting: value})
    with pytest.raises(RunStateError, match=rf"was made with predict\.{setting} .*: run predict again"):
        read_run_predictions(predicted_run.model_copy(update={"predict": section}), DACON24)


def test_predictions_whose_settings_were_not_recorded_are_read(predicted_run: Config, tmp_path: Path) -> None:
    config = link_run(predicted_run, tmp_path / "run", {}, decode="argmax")
    path = config.path("predictions.parquet")
    write_prediction_arrays(path, ["a", "b"], ["x.jpg"], np.full((2, 1, 24, 3), 5.0), DACON24.names)
    assert read_run_predictions(config, DACON24).images == ("x.jpg",)


def test_if_the_file_of_predictions_is_missing_the_message_says_to_run_predict(sample_config: Config) -> None:
    with pytest.raises(StorageError, match="there is no such file: run predict first"):
        read_run_predictions(sample_config, DACON24)
