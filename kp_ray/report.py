"""A run folder as one self-contained HTML page, and pictures of a store's or the predictions' skeletons.

Each section is made from files the stages leave in the run folder and is None when its files are not there, so a run
that only augmented, or only trained, has a report too. `report.html.jinja` lays the sections out; names from data
reach it as plain text and are escaped there.
"""

import base64
import csv
import io
import json
import math
import platform
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.fs as pafs
from jinja2 import Environment, StrictUndefined

from kp_ray import __version__, draw
from kp_ray.annotations import Annotations, checked_name, in_order_of, load_annotations, parse_name
from kp_ray.config import Config, InputError, exists, filesystem, join, load, read_bytes, read_json, write_bytes
from kp_ray.keypoints import DACON24, FloatArray, Skeleton, visible_box
from kp_ray.metrics import oks, pck, point_errors
from kp_ray.store import RowReader, read_parquet
from kp_ray.submission import read_form, read_submission

NUM_PICTURES = 12
"""How many worst, how many disputed and how many filled images are shown."""
NUM_ROWS = 100
"""The longest a list in the page gets; the files hold the rest."""
NUM_PARTS = 8
"""Parts of a recipe that its poses are counted from, spread over all of them."""
_NUM_POSES = 400
_CURVE_POINTS = 1000

_METRICS = (  # key, label, format, whether more is better
    ("rmse", "RMSE (px)", ".2f", False),
    ("median_px", "median (px)", ".2f", False),
    ("p95_px", "p95 (px)", ".2f", False),
    ("pck.0.05", "PCK@0.05", ".3f", True),
    ("pck.0.1", "PCK@0.1", ".3f", True),
    ("ap", "AP", ".3f", True),
    ("num_missing", "missing", ",.0f", False),
)
_PACKAGES = (
    "kp_ray", "ray", "torch", "torchvision", "detectron2", "sal-detectron2", "albumentations", "opencv-python-headless",
    "simplejpeg", "numpy", "pandas", "pyarrow", "optuna", "pycocotools", "matplotlib",
)  # fmt: skip


def write_report(config: Config) -> str:
    """Write `<run_dir>/report.html` from what is in the run folder, and return its path.

    Raises:
        InputError: the run folder is not there, or one of its files cannot be read.
    """
    if not exists(config.run_dir):
        raise InputError(f"{config.run_dir}: there is no such run folder: set run_dir, or run a stage first")
    evaluation = _read_json(config.path("evaluation.json")) or {}
    manifest = _read_json(config.path("store", "manifest.json"))
    variants = _read_variants(config, manifest)
    answers = _read_answers(config)
    source = resources.files("kp_ray").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = _number
    html = page.from_string(source).render(
        title=PurePosixPath(config.run_dir).name,
        run_dir=_without_secrets(config.run_dir),
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        result=_result(evaluation),
        errors=[*_errors(evaluation), *_success_curves(answers)],
        data=_data(config, manifest, variants),
        store=_store(config, manifest, variants),
        poses=_poses(config, variants, answers),
        training=_training(config),
        tune=_tune(config),
        predictions=_predictions(config, evaluation, answers),
        speeds=_speeds(config),
        config_yaml=_without_secrets(_read_text(config.path("config.yaml")) or config.to_yaml()),
        versions=_versions(),
        num_rows=NUM_ROWS,
    )
    write_bytes(config.path("report.html"), html.encode())
    return config.path("report.html")


def _result(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of the ensemble and its members; the best of a column is marked where the rows differ.

    A cell is its text, whether it is the best, and the interval it lies in with 95 % confidence, if that is known.
    """
    scored = {"ensemble": evaluation, **(evaluation.get("members") or {})}
    table = {
        key: {name: value for name, row in scored.items() if (value := _dig(row, key)) is not None}
        for key, *_ in _METRICS
    }
    columns = [column for column in _METRICS if table[column[0]]]
    if not columns:
        return None
    rows: dict[str, list[tuple[str, bool, str]]] = {name: [] for name in scored}
    for key, _, form, more in columns:
        texts = {name: format(value, form) for name, value in table[key].items()}
        best = texts[(max if more else min)(table[key], key=table[key].__getitem__)]
        marked = len(set(texts.values())) > 1
        for name, cells in rows.items():
            between = _interval(scored[name], key)
            range_text = f"{between[0]:{form}} to {between[1]:{form}}" if between else ""
            cells.append((texts.get(name, "-"), marked and texts.get(name) == best, range_text))
    return {
        "labels": [label for _, label, *_ in columns],
        "rows": rows,
        "num_images": evaluation.get("num_images"),
        "has_intervals": any(between for cells in rows.values() for *_, between in cells),
    }


def _errors(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Bars by keypoint and by camera."""
    figures = []
    for key, what in (("by_keypoint", "keypoint"), ("by_camera", "camera")):
        rows = evaluation.get(key) or {}
        if rows:
            labels = [name if key == "by_keypoint" else f"camera {name or 'unknown'}" for name in rows]
            values = [_dig(row, "rmse") for row in rows.values()]
            intervals = [_interval(row, "rmse") for row in rows.values()]
            svg = draw.plot_bars(labels, values, "RMSE (px)", f"Error by {what}", intervals)
            figures.append(_figure(svg, f"RMSE of each {what}, in pixels"))
    return figures


def _interval(row: Mapping[str, Any] | None, key: str) -> tuple[float, float] | None:
    """The (low, high) of a figure, if the evaluation has one."""
    pair = (row or {}).get(f"{key}_interval") or ()
    numbers = [value for value in pair if isinstance(value, int | float) and math.isfinite(value)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _success_curves(answers: "_Answers") -> list[dict[str, str]]:
    """How many points and people are right, over how strictly one asks: of each member and of the submission."""
    truth = answers.truth
    if truth is None:
        return []
    place = {image: row for row, image in enumerate(truth.images)}
    given: dict[str, tuple[Sequence[str], FloatArray]] = {}
    given |= {name: (answers.images, points) for name, points in zip(answers.members, answers.keypoints, strict=True)}
    if answers.fused is not None and answers.fused.skeleton.names == truth.skeleton.names:
        given["ensemble"] = (answers.fused.images, answers.fused.keypoints)
    shares, limits = np.linspace(0, 0.2, 41), np.linspace(0.5, 1, 51)
    by_pck, by_oks = {}, {}
    for name, (images, keypoints) in given.items():
        known = [row for row, image in enumerate(images) if image in place]
        labels = truth.keypoints[[place[images[row]] for row in known]]
        people = np.asarray(np.isfinite(labels[..., 0]).any(axis=1))
        if keypoints.shape[1] != labels.shape[1] or not people.any():
            continue
        labels = labels[people]
        # Who was not found is wrong everywhere.
        predicted = np.nan_to_num(keypoints[known][people], nan=-1e6)
        sizes = np.nanmax(labels[..., :2], axis=1) - np.nanmin(labels[..., :2], axis=1)
        errors = point_errors(predicted, labels)
        similar = oks(predicted, labels, truth.skeleton, sizes.prod(axis=1))
        by_pck[name] = shares.tolist(), [pck(errors, sizes.max(axis=1), share) or 0.0 for share in shares.tolist()]
        by_oks[name] = limits.tolist(), [float((similar >= limit).mean()) for limit in limits]
    if not by_pck:
        return []
    points = draw.plot_curves(by_pck, "distance, as a share of the box's longer side", "share of points", "PCK")
    persons = draw.plot_curves(by_oks, "OKS at least", "share of images", "OKS")
    return [
        _figure(points, "Share of keypoints within a distance of the truth"),
        _figure(persons, "Share of images whose OKS is at least a value"),
    ]


@dataclass
class _Variants:
    """Some of a recipe's variants: n rows, K keypoints.

    Attributes:
        keypoints: (n, K, 3) x, y, v in the variant's pixels.
        boxes: (n, 4) x1, y1, x2, y2.
        sizes: (n, 2) width and height.
        splits, cameras: n names.
        picture: of one of them, small, with its skeleton; None when no part could be read.
        unread: parts that could not be read.
    """

    keypoints: FloatArray
    boxes: FloatArray
    sizes: FloatArray
    splits: npt.NDArray[np.str_]
    cameras: tuple[str, ...]
    picture: draw.Image | None
    unread: tuple[str, ...]

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """(n, K)."""
        return np.asarray(self.keypoints[..., 2] > 0)


def _store_skeleton(path: str, config: Config, manifest: Mapping[str, Any]) -> Skeleton:
    try:
        return config.skeleton_of(manifest.get("skeleton") or [])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_variants(config: Config, manifest: Mapping[str, Any] | None) -> dict[str, _Variants]:
    """By recipe, the rows of a few parts spread over the store."""
    if not manifest or not manifest.get("skeleton"):
        return {}
    skeleton = _store_skeleton(config.path("store", "manifest.json"), config, manifest)
    found = {}
    for recipe in manifest.get("recipes") or []:
        parts = [part["path"] for part in manifest.get("parts") or [] if part["recipe"] == recipe["name"]]
        chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, NUM_PARTS).astype(int))] if parts else []
        found[recipe["name"]] = _read_parts(config.path("store"), chosen, skeleton)
    return found


def _read_parts(store: str, paths: Sequence[str], skeleton: Skeleton) -> _Variants:
    rows: list[dict[str, Any]] = []
    unread, picture = [], None
    for path in paths:
        try:
            columns = ["keypoints", "bbox_xyxy", "width", "height", "split", "camera", "source"]
            found = read_parquet(join(store, path), columns).to_pylist()
            if any(len(row["keypoints"]) != 3 * len(skeleton) for row in found):
                raise InputError(f"{path}: another skeleton's keypoints")
            if picture is None and found:
                picture = _sample_variant(join(store, path), found, skeleton)
        except InputError:
            unread.append(path)
            continue
        rows += found
    return _Variants(
        keypoints=np.array([row["keypoints"] for row in rows], dtype=float).reshape(-1, len(skeleton), 3),
        boxes=np.array([row["bbox_xyxy"] for row in rows], dtype=float).reshape(-1, 4),
        sizes=np.array([[row["width"], row["height"]] for row in rows], dtype=float).reshape(-1, 2),
        splits=np.array([row["split"] for row in rows], dtype=str),
        cameras=tuple(sorted({row["camera"] for row in rows})),
        picture=picture,
        unread=tuple(unread),
    )


def _sample_variant(path: str, rows: Sequence[Mapping[str, Any]], skeleton: Skeleton) -> draw.Image | None:
    """The part's first variant that has a visible point, with its skeleton."""
    points = [np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows]
    index = next((index for index, keypoints in enumerate(points) if (keypoints[:, 2] > 0).any()), 0)
    image = draw.decode(RowReader(["image"]).read(path, index)["image"])
    if image is None:
        return None
    small, affine = draw.crop_resize(image, None, 360)
    return draw.draw_skeleton(small, draw.transform(points[index], affine), skeleton)


def _data(
    config: Config, manifest: Mapping[str, Any] | None, variants: Mapping[str, _Variants]
) -> dict[str, Any] | None:
    """What `check` found, counted by kind, and the sources that the store and the split took."""
    findings = _read_table(config.path("check.csv"))
    if findings is None and manifest is None:
        return None
    by_kind: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in (findings or ([], []))[1]:
        by_kind[row.get("level", ""), row.get("kind", "")].append(row)
    kinds = [
        {"level": level, "kind": kind, "count": len(rows), "examples": rows[:3]}
        for (level, kind), rows in sorted(by_kind.items(), key=lambda item: (item[0][0] != "error", -len(item[1])))
    ]
    seen = [one for one in variants.values() if len(one.sizes)]
    original = variants.get("Original")
    frames = sorted({(int(w), int(h)) for w, h in original.sizes}) if original else []
    return {
        "checked": findings is not None,
        "num_findings": sum(kind["count"] for kind in kinds),
        "kinds": kinds,
        "num_sources": (manifest or {}).get("num_sources"),
        "units": {side: len(units) for side, units in ((manifest or {}).get("units") or {}).items()},
        "split_rows": (manifest or {}).get("num_rows_by_split") or {},
        "cameras": sorted({camera for one in seen for camera in one.cameras if camera}),
        "frames": [f"{w}x{h}" for w, h in frames[:3]] + (["..."] if len(frames) > 3 else []),
        "num_keypoints": len((manifest or {}).get("skeleton") or []),
        "split": config.split,
    }


def _store(
    config: Config, manifest: Mapping[str, Any] | None, variants: Mapping[str, _Variants]
) -> dict[str, Any] | None:
    """The variants by recipe, how fast they were made, one of each with its skeleton, and what was put aside."""
    if manifest is None:
        return None
    parts = manifest.get("parts") or []
    recipes = []
    for recipe in manifest.get("recipes") or []:
        of_recipe = [part for part in parts if part["recipe"] == recipe["name"]]
        sums = {key: sum(part.get(key) or 0 for part in of_recipe) for key in ("num_rows", "num_bytes")}
        found = variants.get(recipe["name"])
        count = found.visible.sum(axis=1) if found and len(found.visible) else None
        visible = None if count is None else float(count.mean())
        few = None if count is None else float((count < config.augment.min_visible).mean())
        picture = _jpeg_uri(found.picture) if found and found.picture is not None else None
        told = {"num_parts": len(of_recipe), "visible": visible, "few": few, "picture": picture}
        recipes.append({**recipe, **sums, **told})
    return {
        "manifest": manifest,
        "recipes": recipes,
        "num_bytes": sum(recipe["num_bytes"] for recipe in recipes),
        "pictures": [recipe for recipe in recipes if recipe["picture"]],
        "min_visible": config.augment.min_visible,
        "unread": [path for one in variants.values() for path in one.unread],
    }


def _poses(config: Config, variants: Mapping[str, _Variants], answers: "_Answers") -> dict[str, Any] | None:
    """Which poses there are, and what each recipe makes of them: points in the picture, tilt and size."""
    shown = {name: one for name, one in variants.items() if len(one.keypoints)}
    if not shown:
        return None
    manifest = _read_json(config.path("store", "manifest.json")) or {}
    skeleton = _store_skeleton(config.path("store", "manifest.json"), config, manifest)
    names = list(shown)
    shares = np.array([one.visible.mean(axis=0) for one in shown.values()])
    grid = draw.plot_shares(names, skeleton.names, shares, "Points inside the picture, in percent")
    figures = []
    tilts = [_tilt_deg(one.keypoints, skeleton) for one in shown.values()]
    if any(np.isfinite(tilt).any() for tilt in tilts):
        svg = draw.plot_ranges(names, tilts, "degrees from upright (right: +)", "Tilt of the torso")
        figures.append(_figure(svg, "How far the torso tilts, by recipe"))
    heights = [100 * (one.boxes[:, 3] - one.boxes[:, 1]) / one.sizes[:, 1] for one in shown.values()]
    svg = draw.plot_ranges(names, heights, "box height, % of the picture's", "Size of the person")
    figures.append(_figure(svg, "How large the person is, by recipe"))
    groups = {}
    if "Original" in shown:
        original = shown["Original"]
        sides = {"train": "trained on", "val": "validated on"}
        groups = {told: original.keypoints[original.splits == side] for side, told in sides.items()}
    if answers.fused is not None and answers.fused.skeleton.names == skeleton.names:
        groups["predicted"] = answers.fused.keypoints
    groups = {told: _normalised(points[:_NUM_POSES]) for told, points in groups.items() if len(points)}
    if groups:
        svg = draw.plot_poses(groups, skeleton, "Poses of the originals, one over the other")
        figures.insert(0, _figure(svg, "Skeletons laid over each other, by split"))
    return {
        "grid": _figure(grid, "Share of variants in which a keypoint is inside the picture, by recipe"),
        "figures": figures,
        "num": max(len(one.keypoints) for one in shown.values()),
    }


def _tilt_deg(keypoints: FloatArray, skeleton: Skeleton) -> FloatArray:
    """(n,) angle of hips to neck (or shoulders) from upright, clockwise positive; NaN without those points."""
    tops = ["neck"] if "neck" in skeleton.names else ["left_shoulder", "right_shoulder"]
    ends = [tops, ["left_hip", "right_hip"]]
    if not {name for end in ends for name in end} <= set(skeleton.names):
        return np.full(len(keypoints), np.nan)
    top, hips = (keypoints[:, [skeleton.names.index(name) for name in end], :2].mean(axis=1) for end in ends)
    x, y = (top - hips).T
    return np.asarray(np.degrees(np.arctan2(x, -y)))


def _normalised(keypoints: FloatArray) -> FloatArray:
    """(n, K, 2) about each pose's mean point, in units of its points' root mean square distance from it."""
    labelled = keypoints[..., 2:] > 0
    xy = np.where(labelled, keypoints[..., :2], np.nan)
    count = np.maximum(labelled.sum(axis=1, keepdims=True), 1)
    xy = xy - np.nansum(xy, axis=1, keepdims=True) / count
    spread = np.sqrt(np.nansum(xy**2, axis=(1, 2), keepdims=True) / count)
    return np.asarray(xy / np.maximum(spread, 1e-9))


def _training(config: Config) -> dict[str, Any] | None:
    """Curves of every member, over each other, from Detectron2's metrics.json."""
    ours = [member.name for member in config.train.members]
    folders = sorted(_folders(config.path("members")), key=lambda name: (name not in ours, name))
    logs = {name: log for name in folders if (log := _read_log(config.member_dir(name)))}
    if not logs:
        return None
    wanted = (
        ("total_loss", "total loss", "Training loss", True),
        ("lr", "learning rate", "Learning rate", False),
        ("val/rmse", "RMSE (px)", "Validation RMSE", False),
        ("val/pck_0.05", "PCK@0.05", "Validation PCK@0.05", False),
    )
    figures = []
    for key, ylabel, title, log_y in wanted:
        series = {name: curve for name, log in logs.items() if (curve := _curve(log, key))[0]}
        if series:
            svg = draw.plot_curves(series, "iteration", ylabel, title, log_y)
            figures.append(_figure(svg, f"{title} over the iterations, by member"))
    members = []
    for name, log in logs.items():
        losses = [loss for row in log.values() if (loss := _dig(row, "total_loss", nan=True)) is not None]
        scores = [(rmse, at + 1) for at, row in log.items() if (rmse := _dig(row, "val/rmse")) is not None]
        best, at = min(scores, default=(None, None))
        members.append((name, max(log) + 1, losses[-1] if losses else None, best, at))
    return {"figures": figures, "members": members}


def _read_log(folder: str) -> dict[int, dict[str, Any]]:
    """Iteration -> its metrics. A resumed run repeats iterations, the later count; a killed one cuts its last line."""
    log: dict[int, dict[str, Any]] = {}
    for line in (_read_text(join(folder, "metrics.json")) or "").splitlines():
        try:
            row = json.loads(line)
            log[int(row["iteration"])] = {**log.get(int(row["iteration"]), {}), **row}
        except (ValueError, KeyError, TypeError):
            continue
    return dict(sorted(log.items()))


def _curve(log: Mapping[int, Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(iteration, value) for iteration, row in log.items() if (value := _dig(row, key, nan=True)) is not None]
    points = points[:: -(-len(points) // _CURVE_POINTS)] + points[-1:] if len(points) > _CURVE_POINTS else points
    return [float(x) for x, _ in points], [y for _, y in points]


def _tune(config: Config) -> dict[str, Any] | None:
    """The trials, the best of those that went farthest first, and the plots that lie beside them."""
    table = _read_table(config.path("tune", "trials.csv"))
    best_yaml = _read_text(config.path("tune", "best.yaml"))
    if table is None and best_yaml is None:
        return None
    columns, rows = table or ([], [])
    metric = config.tune.metric if config.tune.metric in columns else None
    sign = 1 if config.tune.mode == "min" else -1

    def rank(row: Mapping[str, str]) -> tuple[bool, float, float]:
        value = _float(row.get(metric or ""))
        return value is None, -(_float(row.get("iterations")) or 0), sign * (value or 0)

    plots = {
        "learning_rate": "The metric of each trial over its base learning rate",
        "curves": "The metric of each trial over its iterations",
        "parallel": "Every trial's parameters and result",
        "importance": "How much each parameter explains",
    }
    files = {name: config.path("tune", f"{name}.svg") for name in plots}
    figures = {name: _figure(read_bytes(path), plots[name]) for name, path in files.items() if exists(path)}
    return {
        "columns": columns, "rows": sorted(rows, key=rank)[:NUM_ROWS], "num_trials": len(rows), "metric": metric,
        "parallel": figures.pop("parallel", None), "figures": [*figures.values()],
        "best_yaml": best_yaml and _without_secrets(best_yaml),
    }  # fmt: skip


@dataclass
class _Answers:
    """What was predicted of the test images, and their truth.

    Attributes:
        members, images: M and N names.
        keypoints: (M, N, K, 3) x, y, score; NaN where a member found nobody.
        fused: the submission.
        truth: labels of the test images.
    """

    members: list[str]
    images: list[str]
    keypoints: FloatArray
    fused: Annotations | None
    truth: Annotations | None


def _read_answers(config: Config) -> _Answers:
    members, images, keypoints, skeleton = _read_predictions(config, config.path("predictions.parquet"))
    fused = _read_fused(config, config.path("submission.csv"), skeleton)
    return _Answers(members, images, keypoints, fused, _read_truth(config, skeleton))


def _read_predictions(config: Config, path: str) -> tuple[list[str], list[str], FloatArray, Skeleton | None]:
    """Members, images, keypoints (M, N, K, 3) and skeleton of `predictions.parquet`; nothing if it is not there."""
    if not exists(path):
        return [], [], np.zeros((0, 0, 0, 3)), None
    table = read_parquet(path, ["image", "member", "keypoints"], mend="delete it and run predict again")
    try:
        names = json.loads(table.schema.metadata[b"kp_ray"])["keypoints"]
        skeleton = config.skeleton_of(names)
        rows = table.to_pylist()
        members, images = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("member", "image"))
        width = max((len(row["keypoints"] or ()) for row in rows), default=0)
        keypoints = np.full((len(members), len(images), width // 3, 3), np.nan)
        of_member, of_image = ({name: i for i, name in enumerate(names)} for names in (members, images))
        for row in rows:
            if row["keypoints"] is not None:
                points = np.array(row["keypoints"], dtype=float).reshape(-1, 3)
                keypoints[of_member[row["member"]], of_image[row["image"]]] = points
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}): run predict again") from error
    return members, images, keypoints, skeleton


def _predictions(config: Config, evaluation: Mapping[str, Any], answers: _Answers) -> dict[str, Any] | None:
    """The images predicted worst, disputed most, and without anybody found (`filled` None: not known)."""
    worst = evaluation.get("worst") or []
    filled = evaluation.get("filled")
    if filled is None:
        filled = (_read_json(config.path("predict.json")) or {}).get("filled")
    if not worst and filled is None and answers.fused is None and not answers.images:
        return None
    how = [re.sub(r"^frame \d+$", "a near frame", row.get("how") or "unknown") for row in filled or []]
    disputed = _disputed(answers)
    labels = ((answers.truth, draw.TRUTH), (answers.fused, None))

    def tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        pictures = []
        for row in rows[:NUM_PICTURES]:
            image = row["image"]
            people = [
                (one.keypoints[one.images.index(image)], one.skeleton, paint)
                for one, paint in labels
                if one is not None and image in one.images
            ]
            pictures.append({**row, "uri": _overlay(config, image, people), "point": _worst_point(image, answers)})
        return [picture for picture in pictures if picture["uri"]]

    skeleton = next((one.skeleton for one, _ in labels if one is not None), None)
    disputes = []
    for row, spread in disputed[:NUM_PICTURES]:
        if skeleton is None or answers.keypoints.shape[2] != len(skeleton):
            break
        people = [(answers.keypoints[m, row], skeleton, draw.series_color(m)) for m in range(len(answers.members))]
        uri = _overlay(config, answers.images[row], people)
        disputes += [{"image": answers.images[row], "spread": spread, "uri": uri}] if uri else []
    return {
        "worst": worst, "filled": filled, "worst_tiles": tiles(worst), "filled_tiles": tiles(filled or []),
        "has_truth": answers.truth is not None, "how": Counter(how), "disputes": disputes,
        "median_spread": float(np.median([spread for _, spread in disputed])) if disputed else None,
        "members": [(name, draw.SERIES[m % len(draw.SERIES)]) for m, name in enumerate(answers.members)],
        "num_images": len(answers.images),
        "lost": {
            name: int(np.isnan(points[..., 0]).all(axis=1).sum())
            for name, points in zip(answers.members, answers.keypoints, strict=True)
        },
    }  # fmt: skip


def _disputed(answers: _Answers) -> list[tuple[int, float]]:
    """(image, how far its members' points lie from their mean, RMS in pixels), the most disputed first."""
    found = np.asarray(np.isfinite(answers.keypoints[..., :2]).all(axis=(2, 3)))  # (M, N)
    disputed = []
    for row in np.flatnonzero(found.sum(axis=0) > 1):
        points = answers.keypoints[found[:, row], row, :, :2]
        squared = ((points - points.mean(axis=0)) ** 2).sum(axis=2)
        disputed.append((int(row), float(np.sqrt(squared.mean()))))
    return sorted(disputed, key=lambda pair: -pair[1])


def _worst_point(image: str, answers: _Answers) -> str | None:
    """The keypoint of an image's prediction that lies farthest from the truth, and how far."""
    truth, fused = answers.truth, answers.fused
    if truth is None or fused is None or truth.skeleton.names != fused.skeleton.names:
        return None
    if image not in truth.images or image not in fused.images:
        return None
    errors = point_errors(fused.keypoints[fused.images.index(image)], truth.keypoints[truth.images.index(image)])
    if not np.isfinite(errors).any():
        return None
    farthest = int(np.nanargmax(errors))
    return f"{truth.skeleton.names[farthest]} by {errors[farthest]:,.0f} px"


def _read_truth(config: Config, skeleton: Skeleton | None) -> Annotations | None:
    """The truth with its keypoints in the skeleton's order (None: its own)."""
    path = config.data.truth
    if path is None or not exists(path):
        return None
    labels = load_annotations(path, flip_pairs=config.skeleton.flip_pairs, sigmas=config.skeleton.sigmas)
    return labels if skeleton is None else in_order_of(labels, skeleton, path)


def _read_fused(config: Config, path: str, skeleton: Skeleton | None) -> Annotations | None:
    """The submission as labels; its images may be whole paths."""
    if not exists(path):
        return None
    form = read_form(path)
    skeleton = skeleton or config.skeleton_of(form.names)
    xy = read_submission(path, form, skeleton, size=None, allow_zeros=True)
    scenes, cameras, frames = zip(*map(parse_name, form.images), strict=True)
    return Annotations(skeleton, form.images, np.dstack([xy, np.full(xy.shape[:2], 2.0)]), scenes, cameras, frames)


_Person = tuple[FloatArray, Skeleton, draw.Color | None]
"""Keypoints (K, 3), their skeleton and colour (None: by side)."""


def _overlay(config: Config, image: str, people: Sequence[_Person]) -> str | None:
    """The part of a test image around its person with skeletons over it; None when it cannot be shown."""
    points = np.concatenate([keypoints for keypoints, *_ in people]) if people else np.zeros((0, 3))
    picture = _find_picture(config, image) if np.isfinite(points[:, :2]).any() else None
    if picture is None:
        return None
    height, width = picture.shape[:2]
    box = visible_box(points, width, height)
    box = visible_box(points, width, height, margin_px=0.2 * float((box[2:] - box[:2]).max()))
    picture, affine = draw.crop_resize(picture, box, 440)
    for keypoints, skeleton, paint in people:
        picture = draw.draw_skeleton(picture, draw.transform(keypoints, affine), skeleton, color=paint)
    return _jpeg_uri(picture)


def _find_picture(config: Config, image: str) -> draw.Image | None:
    """The predicted image of this name, from wherever the config takes images; None if it is not there."""
    try:
        checked_name(image, "")
    except InputError:
        return None  # it could lead out of the folder, to what must not stand in a page that is passed on
    for folder in (config.predict.images, config.data.test_images, config.data.images):
        path = join(folder or "", image)
        if folder is not None and exists(path):
            return draw.decode(read_bytes(path))
    return None


def _speeds(config: Config) -> list[tuple[str, str]]:
    """(stage, what it took), of the stages that recorded it."""
    told = []
    augment = _read_json(config.path("augment.json")) or {}
    seconds, start_up = _dig(augment, "seconds"), _dig(augment, "start_up_s") or 0.0
    if seconds is not None and (augment.get("parts_written") or "parts_written" not in augment):
        rate = _dig(augment, "sources_per_s")
        text = f"{_number(seconds)} s, {_number(start_up)} s of it start-up: {_number(rate)} sources/s"
        told.append(("augment", text))
    for name in _folders(config.path("members")):
        log = _read_log(config.member_dir(name))
        pace = [value for row in log.values() if (value := _dig(row, "time")) is not None]
        if pace:
            middle = float(np.median(pace))
            told.append((f"train {name}", f"{_number(middle)} s an iteration, {_number(middle * (max(log) + 1))} s"))
    _, rows = _read_table(config.path("tune", "trials.csv")) or ([], [])
    spent = [value for row in rows if (value := _float(row.get("seconds"))) is not None]
    steps = sum(_float(row.get("trained")) or 0 for row in rows)
    if spent and sum(spent):
        told.append(("tune", f"{_number(sum(spent))} s over {len(rows)} trials, {_number(int(steps))} iterations"))
    predicted = _read_json(config.path("predict.json")) or {}
    seconds = _dig(predicted, "took.seconds")
    if seconds:
        rate = (_dig(predicted, "took.predicted") or 0) / seconds
        told.append(("predict", f"{_number(seconds)} s: {_number(rate)} images/s"))
    return told


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
        InputError: `path` is neither, or holds nothing of this selection.
    """
    target = folder or join(posixpath.dirname(path.rstrip("/")) or ".", "show")
    manifest = _read_json(join(path, "manifest.json")) if exists(path) and not path.endswith(".parquet") else None
    rng = np.random.default_rng(seed)
    if manifest is not None:
        pictures = list(_show_variants(path, manifest, recipe, image, num, rng))
    elif path.endswith(".parquet") and exists(path):
        if recipe is not None:
            raise InputError(f"{path}: predictions have no recipe: leave --recipe out, or name a store")
        pictures = list(_show_predictions(path, image, num, rng))
    else:
        raise InputError(f"{path}: neither a store nor predictions: name RUN/store or RUN/predictions.parquet")
    if not pictures:
        raise InputError(f"{path}: holds nothing of this selection: check --recipe and --image")
    for name, picture in pictures:
        write_bytes(join(target, f"{name.replace('/', '_')}.jpg"), draw.encode_jpeg(picture, 90))
    names, images = [name for name, _ in pictures], [picture for _, picture in pictures]
    write_bytes(join(target, "sheet.jpg"), draw.encode_jpeg(draw.contact_sheet(images, names, 4, 260)))
    return {"pictures": len(pictures), "folder": target}


def _config_beside(path: str) -> Config:
    beside = join(posixpath.dirname(path.rstrip("/")) or ".", "config.yaml")
    return load(beside) if exists(beside) else Config()


def _show_variants(
    store: str, manifest: Mapping[str, Any], recipe: str | None, image: str | None, num: int, rng: np.random.Generator
) -> Iterator[tuple[str, draw.Image]]:
    skeleton = _store_skeleton(join(store, "manifest.json"), _config_beside(store), manifest)
    known = [one["name"] for one in manifest.get("recipes") or []]
    if recipe is not None and recipe not in known:
        raise InputError(f"{store}: holds no recipe {recipe!r}: it has {', '.join(known)}")
    paths = [part["path"] for part in manifest["parts"] if recipe in (None, part["recipe"])]
    lengths = [part["num_rows"] for part in manifest["parts"] if recipe in (None, part["recipe"])]
    if image is None:
        ends = np.cumsum(lengths)
        drawn = np.sort(rng.choice(int(sum(lengths)), min(num, int(sum(lengths))), replace=False))
        parts = np.searchsorted(ends, drawn, side="right")
        wanted = [(paths[part], int(row - ends[part] + lengths[part])) for part, row in zip(parts, drawn, strict=True)]
    else:
        rows = ((path, read_parquet(join(store, path), ["source"])["source"].to_pylist()) for path in paths)
        matching = [(path, row) for path, sources in rows for row, source in enumerate(sources) if source == image]
        wanted = [matching[i] for i in np.sort(rng.permutation(len(matching))[:num])]
    reader = RowReader(_SHOWN)
    for path, index in wanted:
        row = reader.read(join(store, path), index)
        picture = draw.decode(row["image"])
        if picture is not None:
            points = np.array(row["keypoints"], dtype=float).reshape(-1, 3)
            box = np.array(row["bbox_xyxy"], dtype=float) if (points[:, 2] > 0).any() else None
            name = f"{row['recipe']}-{row['copy']}-{posixpath.splitext(row['source'])[0]}"
            yield name, draw.draw_skeleton(picture, points, skeleton, bbox_xyxy=box)


_SHOWN = ("image", "keypoints", "bbox_xyxy", "recipe", "copy", "source")


def _show_predictions(
    path: str, image: str | None, num: int, rng: np.random.Generator
) -> Iterator[tuple[str, draw.Image]]:
    config = _config_beside(path)
    members, images, keypoints, skeleton = _read_predictions(config, path)
    skeleton = skeleton or DACON24
    truth = _read_truth(config, skeleton)
    rows = [row for row, name in enumerate(images) if image in (None, name)]
    for row in np.sort(rng.permutation(rows)[:num]):
        picture = _find_picture(config, images[row])
        if picture is None:
            raise InputError(
                f"{path}: {images[row]}: no such picture in data.test_images of the config.yaml beside it: correct it "
                "(what was predicted by its whole path cannot be shown)"
            )
        if truth is not None and images[row] in truth.images:
            points = truth.keypoints[truth.images.index(images[row])]
            picture = draw.draw_skeleton(picture, points, skeleton, color=draw.TRUTH)
        for member, points in enumerate(keypoints[:, row]):
            picture = draw.draw_skeleton(picture, points, skeleton, color=draw.series_color(member))
        names = [(name, draw.series_color(member)) for member, name in enumerate(members)]
        picture = draw.draw_legend(picture, [*names, *([("truth", draw.TRUTH)] if truth else [])])
        yield posixpath.splitext(images[row])[0], picture


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _read_text(path: str) -> str | None:
    return read_bytes(path).decode("utf-8-sig", errors="replace") if exists(path) else None


def _read_json(path: str) -> dict[str, Any] | None:
    return read_json(path, "run the stage that writes it again") if exists(path) else None


def _read_table(path: str) -> tuple[list[str], list[dict[str, str]]] | None:
    """The column names and rows of a CSV, as text."""
    text = _read_text(path)
    if text is None:
        return None
    reader = csv.DictReader(io.StringIO(text), restval="")
    return list(reader.fieldnames or []), [{key: value for key, value in row.items() if key} for row in reader]


def _folders(path: str) -> list[str]:
    fs, inner = filesystem(path)
    found = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def _dig(row: Mapping[str, Any] | None, key: str, nan: bool = False) -> float | None:
    """A number under a key, or under its two halves as in `pck.0.05`; None when it is absent or not finite."""
    outer, _, inner = key.partition(".")
    nested = (row or {}).get(outer)
    value = nested.get(inner) if isinstance(nested, Mapping) else (row or {}).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if nan or math.isfinite(value) else None


def _float(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(value: Any) -> str:
    """A figure for people: thousands apart, four significant digits; what is not a number stays as it is."""
    if value is None:
        return "-"
    number = _float(str(value))
    if number is None or (isinstance(value, str) and not re.search(r"[.e]", value)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _without_secrets(text: str) -> str:
    """Text without the user and password of a URL: a report is made to be passed on."""
    return re.sub(r"(://)[^/\s@]+@", r"\1***@", text)


def _figure(svg: bytes, alt: str) -> dict[str, str]:
    return {"uri": f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", "alt": alt}


def _jpeg_uri(image: draw.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(draw.encode_jpeg(image)).decode()}"
