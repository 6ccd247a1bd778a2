"""Damage to a finished store is found, reported in one line, and repaired without a change to the other parts."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kp_ray.cli.main import main
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.storage import write_bytes
from kp_ray.store.manifest import SCHEMA_VERSION, read_manifest
from kp_ray.store.plan import make_plan
from kp_ray.store.read import RowReader, iter_rows, read_table
from kp_ray.store.verify import verify_store
from kp_ray.store.write import write_store
from kp_ray.training.rows import usable_rows
from tests.helpers.data import tiny_config
from tests.helpers.stores import damage_stored_image, training_part

pytestmark = pytest.mark.usefixtures("ray_cluster")

CUTS: dict[str, Callable[[int], int]] = {  # place of the cut -> size of a file after the cut, given its size before
    "nothing left": lambda size: 0,
    "in the first magic bytes": lambda size: 3,
    "in the first image": lambda size: 2000,
    "in the middle": lambda size: size // 2,
    "in the footer": lambda size: size - 700,
    "in the footer's length": lambda size: size - 6,
    "the last byte": lambda size: size - 1,
}


@pytest.fixture(scope="module")
def config(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Write a store, which every test of the module damages and repairs; return its config."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("stored") / "run")
    Path(config.run_dir).mkdir(parents=True)
    write_store(make_plan(config))
    Path(config.path("config.yaml")).write_text(config.to_yaml())
    return config


def file_digests(config: Config) -> dict[str, str]:
    """Return the SHA-256 of every file of a config's store, by path."""
    root = Path(config.path("store"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.*")}


def run_refused_verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a verb that must end with exit code 2 and one line of stderr; return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("kp-ray: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("cut", CUTS)
def test_every_reader_names_a_truncated_part_and_augment_rewrites_it(
    cut: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, part = file_digests(config), training_part(config)
    os.truncate(part, CUTS[cut](part.stat().st_size))
    readers: list[Callable[[], Any]] = [
        lambda: read_table(config.path("store")),
        lambda: list(iter_rows(config.path("store"), split="train")),
        lambda: RowReader(["image"]).read(str(part), 0),
        lambda: usable_rows(config, config.train.members[0]),
    ]
    for reader in readers:
        with pytest.raises(KpRayError, match=r"damaged.*run verify, then augment") as caught:
            reader()
        assert str(part) in str(caught.value)
    assert str(part) in run_refused_verb(
        capsys, "export", config.path("config.yaml"), "--folder", str(tmp_path / "out")
    )
    assert not (tmp_path / "out").exists(), "the labels are read before the first image is written"
    problems = verify_store(make_plan(config))
    assert [problem.split(":")[0] for problem in problems] == [str(part.relative_to(config.path("store")))]
    assert write_store(make_plan(config)).parts_written == 1
    assert file_digests(config) == expected


def test_augment_rewrites_a_truncated_part_without_verify(config: Config) -> None:
    expected, part = file_digests(config), training_part(config)
    os.truncate(part, part.stat().st_size // 2)
    assert write_store(make_plan(config)).parts_written == 1
    assert file_digests(config) == expected


@pytest.mark.parametrize("position", np.linspace(0, 1, 12).round(2).tolist())
def test_a_flipped_bit_anywhere_is_found(position: float, config: Config) -> None:
    expected, part = file_digests(config), training_part(config)
    expected_rows = list(iter_rows(config.path("store"), split="train"))
    content = bytearray(part.read_bytes())
    content[int(position * (len(content) - 1))] ^= 4
    part.write_bytes(content)
    message, rows = "", []
    try:
        rows = list(iter_rows(config.path("store"), split="train"))
    except KpRayError as error:
        message = str(error)
    assert str(part) in message or str(rows) == str(expected_rows), "the damaged part gave other rows without an error"
    assert len(verify_store(make_plan(config))) == 1
    assert write_store(make_plan(config)).parts_written == 1
    assert file_digests(config) == expected


def test_an_export_that_reaches_a_damaged_image_leaves_no_image(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, folder = file_digests(config), tmp_path / "out"
    *_, last_part = read_manifest(config.path("store")).parts
    part = Path(config.path("store", last_part.path))
    damage_stored_image(part, last_part.num_rows - 1)
    written_paths: list[str] = []

    def write_and_record(path: str, content: bytes) -> None:
        write_bytes(path, content)
        written_paths.append(path)

    monkeypatch.setattr("kp_ray.store.export.write_bytes", write_and_record)
    assert str(part) in run_refused_verb(capsys, "export", config.path("config.yaml"), "--folder", str(folder))
    assert len(written_paths) >= sum(record.num_rows for record in read_manifest(config.path("store")).parts[:-1])
    assert not list(folder.iterdir())
    assert len(verify_store(make_plan(config))) == 1
    assert write_store(make_plan(config)).parts_written == 1
    assert file_digests(config) == expected


@pytest.mark.parametrize("kept_fraction", [0, 0.02, 0.5, 0.99])
def test_a_truncated_manifest_is_refused_and_no_part_is_lost(
    kept_fraction: float, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, manifest = file_digests(config), Path(config.path("store", "_manifest.json"))
    written_ns = {path: path.stat().st_mtime_ns for path in Path(config.path("store")).rglob("part-*")}
    os.truncate(manifest, int(kept_fraction * manifest.stat().st_size))
    for verb in ("verify", "augment", "train"):
        assert "damaged: delete this file and run augment again" in run_refused_verb(
            capsys, verb, config.path("config.yaml")
        )
    manifest.unlink()
    write_store(make_plan(config))
    assert file_digests(config) == expected
    assert {path: path.stat().st_mtime_ns for path in written_ns} == written_ns


def test_a_store_of_a_newer_schema_is_refused_and_not_changed(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Path(config.path("store", "_manifest.json"))
    content = manifest.read_text()
    values = json.loads(content)
    manifest.write_text(json.dumps({**values, "schema_version": SCHEMA_VERSION + 1, "unknown": [1]}))
    expected = file_digests(config)
    for verb in ("verify", "augment", "train"):
        assert "update kp_ray" in run_refused_verb(capsys, verb, config.path("config.yaml"))
    assert file_digests(config) == expected
    manifest.write_text(content)
