"""Test the list of images to predict."""

from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission
from kp_ray.errors import ConfigError, DataError, StorageError, StoreError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.images import ImageRef, list_image_refs
from kp_ray.store.plan import make_plan
from tests.helpers.data import tiny_config
from tests.helpers.stores import write_planned_store


def list_refs(config: Config, images: str | None, sample: SampleSubmission | None = None) -> list[ImageRef]:
    """List the images of a config whose `predict.images` is `images`."""
    data = config.data.model_dump()
    return list_image_refs(tiny_config(data, Path(config.run_dir), predict={"images": images}), sample)


def image_names(refs: list[ImageRef]) -> list[str]:
    return [ref.image for ref in refs]


def test_without_predict_images_the_sample_submission_or_the_folder_lists_the_images(sample_config: Config) -> None:
    folder = Path(sample_config.require_input("test_images"))
    names = sorted(path.name for path in folder.iterdir())
    sample = SampleSubmission((names[3], names[1]), ("image", *DACON24.columns))
    assert image_names(list_refs(sample_config, None)) == names
    assert image_names(list_refs(sample_config, None, sample)) == [names[3], names[1]]
    assert image_names(list_refs(sample_config, str(folder), sample)) == names


def test_a_text_list_names_files_of_the_folder_and_absolute_paths(sample_config: Config, tmp_path: Path) -> None:
    folder = Path(sample_config.require_input("test_images"))
    names = sorted(path.name for path in folder.iterdir())
    (tmp_path / "list.txt").write_text(f"./{names[1]}\n")
    status = (folder / names[1]).stat()
    assert list_refs(sample_config, str(tmp_path / "list.txt"))[0].version == f"{status.st_size}:{status.st_mtime_ns}"
    (tmp_path / "list.txt").write_text(f"/{'x' * 300}.jpg\n")
    with pytest.raises(StorageError, match=r"cannot be reached: .*too long"):
        list_refs(sample_config, str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text(f"{names[2]}\n\n{folder / names[0]}\n")
    refs = list_refs(sample_config, str(tmp_path / "list.txt"))
    assert [(ref.image, ref.path) for ref in refs] == [
        (names[2], str(folder / names[2])),
        (str(folder / names[0]), str(folder / names[0])),
    ]
    status = (folder / names[0]).stat()
    assert refs[1].version == f"{status.st_size}:{status.st_mtime_ns}"


def test_a_csv_list_names_the_images_in_the_column_image(sample_config: Config, tmp_path: Path) -> None:
    name = min(path.name for path in Path(sample_config.require_input("test_images")).iterdir())
    (tmp_path / "list.csv").write_text(f"camera,image\nA,{name}\nB,lost.jpg\n")
    assert image_names(list_refs(sample_config, str(tmp_path / "list.csv"))) == [name, "lost.jpg"]
    (tmp_path / "wrong.csv").write_text("file\na.jpg\n")
    with pytest.raises(DataError, match=r"wrong\.csv: .*name the column of file names `image` \(now 'file'\)"):
        list_refs(sample_config, str(tmp_path / "wrong.csv"))
    with pytest.raises(ConfigError, match=r"^predict\.images: there is no such file or folder \(got .*lost\.csv\)"):
        list_refs(sample_config, str(tmp_path / "lost.csv"))


def test_if_no_image_exists_the_message_names_the_sample_submission(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = tiny_config({"test_images": str(tmp_path / "empty")}, tmp_path / "run")
    sample = SampleSubmission(("a.jpg", "b.jpg"), ("image", "nose_x", "nose_y"))
    message = r"^data\.sample_submission: .*: none of its 2 images .*/empty/a\.jpg: correct data\."
    with pytest.raises(DataError, match=message):
        list_image_refs(config, sample)


@pytest.mark.parametrize(
    ("name", "difference"), [("\u1112\u1161.jpg", "the Unicode form"), ("B.JPG", "upper and lower case")]
)
def test_an_image_in_another_spelling_is_refused(tmp_path: Path, name: str, difference: str) -> None:
    for file_name in ("a.jpg", "b.jpg", "\ud558.jpg"):
        (tmp_path / file_name).touch()
    config = tiny_config({"test_images": str(tmp_path)}, tmp_path / "run")
    sample = SampleSubmission(("a.jpg", name, "gone.jpg"), ("image", "nose_x", "nose_y"))
    with pytest.raises(DataError, match=rf"2 images are not in .*: 1 of 2 differ from a file only in {difference} "):
        list_image_refs(config, sample)


@pytest.mark.parametrize("list_name", ["list.txt", "list.csv"])
def test_if_no_image_of_a_list_exists_the_message_names_the_list(
    sample_config: Config, tmp_path: Path, list_name: str
) -> None:
    path = tmp_path / list_name
    header = "image\n" if list_name == "list.csv" else ""
    path.write_text(f"{header}a.jpg\nb.jpg\n")
    with pytest.raises(DataError, match=rf"{list_name}: none of its 2 images exists"):
        list_refs(sample_config, str(path))


def test_a_message_about_a_url_names_the_list_that_holds_it(sample_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image\na.jpg\ns0_A-0C://jpg\n")
    with pytest.raises(StorageError, match=rf"^{path}: s0_A-0C://jpg: cannot be reached: .*URI"):
        list_refs(sample_config, str(path))


def test_images_of_the_store_are_the_unaugmented_rows(sample_config: Config) -> None:
    data, run_dir = sample_config.data.model_dump(), Path(sample_config.run_dir)
    # Each chunk's augmented rows come before its unaugmented rows.
    config = tiny_config(data, run_dir, augment={"recipes": ["Rotate45_CenterCrop", "Original"]})
    manifest = write_planned_store(make_plan(config))
    refs = list_refs(config, "store:train")
    assert len(refs) == manifest.num_rows_by_split["train"] / 2 > 0
    assert all(ref.row is not None and "/recipe-Original/" in ref.path for ref in refs)
    assert len({ref.image for ref in refs}) == len(refs)


def test_a_store_without_unaugmented_training_rows_is_refused(sample_config: Config) -> None:
    data, run_dir = sample_config.data.model_dump(), Path(sample_config.run_dir)
    config = tiny_config(data, run_dir, augment={"recipes": ["Rotate45_CenterCrop"]})
    manifest = write_planned_store(make_plan(config))
    with pytest.raises(StoreError, match=r"split train holds no unaugmented image: add Original to augment\.recipes"):
        list_refs(config, "store:train")
    assert len(list_refs(config, "store:val")) == manifest.num_rows_by_split["val"] > 0


def test_a_store_without_validation_rows_is_refused(sample_config: Config) -> None:
    data, run_dir = sample_config.data.model_dump(), Path(sample_config.run_dir)
    config = tiny_config(data, run_dir, augment={"recipes": ["Rotate45_CenterCrop"]}, split={"fraction": 0})
    write_planned_store(make_plan(config))
    with pytest.raises(StoreError, match=r"split val holds no unaugmented image: raise split\.fraction"):
        list_refs(config, "store:val")


def test_a_missing_store_is_refused(sample_config: Config) -> None:
    with pytest.raises(StoreError, match="run augment first"):
        list_refs(sample_config, "store:val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no image"),
        ("a.jpg\na.jpg\n", "a.jpg is listed 2 times"),
        ("../a.jpg\n", "is outside the image folder"),
        ("a\0.jpg\n", "contains a NUL"),
    ],
)
def test_an_invalid_list_is_refused(sample_config: Config, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "wrong.txt").write_text(content)
    with pytest.raises(DataError, match=rf"wrong\.txt: .*{message}"):
        list_refs(sample_config, str(tmp_path / "wrong.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"image;x\na.jpg;1\n", "the header has no `image` column: separate the columns by commas"),
        ("list.csv", b"image;x;y\na.jpg;1;2\n", "the columns are separated by semicolons: save the file as a CSV"),
        ("list.csv", b",image\n0,a.jpg\n", "column 1 of the header is '', an index that pandas or a spreadsheet wrote"),
        ("list.csv", b"image,\na.jpg,\n", "the header ends in 1 separator too many"),
        ("list.csv", b"image\na.jpg,\n", "row 2: ends in 1 separator too many"),
        ("list.csv", b"image\na.jpg\nimage\nb.jpg\n", "row 3: repeats the header, as if two files were joined"),
        ("list.csv", b"sep=,\nimage\na.jpg\n", "row 1 is Excel's line 'sep=,', not a header: delete this line"),
        ("list.csv", b'["a.jpg"]', "holds JSON, not CSV"),
        ("list.csv", "image\na.jpg\n".encode("utf-16"), "is UTF-16 text: save it as CSV UTF-8"),
        ("list.txt", "a.jpg\nb.jpg\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (
            "list.txt",
            "a.jpg\nb.jpg\n".encode("utf-16-le"),
            "is UTF-16 text without a byte order mark: save it as UTF-8",
        ),
        ("list.txt", "사진.jpg\n".encode("cp949"), "is not UTF-8 text: save it as UTF-8"),
        (
            "list.txt",
            b'["a.jpg"]',
            "holds JSON, not a list of image names: a text file in UTF-8 with one name per line",
        ),
        ("list.txt", b"PK\x03\x04" + b"\0" * 30, "holds a ZIP archive, not a list of image names"),
        ("list.txt", b"<?xml version='1.0'?><annotations/>", "holds a CVAT XML file, not a list of image names"),
        ("list.txt", b"image,x\na.jpg,1\n", "holds a table with the column `image`: give it a name that ends in .csv"),
        ("list.txt", b"image\na.jpg\n", "holds a table with the column `image`"),
    ],
)
def test_a_list_in_another_format_is_refused_with_the_cause(
    sample_config: Config, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list_refs(sample_config, str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_a_list_may_begin_with_a_name_that_looks_like_json(sample_config: Config, tmp_path: Path) -> None:
    name = min(path.name for path in Path(sample_config.require_input("test_images")).iterdir())
    (tmp_path / "list.txt").write_text(f"[1].jpg\n{name}\n")
    assert image_names(list_refs(sample_config, str(tmp_path / "list.txt"))) == ["[1].jpg", name]


def test_relative_names_need_a_folder(sample_config: Config, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    config = tiny_config({}, tmp_path / "run", predict={"images": str(tmp_path / "list.txt")})
    with pytest.raises(ConfigError, match=r"set data\.test_images"):
        list_image_refs(config, None)
