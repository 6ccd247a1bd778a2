"""`verify` finds changed bytes, rows that differ from their sources, and parts of another config."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kp_ray.config.schema import Config
from kp_ray.store.plan import make_plan
from kp_ray.store.read import read_table
from kp_ray.store.verify import verify_store
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config
from tests.helpers.stores import copy_images, part_digests, training_part

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_part_with_a_flipped_bit_is_deleted_and_augment_rewrites_it(sample_config: Config) -> None:
    write_store(make_plan(sample_config))
    before, part = part_digests(sample_config), training_part(sample_config)
    assert verify_store(make_plan(sample_config)) == []
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    (problem,) = verify_store(make_plan(sample_config))
    assert str(part).endswith(problem.split(":")[0])
    assert not part.exists()
    (problem,) = verify_store(make_plan(sample_config))
    assert "missing" in problem
    assert write_store(make_plan(sample_config)).parts_written == 1
    assert part_digests(sample_config) == before
    assert verify_store(make_plan(sample_config)) == []


def test_a_store_with_unlabelled_points_is_sound(sample_data: dict[str, Any], tmp_path: Path) -> None:
    header, *rows = Path(sample_data["annotations"]).read_text().splitlines()
    # Empty the cells of x and y of the third keypoint.
    incomplete_rows = [",".join([*row.split(",")[:5], "", "", *row.split(",")[7:]]) for row in rows]
    (tmp_path / "labels.csv").write_text("\n".join([header, *incomplete_rows]) + "\n")
    config = tiny_config({**sample_data, "annotations": str(tmp_path / "labels.csv")}, tmp_path / "run")
    write_store(make_plan(config))
    assert np.isnan(read_table(config.path("store"), columns=["keypoints"])["keypoints"].to_pylist()).any()
    assert verify_store(make_plan(config)) == []


def test_rows_are_not_called_wrong_while_their_images_cannot_be_read(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(copy_images(sample_data, tmp_path / "images"), tmp_path / "run")
    write_store(make_plan(config))
    plan = make_plan(config)
    (tmp_path / "images").rename(tmp_path / "moved")
    problems = verify_store(plan)
    assert problems
    assert all("differ" not in problem and problem.endswith(": run verify again") for problem in problems)


def test_parts_of_another_config_are_reported(store_config: Config, tmp_path: Path) -> None:
    plan_with_other_seed = make_plan(tiny_config(store_config.data.model_dump(), Path(store_config.run_dir), seed=7))
    (problem,) = verify_store(plan_with_other_seed)
    assert "made with another config: run augment" in problem


def test_rows_that_differ_from_the_source_are_reported(sample_data: dict[str, Any], tmp_path: Path) -> None:
    data = copy_images(sample_data, tmp_path / "images")
    config = tiny_config(data, tmp_path / "run", split={"fraction": 0}, augment={"recipes": ["Original"]})
    write_store(make_plan(config))
    for path in (tmp_path / "images").iterdir():  # the size in bytes stays the same, so the plan does not change
        content = path.read_bytes()
        path.write_bytes(content[:-20] + bytes(18) + content[-2:])
    problems = verify_store(make_plan(config))
    assert problems
    assert all("differ from rows made from its image and labels" in problem for problem in problems)
