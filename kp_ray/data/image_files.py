"""Compare the names of labelled images with the files of the image folder."""

from collections.abc import Collection, Sequence

from kp_ray.data.names import describe_matches, match_names, match_spellings
from kp_ray.errors import DataError
from kp_ray.images import is_image_file


def require_any_image(images: Sequence[str], files: Collection[str], folder: str) -> None:
    """Refuse an image folder that holds none of the labelled images, with one message instead of one per image.

    Args:
        images: N names, as in the labels.
        files: paths of all files in the folder.
        folder: `data.images`, for the message.

    Raises:
        DataError: no image has a file; the message says which files the names nearly match, if any.
    """
    if any(image in files for image in images):
        return
    example = min((name for name in files if is_image_file(name)), default=None)
    hint = f"the folder holds e.g. {example}" if example else f"the folder holds {len(files)} files and no image"
    hint = describe_matches(match_names(images, files), len(set(images))) or hint
    raise DataError(
        f"data.images: {folder}: none of the {len(images)} labelled images is there (the labels name e.g. {images[0]}, "
        f"{hint}): correct data.images, or the names in the labels"
    )


def refuse_other_spellings(images: Sequence[str], files: Collection[str], folder: str) -> None:
    """Refuse image names that are another spelling of a file's name: case, Unicode form, percent-encoding, backslashes.

    Without this check, these images would be left out when the store is written, like images whose file is missing.

    Args:
        images, files, folder: as in `require_any_image`.

    Raises:
        DataError: a name is another spelling of a file's name; the message names the difference and has an example.
    """
    spellings = match_spellings(images, files)
    if spellings:
        num_missing = len(set(images).difference(files))
        raise DataError(
            f"data.images: {folder}: {num_missing} labelled images have no file: "
            f"{describe_matches(spellings, num_missing)}: write the names of the files in the labels, or rename the "
            "files"
        )
