"""Compare the names of labelled images with the files of the image folder."""

from collections.abc import Collection, Sequence

from kp_ray.errors import DataError
from kp_ray.images import is_picture


def require_any_image(images: Sequence[str], files: Collection[str], folder: str) -> None:
    """Refuse an image folder that holds none of the labelled images: one wrong path, not N missing files.

    Args:
        images: N names, as in the labels.
        files: paths of all files in the folder.
        folder: `data.images`, for the message.

    Raises:
        DataError: no image has a file.
    """
    if any(image in files for image in images):
        return
    found = min((name for name in files if is_picture(name)), default=None)
    content = f"the folder holds e.g. {found}" if found else f"the folder holds {len(files)} files and no image"
    raise DataError(
        f"data.images: {folder}: none of the {len(images)} labelled images is there (the labels name e.g. {images[0]}, "
        f"{content}): correct data.images, or the names in the labels"
    )
