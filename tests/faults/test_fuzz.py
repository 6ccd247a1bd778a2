"""Test that readers of damaged files return a valid result or refuse the file in one line.

Each example is a valid file with one to six changes: bits are flipped, bytes are removed, repeated or moved, or tokens
are inserted. `make test` tries a hundred examples of each kind of file, `make test-faults` thousands.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kp_ray.config.load import build_config, load_config
from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations, check_image_name
from kp_ray.data.coco_format import to_coco
from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations
from kp_ray.data.submission import MARGIN_PX, SampleSubmission, read_sample_submission, read_submission
from kp_ray.errors import KpRayError
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.prediction.images import ImageRef, list_image_refs
from kp_ray.prediction.predictions import Predictions, read_predictions
from kp_ray.store.manifest import (
    SCHEMA_VERSION,
    Manifest,
    PartRecord,
    Quarantined,
    RecipeRecord,
    read_manifest,
    write_manifest,
)
from tests.helpers.labels import make_labels
from tests.helpers.predictions import write_prediction_arrays

# Texts that parsers of CSV, numbers, paths, JSON and YAML often get wrong.
TOKENS = [
    *(b"", b",", b"\n", b"\r", b"\r\n", b'"', b"'", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-0", b"1_0", b"0x10", b"1e-320", b"9" * 400, b"2001-99-99", b"1:2"),
    *(b"../", b"/", b"\\", b"C:", "한글".encode(), b"\xed\xa0\x80", b'"\\ud800"'),
    *(b"{", b"}", b"[", b"]", b":", b"- ", b"#", b"&a ", b"*a", b"<<: ", b"null", b"true", b"~", b"[" * 2000),
    *(b"!!python/object:os.system ", b'"image"', b"image", b"_x", b"_y", b"nose_x", b"nose_v", b"schema_version"),
]


@st.composite
def damaged_content(draw: st.DrawFn, content: bytes) -> bytes:
    """Change `content` in one to six places."""
    for _ in range(draw(st.integers(1, 6))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
        end = min(end, start + draw(st.sampled_from([1, 8, 100, len(content)])))
        change = draw(st.sampled_from(["flip", "remove", "repeat", "insert", "truncate", "move"]))
        if change == "flip" and start < len(content):
            content = content[:start] + bytes([content[start] ^ (1 << draw(st.integers(0, 7)))]) + content[start + 1 :]
        elif change == "remove":
            content = content[:start] + content[end:]
        elif change == "repeat":
            content = content[:end] + content[start:]
        elif change == "insert":
            content = content[:start] + draw(st.sampled_from(TOKENS)) + content[start:]
        elif change == "truncate":
            content = content[:start]
        elif change == "move":
            content = content[:start] + content[end:] + content[start:end]
    return content


def make_labels_csv() -> bytes:
    """Make a native CSV of three images, which is also a valid sample submission and a valid submission."""
    points = np.random.default_rng(0).uniform(5, 60, (3, len(DACON24), 2)).round(1)
    rows = [",".join(["image", *DACON24.columns])]
    rows += [f"s{i}_A-{i}.jpg," + ",".join(map(str, pose.ravel())) for i, pose in enumerate(points)]
    return ("\n".join(rows) + "\n").encode()


def make_deeplabcut_csv() -> bytes:
    """Make a DeepLabCut CSV of two individuals with `likelihood`; three keypoints of the first have `visible` too."""
    coords = ("x", "y", "likelihood")
    columns = [(person, name, coord) for person in ("a", "b") for name in DACON24.names for coord in coords]
    columns += [("a", name, "visible") for name in DACON24.names[:3]]
    people, names, axes = zip(*columns, strict=True)
    header = [
        ("scorer", "", *["me"] * len(columns)),
        ("individuals", "", *people),
        ("bodyparts", "", *names),
        ("coords", "", *axes),
    ]
    numbers = np.random.default_rng(0).uniform(0, 60, (3, len(columns))).round(1)
    numbers[:, 2:-3:3] /= 60
    numbers[:, -3:] //= 20
    rows = [("video", f"img{i}.png", *map(str, row)) for i, row in enumerate(numbers.tolist())]
    return "".join(",".join(cells) + "\n" for cells in (*header, *rows)).encode()


def make_visible_csv() -> bytes:
    """Make a native CSV with columns of likelihood and visibility for two keypoints."""
    header, *rows = make_labels_csv().decode().splitlines()
    lines = [f"{header},nose_likelihood,nose_v,left_eye_visible"]
    lines += [f"{row},0.{8 - number},{number},{2 - number}" for number, row in enumerate(rows)]
    return "\n".join(lines).encode()


def make_people_json(folder: Path) -> bytes:
    """Make COCO JSON of three images, with several people, people without keypoints, a crowd, and the key `group`."""
    content = to_coco(load_csv_content(make_labels_csv(), folder), [(64, 64)] * 3)
    annotation = content["annotations"][0]
    without_keypoints = {key: value for key, value in annotation.items() if key != "keypoints"}
    content["annotations"] += [
        {**annotation, "id": 7, "image_id": 2},
        {**without_keypoints, "id": 8},
        {**annotation, "id": 9, "iscrowd": 1},
        {**annotation, "id": 10, "image_id": 3, "keypoints": None, "bbox": None},
    ]
    content["images"][0]["group"] = "kitchen"
    content["categories"].append({"id": 2, "name": "ball"})
    return json.dumps(content).encode()


def load_csv_content(content: bytes, folder: Path) -> Annotations:
    """Load labels from the bytes of a CSV."""
    path = folder / "labels.csv"
    path.write_bytes(content)
    return load_annotations(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "valid.csv").write_bytes(make_labels_csv())
    return path


def read_labels(path: str) -> Annotations:
    return load_annotations(path, people="largest")


def assert_valid_labels(path: str, labels: Annotations) -> None:
    assert len(labels.stated) in (0, len(labels))
    assert len(set(labels.images)) == len(labels.images) == len(labels.keypoints) > 0
    assert [check_image_name(image, path) for image in labels.images] == list(labels.images)
    xy, v = labels.keypoints[..., :2], labels.keypoints[..., 2]
    assert not np.isinf(xy).any()
    assert (np.isfinite(xy).all(axis=2) == (v > 0)).all()
    assert (np.isnan(xy[..., 0]) == np.isnan(xy[..., 1])).all()
    written_path = Path(path).with_suffix(".written.csv")
    written_path.write_bytes(to_csv(labels))
    if labels.skeleton == DACON24:
        written_labels = load_annotations(str(written_path))
        assert written_labels.images == labels.images
        np.testing.assert_array_equal(written_labels.keypoints[..., :2], xy)


def read_corrected_labels(path: str) -> Annotations:
    return load_annotations(str(Path(path).with_name("valid.csv")), corrections=path)


def assert_valid_corrections(path: str, labels: Annotations) -> None:
    assert set(labels.images) <= {"s0_A-0.jpg", "s1_A-1.jpg", "s2_A-2.jpg"}


def assert_valid_config(path: str, config: Config) -> None:
    assert build_config(yaml.safe_load(config.to_yaml())) == config


def read_manifest_file(path: str) -> Manifest:
    return read_manifest(str(Path(path).parent))


def assert_valid_manifest(path: str, manifest: Manifest) -> None:
    assert manifest.schema_version <= SCHEMA_VERSION
    for part in manifest.parts:
        assert ".." not in part.path.split("/")
        assert not part.path.startswith("/")


def assert_valid_sample_submission(path: str, sample: SampleSubmission) -> None:
    assert len(set(sample.images)) == len(sample.images) > 0
    assert len(sample.columns) == 2 * len(sample.names) + 1


def read_submitted_points(path: str) -> FloatArray:
    sample = read_sample_submission(str(Path(path).with_name("valid.csv")))
    return read_submission(path, sample, DACON24, size=(64, 64))


def assert_valid_submission(path: str, points: FloatArray) -> None:
    assert points.shape == (3, 24, 2)
    assert math.isfinite(points.sum())
    assert np.abs(points).max() < 64 + MARGIN_PX


def assert_valid_predictions(path: str, predictions: Predictions) -> None:
    assert predictions.keypoints.shape == (2, 3, 24, 3)
    assert len(predictions.sizes) == len(predictions.reasons) == 3


def read_image_list(path: str) -> list[ImageRef]:
    folder = str(Path(path).parent)
    Path(folder, "s0_A-0.jpg").touch()  # a list is refused if none of its images exists
    return list_image_refs(build_config({"data": {"test_images": folder}, "predict": {"images": path}}), None)


def assert_valid_image_list(path: str, refs: list[ImageRef]) -> None:
    names = [ref.image for ref in refs]
    assert len(set(names)) == len(names) > 0
    assert all(name.strip() and ".." not in name.split("/") for name in names)


def make_manifest_json(folder: Path) -> bytes:
    part = PartRecord(
        path="recipe-Original/part-0.parquet",
        recipe="Original",
        split="train",
        num_rows=3,
        num_bytes=9,
        sha256="0" * 64,
    )
    manifest = Manifest(
        kp_ray="0.1.0",
        seed=0,
        skeleton=DACON24.names,
        recipes=(RecipeRecord(name="Original", copies=1, fingerprint="x"),),
        num_sources=3,
        num_variants=3,
        num_rows_by_split={"train": 3, "val": 0},
        units={"train": ("s0",), "val": ("s1",)},
        parts=(part,),
        quarantined=(Quarantined(source="b.jpg", stage="read", reason="cut"),),
    )
    write_manifest(str(folder / "store"), manifest)
    return (folder / "store" / "_manifest.json").read_bytes()


def make_predictions_parquet(folder: Path) -> bytes:
    path = folder / "valid.parquet"
    images = [f"s{i}_A-{i}.jpg" for i in range(3)]
    write_prediction_arrays(str(path), ["a", "b"], images, np.full((2, 3, 24, 3), 5.0), DACON24.names)
    return path.read_bytes()


def make_valid_content(kind: str, folder: Path) -> bytes:
    """Make the content of a valid file of a kind."""
    if kind in ("labels.csv", "sample_submission.csv", "submission.csv"):
        return make_labels_csv()
    if kind == "labels.json":
        return json.dumps(to_coco(load_csv_content(make_labels_csv(), folder), [(64, 64)] * 3)).encode()
    if kind == "people.json":
        return make_people_json(folder)
    if kind == "visible.csv":
        return make_visible_csv()
    if kind == "deeplabcut.csv":
        return make_deeplabcut_csv()
    if kind == "corrections.csv":
        return b"image,action,keypoint,x,y\ns1_A-1.jpg,drop,,,\ns0_A-0.jpg,point,nose,7.5,8\n"
    if kind == "list.csv":
        return b"camera,image\nA,s0_A-0.jpg\nB,s1_B-1.jpg\n"
    if kind == "config.yaml":
        return Config().to_yaml().encode()
    if kind == "_manifest.json":
        return make_manifest_json(folder)
    return make_predictions_parquet(folder)


class FileKind(NamedTuple):
    """The reader of a kind of file, and a function that asserts that its result for a path is valid."""

    read: Callable[[str], Any]
    assert_valid: Callable[[str, Any], None]


FILE_KINDS = {
    "labels.csv": FileKind(read_labels, assert_valid_labels),
    "labels.json": FileKind(read_labels, assert_valid_labels),
    "people.json": FileKind(read_labels, assert_valid_labels),
    "deeplabcut.csv": FileKind(read_labels, assert_valid_labels),
    "visible.csv": FileKind(read_labels, assert_valid_labels),
    "corrections.csv": FileKind(read_corrected_labels, assert_valid_corrections),
    "config.yaml": FileKind(load_config, assert_valid_config),
    "_manifest.json": FileKind(read_manifest_file, assert_valid_manifest),
    "sample_submission.csv": FileKind(read_sample_submission, assert_valid_sample_submission),
    "submission.csv": FileKind(read_submitted_points, assert_valid_submission),
    "list.csv": FileKind(read_image_list, assert_valid_image_list),
    "predictions.parquet": FileKind(read_predictions, assert_valid_predictions),
}

HANG_MS = 60_000
"""Deadline for one example. Even on a busy machine, only a reader that hangs takes this long for a few kilobytes."""


@pytest.mark.parametrize("kind", FILE_KINDS)
@settings(deadline=HANG_MS, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_gives_a_valid_result_or_is_refused_in_one_line(
    kind: str, folder: Path, data: st.DataObject
) -> None:
    path = folder / "damaged" / kind
    path.parent.mkdir(exist_ok=True)
    (path.parent / "valid.csv").write_bytes(make_labels_csv())
    path.write_bytes(data.draw(damaged_content(make_valid_content(kind, folder))))
    try:
        result = FILE_KINDS[kind].read(str(path))
    except KpRayError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 2000
        assert str(path.parent) in message
        return
    FILE_KINDS[kind].assert_valid(str(path), result)


@pytest.mark.parametrize("kind", [kind for kind in FILE_KINDS if kind.endswith(".csv")])
def test_an_unclosed_quote_before_a_long_text_is_refused_in_one_line(kind: str, folder: Path) -> None:
    path = folder / "quoted" / kind
    path.parent.mkdir(exist_ok=True)
    (path.parent / "valid.csv").write_bytes(make_labels_csv())
    header, body = make_valid_content(kind, folder).split(b"\n", 1)
    path.write_bytes(header + b'\n"' + body + b"x" * 140_000)
    with pytest.raises(KpRayError) as caught:
        FILE_KINDS[kind].read(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_undamaged_files_are_valid(folder: Path) -> None:
    for kind, file_kind in FILE_KINDS.items():
        path = folder / "valid" / kind
        path.parent.mkdir(exist_ok=True)
        (path.parent / "valid.csv").write_bytes(make_labels_csv())
        path.write_bytes(make_valid_content(kind, folder))
        file_kind.assert_valid(str(path), file_kind.read(str(path)))


@given(names=st.lists(st.text("aé1 ,;:'\"#=@-_.()[]", max_size=9), min_size=1, max_size=4, unique=True))
@settings(deadline=HANG_MS, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_labels_written_as_csv_keep_names_with_separators_and_quotes(folder: Path, names: list[str]) -> None:
    images = [f"im{name}.jpg" for name in names]
    labels = make_labels(images, np.random.default_rng(0).uniform(0, 60, (len(images), len(DACON24), 2)))
    assert_valid_labels(str(folder / "names.csv"), labels)
