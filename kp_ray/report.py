"""A run folder as one self-contained HTML page.

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
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined

from kp_ray import __version__, draw
from kp_ray.annotations import Annotations, load_annotations
from kp_ray.config import Config, InputError, exists, filesystem, join, read_bytes, write_bytes
from kp_ray.keypoints import Skeleton, skeleton_for, visible_box

NUM_PICTURES = 12
"""How many worst and how many filled images are shown."""
NUM_ROWS = 100
"""The longest a list in the page gets; the files hold the rest."""
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
    source = resources.files("kp_ray").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = _number
    html = page.from_string(source).render(
        title=PurePosixPath(config.run_dir).name,
        run_dir=_without_secrets(config.run_dir),
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        result=_result(evaluation),
        errors=_errors(evaluation),
        data=_data(config, manifest),
        store=_store(config, manifest),
        training=_training(config),
        tune=_tune(config),
        predictions=_predictions(config, evaluation),
        config_yaml=_without_secrets(_read_text(config.path("config.yaml")) or config.to_yaml()),
        versions=_versions(),
        num_rows=NUM_ROWS,
    )
    write_bytes(config.path("report.html"), html.encode())
    return config.path("report.html")


def _result(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of the ensemble and its members; the best of a column is marked where the rows differ."""
    scored = {"ensemble": evaluation, **(evaluation.get("members") or {})}
    table = {
        key: {name: value for name, row in scored.items() if (value := _dig(row, key)) is not None}
        for key, *_ in _METRICS
    }
    columns = [column for column in _METRICS if table[column[0]]]
    if not columns:
        return None
    rows: dict[str, list[tuple[str, bool]]] = {name: [] for name in scored}
    for key, _, form, more in columns:
        texts = {name: format(value, form) for name, value in table[key].items()}
        best = texts[(max if more else min)(table[key], key=table[key].__getitem__)]
        marked = len(set(texts.values())) > 1
        for name, cells in rows.items():
            cells.append((texts.get(name, "-"), marked and texts.get(name) == best))
    return {"labels": [label for _, label, *_ in columns], "rows": rows, "num_images": evaluation.get("num_images")}


def _errors(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Bars by keypoint and by camera."""
    figures = []
    for key, what in (("by_keypoint", "keypoint"), ("by_camera", "camera")):
        rows = evaluation.get(key) or {}
        if rows:
            labels = [name if key == "by_keypoint" else f"camera {name or 'unknown'}" for name in rows]
            values = [_dig(row, "rmse") for row in rows.values()]
            svg = draw.plot_bars(labels, values, "RMSE (px)", f"Error by {what}")
            figures.append(_figure(svg, f"RMSE of each {what}, in pixels"))
    return figures


def _data(config: Config, manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
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
    return {
        "checked": findings is not None,
        "num_findings": sum(kind["count"] for kind in kinds),
        "kinds": kinds,
        "num_sources": (manifest or {}).get("num_sources"),
        "split_rows": (manifest or {}).get("num_rows_by_split") or {},
        "split": config.split,
    }


def _store(config: Config, manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The variants by recipe, how fast they were made, a sheet with one of each, and what was put aside."""
    if manifest is None:
        return None
    parts = manifest.get("parts") or []
    recipes = []
    images, titles, unread = [], [], []
    names = manifest.get("skeleton") or []
    try:
        skeleton = skeleton_for(names, config.skeleton.flip_pairs, config.skeleton.sigmas) if names else None
    except ValueError as error:
        raise InputError(f"{config.path('store', 'manifest.json')}: {error}") from error
    for recipe in manifest.get("recipes") or []:
        of_recipe = [part for part in parts if part["recipe"] == recipe["name"]]
        sums = {key: sum(part.get(key) or 0 for part in of_recipe) for key in ("num_rows", "num_bytes")}
        recipes.append({**recipe, **sums, "num_parts": len(of_recipe)})
        if of_recipe and skeleton:
            picture = _sample_variant(config.path("store", of_recipe[0]["path"]), skeleton)
            if picture is None:
                unread.append(of_recipe[0]["path"])
            else:
                images.append(picture)
                titles.append(recipe["name"])
    sheet = draw.contact_sheet(images, titles, columns=4, tile_width=300) if images else None
    return {
        "manifest": manifest,
        "recipes": recipes,
        "num_bytes": sum(recipe["num_bytes"] for recipe in recipes),
        "timing": _read_json(config.path("augment.json")) or {},
        "sheet": _jpeg_uri(sheet) if sheet is not None else None,
        "unread": unread,
    }


def _sample_variant(path: str, skeleton: Skeleton) -> draw.Image | None:
    """The first variant of a part that has a visible point, with its skeleton; None when the part cannot be read."""
    try:
        fs, inner = filesystem(path)
        with fs.open_input_file(inner) as stream:
            rows = pq.ParquetFile(stream).read_row_group(0, columns=["image", "keypoints"]).to_pylist()
    except (OSError, pa.ArrowException):
        return None
    points = [np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows]
    if not points or points[0].shape[0] != len(skeleton):
        return None
    index = next((index for index, keypoints in enumerate(points) if (keypoints[:, 2] > 0).any()), 0)
    image = draw.decode(rows[index]["image"])
    if image is None:
        return None
    small, affine = draw.crop_resize(image, None, 320)
    return draw.draw_skeleton(small, draw.transform(points[index], affine), skeleton)


def _training(config: Config) -> dict[str, Any] | None:
    """Curves of every member, over each other, from Detectron2's metrics.json."""
    logs = {name: log for name in _folders(config.path("members")) if (log := _read_log(config.member_dir(name)))}
    if not logs:
        return None
    wanted = (
        ("total_loss", "total loss", "Training loss", True),
        ("lr", "learning rate", "Learning rate", False),
        ("val/rmse", "RMSE (px)", "Validation RMSE", False),
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
    """The trials, best first, and the learning rate against the metric."""
    table = _read_table(config.path("tune", "trials.csv"))
    best_yaml = _read_text(config.path("tune", "best.yaml"))
    if table is None and best_yaml is None:
        return None
    columns, rows = table or ([], [])
    metric = _column(columns, config.tune.metric)
    sign = 1 if config.tune.mode == "min" else -1

    def score(row: Mapping[str, str]) -> float:
        value = _float(row.get(metric or ""))
        return math.inf if value is None else sign * value

    rows = sorted(rows, key=score)
    figures = []
    lr = _column(columns, "base_lr")
    if metric and lr:
        pairs = [(x, y) for row in rows if (x := _float(row[lr])) and (y := _float(row[metric])) is not None]
        if pairs:
            svg = draw.plot_points(
                [x for x, _ in pairs], [y for _, y in pairs], "base learning rate", metric,
                "Learning rate and result by trial, the best circled", log_x=True, best=0,
            )  # fmt: skip
            figures.append(_figure(svg, "The metric of each trial over its base learning rate"))
    return {
        "columns": columns, "rows": rows[:NUM_ROWS], "num_trials": len(rows), "metric": metric, "figures": figures,
        "best_yaml": best_yaml and _without_secrets(best_yaml),
    }  # fmt: skip


def _predictions(config: Config, evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The images predicted worst, and those in which nobody was found (`filled` None: not known)."""
    submission = config.path("submission.csv")
    worst = evaluation.get("worst") or []
    filled = evaluation.get("filled")
    if filled is None:
        filled = (_read_json(config.path("predict.json")) or {}).get("filled")
    if not worst and filled is None and not exists(submission):
        return None
    how = [re.sub(r"^frame \d+$", "a near frame", row.get("how") or "unknown") for row in filled or []]
    labels = [_read_labels(config, path) for path in (config.data.truth, submission)]

    def tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        pictures = [{**row, "uri": _overlay(config, row["image"], labels)} for row in rows[:NUM_PICTURES]]
        return [picture for picture in pictures if picture["uri"]]

    return {
        "worst": worst, "filled": filled, "worst_tiles": tiles(worst), "filled_tiles": tiles(filled or []),
        "has_truth": labels[0] is not None, "how": Counter(how),
    }  # fmt: skip


def _read_labels(config: Config, path: str | None) -> Annotations | None:
    if path is None or not exists(path):
        return None
    return load_annotations(path, flip_pairs=config.skeleton.flip_pairs, sigmas=config.skeleton.sigmas)


def _overlay(config: Config, image: str, labels: Sequence[Annotations | None]) -> str | None:
    """The part of a test image around its person, truth below and prediction above; None when it cannot be shown."""
    # Only names that stand in the labels are opened: `load_annotations` has refused those that leave the folder.
    people = [
        (found.keypoints[found.images.index(image)], found.skeleton, paint)
        for found, paint in zip(labels, (draw.TRUTH, None), strict=True)
        if found and image in found.images
    ]
    path = join(config.data.test_images or "", image)
    if not people or config.data.test_images is None or not exists(path):
        return None
    picture = draw.decode(read_bytes(path))
    if picture is None:
        return None
    height, width = picture.shape[:2]
    points = np.concatenate([keypoints for keypoints, *_ in people])
    box = visible_box(points, width, height)
    box = visible_box(points, width, height, margin_px=0.2 * float((box[2:] - box[:2]).max()))
    picture, affine = draw.crop_resize(picture, box, 440)
    for keypoints, skeleton, paint in people:
        picture = draw.draw_skeleton(picture, draw.transform(keypoints, affine), skeleton, color=paint)
    return _jpeg_uri(picture)


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
    text = _read_text(path)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}): run the stage that writes it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a JSON object is expected: run the stage that writes it again")
    return values


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


def _column(columns: Iterable[str], name: str) -> str | None:
    """The column of that name, with or without a prefix such as `config/` or `val/`."""
    return next((column for column in columns if re.split(r"[/.]", column)[-1] == name), None)


def _dig(row: Mapping[str, Any] | None, key: str, nan: bool = False) -> float | None:
    """A number under a key, or under its two halves as in `pck.0.05`; None when it is absent or not finite."""
    outer, _, inner = key.partition(".")
    value = (row or {}).get(outer)
    value = (value or {}).get(inner) if inner else value
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
