"""The rows that a member trains on, and the batches that are made of them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import StoreError
from kp_ray.keypoints import DACON24
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.presets import build_cfg
from kp_ray.training.dataloader import iter_batches
from kp_ray.training.rows import count_rows, usable_rows
from kp_ray.training.run import describe_unused_variants
from tests.helpers.data import tiny_config
from tests.helpers.stores import write_small_store

MEMBER = MemberConfig(name="a")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_small_store(tmp_path / "store")
    return tiny_config({}, tmp_path)


def train_parts(config: Config) -> list[Path]:
    """List the training parts in the manifest's order: `Original`, then `Rotate45_CenterCrop`."""
    return [next(Path(config.path("store")).glob(f"recipe-{name}/part-00000-*")) for name in ("Original", "Rotate45*")]


def change_row(path: Path, number: int, **values: Any) -> None:
    """Replace values of one row of a part."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[number] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, row_group_size=1)


def test_rows_with_few_keypoints_or_a_box_without_an_area_are_left_out(config: Config) -> None:
    original, rotated = train_parts(config)
    assert usable_rows(config, MEMBER).to_pylist() == [
        {"path": str(path), "row": row, "is_wide": True} for path in (original, rotated) for row in range(3)
    ]
    change_row(original, 0, num_visible=0)
    change_row(original, 2, bbox_xyxy=[5, 10, 5, 20])
    change_row(rotated, 1, num_visible=23)
    assert usable_rows(config, MEMBER)["row"].to_pylist() == [1, 0, 1, 2]
    strict_config = tiny_config({}, Path(config.run_dir), augment={"min_visible": 24})
    assert usable_rows(strict_config, MEMBER)["row"].to_pylist() == [1, 0, 2]
    assert count_rows(strict_config, MEMBER) == 6
    assert describe_unused_variants(strict_config, MEMBER, 3) == (
        "3 of 6 variants left out (fewer visible keypoints than augment.min_visible=24, or a box without an area)"
    )
    assert describe_unused_variants(strict_config, MEMBER, 6) == ""


def test_a_box_that_lies_in_the_last_half_pixel_of_the_image_is_left_out(config: Config) -> None:
    original, _ = train_parts(config)
    width, height = (pq.read_table(original)[name][0].as_py() for name in ("width", "height"))
    change_row(original, 0, bbox_xyxy=[width - 0.47, 10, width, 20])
    change_row(original, 1, bbox_xyxy=[10, height - 0.5, 20, height])
    change_row(original, 2, bbox_xyxy=[width - 0.53, height - 0.53, width, height])
    assert usable_rows(config, MEMBER).to_pylist()[0] == {"path": str(original), "row": 2, "is_wide": True}
    for row in usable_rows(config, MEMBER).to_pylist():
        cfg = build_cfg(config, DACON24, "cpu")
        stored_row = pq.read_table(row["path"]).to_pylist()[row["row"]]
        for seed in range(4):  # with and without a flip
            instances = to_dataset_dict(stored_row, cfg, DACON24, np.random.default_rng(seed))["instances"]
            assert instances.gt_boxes.area() > 0


def test_a_members_own_recipes_override_those_of_the_section_train(config: Config) -> None:
    rotated_config = tiny_config({}, Path(config.run_dir), train={"recipes": ["Rotate45_CenterCrop"]})
    original, rotated = train_parts(config)
    assert set(usable_rows(rotated_config, MEMBER)["path"].to_pylist()) == {str(rotated)}
    member = MemberConfig(name="a", recipes=("Original",))
    assert set(usable_rows(rotated_config, member)["path"].to_pylist()) == {str(original)}
    with pytest.raises(StoreError, match="NoSuch"):
        usable_rows(rotated_config, MemberConfig(name="a", recipes=("NoSuch",)))


@pytest.mark.usefixtures("ray_cluster")
def test_batches_depend_on_seed_and_rank_but_not_on_a_resume_or_the_number_of_threads(config: Config) -> None:
    cfg = build_cfg(config, DACON24, "cpu")
    shard = ray.data.from_arrow(usable_rows(config, MEMBER)).iterator()

    def first_batches(count: int, *, seed: int = 1, rank: int = 0, **options: int) -> list[list[dict[str, Any]]]:
        batches = iter_batches(shard, cfg, DACON24, batch_size=4, seed=seed, rank=rank, **options)
        return list(itertools.islice(batches, count))

    def are_same(batches: list[list[dict[str, Any]]], expected_batches: list[list[dict[str, Any]]]) -> bool:
        return all(
            torch.equal(a["image"], b["image"])
            and torch.equal(a["instances"].gt_keypoints.tensor, b["instances"].gt_keypoints.tensor)
            for batch, expected_batch in zip(batches, expected_batches, strict=True)
            for a, b in zip(batch, expected_batch, strict=True)
        )

    expected = first_batches(5)
    assert [len(batch) for batch in expected] == [4] * 5  # 6 rows: an epoch has one full batch
    assert are_same(first_batches(2, start=3), expected[3:])
    assert not are_same(expected[:1], expected[1:2])
    assert not are_same(first_batches(1, seed=2), expected[:1])
    assert not are_same(first_batches(1, rank=1), expected[:1])  # other flips
    for num_threads in (2, 4):
        assert are_same(first_batches(5, num_threads=num_threads), expected)


@pytest.mark.usefixtures("ray_cluster")
def test_the_grouping_option_separates_wide_images_from_other_images(config: Config) -> None:
    for number, path in enumerate(train_parts(config)):
        change_row(path, number, width=100, height=400)
    shard = ray.data.from_arrow(usable_rows(config, MEMBER)).iterator()
    for grouping in (True, False):
        cfg = build_cfg(config, DACON24, "cpu")
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
        batches = list(itertools.islice(iter_batches(shard, cfg, DACON24, batch_size=2, seed=1, rank=0), 12))
        is_wide_by_batch = [{entry["width"] > entry["height"] for entry in batch} for batch in batches]
        assert all(len(batch) == 2 for batch in batches)
        assert all(len(is_wide) == 1 for is_wide in is_wide_by_batch) == grouping
        assert set.union(*is_wide_by_batch) == {True, False}
        resumed = list(itertools.islice(iter_batches(shard, cfg, DACON24, batch_size=2, seed=1, rank=0, start=9), 3))
        for batch, expected in zip(resumed, batches[9:], strict=True):
            assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, expected, strict=True))


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_reads_its_shard_once_because_ray_makes_the_workers_wait_for_each_other(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = ray.data.from_arrow(usable_rows(config, MEMBER)).iterator()
    reads: list[dict[str, Any]] = []

    def read(**options: Any) -> Any:
        reads.append(options)
        return type(shard).iter_batches(shard, **options)

    monkeypatch.setattr(shard, "iter_batches", read)
    cfg = build_cfg(config, DACON24, "cpu")
    batches = iter_batches(shard, cfg, DACON24, batch_size=2, seed=1, rank=0)
    assert len(list(itertools.islice(batches, 12))) == 12  # 4 epochs
    assert len(reads) == 1
