"""A store with folds holds every recipe of every source; its manifest alone says which fold a scene is in."""

import os
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, StoreError
from kp_ray.store.export import export_store
from kp_ray.store.folds import check_held_out_fold
from kp_ray.store.manifest import read_manifest, store_digest, write_manifest
from kp_ray.store.plan import make_plan
from kp_ray.store.read import RowReader, iter_rows, list_rows, list_rows_by_fold, read_table, select_parts
from kp_ray.store.verify import verify_store
from kp_ray.store.write import is_finished, write_store
from tests.helpers.data import tiny_config
from tests.helpers.stores import part_digests, store_files, write_planned_store

TWO_MEMBERS = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]


def fold_config(data: dict[str, Any], run_dir: Path, folds: int = 2, **sections: Any) -> Config:
    """Build a tiny config with two members and folds."""
    return tiny_config(data, run_dir, split={"folds": folds}, train={"members": TWO_MEMBERS}, **sections)


@pytest.fixture(scope="module")
def two_fold_config(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Write a store with two folds and return its config; tests must not change it."""
    config = fold_config(sample_data, tmp_path_factory.mktemp("folds"))
    write_planned_store(make_plan(config))
    return config


def set_folds(config: Config, folds: int | None, **split: Any) -> Config:
    """Return the config with another number of folds, in the same run folder."""
    return build_config({**config.to_dict(), "split": {**config.to_dict()["split"], "folds": folds, **split}})


def test_every_source_has_every_variant_and_the_fold_of_its_scene(two_fold_config: Config) -> None:
    table = read_table(two_fold_config.path("store")).to_pandas()
    assert (table.groupby("source").size() == 3).all(), "Original, and two copies of Rotate45_CenterCrop"
    assert set(table.split) == {"train"}
    assert (table.groupby("scene").fold.nunique() == 1).all()
    folds = read_manifest(two_fold_config.path("store")).folds
    assert folds is not None
    fold_by_scene = {scene: fold for fold, scenes in enumerate(folds.units) for scene in scenes}
    assert fold_by_scene == dict(zip(table.scene, table.fold, strict=True))


def test_one_list_holds_the_validation_rows_of_every_fold(two_fold_config: Config) -> None:
    store = two_fold_config.path("store")
    rows_by_fold = list_rows_by_fold(store)
    assert len(rows_by_fold) == 2
    for fold, rows in enumerate(rows_by_fold):
        assert [reference for _, reference in rows] == list_rows(store, split="val", fold=fold)
        assert [source for source, _ in rows] == read_table(store, split="val", fold=fold)["source"].to_pylist() != []


def test_a_member_sees_originals_of_its_fold_and_every_recipe_of_the_other_folds(two_fold_config: Config) -> None:
    store = two_fold_config.path("store")
    all_rows = read_table(store).to_pandas()
    for fold in (0, 1):
        train, val = (read_table(store, split=split, fold=fold).to_pandas() for split in ("train", "val"))
        assert set(train.fold) == {1 - fold}
        assert len(train) == (all_rows.fold == 1 - fold).sum()
        assert set(val.fold) == {fold}
        assert set(val.recipe) == {"Original"}
        assert sorted(val.source) == sorted(set(all_rows[all_rows.fold == fold].source))
        assert not set(train.scene) & set(val.scene)
        assert (set(train.split), set(val.split)) == ({"train"}, {"val"})
        both_splits = read_table(store, fold=fold, columns=["source", "split"])
        assert both_splits.num_rows == len(train) + len(val)
        assert both_splits.column_names == ["source", "split"]
        assert [row["source"] for row in iter_rows(store, split="val", fold=fold)] == list(val.source)
        assert len(list_rows(store, split="train", fold=fold)) == len(train)


def test_list_rows_and_read_table_give_the_same_rows(two_fold_config: Config) -> None:
    store = two_fold_config.path("store")
    sources = read_table(store, split="val", fold=1, columns=["source"])["source"].to_pylist()
    references = list_rows(store, split="val", fold=1)
    reader = RowReader(["source"])
    assert [reader.read(*reference)["source"] for reference in references] == sources
    assert len(set(references)) == len(references) > 0


def test_another_number_of_folds_rewrites_the_manifest_alone_and_needs_no_cluster(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = fold_config(sample_data, tmp_path / "run")
    write_planned_store(make_plan(config))
    files, digest = store_files(config), store_digest(config.path("store"))
    times = {path: os.stat(config.path("store", path)).st_mtime_ns for path in part_digests(config)}
    three_fold_config = set_folds(config, 3)
    assert not is_finished(make_plan(three_fold_config)), "the manifest lists two folds"
    assert verify_store(make_plan(three_fold_config)) != []
    write_store(make_plan(three_fold_config))
    assert is_finished(make_plan(three_fold_config))
    assert verify_store(make_plan(three_fold_config)) == []
    changed_paths = {path for path, content in store_files(three_fold_config).items() if files[path] != content}
    assert changed_paths == {"_manifest.json"}
    assert times == {
        path: os.stat(three_fold_config.path("store", path)).st_mtime_ns for path in part_digests(three_fold_config)
    }
    # Members that held out one of two folds cannot be used with three.
    assert store_digest(three_fold_config.path("store")) != digest


def test_folds_instead_of_a_fraction_rewrite_only_parts_of_the_held_out_scenes(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    hold_out_config = tiny_config(sample_data, tmp_path / "run")
    write_planned_store(make_plan(hold_out_config))
    val_sources = set(read_table(hold_out_config.path("store"), split="val", columns=["source"])["source"].to_pylist())
    plan = make_plan(set_folds(hold_out_config, 2))
    kept_paths = {part.path for part in plan.parts()} & set(part_digests(hold_out_config))
    assert kept_paths
    for chunk in plan.chunks:
        if not {source.name for source in chunk.sources} & val_sources:
            assert {part.path for part in chunk.parts} <= kept_paths


def test_without_folds_the_rows_have_no_fold(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    write_planned_store(make_plan(config))
    assert read_manifest(config.path("store")).folds is None
    assert "fold" not in read_table(config.path("store")).column_names


def test_a_corrected_label_changes_the_parts_of_its_chunk_alone(two_fold_config: Config, tmp_path: Path) -> None:
    image = read_table(two_fold_config.path("store"), columns=["source"])["source"][0].as_py()
    corrections = tmp_path / "corrections.csv"
    # The line that drops the image is a comment, so only its nose is corrected.
    corrections.write_text(f"image,action,keypoint,x,y\n# {image},drop,,,\n{image},point,nose,5,6\n")
    values = two_fold_config.to_dict()
    corrected_config = build_config({**values, "data": {**values["data"], "corrections": str(corrections)}})
    before, after = make_plan(two_fold_config), make_plan(corrected_config)
    new_paths = {part.path for part in after.parts()} - {part.path for part in before.parts()}
    (chunk,) = (chunk for chunk in after.chunks if image in {source.name for source in chunk.sources})
    assert new_paths == {part.path for part in chunk.parts}
    assert after.folds == before.folds


def test_a_store_with_other_folds_than_the_config_is_refused(two_fold_config: Config) -> None:
    assert [check_held_out_fold(two_fold_config, name) for name in "ab"] == [0, 1]
    with pytest.raises(StoreError, match=r"split\.folds: differs from .* folds, 2 \(got 3\): run augment"):
        check_held_out_fold(set_folds(two_fold_config, 3), "a")
    with pytest.raises(StoreError, match=r"the store's number of folds, 2 \(got null\)"):
        check_held_out_fold(set_folds(two_fold_config, None), "a")


def test_a_fold_that_does_not_exist_and_a_unit_in_two_folds_are_refused(
    two_fold_config: Config, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"has no fold 2 \(it has 2 folds\)"):
        read_table(two_fold_config.path("store"), split="val", fold=2)
    manifest = read_manifest(two_fold_config.path("store"))
    assert manifest.folds is not None
    leaked_unit = manifest.folds.units[0][0]
    leaking_folds = manifest.folds.model_copy(update={"units": ((leaked_unit,), (leaked_unit,))})
    write_manifest(str(tmp_path), manifest.model_copy(update={"folds": leaking_folds}))
    with pytest.raises(StoreError, match=f"{leaked_unit} is in two folds"):
        select_parts(str(tmp_path))


def test_the_export_of_a_fold_holds_its_originals(two_fold_config: Config, tmp_path: Path) -> None:
    summary = export_store(two_fold_config, str(tmp_path / "out"), split="val", fold=0)
    assert summary.images == len(list_rows(two_fold_config.path("store"), split="val", fold=0))


def test_settings_that_contradict_split_folds_are_refused(sample_data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a names a fold \(got 1\), but there are no folds"):
        tiny_config(sample_data, tmp_path, train={"members": [{"name": "a", "fold": 1}]})
    with pytest.raises(ConfigError, match=r"a names a fold that does not exist \(got 2\): name one from 0 to 1"):
        tiny_config(sample_data, tmp_path, split={"folds": 2}, train={"members": [{"name": "a", "fold": 2}]})
    with pytest.raises(ConfigError, match=r"augment\.recipes: members validate on the recipe Original"):
        tiny_config(sample_data, tmp_path, split={"folds": 2}, augment={"recipes": ["Rotate45"]})


def test_members_hold_out_folds_in_turn_unless_they_name_one(sample_data: dict[str, Any], tmp_path: Path) -> None:
    members = [{"name": "a"}, {"name": "b", "fold": 0}, {"name": "c"}, {"name": "d"}]
    config = tiny_config(sample_data, tmp_path, split={"folds": 3}, train={"members": members})
    assert [config.held_out_fold(name) for name in "abcd"] == [0, 0, 2, 0]
    assert tiny_config(sample_data, tmp_path).held_out_fold("a") is None
