"""`suspects` writes its files, proposes corrections as comments, and keeps what a user has edited."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations, load_labels
from kp_ray.errors import DataError, StorageError
from kp_ray.keypoints import DACON24
from kp_ray.reporting.page import write_report
from kp_ray.stage import no_progress
from kp_ray.suspects.files import read_suspects, write_corrections
from kp_ray.suspects.rank import Suspect
from kp_ray.suspects.stage import SuspectsStage, SuspectsSummary
from tests.helpers.data import SHARED
from tests.helpers.labels import make_clips


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Write the labels of a clip in which one frame's points are moved; return a config without images."""
    clip = make_clips(step_px=20)
    clip.keypoints[3, :, :2] += (0, 400)
    (tmp_path / "labels.csv").write_bytes(to_csv(clip))
    return build_config({"run_dir": str(tmp_path / "run"), "data": {"annotations": str(tmp_path / "labels.csv")}})


def run_stage(config: Config) -> SuspectsSummary:
    """Check and run the stage, which must need no cluster."""
    stage = SuspectsStage()
    stage.check(config)
    assert stage.is_done(config)
    return stage.run(config, no_progress)


def test_without_folds_only_the_labels_decide_the_ranks_and_the_summary_says_why(config: Config) -> None:
    summary = run_stage(config)
    (row,) = read_suspects(summary.path)
    assert (row.rank, row.image, row.kind, row.points) == (1, "walk_A-0000003.jpg", "far", "")
    assert summary.kinds == {"far": 1}
    assert summary.lines()[1] == (
        "ranked by motion and repetition of the labels alone: split.folds is not set: set it, and train the members on "
        "folds, to use predictions as well"
    )
    assert summary.to_json()["proposed"] == 1
    forecast = SuspectsStage().forecast(config)
    assert forecast.to_json() == {
        "images": summary.num_images,
        "without_predictions": summary.missing_predictions_reason,
    }
    assert forecast.lines()[0].endswith(summary.lines()[1])


def test_the_summary_says_that_images_or_trained_members_are_missing(
    config: Config, sample_data: dict[str, Any]
) -> None:
    values = {**config.to_dict(), "split": {"folds": 2}}
    assert "data.images is not set" in run_stage(build_config(values)).missing_predictions_reason
    values_with_images = {**values, "data": {**values["data"], "images": sample_data["images"]}}
    assert "member a is not trained" in run_stage(build_config(values_with_images)).missing_predictions_reason


def test_proposals_change_nothing_until_they_are_uncommented_and_edits_are_kept(config: Config) -> None:
    summary = run_stage(config)
    path = Path(summary.corrections)
    values = config.to_dict()
    corrected_config = build_config({**values, "data": {**values["data"], "corrections": str(path)}})
    labels = load_labels(config)
    np.testing.assert_array_equal(load_labels(corrected_config).keypoints, labels.keypoints)
    proposal = "# walk_A-0000003.jpg,drop,,,"
    assert proposal in path.read_text().splitlines()
    path.write_text(path.read_text().replace(proposal, proposal.removeprefix("# ")))
    assert "walk_A-0000003.jpg" not in load_labels(corrected_config).images
    assert run_stage(corrected_config).kinds == {}, "the labels are ranked without their corrections"
    assert path.read_text().splitlines()[:2] == ["image,action,keypoint,x,y", "walk_A-0000003.jpg,drop,,,"]


def test_active_rows_are_kept_in_their_order_whatever_the_order_of_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    rows = ["c.jpg,1.5,2,nose,point", "c.jpg,3,2,nose,point", "a.jpg,,,,drop", "c.jpg,1.5,2,nose,point"]
    path.write_text("\n".join(["# mine", "image,x,y,keypoint,action", *rows, "# b.jpg,,,,drop"]))
    for _ in range(2):
        write_corrections(str(path), [], str(path))
        assert path.read_text().splitlines() == [
            "image,action,keypoint,x,y",
            "c.jpg,point,nose,1.5,2",
            "c.jpg,point,nose,3,2",
            "a.jpg,drop,,,",
            "c.jpg,point,nose,1.5,2",
            "# Each row below is a proposal. Look at the image; to apply a row, remove the leading '# ',",
            "# set data.corrections to this file, and run augment again. The report shows labels and predictions.",
        ]


def test_rows_of_another_corrections_file_are_not_copied(tmp_path: Path) -> None:
    path, applied_path = tmp_path / "corrections.csv", tmp_path / "applied.csv"
    applied_path.write_text("image,action\na.jpg,drop\n")
    write_corrections(str(path), [], str(applied_path))
    header, *comments = path.read_text().splitlines()
    assert header == "image,action,keypoint,x,y"
    assert (
        comments[1] == f"# move it to {applied_path}, and run augment again. The report shows labels and predictions."
    )


def test_a_corrections_file_with_another_column_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    content = "image,action,keypoint,x,y,note\na.jpg,drop,,,,blurred\n"
    path.write_text(content)
    with pytest.raises(DataError, match=r"corrections\.csv: the header is .*,note: it should be image,action,"):
        write_corrections(str(path), [])
    assert path.read_text() == content


def test_a_proposal_for_an_image_whose_name_begins_with_a_hash_can_be_applied(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    suspect = Suspect("#1.jpg", 5.0, "far", (), 'a "reason", with\ncommas', (("#1.jpg", "drop", "", None, None),))
    write_corrections(str(path), [suspect])
    path.write_text(path.read_text().replace('# "#1.jpg"', '"#1.jpg"'))
    names = ",".join(f"{name}_{axis}" for name in DACON24.names for axis in "xy")
    row = ",".join(str(number) for number in range(48))
    (tmp_path / "labels.csv").write_text(f"image,{names}\n#1.jpg,{row}\n2.jpg,{row}\n")
    assert load_annotations(str(tmp_path / "labels.csv"), corrections=str(path)).images == ("2.jpg",)


def test_the_error_about_a_damaged_suspects_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("rank,image\n1,a.jpg\n")
    with pytest.raises(StorageError, match=r"suspects\.csv: damaged .*: run suspects again"):
        read_suspects(str(path))


def test_the_report_lists_the_suspects(config: Config) -> None:
    run_stage(config)
    page = Path(write_report(config)).read_text()
    assert 'id="suspects"' in page
    assert "walk_A-0000003.jpg" in page


@pytest.mark.skipif(not SHARED.exists(), reason="needs the competition's labels")
def test_the_competition_labels_are_ranked_by_motion_and_repetition(tmp_path: Path) -> None:
    labels = str(SHARED / "dacon" / "train_df.csv")
    summary = run_stage(build_config({"run_dir": str(tmp_path), "data": {"annotations": labels}}))
    assert summary.num_images == 4195
    assert {"repeated", "left_right", "points"} <= set(summary.kinds)
