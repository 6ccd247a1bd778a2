"""Whatever a file holds, its reader gives a sound result or one clear line.

Every example is a valid file with a few wounds: bytes flipped, cut, doubled, or tokens put in that files trip over.
`make test` tries a few of each; `make test-faults` tries thousands.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kp_ray.config.load import build_config, load_config
from kp_ray.config.schema import Config
from kp_ray.data.annotations import check_image_name
from kp_ray.data.coco_format import to_coco
from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations
from kp_ray.data.submission import read_sample_submission, read_submission
from kp_ray.errors import KpRayError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.images import list_image_refs
from kp_ray.prediction.predictions import read_predictions
from kp_ray.store.manifest import (
    SCHEMA_VERSION,
    Manifest,
    PartRecord,
    Quarantined,
    RecipeRecord,
    read_manifest,
    write_manifest,
)
from tests.helpers.predictions import write_prediction_arrays

TOKENS = [
    *(b"", b",", b"\n", b"\r", b"\r\n", b'"', b"'", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-0", b"1_0", b"0x10", b"1e-320", b"9" * 400, b"2001-99-99", b"1:2"),
    *(b"../", b"/", b"\\", b"C:", "한글".encode(), b"\xed\xa0\x80", b'"\\ud800"'),
    *(b"{", b"}", b"[", b"]", b":", b"- ", b"#", b"&a ", b"*a", b"<<: ", b"null", b"true", b"~", b"[" * 2000),
    *(b"!!python/object:os.system ", b'"image"', b"image", b"_x", b"_y", b"nose_x", b"schema_version"),
]


@st.composite
def wounds(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` after one to six wounds."""
    for _ in range(draw(st.integers(1, 6))):
        first, last = sorted(draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
        last = min(last, first + draw(st.sampled_from([1, 8, 100, len(content)])))
        kind = draw(st.sampled_from(["flip", "cut", "double", "token", "end", "swap"]))
        if kind == "flip" and first < len(content):
            content = content[:first] + bytes([content[first] ^ (1 << draw(st.integers(0, 7)))]) + content[first + 1 :]
        elif kind == "cut":
            content = content[:first] + content[last:]
        elif kind == "double":
            content = content[:last] + content[first:]
        elif kind == "token":
            content = content[:first] + draw(st.sampled_from(TOKENS)) + content[first:]
        elif kind == "end":
            content = content[:first]
        elif kind == "swap":
            content = content[:first] + content[last:] + content[first:last]
    return content


def labels_csv() -> bytes:
    points = np.random.default_rng(0).uniform(5, 60, (3, len(DACON24), 2)).round(1)
    rows = [",".join(["image", *DACON24.columns])]
    rows += [f"s{i}_A-{i}.jpg," + ",".join(map(str, one.ravel())) for i, one in enumerate(points)]
    return ("\n".join(rows) + "\n").encode()


def labels_of(content: bytes, folder: Path) -> Any:
    path = folder / "labels.csv"
    path.write_bytes(content)
    return load_annotations(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    (made / "whole.csv").write_bytes(labels_csv())
    return made


def sound_labels(path: str) -> None:
    labels = load_annotations(path)
    assert len(set(labels.images)) == len(labels.images) == len(labels.keypoints) > 0
    assert [check_image_name(image, path) for image in labels.images] == list(labels.images)
    xy, v = labels.keypoints[..., :2], labels.keypoints[..., 2]
    assert not np.isinf(xy).any()
    assert (np.isfinite(xy).all(axis=2) == (v > 0)).all()
    assert (np.isnan(xy[..., 0]) == np.isnan(xy[..., 1])).all()
    again = Path(path).with_suffix(".again.csv")
    again.write_bytes(to_csv(labels))
    if labels.skeleton == DACON24:
        np.testing.assert_array_equal(load_annotations(str(again)).keypoints[..., :2], xy)


def sound_corrections(path: str) -> None:
    labels = load_annotations(str(Path(path).with_name("whole.csv")), corrections=path)
    assert set(labels.images) <= {"s0_A-0.jpg", "s1_A-1.jpg", "s2_A-2.jpg"}


def sound_config(path: str) -> None:
    config = load_config(path)
    assert build_config(yaml.safe_load(config.to_yaml())) == config


def sound_manifest(path: str) -> None:
    manifest = read_manifest(str(Path(path).parent))
    assert manifest.schema_version <= SCHEMA_VERSION
    for part in manifest.parts:
        assert ".." not in part.path.split("/")
        assert not part.path.startswith("/")


def sound_form(path: str) -> None:
    form = read_sample_submission(path)
    assert len(set(form.images)) == len(form.images) > 0
    assert len(form.columns) == 2 * len(form.names) + 1


def sound_submission(path: str) -> None:
    form = read_sample_submission(str(Path(path).with_name("whole.csv")))
    points = read_submission(path, form, DACON24, size=(64, 64))
    assert points.shape == (3, 24, 2)
    assert math.isfinite(points.sum())
    assert np.abs(points).max() < 64 + 100


def sound_predictions(path: str) -> None:
    predictions = read_predictions(path)
    assert predictions.keypoints.shape == (2, 3, 24, 3)
    assert len(predictions.sizes) == len(predictions.reasons) == 3


def sound_list(path: str) -> None:
    folder = str(Path(path).parent)
    asked = list_image_refs(build_config({"data": {"test_images": folder}, "predict": {"images": path}}), None)
    names = [one.image for one in asked]
    assert len(set(names)) == len(names) > 0
    assert all(name.strip() and ".." not in name.split("/") for name in names)


def manifest_json(folder: Path) -> bytes:
    part = PartRecord(path="recipe=Original/part-0.parquet", recipe="Original", split="train", num_rows=3, num_bytes=9,
                      sha256="0" * 64)  # fmt: skip
    manifest = Manifest(
        kp_ray="0.1.0", seed=0, skeleton=DACON24.names,
        recipes=(RecipeRecord(name="Original", copies=1, fingerprint="x"),), num_sources=3, num_variants=3,
        num_rows_by_split={"train": 3, "val": 0}, units={"train": ("s0",), "val": ("s1",)}, parts=(part,),
        quarantined=(Quarantined(source="b.jpg", stage="read", reason="cut"),),
    )  # fmt: skip
    write_manifest(str(folder / "store"), manifest)
    return (folder / "store" / "manifest.json").read_bytes()


def predictions_parquet(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    images = [f"s{i}_A-{i}.jpg" for i in range(3)]
    write_prediction_arrays(str(path), ["a", "b"], images, np.full((2, 3, 24, 3), 5.0), DACON24.names)
    return path.read_bytes()


def whole(kind: str, folder: Path) -> bytes:
    """A valid file of a kind."""
    if kind in ("labels.csv", "form.csv", "submission.csv"):
        return labels_csv()
    if kind == "labels.json":
        return json.dumps(to_coco(labels_of(labels_csv(), folder), [(64, 64)] * 3)).encode()
    if kind == "corrections.csv":
        return b"image,action,keypoint,x,y\ns1_A-1.jpg,drop,,,\ns0_A-0.jpg,point,nose,7.5,8\n"
    if kind == "list.csv":
        return b"camera,image\nA,s0_A-0.jpg\nB,s1_B-1.jpg\n"
    if kind == "config.yaml":
        return Config().to_yaml().encode()
    if kind == "manifest.json":
        return manifest_json(folder)
    return predictions_parquet(folder)


SOUND: dict[str, Callable[[str], None]] = {
    "labels.csv": sound_labels,
    "labels.json": sound_labels,
    "corrections.csv": sound_corrections,
    "config.yaml": sound_config,
    "manifest.json": sound_manifest,
    "form.csv": sound_form,
    "submission.csv": sound_submission,
    "list.csv": sound_list,
    "predictions.parquet": sound_predictions,
}


HANG_MS = 60_000
"""A file of some kilobytes that takes so long is a hang, on the busiest machine."""


@pytest.mark.parametrize("kind", SOUND)
@settings(deadline=HANG_MS, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_wounded_file_is_read_soundly_or_refused_in_one_line(kind: str, folder: Path, data: st.DataObject) -> None:
    if not (folder / "store").exists():
        manifest_json(folder)
    path = folder / "wounded" / kind
    path.parent.mkdir(exist_ok=True)
    (path.parent / "whole.csv").write_bytes(labels_csv())
    path.write_bytes(data.draw(wounds(whole(kind, folder))))
    try:
        SOUND[kind](str(path))
    except KpRayError as error:
        told = str(error)
        assert "\n" not in told
        assert len(told) < 2000
        assert str(path.parent) in told


@pytest.mark.parametrize("kind", [kind for kind in SOUND if kind.endswith(".csv")])
def test_an_open_quote_before_much_text_is_one_line(kind: str, folder: Path) -> None:
    path = folder / "quoted" / kind
    path.parent.mkdir(exist_ok=True)
    (path.parent / "whole.csv").write_bytes(labels_csv())
    header, rest = whole(kind, folder).split(b"\n", 1)
    path.write_bytes(header + b'\n"' + rest + b"x" * 140_000)
    with pytest.raises(KpRayError) as said:
        SOUND[kind](str(path))
    assert str(path) in str(said.value)
    assert "\n" not in str(said.value)


def test_whole_files_are_read(folder: Path) -> None:
    manifest_json(folder)
    for kind, sound in SOUND.items():
        path = folder / "whole" / kind
        path.parent.mkdir(exist_ok=True)
        (path.parent / "whole.csv").write_bytes(labels_csv())
        path.write_bytes(whole(kind, folder))
        sound(str(path))
