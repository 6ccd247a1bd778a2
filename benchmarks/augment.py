"""Compare `kp-ray augment` with the published loop and with the same work on other frameworks, in turns.

    python benchmarks/augment.py --sources 512 --repeats 5

A  the published loop: one process, OpenCV's own threads, one Albumentations pipeline per recipe, cv2.imwrite
B  the same work in a pool with one process per core
C  the same work in Hugging Face `datasets.map(num_proc=cores)`, which stores the images in its Arrow files
D  `kp-ray augment` on Ray, without its start-up
E  a lower bound: decode every source and encode as many pixels as its variants have, in a pool of one process per core

All ways read the same generated 1920x1080 JPEGs. A, B and C read an eighth of them and E a half, because their rates do
not depend on the number. A, B and C run the recipes on Albumentations 2.0.8, whose Rotate adds reflected copies of each
keypoint (216 for 24), and convert colors per variant; the pipelines as published in 2021 are 10 to 20 % faster.
Results: benchmarks/results/augment.{md,json}.
"""

import argparse
import cProfile
import multiprocessing
import os
import pstats
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import albumentations
import cv2
import datasets
import numpy as np
import ray
import simplejpeg
from measure import (
    cpu_time,
    hardware,
    kp_ray,
    make_sources,
    make_variants,
    median_and_range,
    stolen_since,
    write_results,
)

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.augmentation.reference import to_albumentations
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.config.load import load_config
from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.data.load import load_annotations

Job = tuple[str, Any]
CORES = os.cpu_count() or 1


@cache
def pipelines() -> list[tuple[str, Any]]:
    """Return the 18 default recipes as (name, Albumentations pipeline)."""
    return [(f"{i}-{name}", to_albumentations(RECIPES[name])) for i, name in enumerate(DEFAULT_RECIPES)]


def variants(job: Job) -> list[tuple[str, Any, Any]]:
    """Make all variants of one source, as (file name, RGB image, keypoints)."""
    path, keypoints = job
    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    results = [(name, pipeline(image=image, keypoints=keypoints[:, :2])) for name, pipeline in pipelines()]
    return [(f"{name}-{os.path.basename(path)}", result["image"], result["keypoints"]) for name, result in results]


def write_variants(job: Job, out: str) -> None:
    """Write the variants of one source as files: the body of the published loop."""
    for name, image, _ in variants(job):
        cv2.imwrite(os.path.join(out, name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def published_loop(jobs: list[Job], out: Path) -> None:
    """Run A over all sources."""
    for job in jobs:
        write_variants(job, str(out))


def prepare_worker() -> None:
    """Use one thread per process, and import everything before the measurement begins."""
    cv2.setNumThreads(1)
    pipelines()


def in_pool(body: Callable[[Job, str], None]) -> Callable[[list[Job], Path], float]:
    """Return a function that runs `body` per job in a pool and returns its seconds without the pool's start-up."""

    def run(jobs: list[Job], out: Path) -> float:
        with multiprocessing.get_context("spawn").Pool(CORES, prepare_worker) as pool:
            pool.map(abs, range(CORES * 4), chunksize=1)
            began = time.perf_counter()
            pool.starmap(body, [(job, str(out)) for job in jobs], chunksize=4)
            return time.perf_counter() - began

    return run


def with_datasets(jobs: list[Job], out: Path) -> float:
    """Run C in its own process, because `datasets` forks and a process with OpenCV threads must not fork."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_with_datasets, jobs, out).result()


def _with_datasets(jobs: list[Job], out: Path) -> float:
    warnings.filterwarnings("ignore", message="Got processor for keypoints")

    def body(row: dict[str, Any]) -> dict[str, list[Any]]:
        cv2.setNumThreads(1)
        names, images, points = zip(*variants((row["path"][0], np.array(row["keypoints"][0]))), strict=True)
        encoded = [cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in images]
        return {"name": list(names), "image": encoded, "points": [xy.tolist() for xy in points]}

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"path": [p for p, _ in jobs], "keypoints": [k.tolist() for _, k in jobs]})
    began = time.perf_counter()
    augmented = table.map(
        body,
        batched=True,
        batch_size=1,
        num_proc=CORES,
        remove_columns=table.column_names,
        cache_file_name=str(out / "cache.arrow"),
    )
    seconds = time.perf_counter() - began
    assert len(augmented) == len(DEFAULT_RECIPES) * len(jobs)
    return seconds


@cache
def variant_sizes() -> list[tuple[int, int]]:
    """Return the (width, height) of the default variants that are encoded; `Original` keeps the source's bytes."""
    samples = [sample_parameters(RECIPES[name], 1920, 1080, 0) for name in DEFAULT_RECIPES if name != "Original"]
    return [(sample.width, sample.height) for sample in samples]


def decode_and_encode(job: Job, out: str) -> None:
    """Decode one source and encode windows of its variants' sizes: the body of E."""
    content = Path(job[0]).read_bytes()
    image = simplejpeg.decode_jpeg(content, "BGRX")
    for width, height in variant_sizes():
        window = image[:height, :width].copy()
        simplejpeg.encode_jpeg(window, 95, colorspace="BGRX", colorsubsampling="420")


def profile(jobs: list[Job]) -> dict[str, float]:
    """Profile kp_ray's own code in one process; return milliseconds per source by kind of work."""
    cv2.setNumThreads(1)
    kinds = {
        ("images.py", "decode"): "decode",
        ("~", "<copyMakeBorder>"): "pad",  # "~": compiled code
        ("warp.py", "_resample"): "resample",
        ("images.py", "encode"): "encode",
    }
    profiler = cProfile.Profile()
    with profiler:
        for path, keypoints in jobs:
            make_variants(path, keypoints)
    stats = pstats.Stats(profiler)
    milliseconds = dict.fromkeys(kinds.values(), 0.0)
    for (path, _, function), (_, _, _, with_callees, _) in stats.stats.items():  # type: ignore[attr-defined]
        kind = kinds.get((os.path.basename(path), function))
        if kind:
            milliseconds[kind] += with_callees * 1e3 / len(jobs)
    assert all(milliseconds.values()), f"a profiled function was renamed: {milliseconds}"
    total = stats.total_tt * 1e3 / len(jobs)  # type: ignore[attr-defined]
    return {**milliseconds, "everything else": total - sum(milliseconds.values())}


def measure(config: Path, jobs: list[Job], folder: Path) -> dict[str, float]:
    """Run each way once; return its sources/s, and the seconds of D's start-up."""
    rates: dict[str, float] = {}
    for name, body in {
        "A": published_loop,
        "B": in_pool(write_variants),
        "C": with_datasets,
        "E": in_pool(decode_and_encode),
    }.items():
        out = folder / name
        out.mkdir()
        own_jobs = jobs[: len(jobs) // (2 if name == "E" else 8)]
        began = time.perf_counter()
        seconds = body(own_jobs, out) or time.perf_counter() - began
        rates[name] = len(own_jobs) / seconds
        shutil.rmtree(out)
        print(f"{name} {rates[name]:.2f}", end=" ", flush=True)
    figures = kp_ray("augment", config, f"run_dir={folder / 'D'}")
    shutil.rmtree(folder / "D")
    rates |= {"D": figures["sources_per_s"], "D_start_up_s": figures["start_up_s"]}
    print(f"D {rates['D']:.2f}, start-up {rates['D_start_up_s']:.1f} s", flush=True)
    return rates


WAYS = {
    "A": "published loop, one process, OpenCV's threads",
    "B": "the same work, a pool of processes",
    "C": "the same work, Hugging Face datasets.map, start-up included",
    "D": "kp_ray on Ray, without start-up",
    "E": "lower bound: only decode and encode, a pool of processes",
}


def main() -> None:
    """Run the turns and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Got processor for keypoints")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_sources(folder, options.sources)
        data = load_config(str(config)).data
        labels = load_annotations(str(data.annotations))
        jobs = [(f"{data.images}/{image}", xyv) for image, xyv in zip(labels.images, labels.keypoints, strict=True)]
        before = cpu_time()
        turns = [measure(config, jobs, folder) for _ in range(options.repeats)]
        stolen = stolen_since(before)
        profile_ms = profile(jobs[:24])
    machine = hardware(cv2, albumentations, datasets, ray)
    text = (
        f"# Augmentation\n\n{machine}. {options.sources} generated 1920x1080 sources, 18 variants each, "
        f"{options.repeats} turns; median (range). Other machines took {stolen:.0%} of the CPU time.\n\n"
        "| | way | sources/s |\n|---|---|---|\n"
    )
    text += "".join(
        f"| {key} | {way} | {median_and_range([turn[key] for turn in turns])} |\n" for key, way in WAYS.items()
    )
    text += "\n| ratio within a turn | |\n|---|---|\n"
    for key in "ABCE":
        text += f"| D/{key} | {median_and_range([turn['D'] / turn[key] for turn in turns])} |\n"
    text += (
        f"\nStart-up of D (Ray, imports): {statistics.median(turn['D_start_up_s'] for turn in turns):.1f} s. "
        "Milliseconds per source in one process, with the profiler on: "
        f"{', '.join(f'{kind} {ms:.0f}' for kind, ms in profile_ms.items())}.\n"
    )
    write_results("augment", text, {"hardware": machine, "stolen": stolen, "turns": turns, "profile_ms": profile_ms})


if __name__ == "__main__":
    main()
