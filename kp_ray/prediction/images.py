"""List the images to predict."""

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import pyarrow.fs as pafs

from kp_ray.config.schema import Config
from kp_ray.data.csv_format import read_csv_rows
from kp_ray.data.csv_rows import check_num_cells, refuse_unexpected_content
from kp_ray.data.names import describe_matches, match_spellings
from kp_ray.data.submission import SampleSubmission
from kp_ray.errors import ConfigError, DataError, StorageError, StoreError, one_line, shorten
from kp_ray.fingerprint import digest
from kp_ray.images import is_image_file, list_images
from kp_ray.stage import require_path
from kp_ray.storage import file_infos, filesystem, join, read_bytes
from kp_ray.store.read import read_part, select_parts

STORE_PREFIX = "store:"
"""Prefix of `predict.images` that names a split of the store: `store:train` or `store:val`."""

MISSING = "missing"
"""Value of `ImageRef.version` if the image file does not exist."""


def is_store_split(config: Config) -> bool:
    """Return whether `predict.images` is a split of the store, so that the store's labels are the ground truth."""
    return config.predict.images is not None and config.predict.images.startswith(STORE_PREFIX)


@dataclass(frozen=True)
class ImageRef:
    """Name and location of an image to predict.

    Attributes:
        image: name of the image, unique among the images to predict.
        path: path of the image file, or of the store's part that holds the image.
        row: row number in the store's part; None for an image file.
        version: text that changes when the image's content changes.
    """

    image: str
    path: str
    row: int | None
    version: str


def digest_images(refs: Sequence[ImageRef]) -> str:
    """Digest the names of images and the sizes of their files in bytes, in any order; copies have the same digest."""
    sizes = {ref.image: ref.version.partition(":")[0] if ref.row is None else ref.version for ref in refs}
    return digest(dict(sorted(sizes.items())))


def list_image_refs(config: Config, sample: SampleSubmission | None) -> list[ImageRef]:
    """List the images that `predict.images` names.

    If `predict.images` is null, list the images of the sample submission or, without a sample submission, all images in
    `data.test_images`.

    Raises:
        ConfigError: a name is relative and `data.test_images` is not set, or `predict.images` names a split of a store
            with folds, or does not exist.
        DataError: the list of images is invalid or empty, repeats a name, or names a file outside the image folder; or
            none of the images exists.
        StoreError: the store does not exist, or its split is empty.
        StorageError: the image folder cannot be read.
    """
    setting = config.predict.images
    if setting is not None and setting.startswith(STORE_PREFIX):
        return _list_store_refs(config, setting.removeprefix(STORE_PREFIX))
    if setting is not None:
        require_path("predict.images", setting)
    if setting is not None and setting.lower().endswith((".txt", ".csv")):
        names, folder = _read_list(setting), config.data.test_images
    else:
        folder = setting or config.require_input("test_images")
        names = list(sample.images) if sample and setting is None else list_images(folder)
    if not names:
        key = "predict.images" if setting else "data.test_images"
        raise DataError(f"{key}: {setting or folder}: holds no image: add images, or correct {key}")
    origin = setting or (f"data.sample_submission: {config.data.sample_submission}" if sample else str(folder))
    _check_names(names, folder, origin)
    return _list_file_refs(names, folder, origin)


def _check_names(names: Sequence[str], folder: str | None, origin: str) -> None:
    """Refuse names that are repeated, hold a NUL byte, are relative without a folder, or lead outside the folder.

    Args:
        names: names of images.
        folder: folder of the images; None if it is not set.
        origin: where the names come from, e.g. the path of the list; begins the messages.
    """
    for name, count in Counter(names).items():
        if "\0" in name:
            raise DataError(f"{origin}: an image's name contains a NUL byte (got {name!r:.80}): correct the name")
        if count > 1:
            raise DataError(f"{origin}: {name} is listed {count} times: list each image once")
        if folder is None and not _is_absolute(name):
            raise ConfigError(f"{origin}: {name} is a relative path: set data.test_images, or list absolute paths")
        if ".." in name.split("/"):
            raise DataError(f"{origin}: {name} is outside the image folder: remove the .. from the name")


def _is_absolute(name: str) -> bool:
    """Return whether a name is an absolute path or a URL."""
    return name.startswith("/") or "://" in name


def _list_file_refs(names: Sequence[str], folder: str | None, origin: str) -> list[ImageRef]:
    """List the image files of these names; `origin` begins the message.

    Raises:
        DataError: none of the files exists, or a name is another spelling of a file's name.
        StorageError: see `_file_info`.
    """
    absolute_names = [name for name in names if _is_absolute(name)]
    has_relative_names = len(absolute_names) < len(names)
    # One listing of the folder is faster than a request per file on object storage.
    infos = file_infos(folder) if folder and has_relative_names else {}
    with ThreadPoolExecutor() as pool:
        absolute_infos = pool.map(lambda name: _file_info(name, origin), absolute_names)
        infos |= dict(zip(absolute_names, absolute_infos, strict=True))
    paths = [name if _is_absolute(name) else join(str(folder), name) for name in names]
    # The folder's listing has the name `a.jpg` for `./a.jpg` in a list.
    versions = [_version(infos.get(name) or infos.get(posixpath.normpath(name))) for name in names]
    refs = [ImageRef(*values) for values in zip(names, paths, [None] * len(names), versions, strict=True)]
    if folder:
        _refuse_misspelled_names(refs, infos, folder, origin)
    if all(ref.version == MISSING for ref in refs):
        fix = "correct data.test_images, or the names" if has_relative_names else "correct the names"
        raise DataError(f"{origin}: none of its {len(refs)} images exists, e.g. {shorten(refs[0].path)}: {fix}")
    return refs


def _refuse_misspelled_names(refs: Sequence[ImageRef], files: Collection[str], folder: str, origin: str) -> None:
    """Refuse a missing image whose name is another spelling of a file's name; else a fallback would be its prediction.

    Raises:
        DataError: see above; `origin` begins the message.
    """
    missing = {ref.image for ref in refs if ref.version == MISSING}
    matches = match_spellings([ref.image for ref in refs], files) if missing else {}
    spellings = {name: match for name, match in matches.items() if name in missing}
    if spellings:
        raise DataError(
            f"{origin}: {len(missing)} images are not in {folder}: {describe_matches(spellings, len(missing))}: write "
            "the names of the files, or rename the files"
        )


def _file_info(path: str, origin: str) -> pafs.FileInfo:
    """Return the information about a file; `origin` begins the message.

    Raises:
        StorageError: the URL cannot be used, the storage does not answer or denies access, or the name is too long.
    """
    try:
        fs, inner_path = filesystem(path)
        return fs.get_file_info(inner_path)
    except StorageError as error:
        raise StorageError(f"{origin}: {shorten(str(error))}") from error
    except OSError as error:
        raise StorageError(f"{origin}: {shorten(path)}: cannot be reached: {one_line(error)}") from error


def _version(info: pafs.FileInfo | None) -> str:
    """Return a file's size and modification time as text, or `MISSING`."""
    return f"{info.size}:{info.mtime_ns}" if info and info.type == pafs.FileType.File else MISSING


def _read_list(path: str) -> list[str]:
    """Read image names from a text file, one name per line, or from the column `image` of a CSV file.

    Raises:
        DataError: the file is neither of these; the message names the cause.
    """
    if path.lower().endswith(".csv"):
        header, rows = read_csv_rows(path)
        names = []
        for number, cells in rows:
            check_num_cells(cells, header, f"{path}: row {number}")
            names.append(cells[header.index("image")])
        return [name for name in names if name]
    content = read_bytes(path)
    # A first line such as "[1].jpg" is an image name, although it looks like the beginning of a JSON file.
    if not is_image_file(content.partition(b"\n")[0].strip().decode(errors="replace")):
        refuse_unexpected_content(content, path, "a list of image names")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: save it as UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if names and "image" in re.split("[,;\t]", names[0]):
        raise DataError(f"{path}: holds a table with the column `image`: give it a name that ends in .csv")
    return names


def stored_image_ref(image: str, part: str, row: int) -> ImageRef:
    """Return the reference to the image in a row of the store's part at path `part`."""
    # A part's file name contains a digest of its content, so the version changes with the content.
    return ImageRef(image, part, row, f"{part.rpartition('/')[2]}:{row}")


def _list_store_refs(config: Config, split: str) -> list[ImageRef]:
    """List the unaugmented images of a split of the store."""
    store = config.path("store")
    manifest, parts = select_parts(store, split=split, recipes=None if split == "val" else ["Original"])
    if manifest.folds is not None:
        refuse_split_of_store_with_folds(f"{STORE_PREFIX}{split}")
    refs: dict[str, ImageRef] = {}
    for part in parts:
        for row, source in enumerate(read_part(part, ["source"])["source"].to_pylist()):
            # The split may hold several copies of a source; only the first is predicted.
            refs.setdefault(source, stored_image_ref(source, part, row))
    if not refs:
        fix = "raise split.fraction" if split == "val" else "add Original to augment.recipes"
        raise StoreError(f"{store}: the split {split} holds no unaugmented image: {fix} and run augment")
    return list(refs.values())


def refuse_split_of_store_with_folds(setting: str) -> NoReturn:
    """Raise the ConfigError about `predict.images` that names a split, e.g. `store:val`, of a store with folds."""
    raise ConfigError(
        f"predict.images: with split.folds the members have seen these images (got {setting}): run crossval, which "
        "predicts each labelled image with members that have not seen it, or name other images"
    )
