"""Every labelled image is predicted by the members that hold out its fold, and by no other."""

import json
import shutil
from pathlib import Path

import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.crossval.run import are_folds_predicted, make_tasks, predict_folds
from kp_ray.crossval.score import score_folds
from kp_ray.errors import RunStateError, StoreError
from kp_ray.prediction.decode import decode_batch, refs_table
from kp_ray.prediction.predictions import read_predictions
from kp_ray.prediction.predictor import Predictor
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import no_progress
from kp_ray.store.read import read_table


def predict_here(task: PredictionTask, num_images: int | None = None) -> None:
    """Write the parts of a prediction in this process, without a cluster."""
    predictor = Predictor(**task.predictor_arguments(has_gpu=False))
    predictor.write_part(decode_batch(refs_table(task.find_missing()[:num_images]), task.input_sizes))


def test_each_image_is_predicted_and_scored_by_the_member_that_never_saw_its_scene(folded: Config) -> None:
    tasks = make_tasks(folded)
    assert [(group.fold, group.members, list(task.members)) for group, task in tasks] == [
        (0, ("a",), ["a"]),
        (1, ("b",), ["b"]),
    ]
    assert not are_folds_predicted(folded)
    for _, task in tasks:
        predict_here(task, num_images=1)
        predict_here(task)
    assert predict_folds(folded, no_progress) == 0, "nothing is left to predict, so that no cluster is needed"
    assert are_folds_predicted(folded)
    labels = read_table(folded.path("store"), recipes=["Original"]).to_pandas()
    predicted = {}
    for fold, member in enumerate("ab"):
        predictions = read_predictions(folded.path("crossval", f"fold-{fold}.parquet"))
        assert predictions.members == (member,)
        predicted |= dict.fromkeys(predictions.images, fold)
    assert predicted == dict(zip(labels.source, labels.fold, strict=True))

    scores = score_folds(folded)
    assert scores.num_images == len(labels) == 12
    assert [fold.members for fold in scores.by_fold] == [("a",), ("b",)]
    assert [fold.num_images for fold in scores.by_fold] == [(labels.fold == fold).sum() for fold in (0, 1)]
    assert scores.rmse_interval is not None
    assert scores.rmse_interval[0] <= (scores.rmse or 0) <= scores.rmse_interval[1]
    assert json.loads(Path(folded.path("crossval.json")).read_text())["rmse"] == scores.rmse
    assert len(scores.lines()) == 1

    only_a = build_config({**folded.to_dict(), "predict": {**folded.to_dict()["predict"], "members": ["a"]}})
    scores = score_folds(only_a)
    assert scores.num_not_scored == (labels.fold == 1).sum()
    assert "no member holds out fold 1" in scores.lines()[-1]


def test_members_of_another_store_or_fold_are_refused(folded: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folded.run_dir, run)
    values = {**folded.to_dict(), "run_dir": str(run)}
    members = [{"name": "a", "seed": 1, "fold": 1}, {"name": "b", "seed": 2}]
    with pytest.raises(RunStateError, match=r"members/a: was made with member\.fold 0, now 1"):
        make_tasks(build_config({**values, "train": {**values["train"], "members": members}}))
    settings = run / "members" / "b" / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "the store": "other"}))
    with pytest.raises(RunStateError, match="members/b: was made with the store 'other'"):
        make_tasks(build_config(values))
    with pytest.raises(StoreError, match=r"split\.folds: the store has 2 folds \(got 3\)"):
        make_tasks(build_config({**values, "split": {**values["split"], "folds": 3}}))
