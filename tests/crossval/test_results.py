"""`suspects`, `evaluate` and the report use the predictions and the score of a cross-validation."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.crossval.score import score_folds
from kp_ray.data.load import load_annotations, load_labels
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.prediction.predictions import read_predictions
from kp_ray.prediction.stage import EvaluateStage
from kp_ray.reporting.page import write_report
from kp_ray.stage import no_progress
from kp_ray.suspects.rank import rank_suspects
from kp_ray.suspects.stage import SuspectsStage, read_predicted_points
from tests.helpers.predictions import write_prediction_arrays

K = len(DACON24)
SIZE = (320, 180)


@pytest.fixture
def config(predicted_folds: Config, tmp_path: Path) -> Config:
    """Copy the predictions of `predicted_folds` into a run folder that shares its members and store."""
    for name in ("members", "store"):
        (tmp_path / name).symlink_to(predicted_folds.path(name))
    for name in ("crossval", "predictions"):
        shutil.copytree(predicted_folds.path(name), tmp_path / name)
    return build_config({**predicted_folds.to_dict(), "run_dir": str(tmp_path)})


def list_images(config: Config, fold: int) -> tuple[str, ...]:
    """List the images of a predicted fold."""
    return read_predictions(config.path("crossval", f"fold-{fold}.parquet")).images


def rank_values(values: FloatArray) -> FloatArray:
    """Return for each of N values the share of the values that are smaller."""
    return np.asarray((values[:, None] > values).mean(axis=1))


def test_suspects_ranks_the_labels_by_their_predictions(config: Config) -> None:
    stage = SuspectsStage()
    stage.check(config)
    assert stage.is_done(config)
    summary = stage.run(config, no_progress)
    assert (summary.num_images, summary.num_predicted, summary.missing_predictions_reason) == (12, 12, "")
    assert not any("ranked by motion" in line for line in summary.lines())
    suspects_by_labels = rank_suspects(load_labels(config), {}, {})
    assert [suspect.score for suspect in summary.suspects] != [suspect.score for suspect in suspects_by_labels]


def test_suspects_counts_the_images_that_no_member_holds_out(config: Config) -> None:
    predict = {**config.to_dict()["predict"], "members": ["b"]}
    summary = SuspectsStage().run(build_config({**config.to_dict(), "predict": predict}), no_progress)
    num_missing = len(list_images(config, 0))
    assert summary.num_predicted == len(list_images(config, 1)) == 12 - num_missing
    assert f"{num_missing} images have no out-of-fold prediction" in " ".join(summary.lines())


def test_the_disagreement_is_a_rank_among_the_spreads_or_among_the_scores_of_single_members(config: Config) -> None:
    """In fold 0 the members a and c differ, except in the last image, where c finds nobody.

    In fold 1 member b finds nobody in the first image.
    """
    rng = np.random.default_rng(0)
    person = rng.uniform((60, 40), (260, 140), (K, 2))
    images = [list_images(config, fold) for fold in (0, 1)]
    shifts, scores = (rng.permutation(len(names) * K).reshape(-1, K) + 1.0 for names in images)
    shifts, scores = shifts / 10, scores / (scores.size + 1)
    points_of_a, points_of_c = (
        np.concatenate([person + shifts[..., None] * (sign, 0), np.full((*shifts.shape, 1), 0.9)], axis=2)
        for sign in (1, -1)
    )
    points_of_a[-1, :, 2] = last_scores = rng.permutation(K) / 1e3
    points_of_c[-1] = np.nan
    points_of_b = np.concatenate([np.broadcast_to(person, (len(scores), K, 2)), scores[..., None]], axis=2)
    points_of_b[0] = np.nan
    for fold, members in enumerate(({"a": points_of_a, "c": points_of_c}, {"b": points_of_b})):
        path, keypoints = config.path("crossval", f"fold-{fold}.parquet"), np.stack(list(members.values()))
        write_prediction_arrays(path, list(members), images[fold], keypoints, DACON24.names, size=SIZE)

    points, disagreements = read_predicted_points(config, DACON24)
    found_images = [*images[0], *images[1][1:]]
    assert set(points) == set(disagreements) == set(found_images)
    expected_points = np.broadcast_to(person, (len(found_images), K, 2)).copy()
    expected_points[len(shifts) - 1] = points_of_a[-1, :, :2]
    np.testing.assert_allclose([points[image] for image in found_images], expected_points)
    spread_ranks = rank_values(shifts[:-1].ravel())
    # An image in which nobody was found has score 0.
    score_ranks = rank_values(1 - np.concatenate([last_scores, scores[1:].ravel(), np.zeros(K)]))[:-K]
    expected_ranks = np.concatenate([spread_ranks, score_ranks]).reshape(-1, K)
    np.testing.assert_allclose([disagreements[image] for image in found_images], expected_ranks)


def test_the_report_has_a_section_with_the_score_of_each_fold(config: Config) -> None:
    assert 'id="crossval"' not in Path(write_report(config)).read_text()
    scores = score_folds(config)
    section = Path(write_report(config)).read_text().partition('<section id="crossval">')[2].partition("</section>")[0]
    assert (
        f"out of fold, 12 labelled images, 95 % intervals from resampled scenes: RMSE px {scores.rmse:.2f}" in section
    )
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", section.partition("<tbody>")[2])
    expected = [
        [str(number), ", ".join(fold.members), str(fold.num_images), f"{fold.rmse:.4g}"]
        for number, fold in enumerate(scores.by_fold)
    ]
    assert cells == [cell for row in expected for cell in row]


def test_the_report_draws_a_suspects_label_and_prediction_and_skips_damaged_parts(config: Config) -> None:
    SuspectsStage().run(config, no_progress)
    suspects = pd.read_csv(config.path("suspects.csv"), dtype={"kind": str})
    suspects.loc[0, ["score", "kind"]] = 9.0, "far"
    suspects.to_csv(config.path("suspects.csv"), index=False)

    def list_tiles(config: Config) -> list[str]:
        page = Path(write_report(config)).read_text()
        section = page.partition('<section id="suspects">')[2].partition("</section>")[0]
        return re.findall(r"<figcaption><b>([^<]*)</b>", section)

    assert list_tiles(config) == ["1. label", "1. prediction"]
    values = config.to_dict()
    other_config = build_config({**values, "predict": {**values["predict"], "person": "largest"}})
    assert list_tiles(other_config) == ["1. label"], "the predictions were made with other settings"
    damaged_run = Path(shutil.copytree(config.run_dir, Path(config.run_dir) / "damaged"))
    next(damaged_run.glob("store/recipe-Original/part-*")).unlink()
    assert list_tiles(build_config({**config.to_dict(), "run_dir": str(damaged_run)})) == ["1. label"]


def test_evaluate_shows_the_score_out_of_fold_after_those_of_the_test_images(config: Config) -> None:
    truth = load_annotations(config.require_input("truth"))
    keypoints = np.nan_to_num(truth.keypoints) + np.array([1, 1, 0])
    path = config.path("predictions.parquet")
    write_prediction_arrays(path, "abc", truth.images, np.stack([keypoints] * 3), DACON24.names, size=SIZE)
    stage = EvaluateStage()
    assert list(stage.run(config, no_progress).rows()) == ["member a", "member b", "member c", "ensemble"]
    scores = score_folds(config)
    summary = stage.run(config, no_progress)
    assert list(summary.rows())[-2:] == ["ensemble", "out of fold"]
    assert summary.rows()["out of fold"].rmse == scores.rmse != summary.rows()["ensemble"].rmse
    assert summary.lines()[-1] == scores.lines()[-1]
    assert summary.to_json()["crossval"] == scores.to_json()
