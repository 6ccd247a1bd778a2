"""The plan of a store: its chunks, the recipes per split, and part names that change if the rows change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kp_ray.config.schema import AugmentConfig, Config
from kp_ray.data.annotations import Annotations
from kp_ray.errors import ConfigError, DataError, StorageError
from kp_ray.keypoints import DACON24
from kp_ray.store.plan import Plan, make_plan, plan_store
from tests.helpers.data import tiny_config
from tests.helpers.labels import make_labels

IMAGES = tuple(f"s{number // 2}_A-{number}.jpg" for number in range(6))
SPLITS = ("train", "train", "val", "train", "train", "train")
AUGMENT = AugmentConfig(recipes=("Original", "Rotate45", "Rotate45"), sources_per_part=2)

PART_NAMES_OF_VERSION_0_1 = [
    "recipe-Original/part-00000-aa58d362f27f.parquet",
    "recipe-Rotate45/part-00000-b8d68ba13a43.parquet",
    "recipe-Original/part-00001-001060c5833d.parquet",
    "recipe-Rotate45/part-00001-393b246b32e6.parquet",
    "recipe-Original/part-00002-220c0fe12b05.parquet",
    "recipe-Rotate45/part-00002-9461a12b5db1.parquet",
    "recipe-Original/part-00001-20f7db182a7e.parquet",
]
"""Names of the parts of `plan_labels`. Other names would make `augment` rewrite all existing stores."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write files of 1, 2, ... bytes under the names of six images; planning reads only names and sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(IMAGES):
        (folder / name).write_bytes(bytes(number + 1))
    return folder


@pytest.fixture
def labels() -> Annotations:
    """Label the six images with the coordinates 0, 1, 2, ..."""
    xy = np.arange(6 * 24 * 2, dtype=float).reshape(6, 24, 2)
    return make_labels(IMAGES, xy)


def plan_labels(labels: Annotations, images: Path, augment: AugmentConfig = AUGMENT, **fields: Any) -> Plan:
    """Plan a store that is split by frame; `fields` can replace `splits` and `seed`."""
    return plan_store(
        "store", str(images), labels, fields.get("splits", SPLITS), "frame", augment, fields.get("seed", 7)
    )


def part_names(plan: Plan) -> set[str]:
    """Return the paths of all planned parts."""
    return {part.path for part in plan.parts()}


def test_chunks_are_consecutive_rows_of_one_split(labels: Annotations, images: Path) -> None:
    chunks = plan_labels(labels, images).chunks
    assert [[IMAGES.index(source.name) for source in chunk.sources] for chunk in chunks] == [[0, 1], [3], [4, 5], [2]]
    assert [{source.split for source in chunk.sources} for chunk in chunks] == [{"train"}] * 3 + [{"val"}]


def test_training_sources_get_every_recipe_and_validation_sources_only_original(
    labels: Annotations, images: Path
) -> None:
    *train_chunks, val_chunk = plan_labels(labels, images).chunks
    for chunk in train_chunks:
        assert [(part.recipe.name, part.copies) for part in chunk.parts] == [("Original", 1), ("Rotate45", 2)]
    assert [(part.recipe.name, part.copies) for part in val_chunk.parts] == [("Original", 1)]


def test_the_plan_lists_the_units_of_each_split_and_the_sources_without_image(
    labels: Annotations, images: Path
) -> None:
    (images / IMAGES[4]).unlink()
    plan = plan_labels(labels, images)
    assert plan.units == {"train": tuple(IMAGES[i] for i in (0, 1, 3, 4, 5)), "val": (IMAGES[2],)}
    assert plan.sources_without_image == {IMAGES[4]}


def test_names_of_parts_are_those_of_version_0_1(labels: Annotations, images: Path) -> None:
    assert [part.path for part in plan_labels(labels, images).parts()] == PART_NAMES_OF_VERSION_0_1


@pytest.mark.parametrize(
    "change",
    [{"jpeg_quality": 50}, {"oversize": "error"}, {"box_margin_px": 3.0}],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_changes_the_rows_renames_every_part(
    change: dict[str, Any], labels: Annotations, images: Path
) -> None:
    changed_plan = plan_labels(labels, images, AUGMENT.model_copy(update=change))
    assert not part_names(changed_plan) & part_names(plan_labels(labels, images))


def test_another_seed_renames_every_part(labels: Annotations, images: Path) -> None:
    assert not part_names(plan_labels(labels, images, seed=8)) & part_names(plan_labels(labels, images))


def test_a_changed_label_or_image_renames_the_parts_of_its_chunk_alone(labels: Annotations, images: Path) -> None:
    before = plan_labels(labels, images)
    moved_keypoints = labels.keypoints.copy()
    moved_keypoints[5, 0, 0] += 1
    after = plan_labels(replace(labels, keypoints=moved_keypoints), images)
    assert part_names(before) - part_names(after) == {part.path for part in before.chunks[2].parts}
    (images / IMAGES[0]).write_bytes(bytes(100))
    assert part_names(before) - part_names(plan_labels(labels, images)) == {
        part.path for part in before.chunks[0].parts
    }


def test_a_dropped_source_renames_the_parts_of_its_chunk_alone(labels: Annotations, images: Path) -> None:
    before = plan_labels(labels, images)
    kept_indices = np.array([0, 2, 3, 4, 5])
    after = plan_labels(labels.select(kept_indices), images, splits=[SPLITS[index] for index in kept_indices])
    assert part_names(before) - part_names(after) == {part.path for part in before.chunks[0].parts}


def test_an_empty_set_of_labels_is_refused(labels: Annotations, images: Path) -> None:
    with pytest.raises(DataError, match="no labelled image"):
        plan_labels(labels.select(np.array([], dtype=int)), images, splits=[])


def test_an_unknown_recipe_and_a_missing_folder_are_refused(labels: Annotations, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.recipes"):
        plan_labels(labels, images, AUGMENT.model_copy(update={"recipes": ("Rotate90",)}))
    with pytest.raises(StorageError, match="no such folder"):
        plan_labels(labels, tmp_path / "none")


def test_the_plan_of_a_config_splits_the_sources_and_names_the_keypoints(sample_config: Config) -> None:
    plan = make_plan(sample_config)
    assert plan.skeleton == DACON24.names
    assert plan.store == sample_config.path("store")
    assert sum(len(chunk.sources) for chunk in plan.chunks) == 12
    assert not set(plan.units["train"]) & set(plan.units["val"])
    assert plan.units["val"]


def test_a_config_without_images_is_refused(sample_data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.images"):
        make_plan(tiny_config({**sample_data, "images": None}, tmp_path))
