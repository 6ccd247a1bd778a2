"""A store is written on a Ray cluster; a later run writes only missing parts."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
from PIL import Image

from kp_ray.config.schema import Config
from kp_ray.data.load import load_annotations
from kp_ray.errors import RunStateError, StorageError, StoreError
from kp_ray.store import parts
from kp_ray.store.manifest import UNAVAILABLE, UNREADABLE, read_manifest, recipe_stage, write_manifest
from kp_ray.store.parts import make_parts
from kp_ray.store.plan import make_plan
from kp_ray.store.read import iter_rows, read_table
from kp_ray.store.verify import verify_store
from kp_ray.store.write import build_manifest, is_finished, write_store
from tests.helpers.data import tiny_config
from tests.helpers.processes import file_times
from tests.helpers.stores import copy_images, part_digests, read_quarantine, store_files, training_part

pytestmark = pytest.mark.usefixtures("ray_cluster")


def read_sources(config: Config, split: str | None = None) -> set[str]:
    """Return the names of the sources with rows in the store, of one split or of both (None)."""
    return set(read_table(config.path("store"), split=split, columns=["source"])["source"].to_pylist())


def list_files(config: Config) -> list[Path]:
    """List the parts, the manifest and the quarantine of a store."""
    return [Path(config.path("store", path)) for path in store_files(config)]


# Rows.


def test_training_sources_have_all_variants_and_validation_sources_only_the_original(
    store_config: Config,
) -> None:
    table = read_table(store_config.path("store")).to_pandas()
    labels = load_annotations(store_config.require_input("annotations"))
    val_sources = set(table[table.split == "val"].source)
    assert 0 < len(val_sources) < len(labels)
    for image in labels.images:
        rows = table[table.source == image]
        variants = sorted(zip(rows.recipe, rows["copy"], strict=True))
        all_variants = [("Original", 0), ("Rotate45_CenterCrop", 0), ("Rotate45_CenterCrop", 1)]
        assert variants == (all_variants[:1] if image in val_sources else all_variants)
    copies = table[table.recipe == "Rotate45_CenterCrop"].groupby("source").image.nunique()
    assert (copies == 2).all(), "copies of a recipe must be different images"
    assert (table.groupby("scene").split.nunique() == 1).all()


def test_stored_keypoints_are_the_affine_applied_to_the_labels(store_config: Config) -> None:
    labels = load_annotations(store_config.require_input("annotations"))
    keypoints = dict(zip(labels.images, labels.keypoints, strict=True))
    for row in iter_rows(store_config.path("store"), split="train"):
        affine = np.array(row["affine"]).reshape(2, 3)
        expected = keypoints[row["source"]][:, :2] @ affine[:, :2].T + affine[:, 2]
        stored_keypoints = np.array(row["keypoints"]).reshape(-1, 3)
        np.testing.assert_allclose(stored_keypoints[:, :2], expected, atol=1e-3)
        x, y, v = stored_keypoints.T
        is_inside = (x >= 0) & (x < row["width"]) & (y >= 0) & (y < row["height"])
        assert ((v > 0) == is_inside).all()


def test_equal_inputs_give_equal_bytes_and_another_seed_gives_different_bytes(
    store_config: Config, tmp_path: Path
) -> None:
    same_config = tiny_config(store_config.data.model_dump(), tmp_path / "again")
    write_store(make_plan(same_config))
    assert part_digests(same_config) == part_digests(store_config)
    # The split keeps its seed, so that only the variants differ.
    config_with_other_seed = tiny_config(
        store_config.data.model_dump(), tmp_path / "other", seed=7, split={"fraction": 0.25, "seed": 42}
    )
    write_store(make_plan(config_with_other_seed))
    assert not set(part_digests(config_with_other_seed).values()) & set(part_digests(store_config).values())


def test_corrections_change_the_rows_and_rewrite_only_the_parts_of_their_chunks(
    sample_config: Config, tmp_path: Path
) -> None:
    write_store(make_plan(sample_config))
    before = part_digests(sample_config)
    labels = load_annotations(sample_config.require_input("annotations"))
    val_sources = read_sources(sample_config, "val")
    dropped_image, moved_image = [image for image in labels.images if image not in val_sources][:2]
    corrections = tmp_path / "corrections.csv"
    corrections.write_text(f"image,action,keypoint,x,y\n{dropped_image},drop,,,\n{moved_image},point,nose,12.5,34.25\n")
    corrected_config = tiny_config(
        {**sample_config.data.model_dump(), "corrections": str(corrections)}, Path(sample_config.run_dir)
    )
    write_store(make_plan(corrected_config))
    rows = [row for row in iter_rows(corrected_config.path("store"), split="train") if row["recipe"] == "Original"]
    assert dropped_image not in {row["source"] for row in rows}
    assert [row["keypoints"][:2] for row in rows if row["source"] == moved_image] == [[12.5, 34.25]]
    sources_per_part = sample_config.augment.sources_per_part
    expected_prefixes = {
        f"part-{labels.images.index(image) // sources_per_part:05d}" for image in (dropped_image, moved_image)
    }
    # A rewritten part has another name, because the name contains the fingerprint.
    changed_paths = set(before) ^ set(part_digests(corrected_config))
    assert {path.split("/")[1][:10] for path in changed_paths} == expected_prefixes
    assert verify_store(make_plan(corrected_config)) == []


def test_image_names_in_any_script_and_case_are_distinct_sources(sample_data: dict[str, Any], tmp_path: Path) -> None:
    header, *rows = Path(sample_data["annotations"]).read_text().splitlines()
    names = ["A B/001_A-1.jpg", "A B/001_a-1.jpg", "사람 하나_A-2.jpg", "ab_A-3.JPG", "ab_A-3.jpg", "ü#%?_B-4.jpg"]
    lines = [header]
    for name, row in zip(names, rows, strict=False):
        image, points = row.split(",", 1)
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(sample_data["images"], image), tmp_path / "images" / name)
        lines.append(f"{name},{points}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {**sample_data, "annotations": str(tmp_path / "labels.csv"), "images": str(tmp_path / "images")}
    config = tiny_config(data, tmp_path / "run", split={"fraction": 0}, augment={"recipes": ["Original"]})
    assert write_store(make_plan(config)).quarantined == 0
    stored_images = {row["source"]: row["image"] for row in iter_rows(config.path("store"), split="train")}
    assert stored_images == {name: (tmp_path / "images" / name).read_bytes() for name in names}
    assert verify_store(make_plan(config)) == []


# Repeated and simultaneous runs.


def test_a_second_run_writes_nothing(sample_config: Config) -> None:
    first_record = write_store(make_plan(sample_config))
    before = file_times(*list_files(sample_config))
    second_record = write_store(make_plan(sample_config))
    assert first_record.parts_written > 0
    assert (second_record.parts_written, second_record.parts_kept) == (0, first_record.parts_written)
    assert file_times(*list_files(sample_config)) == before


def test_an_added_recipe_writes_only_its_own_parts_and_the_parts_of_a_dropped_recipe_are_deleted(
    sample_config: Config,
) -> None:
    write_store(make_plan(sample_config))
    before = part_digests(sample_config)
    augment = {"recipes": ["Original", "RandomCrop_1"], "sources_per_part": 4}
    changed_config = tiny_config(sample_config.data.model_dump(), Path(sample_config.run_dir), augment=augment)
    record = write_store(make_plan(changed_config))
    after = part_digests(changed_config)
    assert {path.split("/")[0] for path in set(after) - set(before)} == {"recipe-RandomCrop_1"}
    assert record.parts_kept == sum(path.startswith("recipe-Original") for path in before)
    assert not any("Rotate45" in path for path in store_files(changed_config))


def test_an_edited_user_recipe_rewrites_only_its_own_parts(sample_config: Config) -> None:
    def write(limit: float) -> dict[str, str]:
        step = albumentations.to_dict(albumentations.Rotate(limit=(limit, limit), p=1))
        augment = {"recipes": ["Original", "mine"], "user_recipes": {"mine": step}, "sources_per_part": 4}
        config = tiny_config(sample_config.data.model_dump(), Path(sample_config.run_dir), augment=augment)
        write_store(make_plan(config))
        assert set(store_files(config)) == {*part_digests(config), "_manifest.json", "_quarantine.csv"}
        return part_digests(config)

    before, after = write(10), write(20)
    assert {path.split("/")[0] for path in set(before) ^ set(after)} == {"recipe-mine"}
    replaced_digests = {before[path] for path in set(before) - set(after)}
    assert replaced_digests.isdisjoint(after.values()), "the edited recipe must change the rows"


def test_a_run_without_a_manifest_keeps_whole_parts_and_rewrites_a_truncated_one(sample_config: Config) -> None:
    write_store(make_plan(sample_config))
    digests = part_digests(sample_config)
    paths = {path: Path(sample_config.path("store", path)) for path in digests}
    before = file_times(*paths.values())
    os.remove(sample_config.path("store", "_manifest.json"))
    truncated_path = paths[next(path for path in digests if "Rotate45" in path)]
    os.truncate(truncated_path, 100)
    record = write_store(make_plan(sample_config))
    assert (record.parts_written, record.parts_kept) == (1, len(digests) - 1)
    assert part_digests(sample_config) == digests
    after = file_times(*paths.values())
    assert {path for path in before if after[path] != before[path]} == {truncated_path}


def test_a_run_over_a_finished_store_rewrites_a_truncated_part(sample_config: Config) -> None:
    write_store(make_plan(sample_config))
    before, part = part_digests(sample_config), training_part(sample_config)
    os.truncate(part, part.stat().st_size // 2)
    assert write_store(make_plan(sample_config)).parts_written == 1
    assert part_digests(sample_config) == before


def test_a_second_writer_is_refused_and_a_killed_writer_leaves_no_lock(sample_config: Config) -> None:
    script = (
        "import time\nfrom kp_ray.storage import writer_lock\n"
        f"with writer_lock({sample_config.path('store')!r}):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunStateError, match="another process is using"):
        write_store(make_plan(sample_config))
    holder.kill()
    holder.wait()
    assert write_store(make_plan(sample_config)).parts_written > 0


# Images that are missing or cannot be used.


def test_unusable_images_are_quarantined_with_a_reason_until_they_are_repaired(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    data = copy_images(sample_data, tmp_path / "images")
    names = load_annotations(sample_data["annotations"]).images
    truncated_path, empty_path, missing_path = (tmp_path / "images" / name for name in names[:3])
    os.truncate(truncated_path, truncated_path.stat().st_size // 2)
    os.truncate(empty_path, 0)
    missing_path.unlink()
    config = tiny_config(data, tmp_path / "run")
    assert write_store(make_plan(config)).quarantined == 3
    reasons = {row["source"]: row["reason"] for row in read_quarantine(Path(config.path("store")))}
    assert "decoded" in reasons[truncated_path.name]
    assert reasons[empty_path.name] == "the file is empty"
    assert reasons[missing_path.name] == "there is no such file"
    assert read_sources(config) == set(names[3:])
    for name in names[:3]:
        shutil.copy(Path(sample_data["images"], name), tmp_path / "images" / name)
    assert write_store(make_plan(config)).quarantined == 0
    assert read_sources(config) == set(names)


def test_a_source_that_one_recipe_cannot_use_keeps_the_rows_of_its_other_recipes(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    data = copy_images(sample_data, tmp_path / "images")
    small_image, empty_image = load_annotations(sample_data["annotations"]).images[:2]
    Image.new("RGB", (96, 54)).save(tmp_path / "images" / small_image)  # smaller than the crop
    os.truncate(tmp_path / "images" / empty_image, 0)
    crop = json.loads(json.dumps(albumentations.to_dict(albumentations.CenterCrop(height=100, width=100))))

    def write(folder: str, recipes: list[str]) -> Config:
        augment = {"recipes": recipes, "user_recipes": {"crop": crop}}
        config = tiny_config(data, tmp_path / folder, augment=augment, split={"fraction": 0})
        record = write_store(make_plan(config))
        assert (record.sources, record.quarantined) == (11, 2 if "crop" in recipes else 1)
        return config

    write("two_runs", ["Original"])
    two_runs, one_run = write("two_runs", ["Original", "crop"]), write("one_run", ["Original", "crop"])
    assert part_digests(two_runs) == part_digests(one_run)
    assert read_manifest(two_runs.path("store")) == read_manifest(one_run.path("store"))
    rows = read_table(two_runs.path("store"), columns=["source", "recipe"]).to_pylist()
    assert [row["recipe"] for row in rows if row["source"] == small_image] == ["Original"]
    assert len(rows) == 11 + 10  # of 12 sources, Original lacks the empty image, and crop lacks both images
    quarantined = {(item.source, item.stage) for item in read_manifest(two_runs.path("store")).quarantined}
    assert quarantined == {(small_image, recipe_stage("crop")), (empty_image, UNREADABLE)}
    assert verify_store(make_plan(two_runs)) == []
    write("two_runs", ["Original"])
    assert {item.source for item in read_manifest(two_runs.path("store")).quarantined} == {empty_image}


def test_with_oversize_set_to_error_a_source_smaller_than_the_crop_is_quarantined(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    recipes = ["Original", "CenterCrop_1"]
    config = tiny_config(sample_data, tmp_path / "run", augment={"oversize": "error", "recipes": recipes})
    write_store(make_plan(config))
    manifest = read_manifest(config.path("store"))
    assert manifest.num_variants == manifest.num_sources == 12, "only originals may have rows"
    crop_items = [item for item in manifest.quarantined if item.stage == recipe_stage("CenterCrop_1")]
    # Every training source has an original and no crop.
    assert len(crop_items) == len(manifest.quarantined) == manifest.num_rows_by_split["train"]
    assert all("its crop of 1280x720 px is larger than the frame (320x180 px)" in item.reason for item in crop_items)


def test_a_source_that_storage_did_not_deliver_is_retried_by_the_next_run(
    sample_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(sample_config)
    chunk, read_bytes = plan.chunks[0], parts.read_bytes
    lost_image = chunk.sources[0].name

    def read_all_but_one(path: str) -> bytes:
        if path.endswith(lost_image):
            raise StorageError(f"{path}: Permission denied") from PermissionError(13, "Permission denied", path)
        return read_bytes(path)

    monkeypatch.setattr(parts, "read_bytes", read_all_but_one)
    records, quarantined = make_parts(plan, chunk.sources, chunk.parts)
    assert [(item.source, item.stage) for item in quarantined] == [(lost_image, UNAVAILABLE)]
    monkeypatch.undo()
    first_chunk_plan = replace(plan, chunks=(chunk,))
    records_by_path = {record.path: record for record in records}
    write_manifest(plan.store, build_manifest(first_chunk_plan, records_by_path, quarantined))
    assert not is_finished(first_chunk_plan)
    record = write_store(plan)  # rewrites all parts of the chunk
    assert (record.sources, record.quarantined, record.parts_kept) == (12, 0, 0)
    assert verify_store(plan) == []


def test_an_image_that_is_missing_on_the_workers_node_is_retried_by_the_next_run(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(copy_images(sample_data, tmp_path / "images"), tmp_path / "run")
    plan = make_plan(config)
    lost_path = tmp_path / "images" / plan.chunks[0].sources[0].name
    lost_path.rename(tmp_path / "moved.jpg")  # after the driver planned the store, and before a worker reads the image
    assert write_store(plan).quarantined == 1
    (item,) = read_manifest(config.path("store")).quarantined
    assert (item.source, item.stage) == (lost_path.name, UNAVAILABLE)
    assert "the images must be where all nodes see them" in item.reason
    (tmp_path / "moved.jpg").rename(lost_path)
    assert write_store(make_plan(config)).quarantined == 0


def test_a_wrong_image_folder_deletes_no_part(
    sample_data: dict[str, Any], sample_config: Config, tmp_path: Path
) -> None:
    write_store(make_plan(sample_config))
    before = file_times(*(Path(sample_config.path("store", path)) for path in part_digests(sample_config)))
    (tmp_path / "empty").mkdir()
    config_without_images = tiny_config({**sample_data, "images": str(tmp_path / "empty")}, Path(sample_config.run_dir))
    with pytest.raises(StoreError, match="this image is missing, and the store holds its variants"):
        write_store(make_plan(config_without_images))
    Path(sample_config.path("store", "_manifest.json")).unlink()
    with pytest.raises(StoreError, match="none of the 12 sources could be used"):
        write_store(make_plan(config_without_images))
    assert write_store(make_plan(sample_config)).sources == 12
    assert file_times(*before) == before


def test_a_run_is_refused_while_a_stored_image_is_missing_and_still_labelled(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    data = copy_images(sample_data, tmp_path / "images")
    config = tiny_config(data, tmp_path / "run")
    write_store(make_plan(config))
    before = store_files(config)
    lost_path = tmp_path / "images" / load_annotations(sample_data["annotations"]).images[5]
    lost_path.rename(tmp_path / "moved.jpg")
    with pytest.raises(StoreError, match=rf"{lost_path}: this image is missing, .*1 labelled images"):
        write_store(make_plan(config))
    assert store_files(config) == before
    (tmp_path / "corrections.csv").write_text(f"image,action\n{lost_path.name},drop\n")
    config_with_drop = tiny_config({**data, "corrections": str(tmp_path / "corrections.csv")}, tmp_path / "run")
    record = write_store(make_plan(config_with_drop))
    assert (record.sources, record.quarantined) == (11, 0)
    (tmp_path / "moved.jpg").rename(lost_path)
    write_store(make_plan(config))
    assert store_files(config) == before


def test_variants_of_an_image_that_failed_once_and_then_vanished_are_not_deleted(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    data = copy_images(sample_data, tmp_path / "images")
    write_store(make_plan(tiny_config(data, tmp_path / "run")))
    config = tiny_config(data, tmp_path / "run", augment={"recipes": ["Original", "Rotate45_CenterCrop", "Rotate45"]})
    plan = make_plan(config)
    lost_path = tmp_path / "images" / load_annotations(sample_data["annotations"]).images[5]
    lost_path.unlink()  # after the driver planned the store, so that a worker cannot read the image
    assert write_store(plan).quarantined == 1
    before = store_files(config)
    with pytest.raises(StoreError, match=rf"{lost_path}: this image is missing, and the store holds its variants"):
        write_store(make_plan(config))
    assert store_files(config) == before


# Failures.


def test_a_run_fails_if_the_driver_does_not_see_every_part(sample_config: Config) -> None:
    def delete_one_part(done: int, total: int) -> None:
        if done == total:
            next(iter(Path(sample_config.path("store")).rglob("part-*.parquet"))).unlink()

    with pytest.raises(StorageError, match="run_dir must be a folder that all nodes share"):
        write_store(make_plan(sample_config), delete_one_part)
    assert not is_finished(make_plan(sample_config))
    assert write_store(make_plan(sample_config)).parts_written == 1


def test_an_error_in_a_task_keeps_its_class_and_its_advice(sample_config: Config) -> None:
    path = Path(sample_config.path("store"), "recipe-Original")
    path.parent.mkdir(parents=True)
    path.write_text("a file where a folder must be")
    with pytest.raises(StorageError, match=r"recipe-Original.*cannot be written.*keeps finished parts") as error:
        write_store(make_plan(sample_config))
    assert "Ray" not in str(error.value)
