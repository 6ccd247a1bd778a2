"""The images to predict."""

import csv
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.fs as pafs

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission
from kp_ray.errors import RunStateError, one_line
from kp_ray.images import list_images
from kp_ray.storage import file_infos, filesystem, join, read_bytes
from kp_ray.store.read import read_part, select_parts


@dataclass(frozen=True)
class ImageRef:
    """An image to predict: the file at `path`, or row `row` of the store's part there.

    `version` is another when the picture has changed.
    """

    image: str
    path: str
    row: int | None
    version: str


def list_image_refs(config: Config, form: SampleSubmission | None) -> list[ImageRef]:
    """The images that `predict.images` names, in the form's order if that decides.

    Raises:
        RunStateError: nothing is named, a list is no list, or a name stands in it twice or leaves the folder.
    """
    source = config.predict.images
    if source in ("store:train", "store:val"):
        return list_store(config, source.removeprefix("store:"))
    if source is not None and source.lower().endswith((".txt", ".csv")):
        names, folder = _read_list(source), config.data.test_images
    else:
        folder = source or config.require_input("test_images")
        names = list(form.images) if form and source is None else list_images(folder)
    if not names:
        raise RunStateError(f"{source or 'data.test_images: ' + str(folder)}: names no picture")
    odd = [name for name in names if "\0" in name]
    if odd:
        raise RunStateError(f"{source or 'the form'}: {odd[0]!r:.80} holds a NUL, which no file's name does")
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise RunStateError(f"{source}: {double[0]} stands in it {names.count(double[0])} times: name it once")
    whole = {name for name in names if name.startswith("/") or "://" in name}
    if folder is None and len(whole) < len(names):
        raise RunStateError(f"{source}: names files of a folder: set data.test_images, or list whole paths")
    climbing = [name for name in names if ".." in name.split("/")]
    if climbing:
        raise RunStateError(f"{source or 'the form'}: {climbing[0]}: leaves the image folder")
    paths = {name: name if name in whole else join(str(folder), name) for name in names}
    infos = file_infos(folder) if folder and len(whole) < len(names) else {}
    with ThreadPoolExecutor() as pool:
        infos |= dict(zip(whole, pool.map(_file_info, whole), strict=True))
    return [ImageRef(name, path, None, _version(infos.get(name))) for name, path in paths.items()]


def _file_info(path: str) -> pafs.FileInfo:
    fs, inner = filesystem(path)
    return fs.get_file_info(inner)


def _version(info: pafs.FileInfo | None) -> str:
    """What tells a file from another of the same name: its size and time."""
    return f"{info.size}:{info.mtime_ns}" if info and info.type == pafs.FileType.File else "missing"


def _read_list(path: str) -> list[str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunStateError(f"{path}: not UTF-8 text: a list of image names is expected") from error
    if not path.lower().endswith(".csv"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "image" not in (rows.fieldnames or ()):
            raise RunStateError(f"{path}: row 1: there is no column `image`")
        return [row["image"].strip() for row in rows if row["image"]]
    except csv.Error as error:
        raise RunStateError(f"{path}: cannot be read as CSV: {one_line(error)}; is a quote left open?") from error


def list_store(config: Config, split: str) -> list[ImageRef]:
    """The unaugmented pictures of a store's split."""
    _, parts = select_parts(config.path("store"), split=split, recipes=None if split == "val" else ["Original"])
    asked: dict[str, ImageRef] = {}
    for part in parts:
        for row, source in enumerate(read_part(part, ["source"])["source"].to_pylist()):
            # A part's name holds a digest of what it was made of; a second copy of a source is passed over.
            asked.setdefault(source, ImageRef(source, part, row, f"{part.rpartition('/')[2]}:{row}"))
    if not asked:
        raise RunStateError(
            f"{config.path('store')}: its split {split} is empty: raise split.fraction and augment again"
        )
    return list(asked.values())
