"""Every labelled image is predicted by the members that hold out its fold, and by no other members."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.crossval import run as crossval_run
from kp_ray.crossval.groups import group_members
from kp_ray.crossval.run import are_folds_predicted, make_tasks, predict_folds
from kp_ray.crossval.score import score_folds
from kp_ray.crossval.stage import CrossvalStage
from kp_ray.errors import ConfigError, ModelError, RunStateError, StoreError
from kp_ray.keypoints import FloatArray
from kp_ray.prediction.predictions import read_predictions
from kp_ray.prediction.records import read_cross_validation
from kp_ray.stage import no_progress
from kp_ray.storage import writer_lock
from kp_ray.store.read import read_table
from kp_ray.suspects.stage import explain_missing_predictions
from tests.helpers.folds import predict_in_process


def squared_errors(config: Config, fold: int) -> FloatArray:
    """Return the squared errors (N, K, 2) of a fold's N images: its members' mean points, joined to the labels by name.

    Points outside the image are moved to its edge.
    """
    predictions = pq.read_table(config.path("crossval", f"fold-{fold}.parquet")).to_pandas()
    assert (predictions["score"] > 0).all(), "each member finds a person in every image, so that no image is filled"
    labels = read_table(config.path("store"), recipes=["Original"]).to_pandas().set_index("source")["keypoints"]
    errors = []
    for image, rows in predictions.groupby("image"):
        points = np.stack(rows["keypoints"]).reshape(len(rows), -1, 3)[..., :2].mean(axis=0)
        errors.append(points.clip(0, (319, 179)) - np.reshape(labels[image], (-1, 3))[:, :2])
    return np.stack(errors) ** 2


def test_each_image_is_predicted_and_scored_by_the_member_that_never_saw_its_scene(fold_config: Config) -> None:
    tasks = make_tasks(fold_config)
    assert [(group.fold, group.members, list(task.members)) for group, task in tasks] == [
        (0, ("a",), ["a"]),
        (1, ("b",), ["b"]),
    ]
    assert not are_folds_predicted(fold_config)
    for _, task in tasks:
        predict_in_process(task, num_images=1)
        predict_in_process(task)
    assert predict_folds(fold_config, no_progress) == 0, "nothing is left to predict, so that no cluster is needed"
    assert are_folds_predicted(fold_config)
    labels = read_table(fold_config.path("store"), recipes=["Original"]).to_pandas()
    fold_by_image = {}
    for fold, member in enumerate("ab"):
        predictions = read_predictions(fold_config.path("crossval", f"fold-{fold}.parquet"))
        assert predictions.members == (member,)
        fold_by_image |= dict.fromkeys(predictions.images, fold)
    assert fold_by_image == dict(zip(labels.source, labels.fold, strict=True))

    scores = score_folds(fold_config)
    assert scores.num_images == len(labels) == 12
    assert [fold.members for fold in scores.by_fold] == [("a",), ("b",)]
    assert [fold.num_images for fold in scores.by_fold] == [(labels.fold == fold).sum() for fold in (0, 1)]
    errors = [squared_errors(fold_config, fold) for fold in (0, 1)]
    assert [fold.rmse for fold in scores.by_fold] == pytest.approx([np.sqrt(np.nanmean(values)) for values in errors])
    assert scores.rmse == pytest.approx(np.sqrt(np.nanmean(np.concatenate(errors))))
    assert scores.by_fold[0].rmse != pytest.approx(scores.by_fold[1].rmse, rel=1e-3)
    assert scores.rmse_interval is not None
    assert scores.rmse_interval[0] <= (scores.rmse or 0) <= scores.rmse_interval[1]
    assert json.loads(Path(fold_config.path("crossval.json")).read_text())["rmse"] == scores.rmse
    assert len(scores.lines()) == 1

    assert read_cross_validation(fold_config) == scores
    other_members = [{"name": "c", "seed": 1}, {"name": "b", "seed": 2}]
    assert read_cross_validation(build_config({**fold_config.to_dict(), "train": {"members": other_members}})) is None
    changed_predict = {**fold_config.to_dict()["predict"], "score_threshold": 0.01}
    assert read_cross_validation(build_config({**fold_config.to_dict(), "predict": changed_predict})) is None
    config_without_folds = build_config({**fold_config.to_dict(), "split": {}})
    assert read_cross_validation(config_without_folds) is None, "scores of former folds are not read"

    path = fold_config.path("crossval", "fold-1.parquet")
    table = pq.read_table(path)
    reasons = pa.array(["the store's part is damaged", *[""] * (len(table) - 1)])
    pq.write_table(table.set_column(table.column_names.index("reason"), "reason", reasons), path)
    with pytest.raises(RunStateError, match=r"fold-1\.parquet: .* was not predicted: the store's part is damaged"):
        score_folds(fold_config)
    pq.write_table(table, path)

    config_with_only_a = build_config(
        {**fold_config.to_dict(), "predict": {**fold_config.to_dict()["predict"], "members": ["a"]}}
    )
    scores = score_folds(config_with_only_a)
    assert scores.num_not_scored == (labels.fold == 1).sum()
    assert "no member holds out fold 1" in scores.lines()[-1]


def test_the_members_that_hold_out_the_same_fold_are_fused_for_its_score(predicted_folds: Config) -> None:
    scores = score_folds(predicted_folds)
    assert [fold.members for fold in scores.by_fold] == [("a", "c"), ("b",)]
    errors = [squared_errors(predicted_folds, fold) for fold in (0, 1)]
    assert [fold.rmse for fold in scores.by_fold] == pytest.approx([np.sqrt(np.nanmean(values)) for values in errors])


@pytest.mark.parametrize("folder", ["crossval", "store"])
def test_it_is_refused_while_another_process_predicts_or_augments(fold_config: Config, folder: str) -> None:
    with writer_lock(fold_config.path(folder)), pytest.raises(RunStateError, match=f"{folder}: another process"):
        CrossvalStage().run(fold_config, no_progress)


def test_members_that_were_trained_on_another_store_or_fold_are_refused(fold_config: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(fold_config.run_dir, run_dir)
    values = {**fold_config.to_dict(), "run_dir": str(run_dir)}
    members = [{"name": "a", "seed": 1, "fold": 1}, {"name": "b", "seed": 2}]
    with pytest.raises(RunStateError, match=r"members/a: was made with member\.fold 0, now 1"):
        make_tasks(build_config({**values, "train": {**values["train"], "members": members}}))
    settings_path = run_dir / "members" / "b" / "settings.json"
    settings_path.write_text(json.dumps({**json.loads(settings_path.read_text()), "the store": "other"}))
    with pytest.raises(RunStateError, match="members/b: was made with the store 'other'"):
        make_tasks(build_config(values))
    with pytest.raises(StoreError, match=r"split\.folds: differs from the store's number of folds, 2 \(got 3\)"):
        make_tasks(build_config({**values, "split": {**values["split"], "folds": 3}}))


def test_a_fold_without_images_and_a_member_with_weight_0_do_not_stop_the_other_folds(fold_config: Config) -> None:
    values = fold_config.to_dict()
    predict = {**values["predict"], "weights": {"a": 0.0, "b": {"nose": 2.0}}}
    groups = group_members(build_config({**values, "predict": predict}))
    assert [group.weights for group in groups] == [{"a": 0.0}, {"b": {"nose": 2.0}}]
    assert [group.config.predict.weights for group in groups] == ["equal", "equal"]
    predict = {**values["predict"], "weights": {"a": 0.0, "b": {"nose": 0.0, "left_eye": 2.0}}}
    assert score_folds(build_config({**values, "predict": predict})).rmse == score_folds(fold_config).rmse

    with pytest.MonkeyPatch.context() as patch:
        list_images = crossval_run.list_fold_images
        patch.setattr(crossval_run, "list_fold_images", lambda config, fold: list_images(config, fold) if fold else [])
        assert [group.fold for group, _ in make_tasks(fold_config)] == [1]
        patch.setattr(crossval_run, "list_fold_images", lambda config, fold: [])
        with pytest.raises(ModelError, match="holds out images"):
            make_tasks(fold_config)


def test_wrong_weights_are_refused_before_the_folds_are_predicted(fold_config: Config) -> None:
    values = fold_config.to_dict()
    CrossvalStage().check(fold_config)
    for weights, message in (({"x": 2}, "x is not a member"), ({"a": {"tail": 1}}, "a: tail is not a keypoint")):
        config = build_config({**values, "predict": {**values["predict"], "weights": weights}})
        with pytest.raises(ConfigError, match=rf"^predict\.weights: {message}"):
            CrossvalStage().check(config)


def test_predict_members_must_list_a_member_of_this_run(fold_config: Config) -> None:
    values = fold_config.to_dict()
    config = build_config({**values, "predict": {**values["predict"], "members": ["elsewhere/members/x"]}})
    with pytest.raises(ConfigError, match=r"predict\.members: lists no member of this run"):
        CrossvalStage().check(config)
    assert "predict.members" in explain_missing_predictions(config)
