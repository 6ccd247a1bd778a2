"""Labels in and out, and what the lint finds."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kp_ray.checks.findings import Finding, findings_table
from kp_ray.checks.images import check_images
from kp_ray.checks.labels import check_labels
from kp_ray.config.load import build_config
from kp_ray.data.annotations import Annotations, parse_name
from kp_ray.data.coco_format import to_coco
from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations, load_labels
from kp_ray.data.yolo_format import write_yolo
from kp_ray.errors import KpRayError
from kp_ray.images import list_images
from kp_ray.keypoints import DACON24, FloatArray

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real label files are not at {SHARED}")
K = len(DACON24)
HEADER = ",".join(["image", *DACON24.columns])
CELLS = ",".join(str(n) for n in range(2 * K))


def labels_of(names: list[str], xy: FloatArray) -> Annotations:
    seen = np.where(np.isfinite(xy[..., :1]), 2.0, 0.0)
    scenes, cameras, frames = zip(*map(parse_name, names), strict=True)
    return Annotations(DACON24, tuple(names), np.concatenate([xy, seen], axis=2), scenes, cameras, frames)


def person(seed: int = 0) -> FloatArray:
    """A standing person seen from the front, (K, 2), all points apart, left on the right-hand side."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-5, 5, (K, 2)) + np.array([900.0, 300.0])
    for index, name in enumerate(DACON24.names):
        xy[index, 0] += 60 if name.startswith("left_") else -60 if name.startswith("right_") else 0
        xy[index, 1] += 20 * index
    return xy


def clips(cameras: str = "A", num_frames: int = 9, step_px: float = 10.0) -> Annotations:
    """One scene in which the person walks right, seen by each camera with its own small noise."""
    names, poses = [], []
    for number, camera in enumerate(cameras):
        rng = np.random.default_rng(number)
        for frame in range(num_frames):
            names.append(f"walk_{camera}-{frame:07d}.jpg")
            poses.append(person() + np.array([step_px * frame, 0.0]) + rng.normal(0, 0.5, (K, 2)))
    return labels_of(names, np.array(poses))


def with_points(labels: Annotations, image: str, keypoints: FloatArray) -> Annotations:
    changed = labels.keypoints.copy()
    changed[labels.images.index(image)] = keypoints
    return replace(labels, keypoints=changed)


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.image) for finding in findings]


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str | bytes, name: str = "labels.csv") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return writer


# Names


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("001-1-1-01-Z17_A-0000001.jpg", ("001-1-1-01-Z17", "A", 1)),
        ("day1/001-1-1-01-Z17_E-0000031.png", ("day1/001-1-1-01-Z17", "E", 31)),
        ("lspet_im00004.jpg", ("lspet_im00004", "", -1)),
        ("a/b.jpg", ("a/b", "", -1)),
        ("a.b/c", ("a.b/c", "", -1)),
        ("IMG_20230101-0001.jpg", ("IMG_20230101-0001", "", -1)),
        ("x_A-" + "9" * 5000 + ".jpg", ("x_A-" + "9" * 5000, "", -1)),
    ],
)
def test_names_give_scene_camera_and_frame(image, expected):
    assert parse_name(image) == expected


# Reading and writing

coordinates = st.one_of(st.none(), st.floats(-1e6, 1e6, allow_subnormal=False))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=K, max_size=K), min_size=1, max_size=3))
def test_csv_reads_back_exactly_what_was_written(tmp_path_factory, people):
    xy = np.array([[(np.nan, np.nan) if None in point else point for point in one] for one in people], dtype=float)
    labels = labels_of([f"walk_A-{n}.jpg" for n in range(len(xy))], xy)
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    path.write_bytes(to_csv(labels))
    again = load_annotations(str(path))
    np.testing.assert_array_equal(again.keypoints, labels.keypoints)
    assert (again.images, again.scenes, again.cameras, again.frames) == (
        labels.images, labels.scenes, labels.cameras, labels.frames,
    )  # fmt: skip


def test_reordered_columns_bom_crlf_and_blank_lines_give_the_canonical_order(write):
    order = list(reversed(DACON24.columns))
    values = {column: str(number) for number, column in enumerate(DACON24.columns)}
    text = (
        "\ufeff" + ",".join([*order, "image"]) + "\r\n" + ",".join([*(values[c] for c in order), "a.jpg"]) + "\r\n\r\n"
    )
    labels = load_annotations(write(text))
    assert labels.skeleton == DACON24
    np.testing.assert_array_equal(labels.keypoints[0, :, :2].ravel(), np.arange(2 * K))
    assert (labels.keypoints[0, :, 2] == 2).all()


def test_a_group_column_replaces_the_scene_and_is_written_back(write):
    labels = load_annotations(write(f"group,{HEADER}\nkitchen,walk_A-1.jpg,{CELLS}\n,walk_A-2.jpg,{CELLS}\n"))
    assert labels.scenes == ("kitchen", "walk")
    assert labels.cameras == ("A", "A")
    assert load_annotations(write(to_csv(labels), "again.csv")).scenes == labels.scenes


def test_another_skeleton_needs_its_flip_pairs_and_sigmas(write):
    path = write("image,paw_l_x,paw_l_y,paw_r_x,paw_r_y\ncat.png,1,2,3,4\n")
    with pytest.raises(KpRayError, match=r"labels.csv: .*flip_pairs"):
        load_annotations(path)
    labels = load_annotations(path, flip_pairs=[("paw_l", "paw_r")], sigmas=[0.1, 0.1])
    assert labels.skeleton.names == ("paw_l", "paw_r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "no labelled image"),
        (HEADER.replace("image", "file") + "\n", "no `image` column: name"),
        (HEADER.replace(",", ";") + "\n", "separate the columns by commas"),
        (f"{HEADER},image\n", "'image' twice"),
        (f"{HEADER},age\n", "'age' is not known"),
        (HEADER.replace(",neck_y", "") + "\n", "'neck_y' is missing"),
        (f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS},1\n", "row 3: 50 cells"),
        (f"{HEADER}\na.jpg,abc,{CELLS[2:]}\n", "row 2: nose_x: 'abc' is not a number"),
        (f"{HEADER}\n\na.jpg,inf,{CELLS[2:]}\n", "row 3: nose_x: 'inf' is not a number"),
        (f"{HEADER}\na.jpg,NaN,{CELLS[2:]}\n", "leave the cell empty"),
        (f"{HEADER}\na.jpg,1_0,{CELLS[2:]}\n", "'1_0' is not a number"),
        (f"{HEADER}\na.jpg,,{CELLS[2:]}\n", "row 2: nose has only one of x and y"),
        (f"{HEADER}\na.jpg,{CELLS}\na.jpg,{CELLS}\n", "a.jpg stands there 2 times"),
        (f"{HEADER}\n../a.jpg,{CELLS}\n", "row 2: image '../a.jpg' is not a plain name"),
        (f"{HEADER}\n/etc/a.jpg,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\nC:a.jpg,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\na\\b.jpg,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\na\0b.jpg,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\n,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\na.jpg,{CELLS}\n".encode("utf-16"), "save it as CSV UTF-8"),
        (f"{HEADER}\n사진.jpg,{CELLS}\n".encode("cp949"), "save it as CSV UTF-8"),
    ],
)
def test_a_wrong_csv_is_one_line_with_file_and_place(write, text, message):
    path = write(text)
    with pytest.raises(KpRayError) as caught:
        load_annotations(path)
    told = str(caught.value)
    assert told.startswith(path)
    assert message in told
    assert "\n" not in told


def test_a_missing_file_is_named():
    with pytest.raises(KpRayError, match=r"/nowhere/x\.csv: there is no such file"):
        load_annotations("/nowhere/x.csv")


def coco(**changes) -> dict:
    xy = np.stack([person(), person(1)])
    xy[0, 3] = np.nan
    return {**to_coco(labels_of(["walk_A-1.jpg", "b/c.jpg"], xy), [(1920, 1080)] * 2), **changes}


def test_coco_reads_back_what_was_written_without_a_half_pixel(write):
    content = coco()
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    assert labels.images == ("walk_A-1.jpg", "b/c.jpg")
    np.testing.assert_array_equal(labels.keypoints[1, :, :2], person(1))
    assert np.isnan(labels.keypoints[0, 3, :2]).all()
    assert content["annotations"][0]["num_keypoints"] == K - 1
    assert content["annotations"][0]["keypoints"][9:12] == [0.0, 0.0, 0]
    x, y, width, height = content["annotations"][1]["bbox"]
    np.testing.assert_allclose([x, y], person(1).min(axis=0))
    np.testing.assert_allclose([x + width, y + height], person(1).max(axis=0))


def test_coco_keeps_hidden_points_groups_and_images_without_people(write):
    content = coco()
    content["annotations"][0]["keypoints"][2] = 1
    content["images"][0]["group"] = "kitchen"
    del content["annotations"][1]
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    assert labels.keypoints[0, 0, 2] == 1
    assert labels.scenes[0] == "kitchen"
    assert not np.isfinite(labels.keypoints[1, :, :2]).any()
    again = to_coco(labels, [(1920, 1080)] * 2)
    assert again["images"][0]["group"] == "kitchen"
    assert len(again["annotations"]) == 1


def broken_coco() -> list[tuple[object, str]]:
    twice, short, text, lost, seen, huge = (coco() for _ in range(6))
    twice["annotations"][1]["image_id"] = 1
    short["annotations"][1]["keypoints"].pop()
    text["annotations"][1]["keypoints"][0] = "12"
    lost["annotations"][1]["image_id"] = 7
    seen["annotations"][1]["keypoints"][2] = 3
    huge["annotations"][1]["keypoints"][0] = 10**400
    return [
        (twice, "walk_A-1.jpg: two people"),
        (short, "b/c.jpg: 71 keypoint numbers"),
        (text, "b/c.jpg: a keypoint is not a finite number"),
        (lost, "no image has its id 7"),
        (huge, "b/c.jpg: a keypoint is not a finite number"),
        (seen, "b/c.jpg: a keypoint's v"),
        (coco(categories=[]), "0 categories have keypoints"),
        ({"images": []}, "not COCO keypoints JSON"),
        ([1], "not COCO keypoints JSON"),
    ]


@pytest.mark.parametrize(("content", "message"), broken_coco())
def test_a_wrong_coco_json_is_one_line_naming_the_image(write, content, message):
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(KpRayError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_json_is_refused(write):
    with pytest.raises(KpRayError, match="not valid JSON"):
        load_annotations(write("{", "labels.json"))


# Corrections


def test_corrections_drop_rows_move_points_and_are_recorded(write):
    labels = write(f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS}\nc.jpg,{CELLS}\n")
    fixes = write("image,action,keypoint,x,y\nb.jpg,drop,,,\na.jpg,point,nose,7.5,8\nc.jpg,point,neck,,\n", "fixes.csv")
    fixed = load_annotations(labels, corrections=fixes)
    assert fixed.images == ("a.jpg", "c.jpg")
    np.testing.assert_array_equal(fixed.keypoints[0, 0], [7.5, 8, 2])
    np.testing.assert_array_equal(fixed.keypoints[1, 17], [np.nan, np.nan, 0])
    assert fixed.corrected == ("b.jpg: dropped", "a.jpg: nose moved to 7.5, 8", "c.jpg: neck unlabelled")
    untouched = np.isfinite(load_annotations(labels).keypoints[0, 1:]).all()
    assert untouched


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("z.jpg,drop,,,", "row 2: no labelled image is named 'z.jpg'"),
        ("a.jpg,delete,,,", "row 2: the action 'delete'"),
        ("a.jpg,point,tail,1,2", "row 2: no keypoint is named 'tail'"),
        ("a.jpg,point,nose,1,", "row 2: only one of x and y"),
        ("a.jpg,point,nose,1,up", "row 2: y: 'up' is not a number"),
        ("a.jpg,drop,nose,,", "row 2: drop takes a whole image"),
        ("a.jpg,drop,,", "row 2: 4 cells"),
        ("a.jpg,drop,,,", "drops every image"),
    ],
)
def test_a_wrong_correction_names_its_row(write, row, message):
    labels, fixes = write(f"{HEADER}\na.jpg,{CELLS}\n"), write(f"image,action,keypoint,x,y\n{row}\n", "fixes.csv")
    with pytest.raises(KpRayError) as caught:
        load_annotations(labels, corrections=fixes)
    assert str(caught.value).startswith(fixes)
    assert message in str(caught.value)


# The lint of the labels


@pytest.mark.parametrize("cameras", ["A", "ABCDE"])
def test_clean_labels_have_no_findings(cameras):
    assert check_labels(clips(cameras), (1920, 1080)) == []


def test_single_rows_show_what_is_wrong():
    xy = np.stack([person(n) for n in range(5)])
    xy[1] = xy[0]
    xy[2, 4] = [1920, 500]
    xy[3, 7] = xy[3, 12]
    xy[4] = np.nan
    labels = labels_of(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], xy)
    found = check_labels(labels, dict.fromkeys(labels.images, (1920, 1080)))
    assert kinds(found) == [
        ("repeated", "b.jpg"), ("outside", "c.jpg"), ("coincident", "d.jpg"), ("unlabelled", "e.jpg"),
    ]  # fmt: skip
    assert "right_ear" in found[1].message
    assert "left_elbow = right_hip" in found[2].message
    assert {finding.level for finding in found} == {"warning"}


def test_without_a_size_no_point_is_outside():
    labels = labels_of(["a.jpg"], person()[None] + 1e5)
    assert check_labels(labels) == []
    assert kinds(check_labels(labels, (1920, 1080))) == [("outside", "a.jpg")]


def test_a_mirrored_upper_body_is_seen_in_a_single_picture():
    xy = person()
    upper = [k for k, name in enumerate(DACON24.names) if "shoulder" in name or "elbow" in name or "wrist" in name]
    mirrored = xy.copy()
    mirrored[upper] = xy[DACON24.flip_indices][upper]
    assert kinds(check_labels(labels_of(["a.jpg"], mirrored[None]))) == [("left_right", "a.jpg")]


@pytest.mark.parametrize("cameras", ["A", "ABC"])
def test_a_frame_with_left_and_right_exchanged_is_found_by_its_neighbours(cameras):
    labels = clips(cameras)
    image = "walk_A-0000004.jpg"
    points = labels.keypoints[labels.images.index(image)][DACON24.flip_indices]
    found = check_labels(with_points(labels, image, points))
    assert kinds(found) == [("left_right", image)]
    assert "left_shoulder/right_shoulder" in found[0].message


@pytest.mark.parametrize("frame", [0, 4, 8])
def test_a_person_elsewhere_in_one_frame_is_a_jump(frame):
    labels = clips()
    image = f"walk_A-{frame:07d}.jpg"
    moved = labels.keypoints[frame] + [300, 0, 0]
    assert kinds(check_labels(with_points(labels, image, moved))) == [("jump", image)]


def test_one_point_out_of_line_is_a_jump_that_names_it():
    labels = clips()
    points = labels.keypoints[4].copy()
    points[9, :2] += 150
    found = check_labels(with_points(labels, labels.images[4], points))
    assert kinds(found) == [("jump", labels.images[4])]
    assert "left_wrist" in found[0].message


def test_a_leap_that_every_camera_saw_is_motion():
    labels = clips("ABC")
    leap = labels.keypoints.copy()
    leap[[frame == 4 for frame in labels.frames], :, 1] -= 300
    assert check_labels(replace(labels, keypoints=leap)) == []


def test_labels_of_another_frame_are_found_by_the_other_cameras_in_fast_motion():
    labels = clips("ABCDE", num_frames=12, step_px=90)
    image = "walk_C-0000003.jpg"
    found = check_labels(with_points(labels, image, labels.keypoints[labels.images.index("walk_C-0000008.jpg")] + 0.25))
    jumps = [finding for finding in found if "another frame" in finding.message]
    assert kinds(jumps) == [("jump", image)]
    assert jumps[0].message.endswith("frame 8")


def test_clips_with_empty_rows_or_few_frames_raise_nothing():
    labels = clips("ABC", num_frames=7)
    empty = labels.keypoints.copy()
    empty[[2, 3, 8]] = [np.nan, np.nan, 0]
    assert {kind for kind, _ in kinds(check_labels(replace(labels, keypoints=empty)))} == {"unlabelled"}
    empty[:] = [np.nan, np.nan, 0]
    assert len(check_labels(replace(labels, keypoints=empty))) == len(labels)
    assert check_labels(clips("AB", num_frames=2)) == []


# The lint of the pictures


def picture(width: int = 64, height: int = 48) -> FloatArray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def as_png(width: int = 64, height: int = 48) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(width, height)).save(out, "PNG")
    return out.getvalue()


def with_exif_turn() -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(picture(48, 64)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def test_every_kind_of_bad_picture_is_found(tmp_path):
    good = simplejpeg.encode_jpeg(picture())
    files = {
        "cut.jpg": good[: len(good) // 2], "tail.jpg": good[:-2], "empty.jpg": b"", "text.jpg": b"<html>not found",
        "png.jpg": as_png(), "Upper.JPG": good, "cut.png": as_png()[:-500], "a/fine.png": as_png(),
        "turned.jpg": with_exif_turn(), "big.jpg": simplejpeg.encode_jpeg(picture(128, 96)), "extra.jpg": good,
        "notes.txt": b"x",
    }  # fmt: skip
    files |= {f"good{n:02d}.jpg": good for n in range(30)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    names = [*sorted(set(files) - {"Upper.JPG", "extra.jpg", "notes.txt"}), "upper.jpg", "gone.jpg"]
    done: list[int] = []
    found, sizes = check_images(labels_of(names, np.ones((len(names), K, 2))), str(tmp_path), progress=done.append)
    assert {(finding.image, finding.kind, finding.level) for finding in found} == {
        ("cut.jpg", "truncated", "error"), ("tail.jpg", "truncated", "error"), ("empty.jpg", "empty", "error"),
        ("text.jpg", "unreadable", "error"), ("png.jpg", "not_jpeg", "warning"), ("cut.png", "truncated", "error"),
        ("upper.jpg", "misnamed", "error"), ("gone.jpg", "missing", "error"), ("big.jpg", "size", "warning"),
        ("", "unlabelled_files", "warning"),
    }  # fmt: skip
    assert sizes["a/fine.png"] == sizes["turned.jpg"] == sizes["good00.jpg"] == (64, 48)
    assert sizes["big.jpg"] == (128, 96)
    assert "cut.jpg" not in sizes
    assert sum(done) == len(names)
    assert all("\n" not in finding.message + finding.fix for finding in found)


def test_mixed_sizes_are_not_findings(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(simplejpeg.encode_jpeg(picture(32 + 8 * n, 32)))
    found, sizes = check_images(labels_of([f"{n}.jpg" for n in range(4)], np.ones((4, K, 2))), str(tmp_path))
    assert found == []
    assert sizes["3.jpg"] == (56, 32)


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(KpRayError, match="there is no such folder"):
        check_images(clips(), str(tmp_path / "none"))


def test_images_are_listed_sorted_with_sub_folders_and_through_urls(tmp_path):
    for name in ("b.PNG", "a/x.jpg", "c.txt", ".hidden.jpg", "a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list_images(str(tmp_path)) == list_images(f"file://{tmp_path}") == ["a.webp", "a/x.jpg", "b.PNG"]


def test_findings_make_a_table_with_or_without_rows():
    finding = Finding("error", "missing", "a.jpg", "no such file", "add it")
    table = findings_table([finding])
    assert list(table.columns) == list(findings_table([]).columns) == ["level", "kind", "image", "message", "fix"]
    assert table.iloc[0].tolist() == ["error", "missing", "a.jpg", "no such file", "add it"]


def test_select_keeps_rows_together():
    labels = clips("AB", num_frames=3).select(np.array([4, 0]))
    assert labels.images == ("walk_B-0000001.jpg", "walk_A-0000000.jpg")
    assert (labels.cameras, labels.frames, len(labels)) == (("B", "A"), (1, 0), 2)


# Real files


@needs_data
def test_the_competition_labels_load_and_their_known_faults_are_found():
    labels = load_annotations(str(SHARED / "dacon" / "train_df.csv"))
    assert len(labels) == 4195
    assert (len(set(labels.scenes)), set(labels.cameras)) == (53, set("ABCDE"))
    found = kinds(check_labels(labels, (1920, 1080)))
    by_kind = {kind: [image for name, image in found if name == kind] for kind, _ in found}
    assert len(by_kind["repeated"]) == 202
    assert "outside" not in by_kind
    assert "218-2-1-12-Z36_A-0000001.jpg" in by_kind["jump"]
    assert "049-1-1-03-Z17_C-0000021.jpg" in by_kind["left_right"]
    assert len(by_kind["jump"]) + len(by_kind["left_right"]) < 42  # under one row in a hundred


@needs_data
def test_real_coco_json_equals_its_csv_and_its_pictures_read():
    by_csv = load_annotations(str(SHARED / "lsp" / "train_df.csv"))
    by_coco = load_annotations(str(SHARED / "lsp" / "annotations_coco24.json"))
    assert by_csv.images == by_coco.images
    np.testing.assert_allclose(by_coco.keypoints[..., :2], by_csv.keypoints[..., :2], atol=0.00051)
    found, sizes = check_images(by_csv, str(SHARED / "lsp" / "images"))
    assert found == []
    assert len(sizes) == len(set(by_csv.scenes)) == 400


def test_yolo_has_a_line_a_person_and_every_point_as_a_share_of_the_picture(tmp_path):
    xy = np.full((2, 24, 2), np.nan)
    xy[0, 0], xy[0, 1] = (480, 270), (960, 810)
    made = to_coco(labels_of(["Original-0/a.jpg", "b.png"], xy), [(1920, 1080)] * 2)
    (tmp_path / "annotations.json").write_text(json.dumps(made))
    assert write_yolo(str(tmp_path)) == 2
    (line,) = (tmp_path / "labels" / "Original-0" / "a.txt").read_text().splitlines()
    numbers = [float(cell) for cell in line.split()]
    assert len(numbers) == 5 + 3 * 24
    assert numbers[:11] == [0, 0.375, 0.5, 0.25, 0.5, 0.25, 0.25, 2, 0.5, 0.75, 2]
    assert set(numbers[11:]) == {0}
    assert (tmp_path / "labels" / "b.txt").read_text() == ""


def test_labels_are_read_again_only_if_a_file_or_the_skeleton_changed(write):
    path, fixes = write(f"{HEADER}\na.jpg,{CELLS}\n"), write("image,action,keypoint,x,y\n", "fixes.csv")
    config = build_config({"data": {"annotations": path, "corrections": fixes}})
    labels = load_labels(config)
    assert load_labels(config) is labels
    with pytest.raises(ValueError, match="read-only"):
        labels.keypoints[0, 0, 0] = 1
    write("image,action,keypoint,x,y\na.jpg,point,nose,7,8\n", "fixes.csv")
    np.testing.assert_array_equal(load_labels(config).keypoints[0, 0], [7, 8, 2])
    write(f"{HEADER}\nb.jpg,{CELLS}\na.jpg,{CELLS}\n")
    assert load_labels(config).images == ("b.jpg", "a.jpg")
    other = build_config({"data": {"annotations": path}, "skeleton": {"sigmas": [0.5] * K}})
    assert load_labels(other).skeleton.sigmas == (0.5,) * K
