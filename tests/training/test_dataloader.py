"""The rows that a member trains on, and the batches that a seed and a rank give."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import StoreError
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg
from kp_ray.training.dataloader import count_rows, iter_batches, usable_rows
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
    strict = tiny_config({}, Path(config.run_dir), augment={"min_visible": 24})
    assert usable_rows(strict, MEMBER)["row"].to_pylist() == [1, 0, 2]
    assert count_rows(strict, MEMBER) == 6
    assert describe_unused_variants(strict, MEMBER, 3) == (
        "3 of 6 variants left out (fewer visible keypoints than augment.min_visible=24, or a box without an area)"
    )
    assert describe_unused_variants(strict, MEMBER, 6) == ""


def test_a_members_recipes_are_used_before_the_runs(config: Config) -> None:
    run = tiny_config({}, Path(config.run_dir), train={"recipes": ["Rotate45_CenterCrop"]})
    original, rotated = train_parts(config)
    assert set(usable_rows(run, MEMBER)["path"].to_pylist()) == {str(rotated)}
    member = MemberConfig(name="a", recipes=("Original",))
    assert set(usable_rows(run, member)["path"].to_pylist()) == {str(original)}
    with pytest.raises(StoreError, match="NoSuch"):
        usable_rows(run, MemberConfig(name="a", recipes=("NoSuch",)))


@pytest.mark.usefixtures("ray_cluster")
def test_the_seed_and_rank_decide_the_batches_of_a_resumed_run_and_of_any_number_of_threads(config: Config) -> None:
    cfg = build_cfg(config, DACON24, "cpu")
    shard = ray.data.from_arrow(usable_rows(config, MEMBER)).iterator()

    def first_batches(count: int, *, seed: int = 1, rank: int = 0, **options: int) -> list[list[dict[str, Any]]]:
        batches = iter_batches(shard, cfg, DACON24, batch_size=4, seed=seed, rank=rank, **options)
        return list(itertools.islice(batches, count))

    def is_same(batch: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
        return all(
            torch.equal(a["image"], b["image"])
            and torch.equal(a["instances"].gt_keypoints.tensor, b["instances"].gt_keypoints.tensor)
            for a, b in zip(batch, other, strict=True)
        )

    whole = first_batches(5)
    assert [len(batch) for batch in whole] == [4] * 5  # 6 rows: an epoch has one full batch
    resumed = first_batches(2, start=3)
    assert all(is_same(batch, other) for batch, other in zip(resumed, whole[3:], strict=True))
    assert not is_same(whole[0], whole[1])
    assert not is_same(first_batches(1, seed=2)[0], whole[0])
    assert not is_same(first_batches(1, rank=1)[0], whole[0])  # other flips
    for num_threads in (2, 4):
        threaded = first_batches(5, num_threads=num_threads)
        assert all(is_same(batch, other) for batch, other in zip(threaded, whole, strict=True))


@pytest.mark.usefixtures("ray_cluster")
def test_batches_hold_only_wide_or_only_other_images_as_the_option_says(config: Config) -> None:
    original, rotated = train_parts(config)
    for number, path in enumerate((original, rotated)):
        change_row(path, number, width=100, height=400)
    shard = ray.data.from_arrow(usable_rows(config, MEMBER)).iterator()
    for grouping in (True, False):
        cfg = build_cfg(config, DACON24, "cpu")
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
        batches = list(itertools.islice(iter_batches(shard, cfg, DACON24, batch_size=2, seed=1, rank=0), 12))
        shapes = [{dataset_dict["width"] > dataset_dict["height"] for dataset_dict in batch} for batch in batches]
        assert all(len(batch) == 2 for batch in batches)
        assert all(len(kinds) == 1 for kinds in shapes) == grouping
        assert {kind for kinds in shapes for kind in kinds} == {True, False}
        resumed = list(itertools.islice(iter_batches(shard, cfg, DACON24, batch_size=2, seed=1, rank=0, start=9), 3))
        for batch, expected in zip(resumed, batches[9:], strict=True):
            assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, expected, strict=True))
