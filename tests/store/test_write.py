"""The store on a real Ray cluster: what it holds, that a re-run does only what is missing, and what verify finds."""

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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kp_ray.config.schema import Config
from kp_ray.data.load import load_annotations
from kp_ray.errors import KpRayError
from kp_ray.storage import read_parquet
from kp_ray.store import parts, write
from kp_ray.store.export import export_store
from kp_ray.store.manifest import read_manifest
from kp_ray.store.plan import plan
from kp_ray.store.read import iter_rows, read_table, select_parts
from kp_ray.store.verify import verify_store
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


def digests(config: Config) -> dict[str, str]:
    return {part.path: part.sha256 for part in read_manifest(config.path("store")).parts}


def files(config: Config) -> set[str]:
    root = Path(config.path("store"))
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {".lock"}


@pytest.fixture(scope="module")
def written(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Config:
    config = tiny_config(sample_data, tmp_path_factory.mktemp("written"))
    write_store(plan(config))
    return config


def test_rows_are_every_copy_of_every_recipe_and_validation_has_only_originals(written: Config) -> None:
    table = read_table(written.path("store")).to_pandas()
    labels = load_annotations(written.require_input("annotations"))
    validation = set(table[table.split == "val"].source)
    assert 0 < len(validation) < len(labels)
    for image in labels.images:
        rows = table[table.source == image]
        variants = sorted(zip(rows.recipe, rows["copy"], strict=True))
        both = [("Original", 0), ("Rotate45_CenterCrop", 0), ("Rotate45_CenterCrop", 1)]
        assert variants == (both[:1] if image in validation else both)
    copies = table[table.recipe == "Rotate45_CenterCrop"].groupby("source").image.nunique()
    assert (copies == 2).all()  # a recipe listed twice gives two different pictures
    scenes = table.groupby("scene").split.nunique()
    assert (scenes == 1).all()


def test_stored_keypoints_are_the_affine_applied_to_the_labels(written: Config) -> None:
    labels = load_annotations(written.require_input("annotations"))
    truth = dict(zip(labels.images, labels.keypoints, strict=True))
    for row in iter_rows(written.path("store"), split="train"):
        affine = np.array(row["affine"]).reshape(2, 3)
        expected = truth[row["source"]][:, :2] @ affine[:, :2].T + affine[:, 2]
        stored = np.array(row["keypoints"]).reshape(-1, 3)
        np.testing.assert_allclose(stored[:, :2], expected, atol=1e-3)
        inside = (stored[:, :2] >= 0).all(axis=1) & (stored[:, :2] < [row["width"], row["height"]]).all(axis=1)
        assert ((stored[:, 2] > 0) == inside).all()


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(written: Config, tmp_path: Path) -> None:
    again = tiny_config(written.data.model_dump(), tmp_path / "again")
    write_store(plan(again))
    assert digests(again) == digests(written)
    other = tiny_config(written.data.model_dump(), tmp_path / "other", seed=7, split={"fraction": 0.25, "seed": 42})
    write_store(plan(other))
    assert not set(digests(other).values()) & set(digests(written).values())


def test_a_second_run_writes_nothing(tiny: Config) -> None:
    first = write_store(plan(tiny))
    before = {path: os.stat(tiny.path("store", path)).st_mtime_ns for path in files(tiny)}
    second = write_store(plan(tiny))
    assert first["parts_written"] > 0
    assert second["parts_written"] == 0
    assert {path: os.stat(tiny.path("store", path)).st_mtime_ns for path in files(tiny)} == before


def test_an_added_recipe_writes_only_that_recipe_and_a_dropped_one_goes(tiny: Config) -> None:
    write_store(plan(tiny))
    before = digests(tiny)
    more = tiny_config(
        tiny.data.model_dump(),
        Path(tiny.run_dir),
        augment={"recipes": ["Original", "RandomCrop_1"], "sources_per_part": 4},
    )
    result = write_store(plan(more))
    after = digests(more)
    assert {path.split("/")[0] for path in set(after) - set(before)} == {"recipe=RandomCrop_1"}
    assert result["parts_kept"] == sum(path.startswith("recipe=Original") for path in before)
    assert not any("Rotate45" in path for path in files(more))


def test_parts_of_a_run_without_a_manifest_are_taken_up(tiny: Config) -> None:
    write_store(plan(tiny))
    before = digests(tiny)
    kept = {path: os.stat(tiny.path("store", path)).st_mtime_ns for path in before}
    os.remove(tiny.path("store", "manifest.json"))
    lost = next(path for path in before if "Rotate45" in path)
    os.truncate(tiny.path("store", lost), 100)
    write_store(plan(tiny))
    assert digests(tiny) == before
    now = {path: os.stat(tiny.path("store", path)).st_mtime_ns for path in before}
    assert {path for path in before if now[path] != kept[path]} == {lost}


def test_verify_finds_a_flipped_byte_and_augment_mends_it(tiny: Config) -> None:
    write_store(plan(tiny))
    before = digests(tiny)
    assert verify_store(plan(tiny)) == []
    victim = sorted(before)[0]
    with open(tiny.path("store", victim), "r+b") as part:
        part.seek(5000)
        byte = part.read(1)[0]
        part.seek(5000)
        part.write(bytes([byte ^ 1]))
    problems = verify_store(plan(tiny))
    assert len(problems) == 1
    assert victim in problems[0]
    assert write_store(plan(tiny))["parts_written"] == 1
    assert digests(tiny) == before
    assert verify_store(plan(tiny)) == []


def test_a_store_with_unlabelled_points_verifies(sample_data: dict[str, Any], tmp_path: Path) -> None:
    header, *rows = Path(sample_data["annotations"]).read_text().splitlines()
    blanked = [",".join([*row.split(",")[:5], "", "", *row.split(",")[7:]]) for row in rows]
    (tmp_path / "labels.csv").write_text("\n".join([header, *blanked]) + "\n")
    config = tiny_config({**sample_data, "annotations": str(tmp_path / "labels.csv")}, tmp_path / "run")
    write_store(plan(config))
    assert np.isnan(read_table(config.path("store"), columns=["keypoints"])["keypoints"].to_pylist()).any()
    assert verify_store(plan(config)) == []


def test_unusable_images_are_quarantined_with_the_reason_and_come_back_when_mended(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = load_annotations(sample_data["annotations"]).images
    for name in names:
        (images / name).write_bytes(Path(sample_data["images"], name).read_bytes())
    whole = (images / names[0]).read_bytes()
    (images / names[0]).write_bytes(whole[: len(whole) // 2])
    (images / names[1]).write_bytes(b"")
    (images / names[2]).unlink()
    config = tiny_config({**sample_data, "images": str(images)}, tmp_path / "run")
    assert write_store(plan(config))["quarantined"] == 3
    table = pq.read_table(config.path("store", "quarantine.parquet")).to_pylist()
    reasons = {row["source"]: row["reason"] for row in table}
    assert "decoded" in reasons[names[0]]
    assert reasons[names[1]] == "the file is empty"
    assert reasons[names[2]] == "there is no such file"
    assert not set(read_table(config.path("store"), columns=["source"])["source"].to_pylist()) & set(names[:3])
    for name in names[:3]:
        (images / name).write_bytes(Path(sample_data["images"], name).read_bytes())
    assert write_store(plan(config))["quarantined"] == 0
    assert len(set(read_table(config.path("store"), columns=["source"])["source"].to_pylist())) == len(names)


def test_a_recipe_that_some_sources_refuse_leaves_their_other_rows_whenever_it_is_added(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = load_annotations(sample_data["annotations"]).images
    for name in names:
        (images / name).write_bytes(Path(sample_data["images"], name).read_bytes())
    small = names[0]
    Image.new("RGB", (96, 54)).save(images / small)  # smaller than the crop
    (images / names[1]).write_bytes(b"")
    crop = json.dumps(albumentations.to_dict(albumentations.CenterCrop(height=100, width=100)))
    data = {**sample_data, "images": str(images)}

    def made(folder: str, recipes: list[str]) -> Config:
        augment = {"recipes": recipes, "user_recipes": {"crop": json.loads(crop)}}
        config = tiny_config(data, tmp_path / folder, augment=augment, split={"fraction": 0})
        done = write_store(plan(config))
        assert (done["sources"], done["quarantined"]) == (11, 2 if "crop" in recipes else 1)
        return config

    made("grown", ["Original"])
    grown, at_once = made("grown", ["Original", "crop"]), made("at_once", ["Original", "crop"])
    assert digests(grown) == digests(at_once)
    assert read_manifest(grown.path("store")) == read_manifest(at_once.path("store"))
    rows = read_table(grown.path("store"), columns=["source", "recipe"]).to_pylist()
    assert [row["recipe"] for row in rows if row["source"] == small] == ["Original"]
    assert len(rows) == 11 + 10
    quarantined = {(q.source, q.stage) for q in read_manifest(grown.path("store")).quarantined}
    assert quarantined == {(small, "recipe=crop"), (names[1], "read")}
    assert verify_store(plan(grown)) == []
    made("grown", ["Original"])
    assert {q.source for q in read_manifest(grown.path("store")).quarantined} == {names[1]}


def test_what_storage_would_not_give_for_a_moment_is_tried_again(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(tiny)
    run, real = planned.runs[0], parts.filesystem
    lost = run.sources[0].name

    class Refusing:
        def open_input_file(self, path: str) -> None:
            raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(parts, "filesystem", lambda path: (Refusing(), path) if path.endswith(lost) else real(path))
    records, quarantined = write._make_parts(planned, run.sources, run.parts)
    assert [(q.source, q.stage) for q in quarantined] == [(lost, "open")]
    monkeypatch.undo()
    unfinished = write.build_manifest(
        replace(planned, runs=(run,)), {record.path: record for record in records}, quarantined
    )
    write.write_manifest(planned.store, unfinished)
    assert not write.is_finished(replace(planned, runs=(run,)))
    done = write_store(planned)
    assert (done["sources"], done["quarantined"], done["parts_kept"]) == (12, 0, 0)
    assert verify_store(planned) == []


def test_images_that_are_not_where_the_config_says_cost_no_part(
    sample_data: dict[str, Any], tiny: Config, tmp_path: Path
) -> None:
    write_store(plan(tiny))
    made = {path: path.stat().st_mtime_ns for path in Path(tiny.path("store")).rglob("*.parquet")}
    (tmp_path / "empty").mkdir()
    elsewhere = tiny_config({**sample_data, "images": str(tmp_path / "empty")}, Path(tiny.run_dir))
    with pytest.raises(KpRayError, match="not there any more, and the store holds its variants"):
        write_store(plan(elsewhere))
    Path(tiny.path("store", "manifest.json")).unlink()
    with pytest.raises(KpRayError, match="none of the 12 sources could be used"):
        write_store(plan(elsewhere))
    done = write_store(plan(tiny))
    assert done["sources"] == 12
    parts = {path: at for path, at in made.items() if path.name != "quarantine.parquet"}
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_an_image_that_has_gone_takes_nothing_from_the_store(sample_data: dict[str, Any], tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(sample_data["images"], images)
    config = tiny_config({**sample_data, "images": str(images)}, tmp_path / "run")
    write_store(plan(config))
    before = {path: (tmp_path / "run" / "store" / path).read_bytes() for path in files(config)}
    gone = load_annotations(sample_data["annotations"]).images[5]
    (images / gone).rename(tmp_path / "aside.jpg")
    with pytest.raises(KpRayError, match=f"{gone}: not there any more.*1 labelled images are missing in all"):
        write_store(plan(config))
    assert {path: (tmp_path / "run" / "store" / path).read_bytes() for path in files(config)} == before
    (tmp_path / "fixes.csv").write_text(f"image,action\n{gone},drop\n")
    dropped = tiny_config(
        {**sample_data, "images": str(images), "corrections": str(tmp_path / "fixes.csv")}, tmp_path / "run"
    )
    done = write_store(plan(dropped))
    assert (done["sources"], done["quarantined"]) == (11, 0)
    (tmp_path / "aside.jpg").rename(images / gone)
    write_store(plan(config))
    assert {path: (tmp_path / "run" / "store" / path).read_bytes() for path in files(config)} == before


def test_corrections_reach_the_rows_and_remake_their_own_parts_alone(tiny: Config, tmp_path: Path) -> None:
    write_store(plan(tiny))
    before = digests(tiny)
    labels = load_annotations(tiny.require_input("annotations"))
    validating = set(read_table(tiny.path("store"), split="val", columns=["source"])["source"].to_pylist())
    drop, move = [image for image in labels.images if image not in validating][:2]
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(f"image,action,keypoint,x,y\n{drop},drop,,,\n{move},point,nose,12.5,34.25\n")
    fixed = tiny_config({**tiny.data.model_dump(), "corrections": str(fixes)}, Path(tiny.run_dir))
    write_store(plan(fixed))
    rows = [row for row in iter_rows(fixed.path("store"), split="train") if row["recipe"] == "Original"]
    assert drop not in {row["source"] for row in rows}
    (moved,) = [row for row in rows if row["source"] == move]
    assert moved["keypoints"][:2] == [12.5, 34.25]
    per_part = tiny.augment.sources_per_part
    touched = {f"part-{labels.images.index(image) // per_part:05d}" for image in (drop, move)}
    changed = set(before) ^ set(digests(fixed))
    assert changed
    assert {path.split("/")[1][:10] for path in changed} == touched
    assert verify_store(plan(fixed)) == []


def test_an_edited_user_recipe_writes_only_that_recipe(tiny: Config) -> None:
    def made(limit: float) -> dict[str, str]:
        step = albumentations.to_dict(albumentations.Rotate(limit=(limit, limit), p=1))
        augment = {"recipes": ["Original", "mine"], "user_recipes": {"mine": step}, "sources_per_part": 4}
        config = tiny_config(tiny.data.model_dump(), Path(tiny.run_dir), augment=augment)
        write_store(plan(config))
        assert files(config) == {*digests(config), "manifest.json", "quarantine.parquet"}
        return digests(config)

    before, after = made(10), made(20)
    assert {path.split("/")[0] for path in set(before) ^ set(after)} == {"recipe=mine"}
    assert not {before[path] for path in set(before) - set(after)} & set(after.values())


def test_an_image_that_the_workers_node_does_not_see_is_tried_again(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(sample_data["images"], images)
    config = tiny_config({**sample_data, "images": str(images)}, tmp_path / "run")
    planned = plan(config)
    lost = planned.runs[0].sources[0].name
    (images / lost).rename(tmp_path / "aside.jpg")
    assert write_store(planned)["quarantined"] == 1
    (row,) = pq.read_table(config.path("store", "quarantine.parquet")).to_pylist()
    assert (row["source"], row["stage"]) == (lost, "open")
    assert "the images must be where all nodes see them" in row["reason"]
    (tmp_path / "aside.jpg").rename(images / lost)
    assert write_store(plan(config))["quarantined"] == 0


def test_parts_written_where_this_machine_does_not_see_them_are_no_finished_store(tiny: Config) -> None:
    def lose_the_last(done: int, total: int) -> None:
        if done == total:
            next(iter(Path(tiny.path("store")).rglob("part-*.parquet"))).unlink()

    with pytest.raises(KpRayError, match="run_dir must be a folder that all nodes share"):
        write_store(plan(tiny), lose_the_last)
    assert not write.is_finished(plan(tiny))
    assert write_store(plan(tiny))["parts_written"] == 1


def test_names_in_any_script_and_case_keep_apart(sample_data: dict[str, Any], tmp_path: Path) -> None:
    header, *rows = Path(sample_data["annotations"]).read_text().splitlines()
    names = ["A B/001_A-1.jpg", "A B/001_a-1.jpg", "사람 하나_A-2.jpg", "ab_A-3.JPG", "ab_A-3.jpg", "ü#%?_B-4.jpg"]
    lines = [header]
    for name, row in zip(names, rows, strict=False):
        image, labels = row.split(",", 1)
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(sample_data["images"], image), tmp_path / "images" / name)
        lines.append(f"{name},{labels}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {**sample_data, "annotations": str(tmp_path / "labels.csv"), "images": str(tmp_path / "images")}
    config = tiny_config(data, tmp_path / "run", split={"fraction": 0}, augment={"recipes": ["Original"]})
    assert write_store(plan(config))["quarantined"] == 0
    stored = {row["source"]: row["image"] for row in iter_rows(config.path("store"), split="train")}
    assert stored == {name: (tmp_path / "images" / name).read_bytes() for name in names}
    assert verify_store(plan(config)) == []


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tiny: Config) -> None:
    script = (
        "import sys, time\nfrom kp_ray.store import writer_lock\n"
        f"with writer_lock({tiny.path('store')!r}):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(KpRayError, match="another process is writing"):
        write_store(plan(tiny))
    holder.kill()
    holder.wait()
    assert write_store(plan(tiny))["parts_written"] > 0


def test_reading_refuses_what_is_not_there(tiny: Config, written: Config, tmp_path: Path) -> None:
    with pytest.raises(KpRayError, match="no finished store"):
        read_manifest(tiny.path("store"))
    with pytest.raises(KpRayError, match="holds no recipe 'Rotate90'"):
        select_parts(written.path("store"), recipes=["Rotate90"])
    damaged = tmp_path / "manifest.json"
    damaged.write_text('{"schema_version": 2, "kp_ray"')
    with pytest.raises(KpRayError, match="damaged"):
        read_manifest(str(tmp_path))
    damaged.write_text('{"schema_version": 1, "kp_ray"')
    with pytest.raises(KpRayError, match="older kp_ray"):
        read_manifest(str(tmp_path))
    damaged.write_text('{"schema_version": 99}')
    with pytest.raises(KpRayError, match="newer kp_ray"):
        read_manifest(str(tmp_path))


def test_a_store_with_a_scene_on_both_sides_is_refused(tiny: Config) -> None:
    write_store(plan(tiny))
    path = Path(tiny.path("store", "manifest.json"))
    manifest = json.loads(path.read_text())
    leaked = manifest["units"]["val"][0]
    manifest["units"]["train"].append(leaked)
    path.write_text(json.dumps(manifest))
    with pytest.raises(KpRayError, match=f"{leaked} is both trained on and validated on"):
        select_parts(tiny.path("store"), split="train")


def test_a_recipe_larger_than_the_frame_is_refused_on_request(sample_data: dict[str, Any], tmp_path: Path) -> None:
    recipes = ["Original", "CenterCrop_1"]
    strict = tiny_config(sample_data, tmp_path / "run", augment={"oversize": "error", "recipes": recipes})
    write_store(plan(strict))
    manifest = read_manifest(strict.path("store"))
    assert manifest.num_variants == manifest.num_sources == 12, "the whole frames are there"
    refused = [q for q in manifest.quarantined if q.stage == "recipe=CenterCrop_1"]
    assert len(refused) == len(manifest.quarantined) == manifest.num_rows_by_split["train"]
    assert all("crops 1280x720 px, larger than the 320x180 px frame" in q.reason for q in refused)


def test_export_opens_in_pycocotools_and_reads_back_equal(written: Config, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    result = export_store(written, str(tmp_path / "out"), split="val")
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    assert len(coco.imgs) == result["images"] == read_manifest(written.path("store")).num_rows_by_split["val"]
    from_json = load_annotations(str(tmp_path / "out" / "annotations.json"))
    from_csv = load_annotations(str(tmp_path / "out" / "annotations.csv"))
    assert from_json.images == from_csv.images
    rows = list(iter_rows(written.path("store"), split="val"))
    stored = np.stack([np.array(row["keypoints"]).reshape(-1, 3)[:, :2] for row in rows])
    np.testing.assert_allclose(from_csv.keypoints[:, :, :2], stored, atol=1e-4)
    for name in from_csv.images:
        assert (tmp_path / "out" / "images" / name).stat().st_size > 0
    every = read_table(written.path("store"), columns=["recipe"])["recipe"].to_pylist()
    one = export_store(written, str(tmp_path / "one"), recipes=["Rotate45_CenterCrop"])
    assert one["images"] == every.count("Rotate45_CenterCrop") < len(every)
    with pytest.raises(KpRayError, match="holds images already"):
        export_store(written, str(tmp_path / "one"))


def test_export_leaves_labels_of_ones_own_alone(written: Config, tmp_path: Path) -> None:
    for name in ("annotations.csv", "annotations.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(KpRayError, match=f"holds {name} already"):
            export_store(written, str(folder))
        assert [(one.name, one.read_text()) for one in folder.iterdir()] == [(name, "mine")]


def test_validation_rows_can_be_chosen_where_no_one_asked_for_originals(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path, augment={"recipes": ["RandomCrop_1"]})
    write_store(plan(config))
    (path,) = {os.path.dirname(path) for path in select_parts(config.path("store"), split="val")[1]}
    assert path.endswith("recipe=Original")
    assert select_parts(config.path("store"), split="val", recipes=["Original"])[1]


def test_the_manifest_counts_what_the_parts_hold(written: Config) -> None:
    manifest = json.loads(Path(written.path("store", "manifest.json")).read_text())
    rows = {part["path"]: pq.read_metadata(written.path("store", part["path"])).num_rows for part in manifest["parts"]}
    assert {part["path"]: part["num_rows"] for part in manifest["parts"]} == rows
    assert manifest["num_variants"] == sum(rows.values()) == sum(manifest["num_rows_by_split"].values())
    metadata = pq.read_metadata(written.path("store", manifest["parts"][0]["path"])).metadata
    assert json.loads(metadata[b"kp_ray"])["skeleton"] == manifest["skeleton"]


@pytest.mark.parametrize("text", [b"s0_A-0.jpg", b"image"], ids=["value", "column"])
def test_text_that_is_none_is_damage_also_in_a_file_without_checksums(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    pq.write_table(
        pa.table({"image": ["s0_A-0.jpg"]}), path, compression="none", use_dictionary=False, store_schema=False
    )
    path.write_bytes(path.read_bytes().replace(text, b"\xed" + text[1:]))
    with pytest.raises(KpRayError, match=r"predictions\.parquet: damaged: .*; delete it") as said:
        read_parquet(str(path), "delete it")
    assert "\n" not in str(said.value)
