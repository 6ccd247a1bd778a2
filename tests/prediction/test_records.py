"""Test reading and writing `predict.json` and `evaluation.json`."""

from pathlib import Path

import pytest

from kp_ray.errors import StorageError
from kp_ray.prediction.predictions import PersonChoices
from kp_ray.prediction.records import (
    FilledImage,
    MemberCounts,
    PredictionCost,
    PredictionDetails,
    UnusableImage,
    WeightsSource,
    read_details,
    read_evaluation,
    write_details,
)

DETAILS = PredictionDetails(
    images=3,
    members=("a",),
    by_member={"a": MemberCounts(found=1, rejected_points=0)},
    people=PersonChoices(rule="track", several=1, other_than_best_score=0),
    weights=WeightsSource(chosen="equal"),
    fallbacks={"near frame": 1},
    filled=(FilledImage(image="가.jpg", how="frame 3"),),
    unusable=(UnusableImage(image="b.jpg", reason="cut"),),
    took=PredictionCost(predicted=3, seconds=1.5, start_up_s=0.1),
)


def test_details_are_equal_after_a_round_trip(tmp_path: Path) -> None:
    path = str(tmp_path / "predict.json")
    write_details(path, DETAILS)
    assert read_details(path) == DETAILS
    assert "가.jpg" in Path(path).read_text(), "names are not escaped"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": "many"}'])
def test_the_error_about_a_damaged_record_names_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    for read in (read_details, read_evaluation):
        with pytest.raises(StorageError, match=f"{path}: damaged"):
            read(str(path))
