"""`export` writes images with labels that other programs read."""

from pathlib import Path

import numpy as np
import pytest

from kp_ray.config.schema import Config
from kp_ray.data.load import load_annotations
from kp_ray.errors import StorageError, StoreError
from kp_ray.storage import write_bytes
from kp_ray.store.export import ExportSummary, export_store
from kp_ray.store.manifest import read_manifest
from kp_ray.store.plan import make_plan
from kp_ray.store.read import iter_rows, read_table
from tests.helpers.data import tiny_config
from tests.helpers.stores import damage_stored_image, write_planned_store, write_small_store


def test_an_export_opens_in_pycocotools_and_reads_back_equal(store_config: Config, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    folder = tmp_path / "out"
    summary = export_store(store_config, str(folder), split="val")
    assert summary.lines() == [f"{summary.images} images and annotations.json, annotations.csv in {folder}"]
    num_rows = read_manifest(store_config.path("store")).num_rows_by_split["val"]
    assert summary.to_json() == {"images": num_rows, "folder": str(folder)}
    assert len(coco.COCO(str(folder / "annotations.json")).imgs) == num_rows
    json_labels = load_annotations(str(folder / "annotations.json"))
    csv_labels = load_annotations(str(folder / "annotations.csv"))
    assert json_labels.images == csv_labels.images
    rows = list(iter_rows(store_config.path("store"), split="val"))
    stored_points = np.stack([np.array(row["keypoints"]).reshape(-1, 3)[:, :2] for row in rows])
    np.testing.assert_allclose(csv_labels.keypoints[:, :, :2], stored_points, atol=1e-4)
    for name in csv_labels.images:
        assert (folder / "images" / name).stat().st_size > 0


def test_one_recipe_can_be_exported_and_a_second_export_needs_a_new_folder(
    store_config: Config, tmp_path: Path
) -> None:
    recipes = read_table(store_config.path("store"), columns=["recipe"])["recipe"].to_pylist()
    summary = export_store(store_config, str(tmp_path / "one"), recipes=["Rotate45_CenterCrop"])
    assert summary.images == recipes.count("Rotate45_CenterCrop") < len(recipes)
    with pytest.raises(StoreError, match="already holds images"):
        export_store(store_config, str(tmp_path / "one"))


@pytest.mark.parametrize("name", ["annotations.csv", "annotations.json"])
def test_a_folder_with_the_users_own_labels_is_not_changed(name: str, store_config: Config, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match=f"already holds {name}"):
        export_store(store_config, str(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_selection_without_rows_writes_nothing(tmp_path: Path) -> None:
    write_small_store(tmp_path / "run" / "store")
    config = tiny_config({}, tmp_path / "run")
    with pytest.raises(StoreError, match="no row has this split and these recipes"):
        export_store(config, str(tmp_path / "out"), split="val", recipes=["Rotate45_CenterCrop"])
    assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize("end", ["damaged image", "Ctrl-C at the second image", "Ctrl-C at annotations.csv"])
def test_an_export_that_ends_early_leaves_no_files(
    end: str, sample_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    *_, last_part = write_planned_store(make_plan(sample_config)).parts
    written_paths: list[Path] = []

    def write_until_the_end(path: str, content: bytes) -> None:
        if (end.endswith("second image") and written_paths) or end.endswith(f" {Path(path).name}"):
            raise KeyboardInterrupt
        write_bytes(path, content)
        written_paths.append(Path(path))

    monkeypatch.setattr("kp_ray.store.export.write_bytes", write_until_the_end)
    if end == "damaged image":
        damage_stored_image(Path(sample_config.path("store", last_part.path)), last_part.num_rows - 1)
    with pytest.raises(StorageError if end == "damaged image" else KeyboardInterrupt):
        export_store(sample_config, str(folder))
    assert written_paths
    assert written_paths[0].is_relative_to(folder)
    assert not list(folder.iterdir())


def test_yolo_labels_are_written_on_request(tmp_path: Path) -> None:
    write_small_store(tmp_path / "run" / "store")
    summary = export_store(tiny_config({}, tmp_path / "run"), str(tmp_path / "out"), split="val", yolo=True)
    assert summary == ExportSummary(3, str(tmp_path / "out"))
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 3


def test_an_export_that_fails_while_writing_labels_leaves_a_folder_that_can_be_used_again(
    store_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"

    def fail(path: str) -> int:
        (folder / "labels").mkdir()
        raise StorageError(f"{path}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr("kp_ray.store.export.write_yolo", fail)
        with pytest.raises(StorageError, match="no space left"):
            export_store(store_config, str(folder), split="val", yolo=True)
    assert not list(folder.iterdir())
    assert export_store(store_config, str(folder), split="val", yolo=True).images > 0
