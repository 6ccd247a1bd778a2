"""A finished store that something has damaged: found, told in one line, and made whole without touching the rest."""

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
from kp_ray.store.manifest import SCHEMA_VERSION, read_manifest
from kp_ray.store.plan import plan
from kp_ray.store.read import RowReader, iter_rows, read_table
from kp_ray.store.verify import verify_store
from kp_ray.store.write import write_store
from kp_ray.training.dataloader import usable_rows
from tests.helpers.data import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")

CUTS: dict[str, Callable[[int], int]] = {
    "nothing left": lambda size: 0,
    "in the first magic bytes": lambda size: 3,
    "in the first picture": lambda size: 2000,
    "in the middle": lambda size: size // 2,
    "in the footer": lambda size: size - 700,
    "in the footer's length": lambda size: size - 6,
    "the last byte": lambda size: size - 1,
}


@pytest.fixture(scope="module")
def made(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A store that every test damages and makes whole again."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("made") / "run")
    Path(config.run_dir).mkdir(parents=True)
    write_store(plan(config))
    Path(config.path("config.yaml")).write_text(config.to_yaml())
    return config


def digests(config: Config) -> dict[str, str]:
    root = Path(config.path("store"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.*")}


def victim(config: Config) -> Path:
    """A part that is trained on."""
    part = next(p for p in read_manifest(config.path("store")).parts if p.recipe == "Original" and p.split == "train")
    return Path(config.path("store", part.path))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a verb ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("kp-ray: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("cut", CUTS)
def test_a_part_cut_short_is_told_by_every_reader_and_made_anew(
    cut: str, made: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, part = digests(made), victim(made)
    os.truncate(part, CUTS[cut](part.stat().st_size))
    readers: list[Callable[[], Any]] = [
        lambda: read_table(made.path("store")),
        lambda: list(iter_rows(made.path("store"), split="train")),
        lambda: RowReader(["image"]).read(str(part), 0),
        lambda: usable_rows(made, made.train.members[0]),
    ]
    for reader in readers:
        with pytest.raises(KpRayError, match=r"damaged.*run verify, then augment") as told:
            reader()
        assert str(part) in str(told.value)
        assert "\n" not in str(told.value)
    assert str(part) in said(capsys, "export", made.path("config.yaml"), "--folder", str(tmp_path / "out"))
    assert not list(tmp_path.rglob("*.jpg")), "no half of an export"
    problems = verify_store(plan(made))
    assert [problem.split(":")[0] for problem in problems] == [str(part.relative_to(made.path("store")))]
    assert write_store(plan(made))["parts_written"] == 1
    assert digests(made) == before


def test_a_part_cut_short_is_made_anew_without_verify(made: Config) -> None:
    before, part = digests(made), victim(made)
    os.truncate(part, part.stat().st_size // 2)
    assert write_store(plan(made))["parts_written"] == 1
    assert digests(made) == before


@pytest.mark.parametrize("share", np.linspace(0, 1, 12).round(2).tolist())
def test_a_flipped_bit_anywhere_is_found(share: float, made: Config) -> None:
    before, part = digests(made), victim(made)
    whole = list(iter_rows(made.path("store"), split="train"))
    content = bytearray(part.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    part.write_bytes(content)
    told, rows = "", []
    try:
        rows = list(iter_rows(made.path("store"), split="train"))
    except KpRayError as error:
        told = str(error)
    assert str(part) in told or str(rows) == str(whole), "a reader refuses it, unless no row depends on it"
    assert len(verify_store(plan(made))) == 1
    assert write_store(plan(made))["parts_written"] == 1
    assert digests(made) == before


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_manifest_cut_short_is_told_and_costs_no_part(
    share: float, made: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before, manifest = digests(made), Path(made.path("store", "manifest.json"))
    written = {path: path.stat().st_mtime_ns for path in Path(made.path("store")).rglob("part-*")}
    os.truncate(manifest, int(share * manifest.stat().st_size))
    for verb in ("verify", "augment", "train"):
        assert "damaged; delete this file and run augment again" in said(capsys, verb, made.path("config.yaml"))
    manifest.unlink()
    write_store(plan(made))
    assert digests(made) == before
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_store_of_a_newer_schema_is_left_alone(made: Config, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Path(made.path("store", "manifest.json"))
    ours = manifest.read_text()
    values = json.loads(ours)
    manifest.write_text(json.dumps({**values, "schema_version": SCHEMA_VERSION + 1, "unheard_of": [1]}))
    theirs = digests(made)
    for verb in ("verify", "augment", "train"):
        assert "update kp_ray" in said(capsys, verb, made.path("config.yaml"))
    assert digests(made) == theirs
    manifest.write_text(ours)
