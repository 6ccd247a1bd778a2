"""Names of labelled images, compared with the files of the image folder."""

import pytest

from kp_ray.data.image_files import refuse_other_spellings, require_any_image
from kp_ray.errors import DataError


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ([], "the folder holds 0 files and no image"),
        (["notes.txt", "labels.csv"], "the folder holds 2 files and no image"),
        (["images/c.jpg", "images/d.jpg"], r"the folder holds e\.g\. images/c\.jpg"),
        (["images/a.jpg", "images/b.jpg"], r"2 of 2 differ from a file only in the folder \(.*, file: images/a\.jpg\)"),
        (["A.JPG"], r"1 of 2 differ from a file only in upper and lower case \(name: a\.jpg, file: A\.JPG\)"),
    ],
)
def test_a_folder_without_any_labelled_image_is_refused_with_a_hint_at_its_files(files: list[str], hint: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.images: /data: none of the 2 .* e\.g\. a\.jpg, {hint}\): correct"):
        require_any_image(["a.jpg", "b.jpg"], files, "/data")


def test_a_folder_with_one_labelled_image_is_accepted() -> None:
    require_any_image(["a.jpg", "b.jpg"], {"b.jpg", "c.jpg"}, "/data")


@pytest.mark.parametrize(
    ("file", "difference"),
    [("B.jpg", "upper and lower case"), ("%62.jpg", "percent-encoding")],
)
def test_a_name_in_another_spelling_is_refused_even_if_another_image_is_there(file: str, difference: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.images: /data: 2 labelled .*1 of 2 differ .*only in {difference}"):
        refuse_other_spellings(["a.jpg", "b.jpg", "gone.jpg"], ["a.jpg", file], "/data")


@pytest.mark.parametrize("file", ["b.png", "day1/b.jpg", "c.jpg"])
def test_a_name_that_differs_in_more_than_its_spelling_is_not_refused(file: str) -> None:
    refuse_other_spellings(["a.jpg", "b.jpg"], ["a.jpg", file], "/data")
