"""List the images to predict."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.fs as pafs

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission
from kp_ray.errors import ConfigError, DataError, StoreError, one_line
from kp_ray.images import list_images
from kp_ray.storage import file_infos, filesystem, join, read_bytes
from kp_ray.store.read import read_part, select_parts

STORE_PREFIX = "store:"
"""`predict.images` of the store's splits, `store:train` and `store:val`, begins with it."""

MISSING = "missing"
"""Version of an image without a file."""


@dataclass(frozen=True)
class ImageRef:
    """An image to predict.

    Attributes:
        image: its name, unique among the images to predict.
        path: of the file, or of the store's part that holds it.
        row: its row in that part; None for a file.
        version: text that differs when the picture has changed.
    """

    image: str
    path: str
    row: int | None
    version: str


def list_image_refs(config: Config, sample: SampleSubmission | None) -> list[ImageRef]:
    """List the images that `predict.images` names, in the sample submission's order if it names none.

    Raises:
        ConfigError: names are relative, but `data.test_images` is not set.
        DataError: a list is invalid or empty, a name stands in it twice or leads out of the folder, or none of the
            images is there.
        StoreError: the store is not there, or its split is empty.
        StorageError: the folder cannot be read.
    """
    source = config.predict.images
    if source is not None and source.startswith(STORE_PREFIX):
        return _list_store_refs(config, source.removeprefix(STORE_PREFIX))
    if source is not None and source.lower().endswith((".txt", ".csv")):
        names, folder = _read_list(source), config.data.test_images
    else:
        folder = source or config.require_input("test_images")
        names = list(sample.images) if sample and source is None else list_images(folder)
    if not names:
        raise DataError(f"{source or 'data.test_images: ' + str(folder)}: names no image")
    _check_names(names, folder, source or "the sample submission")
    return _list_file_refs(names, folder, source or "the sample submission")


def _check_names(names: Sequence[str], folder: str | None, source: str) -> None:
    with_nul = [name for name in names if "\0" in name]
    if with_nul:
        raise DataError(f"{source}: {with_nul[0]!r:.80} holds a NUL, which no file's name does")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: {repeated[0]} stands in it {names.count(repeated[0])} times: name it once")
    if folder is None and not all(map(_is_whole_path, names)):
        raise ConfigError(f"{source}: names files of a folder: set data.test_images, or list whole paths")
    climbing = [name for name in names if ".." in name.split("/")]
    if climbing:
        raise DataError(f"{source}: {climbing[0]}: leaves the image folder")


def _is_whole_path(name: str) -> bool:
    return name.startswith("/") or "://" in name


def _list_file_refs(names: Sequence[str], folder: str | None, source: str) -> list[ImageRef]:
    """List the files of these names; `source` names them in the message.

    Raises:
        DataError: none of the files is there.
    """
    paths = {name: name if _is_whole_path(name) else join(str(folder), name) for name in names}
    whole = [name for name in names if _is_whole_path(name)]
    infos = file_infos(folder) if folder and len(whole) < len(names) else {}  # one listing, not a request per file
    with ThreadPoolExecutor() as pool:
        infos |= dict(zip(whole, pool.map(_file_info, whole), strict=True))
    refs = [ImageRef(name, path, None, _version(infos.get(name))) for name, path in paths.items()]
    if all(ref.version == MISSING for ref in refs):
        raise DataError(
            f"{source}: none of its {len(refs)} images is there, e.g. {refs[0].path}: correct data.test_images, or the "
            "names"
        )
    return refs


def _file_info(path: str) -> pafs.FileInfo:
    fs, inner = filesystem(path)
    return fs.get_file_info(inner)


def _version(info: pafs.FileInfo | None) -> str:
    """Return a file's size and modification time as text."""
    return f"{info.size}:{info.mtime_ns}" if info and info.type == pafs.FileType.File else MISSING


def _read_list(path: str) -> list[str]:
    """Read the image names of a text file, one per line, or of the column `image` of a CSV."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: a list of image names is expected") from error
    if not path.lower().endswith(".csv"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "image" not in (rows.fieldnames or ()):
            raise DataError(f"{path}: row 1: there is no column `image`")
        return [row["image"].strip() for row in rows if row["image"]]
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {one_line(error)}; is a quote left open?") from error


def _list_store_refs(config: Config, split: str) -> list[ImageRef]:
    """List the unaugmented pictures of a split of the store."""
    store = config.path("store")
    _, parts = select_parts(store, split=split, recipes=None if split == "val" else ["Original"])
    refs: dict[str, ImageRef] = {}
    for part in parts:
        for row, source in enumerate(read_part(part, ["source"])["source"].to_pylist()):
            # A part's file name contains a digest of its content. Only the first copy of a source is predicted.
            refs.setdefault(source, ImageRef(source, part, row, f"{part.rpartition('/')[2]}:{row}"))
    if not refs:
        raise StoreError(f"{store}: its split {split} is empty: raise split.fraction and augment again")
    return list(refs.values())
