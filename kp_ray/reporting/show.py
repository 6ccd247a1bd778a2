"""Pictures of a store's variants or of predictions, with skeletons over them."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError
from kp_ray.images import Image, decode_bgr, encode_bgr
from kp_ray.keypoints import DACON24
from kp_ray.reporting.formatting import read_optional_json
from kp_ray.reporting.predictions import find_picture, read_predictions, read_truth
from kp_ray.reporting.store import store_skeleton
from kp_ray.storage import exists, join, write_bytes
from kp_ray.store.read import RowReader, read_part
from kp_ray.visualization.colors import TRUTH, series_color
from kp_ray.visualization.skeletons import contact_sheet, draw_legend, draw_skeleton


def show(
    path: str,
    folder: str | None = None,
    *,
    recipe: str | None = None,
    image: str | None = None,
    num: int = 12,
    seed: int = 0,
) -> dict[str, Any]:
    """Write pictures with skeletons over them: of a store's variants, or of predictions, and a sheet of all of them.

    Args:
        path: a store, or a `predictions.parquet`; the run's config.yaml beside it says where predicted images are.
        folder: gets the pictures and `sheet.jpg`; None: `show` beside `path`.
        recipe: only variants of this one.
        image: only variants of this source, or predictions of this image.
        num: at most so many, drawn at random.
        seed: another seed, other pictures.

    Returns:
        `pictures`, how many, and `folder`.

    Raises:
        RunStateError: `path` is neither, or holds nothing of this selection.
    """
    target = folder or join(posixpath.dirname(path.rstrip("/")) or ".", "show")
    manifest = (
        read_optional_json(join(path, "manifest.json")) if exists(path) and not path.endswith(".parquet") else None
    )
    rng = np.random.default_rng(seed)
    if manifest is not None:
        pictures = list(_show_variants(path, manifest, recipe, image, num, rng))
    elif path.endswith(".parquet") and exists(path):
        if recipe is not None:
            raise RunStateError(f"{path}: predictions have no recipe: leave --recipe out, or name a store")
        pictures = list(_show_predictions(path, image, num, rng))
    else:
        raise RunStateError(f"{path}: neither a store nor predictions: name RUN/store or RUN/predictions.parquet")
    if not pictures:
        raise RunStateError(f"{path}: holds nothing of this selection: check --recipe and --image")
    for name, picture in pictures:
        write_bytes(join(target, f"{name.replace('/', '_')}.jpg"), encode_bgr(picture, 90))
    names, images = [name for name, _ in pictures], [picture for _, picture in pictures]
    write_bytes(join(target, "sheet.jpg"), encode_bgr(contact_sheet(images, names, 4, 260)))
    return {"pictures": len(pictures), "folder": target}


def _config_beside(path: str) -> Config:
    beside = join(posixpath.dirname(path.rstrip("/")) or ".", "config.yaml")
    return load_config(beside) if exists(beside) else Config()


def _show_variants(
    store: str, manifest: Mapping[str, Any], recipe: str | None, image: str | None, num: int, rng: np.random.Generator
) -> Iterator[tuple[str, Image]]:
    skeleton = store_skeleton(join(store, "manifest.json"), _config_beside(store), manifest)
    known = [one["name"] for one in manifest.get("recipes") or []]
    if recipe is not None and recipe not in known:
        raise RunStateError(f"{store}: holds no recipe {recipe!r}: it has {', '.join(known)}")
    paths = [part["path"] for part in manifest["parts"] if recipe in (None, part["recipe"])]
    lengths = [part["num_rows"] for part in manifest["parts"] if recipe in (None, part["recipe"])]
    if image is None:
        ends = np.cumsum(lengths)
        drawn = np.sort(rng.choice(int(sum(lengths)), min(num, int(sum(lengths))), replace=False))
        parts = np.searchsorted(ends, drawn, side="right")
        wanted = [(paths[part], int(row - ends[part] + lengths[part])) for part, row in zip(parts, drawn, strict=True)]
    else:
        rows = ((path, read_part(join(store, path), ["source"])["source"].to_pylist()) for path in paths)
        matching = [(path, row) for path, sources in rows for row, source in enumerate(sources) if source == image]
        wanted = [matching[i] for i in np.sort(rng.permutation(len(matching))[:num])]
    reader = RowReader(_SHOWN)
    for path, index in wanted:
        row = reader.read(join(store, path), index)
        picture = decode_bgr(row["image"])
        if picture is not None:
            points = np.array(row["keypoints"], dtype=float).reshape(-1, 3)
            box = np.array(row["bbox_xyxy"], dtype=float) if (points[:, 2] > 0).any() else None
            name = f"{row['recipe']}-{row['copy']}-{posixpath.splitext(row['source'])[0]}"
            yield name, draw_skeleton(picture, points, skeleton, bbox_xyxy=box)


_SHOWN = ("image", "keypoints", "bbox_xyxy", "recipe", "copy", "source")


def _show_predictions(path: str, image: str | None, num: int, rng: np.random.Generator) -> Iterator[tuple[str, Image]]:
    config = _config_beside(path)
    members, images, keypoints, skeleton = read_predictions(config, path)
    skeleton = skeleton or DACON24
    truth = read_truth(config, skeleton)
    rows = [row for row, name in enumerate(images) if image in (None, name)]
    for row in np.sort(rng.permutation(rows)[:num]):
        picture = find_picture(config, images[row])
        if picture is None:
            raise RunStateError(
                f"{path}: {images[row]}: no such picture in data.test_images of the config.yaml beside it: correct it "
                "(what was predicted by its whole path cannot be shown)"
            )
        if truth is not None and images[row] in truth.images:
            points = truth.keypoints[truth.images.index(images[row])]
            picture = draw_skeleton(picture, points, skeleton, color=TRUTH)
        for member, points in enumerate(keypoints[:, row]):
            picture = draw_skeleton(picture, points, skeleton, color=series_color(member))
        names = [(name, series_color(member)) for member, name in enumerate(members)]
        picture = draw_legend(picture, [*names, *([("truth", TRUTH)] if truth else [])])
        yield posixpath.splitext(images[row])[0], picture
