"""Measure the images/s of kp_ray's training input from the store and of Detectron2's loader over image files.

    python benchmarks/ingest.py --sources 64 --repeats 5

A  Detectron2's `build_detection_train_loader` with its DatasetMapper over JPEG files, one DataLoader process per core
B  one Ray Train worker per core, which reads its shard of the store as `kp-ray train` does

Both deliver the same images at the same training sizes in random order, half of them flipped, in
batches of 4 images in all. No model consumes the batches. A and B run in alternating order. The files are in the page
cache; start-up and the first batches are not counted. Training sizes: 256x144 as in the `demo` preset, and the
published sizes (shortest side 640-800, longest side at most 1333).
Results: benchmarks/results/ingest.{md,json}.
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import PIL
import ray
import ray.train
import simplejpeg
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader, detection_utils
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from measure import hardware, make_sources, median_and_range, run_kp_ray, write_results
from ray.train.torch import TorchTrainer

from kp_ray.config.load import load_config
from kp_ray.config.training import MemberConfig
from kp_ray.keypoints import CONTINUOUS_OFFSET, DACON24
from kp_ray.models.presets import build_cfg
from kp_ray.store.read import RowReader
from kp_ray.training.dataloader import iter_batches
from kp_ray.training.rows import usable_rows

BATCH = 4
WARM_UP = 12
SIZES = {"demo, 256x144": "demo", "published, 640-800": "dacon"}


def write_files(locations: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Write the images of the store's rows at these locations as JPEG files; return Detectron2's dataset dicts."""
    folder.mkdir()
    reader = RowReader(("image", "width", "height", "keypoints", "bbox_xyxy"))
    dicts = []
    for number, location in enumerate(locations):
        row = reader.read(location["path"], location["row"])
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(row["image"])
        keypoints = np.array(row["keypoints"], dtype=float).reshape(-1, 3)
        keypoints[:, :2] += CONTINUOUS_OFFSET
        keypoints[~np.isfinite(keypoints).all(axis=1)] = 0
        annotation = {
            "bbox": (np.array(row["bbox_xyxy"]) + CONTINUOUS_OFFSET).tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "keypoints": keypoints.ravel().tolist(),
            "category_id": 0,
            "iscrowd": 0,
        }
        dicts.append({"file_name": str(path), "width": row["width"], "height": row["height"], "image_id": number})
        dicts[-1]["annotations"] = [annotation]
    return dicts


def time_batches(batches: Any, count: int) -> float:
    """Skip `WARM_UP` batches, and return the seconds that the next `count` batches take."""
    for _ in itertools.islice(batches, WARM_UP):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return time.perf_counter() - began


def measure_detectron2(cfg: Any, dicts: list[dict[str, Any]], num_processes: int, num_batches: int) -> float:
    """Return the images/s of Detectron2's loader (A)."""
    mapper = DatasetMapper(
        is_train=True,
        augmentations=detection_utils.build_augmentation(cfg, is_train=True),
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=np.array(DACON24.flip_indices),
    )
    loader = build_detection_train_loader(
        dicts,
        mapper=mapper,
        sampler=TrainingSampler(len(dicts), seed=0),
        total_batch_size=BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=num_processes,
    )
    return BATCH * num_batches / time_batches(iter(loader), num_batches)


def read_shard(loop_config: dict[str, Any]) -> float:
    """Read the batches of one Ray Train worker (B) and return the seconds."""
    context = ray.train.get_context()
    torch.set_num_threads(1)
    batch_size = BATCH // context.get_world_size()
    shard = ray.train.get_dataset_shard("train")
    batches = iter_batches(
        shard, loop_config["cfg"], DACON24, batch_size=batch_size, seed=0, rank=context.get_world_rank()
    )
    return time_batches(batches, loop_config["num_batches"])


def measure_kp_ray(cfg: Any, rows: Any, num_workers: int, num_batches: int, storage: str) -> float:
    """Return the images/s of kp_ray's Ray Train workers (B)."""
    result = TorchTrainer(
        read_shard,
        train_loop_config={"cfg": cfg, "num_batches": num_batches},
        datasets={"train": ray.data.from_arrow(rows)},
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name=f"ingest{time.time_ns()}", storage_path=storage),
    ).fit()
    return BATCH * num_batches / float(result.return_value)


def prepare(config_path: Path, run_dir: Path, preset: str) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Return a preset's cfg, the locations of all rows of the store, and dataset dicts of their images as files."""
    overrides = [f"run_dir={run_dir}", f"preset={preset}", "train.recipes=null", "augment.min_visible=1"]
    config = load_config(str(config_path), [*overrides, "train.flip=true"])
    rows = usable_rows(config, MemberConfig(name="a"))
    rows = rows.take(np.random.default_rng(0).permutation(len(rows)))
    return build_cfg(config, DACON24, "cpu"), rows, write_files(rows.to_pylist(), run_dir / preset)


def main() -> None:
    """Measure A and B in turn, `--repeats` times per size, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    num_processes = os.cpu_count() or 1
    pairs: dict[str, list[dict[str, float]]] = {name: [] for name in SIZES}
    with tempfile.TemporaryDirectory() as name:
        config_path, run_dir = make_sources(Path(name), options.sources), Path(name, "run")
        run_kp_ray("augment", config_path, f"run_dir={run_dir}")
        inputs_by_size = {size: prepare(config_path, run_dir, preset) for size, preset in SIZES.items()}
        ray.init(address="local", include_dashboard=True, logging_level="ERROR", log_to_driver=False)
        for repeat, (size, (cfg, rows, dicts)) in itertools.product(range(options.repeats), inputs_by_size.items()):
            pair = {}
            for loader in ("detectron2", "kp_ray") if repeat % 2 == 0 else ("kp_ray", "detectron2"):
                if loader == "detectron2":
                    pair[loader] = measure_detectron2(cfg, dicts, num_processes, options.batches)
                else:
                    pair[loader] = measure_kp_ray(cfg, rows, num_processes, options.batches, f"{name}/ray")
            pairs[size].append(pair)
        ray.shutdown()
    table = "| training size | A Detectron2, files | B kp_ray, store | B/A |\n|---|---|---|---|\n"
    for size, size_pairs in pairs.items():
        detectron2_rates, kp_ray_rates = ([pair[loader] for pair in size_pairs] for loader in ("detectron2", "kp_ray"))
        ratios = [pair["kp_ray"] / pair["detectron2"] for pair in size_pairs]
        table += (
            f"| {size} | {median_and_range(detectron2_rates, 1)} | {median_and_range(kp_ray_rates, 1)} | "
            f"{median_and_range(ratios)} |\n"
        )
    machine = hardware(torch, detectron2, ray, PIL, simplejpeg)
    text = (
        f"# Training input\n\n{machine}. {options.sources} generated 1920x1080 sources x 18 recipes, "
        f"{num_processes} reading processes, {options.batches} batches of {BATCH} per turn, {options.repeats} pairs. "
        f"Images/s, median (smallest-largest).\n\n{table}"
    )
    write_results("ingest", text, {"hardware": machine, "pairs": pairs})


if __name__ == "__main__":
    main()
