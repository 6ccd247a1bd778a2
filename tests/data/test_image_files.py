"""Names of labelled images against the files of the image folder."""

import pytest

from kp_ray.data.image_files import require_any_image
from kp_ray.errors import DataError


@pytest.mark.parametrize(
    ("files", "content"),
    [
        ([], "the folder holds 0 files and no image"),
        (["notes.txt", "labels.csv"], "the folder holds 2 files and no image"),
        (["images/a.jpg", "images/b.jpg"], r"the folder holds e\.g\. images/a\.jpg"),
        (["A.JPG"], r"the folder holds e\.g\. A\.JPG"),
    ],
)
def test_a_folder_without_any_image_of_the_labels_is_refused_with_both_names(files: list[str], content: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.images: /data: none of the 2 .* e\.g\. a\.jpg, {content}\): correct"):
        require_any_image(["a.jpg", "b.jpg"], files, "/data")


def test_one_image_of_the_labels_is_enough() -> None:
    require_any_image(["a.jpg", "b.jpg"], {"b.jpg", "c.jpg"}, "/data")
