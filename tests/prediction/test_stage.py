"""Test the stages `predict` and `evaluate`: their checks, forecasts and summaries."""

from pathlib import Path

import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, ModelError, RunStateError, StorageError
from kp_ray.metrics import Evaluation
from kp_ray.prediction.predictions import PersonChoices
from kp_ray.prediction.records import (
    FilledImage,
    MemberCounts,
    PredictionCost,
    PredictionDetails,
    SubmissionEvaluation,
    UnusableImage,
    WeightsSource,
)
from kp_ray.prediction.stage import EvaluateStage, EvaluateSummary, PredictStage, PredictSummary
from kp_ray.reporting.run_files import read_run_files
from kp_ray.stage import no_progress
from kp_ray.storage import writer_lock
from tests.helpers.data import tiny_config
from tests.helpers.linked_runs import configure_run, link_run


def make_summary(several: int = 0, filled: tuple[FilledImage, ...] = ()) -> PredictSummary:
    """Make the summary of three images; the filled images are unusable too."""
    details = PredictionDetails(
        images=3,
        members=("a", "b"),
        by_member={name: MemberCounts(found=1, rejected_points=0) for name in "ab"},
        people=PersonChoices(rule="track", several=several, other_than_best_score=1),
        weights=WeightsSource(chosen="equal"),
        fallbacks={"near frame": 1} if filled else {},
        filled=filled,
        unusable=tuple(UnusableImage(image=row.image, reason="cut") for row in filled),
        took=PredictionCost(predicted=3, seconds=1.5, start_up_s=0.1),
    )
    cost = PredictionCost(predicted=1, seconds=0.5, start_up_s=0.25, gpus_per_actor=1, compute="cuda, bf16")
    return PredictSummary(details, cost, "/run/submission.csv", "/run/predict.json")


def test_the_summary_of_predict_counts_fallbacks_and_choices() -> None:
    assert make_summary().lines() == [
        "3 images by 2 members: /run/submission.csv",
        "predicted by actors with 1 GPUs each: cuda, bf16",
    ]
    lines = make_summary(several=2, filled=(FilledImage(image="x.jpg", how="frame 3"),)).lines()
    assert lines[2:] == [
        "filled images: 1 by near frame; unusable images: 1; listed in /run/predict.json",
        "a member found several people in an image 2 times; predict.person: track did not choose the best score 1 "
        "times",
    ]


def test_the_json_of_predict_has_its_documented_keys() -> None:
    assert make_summary(several=2, filled=(FilledImage(image="x.jpg", how="frame 3"),)).to_json() == {
        "images": 3, "members": ["a", "b"], "fallbacks": {"near frame": 1}, "filled": 1, "unusable": 1,
        "people": {"rule": "track", "several": 2, "other_than_best_score": 1}, "weights": "equal",
        "submission": "/run/submission.csv", "predicted": 1, "seconds": 0.5, "start_up_s": 0.25,
        "gpus_per_actor": 1, "compute": "cuda, bf16",
    }  # fmt: skip


def test_predict_is_done_if_every_image_is_predicted(predicted_run: Config) -> None:
    stage = PredictStage()
    stage.check(predicted_run)
    assert stage.is_done(predicted_run)
    assert stage.run(predicted_run, no_progress).to_json()["predicted"] == 0
    assert not stage.is_done(configure_run(predicted_run, Path(predicted_run.run_dir), tta=["flip"]))


def test_predict_checks_inputs_but_not_the_results_of_earlier_stages(sample_config: Config, tmp_path: Path) -> None:
    stage = PredictStage()
    stage.check(sample_config)  # the run has neither a store nor members
    with pytest.raises(ModelError, match="is not trained"):
        stage.is_done(sample_config)
    stage.check(tiny_config({}, tmp_path, predict={"images": "store:val"}))
    with pytest.raises(ConfigError, match=r"data\.test_images is not set"):
        stage.check(tiny_config({}, tmp_path))
    with pytest.raises(ConfigError, match=r"data\.test_images: .*nowhere"):
        stage.check(tiny_config({"test_images": str(tmp_path / "nowhere")}, tmp_path))
    with pytest.raises(ConfigError, match=r"predict\.images: with split\.folds .* run crossval"):
        stage.check(tiny_config({}, tmp_path, split={"folds": 2}, predict={"images": "store:val"}))
    with pytest.raises(ConfigError, match=r"predict\.images: split\.fraction=0 leaves store:val empty"):
        stage.check(tiny_config({}, tmp_path, split={"fraction": 0}, predict={"images": "store:val"}))
    with pytest.raises(ConfigError, match=r"predict\.weights: a: tail is not a keypoint"):
        stage.check(configure_run(sample_config, tmp_path, weights={"a": {"tail": 1}}))
    with pytest.raises(ConfigError, match=r"predict\.weights: x is not a member"):
        stage.check(configure_run(sample_config, tmp_path, weights={"x": 1}))
    for number in (None, "abc", 0, -3, 2.7, True):
        cfg = {"cfg": {"TEST.DETECTIONS_PER_IMAGE": number}}
        with pytest.raises(ConfigError, match=r"^model\.cfg\.TEST\.DETECTIONS_PER_IMAGE: must be a whole number"):
            stage.check(build_config({**sample_config.to_dict(), "model": cfg}))
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(DataError, match=r"predict\.images: .*list\.txt: holds no image"):
        stage.check(configure_run(sample_config, tmp_path, images=str(tmp_path / "list.txt")))


def test_other_keypoints_than_the_labels_are_refused_before_there_is_a_store(
    sample_config: Config, tmp_path: Path
) -> None:
    for key, verb_stage in (("sample_submission", PredictStage()), ("truth", EvaluateStage())):
        path = tmp_path / f"{key}.csv"
        path.write_text(Path(sample_config.require_input(key)).read_text().replace("nose_", "snout_"))
        with pytest.raises((ConfigError, DataError), match=r"nose|snout"):
            verb_stage.check(configure_run(sample_config, tmp_path / "run", {key: str(path)}))
    path.write_text("image;nose_x;nose_y\n")
    with pytest.raises(DataError, match=r"truth\.csv: .*semicolon"):
        EvaluateStage().check(configure_run(sample_config, tmp_path / "run", {"truth": str(path)}))


def test_mirrored_views_need_members_that_will_be_trained_with_flips(sample_config: Config, tmp_path: Path) -> None:
    def check(flip: bool, flips: list[bool], num_trials: int, fraction: float = 0.25) -> None:
        config = tiny_config(
            sample_config.data.model_dump(),
            tmp_path,
            train={"flip": flip},
            tune={"num_trials": num_trials, "flips": flips},
            split={"fraction": fraction},
            predict={"tta": ["flip"]},
        )
        PredictStage().check(config)

    refused = pytest.raises(ConfigError, match=r"predict\.tta: flip needs members .*, or set train\.flip=true")
    with refused:
        check(flip=False, flips=[True], num_trials=0)
    with refused:
        check(flip=True, flips=[True, False], num_trials=2)
    with refused:  # the first trial has no flips, and can win
        check(flip=False, flips=[True], num_trials=2)
    check(flip=True, flips=[True], num_trials=2)
    check(flip=True, flips=[True, False], num_trials=2, fraction=0)  # without validation rows there is no search
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "result.json").write_text('{"train": {"flip": true}}')
    check(flip=False, flips=[True, False], num_trials=2)
    (tmp_path / "tune" / "result.json").write_text('{"train": {}}')
    with refused:
        check(flip=False, flips=[True], num_trials=2)
    (tmp_path / "tune" / "result.json").write_text('{"train": null}')
    with pytest.raises(StorageError, match=r"result\.json: damaged .*: delete this file and run tune again"):
        check(flip=False, flips=[True], num_trials=2)


def test_the_forecast_of_predict_counts_images_and_trained_members(sample_config: Config) -> None:
    forecast = PredictStage().forecast(sample_config)
    assert forecast.to_json() == {"images": 10, "members": 1, "trained": 0}
    assert forecast.lines() == [
        "10 images by 1 members (0 trained), 1 to 1 actors, each with 1 CPUs and a GPU if the cluster has GPUs"
    ]
    assert not Path(sample_config.run_dir).exists()


def test_evaluate_applies_to_runs_with_a_truth(sample_config: Config, tmp_path: Path) -> None:
    stage = EvaluateStage()
    config_without_truth = configure_run(sample_config, tmp_path, {"truth": None})
    assert stage.applies(sample_config)
    assert not stage.applies(config_without_truth)
    assert stage.applies(configure_run(sample_config, tmp_path, {"truth": None}, images="store:val"))
    stage.check(sample_config)
    with pytest.raises(ConfigError, match=r"data\.truth"):
        stage.check(config_without_truth)
    with pytest.raises(StorageError, match="run predict first"):
        stage.is_done(sample_config)


def test_evaluate_scores_the_run_or_a_submission(predicted_run: Config) -> None:
    summary = EvaluateStage().run(predicted_run, no_progress)
    assert set(summary.to_json()["members"]) == {"a", "b"}
    assert EvaluateStage().is_done(predicted_run)
    submission_summary = EvaluateStage(predicted_run.path("submission.csv")).run(predicted_run, no_progress)
    assert submission_summary.to_json()["rmse"] == pytest.approx(summary.to_json()["rmse"])
    assert summary.lines()[0].startswith("RMSE in 95 % of bootstrap samples of the scenes: ")


def test_the_summary_of_evaluate_says_if_the_submission_was_fused_with_other_settings(
    predicted_run: Config, tmp_path: Path
) -> None:
    config = link_run(predicted_run, tmp_path / "run")
    PredictStage().run(config, no_progress)
    note = "submission.csv was fused with other settings"
    assert not [line for line in EvaluateStage().run(config, no_progress).lines() if note in line]
    other_config = configure_run(config, Path(config.run_dir), smooth_frames=2.0)
    summary = EvaluateStage().run(other_config, no_progress)
    assert note in summary.lines()[-1]
    assert summary.to_json()["matches_submission"] is False
    assert read_run_files(config).evaluation is None
    assert read_run_files(other_config).evaluation is not None


def test_the_summary_of_evaluate_says_if_the_submission_may_be_of_earlier_members(
    predicted_run: Config, tmp_path: Path
) -> None:
    config = link_run(predicted_run, tmp_path / "run")
    PredictStage().run(config, no_progress)
    Path(config.path("predict.json")).unlink()  # as `train` does
    summary = EvaluateStage().run(config, no_progress)
    assert "or from other members" in summary.lines()[-1]
    Path(config.path("submission.csv")).unlink()
    assert EvaluateStage().run(config, no_progress).to_json() == {
        name: value for name, value in summary.to_json().items() if name != "matches_submission"
    }


def test_predictions_that_another_process_is_making_are_not_evaluated(predicted_run: Config, tmp_path: Path) -> None:
    config = link_run(predicted_run, tmp_path / "run")
    PredictStage().run(config, no_progress)
    with writer_lock(config.path("predictions")), pytest.raises(RunStateError, match="another process is using"):
        EvaluateStage().run(config, no_progress)
    assert not Path(config.path("evaluation.json")).exists()
    EvaluateStage().run(config, no_progress)


def test_without_an_interval_the_summary_of_evaluate_has_no_line() -> None:
    values = dict.fromkeys(Evaluation.model_fields) | {
        "num_images": 0,
        "num_missing": 0,
        "pck": {},
        "by_keypoint": {},
        "by_camera": {},
        "worst": (),
    }
    evaluation = SubmissionEvaluation.model_validate(values)
    assert EvaluateSummary(evaluation).lines() == []
