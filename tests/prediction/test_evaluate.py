"""Test the scores of the run's predictions and of submissions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from kp_ray.config.schema import Config
from kp_ray.data.load import load_annotations
from kp_ray.data.submission import read_sample_submission, read_submission
from kp_ray.errors import ConfigError, DataError, RunStateError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.evaluate import evaluate_run, evaluate_submission
from kp_ray.prediction.fuse import write_fused
from kp_ray.prediction.records import PredictionCost, read_evaluation
from kp_ray.prediction.run import predict
from kp_ray.reporting.run_files import read_run_files
from kp_ray.store.read import read_table
from tests.helpers.data import tiny_config
from tests.helpers.linked_runs import configure_run, first_image, link_run
from tests.helpers.synthetic import read_labels

K = len(DACON24)


def test_the_ensemble_and_each_member_are_scored(predicted_run: Config) -> None:
    evaluation = evaluate_run(predicted_run)
    path = predicted_run.path("evaluation.json")
    assert json.loads(Path(path).read_text()) == evaluation.to_json()
    assert read_evaluation(path) == evaluation
    assert set(evaluation.members) == {"a", "b"}
    sample = read_sample_submission(predicted_run.require_input("sample_submission"))
    points = read_submission(predicted_run.path("submission.csv"), sample, DACON24, size=None)
    truth = load_annotations(predicted_run.require_input("truth"))
    labels = truth.keypoints[[truth.images.index(image) for image in sample.images], :, :2]
    assert evaluation.rmse == pytest.approx(float(np.sqrt(np.mean((points - labels) ** 2))))
    assert evaluation.rmse_interval is not None
    low, high = evaluation.rmse_interval
    assert low <= evaluation.rmse <= high
    submission_evaluation = evaluate_submission(predicted_run, predicted_run.path("submission.csv"))
    assert submission_evaluation.rmse == pytest.approx(evaluation.rmse)


def test_the_score_of_a_member_is_that_of_its_own_detections(predicted_run: Config) -> None:
    evaluation = evaluate_run(predicted_run)
    truth = load_annotations(predicted_run.require_input("truth"))
    table = pq.read_table(predicted_run.path("predictions.parquet")).to_pandas()
    assert (table["score"] > 0).all(), "each member finds a person in every image, so that no image is filled"
    scores = {"ensemble": evaluation.rmse}
    for name, rows in table.groupby("member"):
        labels = truth.keypoints[[truth.images.index(image) for image in rows["image"]], :, :2]
        points = np.stack(rows["keypoints"]).reshape(-1, K, 3)[..., :2].clip(0, (319, 179))
        scores[name] = evaluation.members[name].rmse
        assert scores[name] == pytest.approx(float(np.sqrt(np.nanmean((points - labels) ** 2))))
    assert len(set(scores.values())) == 3, scores


def test_the_json_of_an_evaluation_has_its_documented_keys(predicted_run: Config) -> None:
    values = evaluate_run(predicted_run).to_json()
    assert list(values)[-5:] == ["worst", "filled", "members", "inputs", "truth"]
    assert list(values["members"]["a"])[-2:] == ["worst", "filled"]
    errors = [row["rmse"] for row in values["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert list(evaluate_submission(predicted_run, predicted_run.path("submission.csv")).to_json())[-1] == "worst"


def test_a_split_of_the_store_is_scored_against_the_labels_in_the_store(run_with_store: Config, tmp_path: Path) -> None:
    config = link_run(run_with_store, tmp_path / "run", {"truth": None}, images="store:train", score_threshold=0.0)
    details, _ = predict(config)
    evaluation = evaluate_run(config)
    assert evaluation.num_images == details.images == 4
    table = read_table(config.path("store"), split="train", recipes=["Original"]).to_pandas()
    labels = dict(zip(table["source"], table["keypoints"], strict=True))
    images, points = read_labels(config.path("submission.csv"))
    errors = points - np.stack([labels[image] for image in images]).reshape(-1, K, 3)[..., :2]
    assert evaluation.rmse == pytest.approx(float(np.sqrt(np.nanmean(errors**2))))


def test_another_column_order_in_the_truth_or_the_sample_submission_changes_no_score(
    predicted_run: Config, tmp_path: Path
) -> None:
    """Keypoints with other names than the competition's 24 have the order of the labels."""
    new_names = {name: f"p{i:02d}" for i, name in enumerate(DACON24.names)}
    skeleton = {"flip_pairs": [["p00", "p01"]], "sigmas": np.linspace(0.02, 0.2, K).tolist()}
    columns = {f"{name}_{axis}": f"{new_name}_{axis}" for name, new_name in new_names.items() for axis in "xy"}
    truth = pd.read_csv(predicted_run.require_input("truth")).rename(columns=columns)
    truth.to_csv(tmp_path / "labels.csv", index=False)
    submission = truth.copy()
    submission[[column for column in columns.values() if column < "p12"]] += 24
    pairs = [list(truth.columns[i : i + 2]) for i in range(1, len(truth.columns), 2)]
    scores = []
    for truth_pairs, sample_pairs in ((pairs, pairs), (pairs[::-1], pairs), (pairs, pairs[::-1])):
        tables = {
            "truth": (truth, truth_pairs),
            "sample": (truth, sample_pairs),
            "submission": (submission, sample_pairs),
        }
        paths = {name: str(tmp_path / f"{name}.csv") for name in tables}
        for name, (table, ordered_pairs) in tables.items():
            table[["image", *(column for pair in ordered_pairs for column in pair)]].to_csv(paths[name], index=False)
        data = {
            "annotations": str(tmp_path / "labels.csv"),
            "sample_submission": paths["sample"],
            "truth": paths["truth"],
        }
        config = tiny_config({**predicted_run.data.model_dump(), **data}, tmp_path / "run", skeleton=skeleton)
        evaluation = evaluate_submission(config, paths["submission"])
        assert evaluation.by_keypoint["p03"].rmse == pytest.approx(24)
        scores.append(evaluation.ap)
    assert scores[0] is not None
    assert 0 < scores[0] < 1
    assert scores == pytest.approx([scores[0]] * 3)


def test_a_shift_of_the_submission_is_its_rmse_and_points_far_outside_the_image_are_refused(
    predicted_run: Config, tmp_path: Path
) -> None:
    table = pd.read_csv(predicted_run.require_input("truth"))
    images = list(read_sample_submission(predicted_run.require_input("sample_submission")).images)
    table = table.set_index("image").loc[images].reset_index()
    path = str(tmp_path / "submission.csv")
    table.to_csv(path, index=False)
    assert evaluate_submission(predicted_run, path).rmse == pytest.approx(0)
    table[DACON24.columns] += 3
    table.to_csv(path, index=False)
    assert evaluate_submission(predicted_run, path).rmse == pytest.approx(3)
    table[DACON24.columns] += 400
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match="more than 100 px outside the 320x180 frame"):
        evaluate_submission(predicted_run, path)


def test_without_a_sample_submission_a_submission_must_hold_every_image_of_the_truth(
    predicted_run: Config, tmp_path: Path
) -> None:
    config = link_run(predicted_run, tmp_path / "run", {"sample_submission": None})
    (tmp_path / "run" / "predictions.parquet").symlink_to(predicted_run.path("predictions.parquet"))
    write_fused(config, PredictionCost(predicted=0, seconds=0.0, start_up_s=0.0))
    submission = Path(config.path("submission.csv"))
    assert evaluate_submission(config, str(submission)).rmse == pytest.approx(evaluate_run(config).rmse)
    short_submission = tmp_path / "short.csv"
    short_submission.write_text("".join(submission.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"short\.csv: 1 images of data\.truth are missing .*: add their rows"):
        evaluate_submission(config, str(short_submission))


def test_a_truth_of_other_images_is_refused(predicted_run: Config, tmp_path: Path) -> None:
    truth = pd.read_csv(predicted_run.require_input("truth"))
    truth["image"] = "other_" + truth["image"]
    truth.to_csv(tmp_path / "truth.csv", index=False)
    config = configure_run(predicted_run, Path(predicted_run.run_dir), {"truth": str(tmp_path / "truth.csv")})
    with pytest.raises(DataError, match=r"data\.truth: holds none of the predicted images"):
        evaluate_run(config)


def test_scores_of_an_earlier_ground_truth_are_not_current(predicted_run: Config, tmp_path: Path) -> None:
    truth_path = Path(shutil.copy(predicted_run.require_input("truth"), tmp_path / "truth.csv"))
    config = link_run(predicted_run, tmp_path / "run", {"truth": str(truth_path)})
    for name in ("predictions.parquet", "submission.csv"):
        shutil.copy(predicted_run.path(name), config.run_dir)
    evaluation = evaluate_run(config)
    content = truth_path.read_text()
    truth_path.write_text(content + "\n")
    assert read_run_files(config).evaluation is None
    truth_path.write_text(content)
    assert read_run_files(config).evaluation == evaluation
    truth_path.unlink()
    assert read_run_files(config).evaluation == evaluation, "a moved run folder may lack the ground truth"


def test_predictions_of_other_images_are_refused_although_their_names_are_the_same(
    predicted_run: Config, tmp_path: Path
) -> None:
    folder = shutil.copytree(predicted_run.require_input("test_images"), tmp_path / "images", symlinks=False)
    config = link_run(predicted_run, tmp_path / "run", {"test_images": str(folder)})
    shutil.copy(predicted_run.path("predictions.parquet"), config.run_dir)
    expected = evaluate_run(predicted_run).rmse
    assert evaluate_run(config).rmse == expected, "copies are the same images"
    image = first_image(config)
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(RunStateError, match=r"is of images of other names or sizes .*: run predict again"):
        evaluate_run(config)
    shutil.rmtree(folder)
    assert evaluate_run(config).rmse == expected, "the scores need no image"


def test_a_missing_truth_is_a_config_error(predicted_run: Config) -> None:
    with pytest.raises(ConfigError, match=r"data\.truth is not set"):
        evaluate_run(configure_run(predicted_run, Path(predicted_run.run_dir), {"truth": None}))


def test_the_interval_resamples_the_scenes_that_the_column_group_of_the_truth_names(
    predicted_run: Config, tmp_path: Path
) -> None:
    truth = pd.read_csv(predicted_run.require_input("truth"))
    config = configure_run(predicted_run, Path(predicted_run.run_dir), {"truth": str(tmp_path / "truth.csv")})
    truth.assign(group="one room").to_csv(tmp_path / "truth.csv", index=False)
    assert evaluate_run(config).rmse_interval is None
    truth.assign(group=[f"room {row % 2}" for row in range(len(truth))]).to_csv(tmp_path / "truth.csv", index=False)
    assert evaluate_run(config).rmse_interval is not None


def test_a_submission_must_hold_the_images_that_predict_images_lists(predicted_run: Config, tmp_path: Path) -> None:
    folder = predicted_run.require_input("test_images")
    config = configure_run(predicted_run, Path(predicted_run.run_dir), images=folder)
    lines = Path(predicted_run.path("submission.csv")).read_text().splitlines(keepends=True)
    (tmp_path / "short.csv").write_text("".join(lines[:2]))
    with pytest.raises(DataError, match=r"short\.csv: .* is missing: add its row"):
        evaluate_submission(config, str(tmp_path / "short.csv"))
