"""Augmentation: the published loop, the same work in other harnesses, and `kp-ray augment`, taking turns.

    python benchmarks/augment.py --sources 512 --repeats 5

A  the published script's way: one process, OpenCV's own threads, an Albumentations pipeline a recipe, cv2.imwrite
B  the same work in a pool of one process a core
C  the same work by Hugging Face `datasets.map(num_proc=cores)`, pictures kept in its Arrow files
D  `kp-ray augment` on Ray, its start-up apart
E  the floor: decoding every source and encoding as many pixels as its variants have, in a pool of one process a core

All read the same generated 1920x1080 JPEGs; A, B and C, whose rates do not depend on how many, an eighth of them.
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
from measure import cpu_time, hardware, kp_ray, make_rows, make_sources, median_and_range, stolen_since, write_results

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
    """The 18 default recipes as Albumentations pipelines."""
    return [(f"{i}-{name}", to_albumentations(RECIPES[name])) for i, name in enumerate(DEFAULT_RECIPES)]


def variants(job: Job) -> list[tuple[str, Any, Any]]:
    """(file name, RGB picture, keypoints) of every variant of one source."""
    path, keypoints = job
    picture = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    made = [(name, pipeline(image=picture, keypoints=keypoints[:, :2])) for name, pipeline in pipelines()]
    return [(f"{name}-{os.path.basename(path)}", one["image"], one["keypoints"]) for name, one in made]


def to_files(job: Job, out: str) -> None:
    """The published loop's body."""
    for name, picture, _ in variants(job):
        cv2.imwrite(os.path.join(out, name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def published_loop(jobs: list[Job], out: Path) -> None:
    """A."""
    for job in jobs:
        to_files(job, str(out))


def prepare_worker() -> None:
    """One thread a process, and the imports done before the clock starts."""
    cv2.setNumThreads(1)
    pipelines()


def in_pool(body: Callable[[Job, str], None]) -> Callable[[list[Job], Path], float]:
    """B and E: seconds that a warm pool takes."""

    def run(jobs: list[Job], out: Path) -> float:
        with multiprocessing.get_context("spawn").Pool(CORES, prepare_worker) as pool:
            pool.map(abs, range(CORES * 4), chunksize=1)
            began = time.perf_counter()
            pool.starmap(body, [(job, str(out)) for job in jobs], chunksize=4)
            return time.perf_counter() - began

    return run


def with_datasets(jobs: list[Job], out: Path) -> float:
    """C, in a process of its own: it forks, which a process whose OpenCV has started threads does not survive."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_with_datasets, jobs, out).result()


def _with_datasets(jobs: list[Job], out: Path) -> float:
    warnings.filterwarnings("ignore", message="Got processor for keypoints")

    def body(row: dict[str, Any]) -> dict[str, list[Any]]:
        cv2.setNumThreads(1)
        made = variants((row["path"][0], np.array(row["keypoints"][0])))
        encoded = [cv2.imencode(".jpg", cv2.cvtColor(p, cv2.COLOR_RGB2BGR))[1].tobytes() for _, p, _ in made]
        return {"name": [n for n, _, _ in made], "image": encoded, "points": [k.tolist() for _, _, k in made]}

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"path": [p for p, _ in jobs], "keypoints": [k.tolist() for _, k in jobs]})
    names = table.column_names
    began = time.perf_counter()
    made = table.map(
        body, batched=True, batch_size=1, num_proc=CORES, remove_columns=names, cache_file_name=str(out / "cache.arrow")
    )
    seconds = time.perf_counter() - began
    assert len(made) == len(DEFAULT_RECIPES) * len(jobs)
    return seconds


@cache
def sizes() -> list[tuple[int, int]]:
    """(width, height) of the default variants that are encoded anew."""
    drawn = [sample_parameters(RECIPES[name], 1920, 1080, 0) for name in DEFAULT_RECIPES if name != "Original"]
    return [(one.width, one.height) for one in drawn]


def decode_and_encode(job: Job, out: str) -> None:
    """E's body."""
    content = Path(job[0]).read_bytes()
    picture = simplejpeg.decode_jpeg(content, "BGRX")
    for width, height in sizes():
        window = picture[:height, :width].copy()
        simplejpeg.encode_jpeg(window, 95, colorspace="BGRX", colorsubsampling="420")


def profile(jobs: list[Job]) -> dict[str, float]:
    """Milliseconds a source of kp_ray's own code in one process, by what takes them."""
    cv2.setNumThreads(1)
    kinds = {"decode": "decode", "<copyMakeBorder>": "pad", "_resample": "resample", "_encode": "encode"}
    profiler = cProfile.Profile()
    with profiler:
        for path, keypoints in jobs:
            make_rows(path, keypoints)
    stats = pstats.Stats(profiler)
    taken = dict.fromkeys(kinds.values(), 0.0)
    for (_, _, function), (_, _, _, with_callees, _) in stats.stats.items():  # type: ignore[attr-defined]
        if function in kinds:
            taken[kinds[function]] += with_callees * 1e3 / len(jobs)
    total = stats.total_tt * 1e3 / len(jobs)  # type: ignore[attr-defined]
    return {**taken, "everything else": total - sum(taken.values())}


def measure(config: Path, jobs: list[Job], folder: Path) -> dict[str, float]:
    """One turn of each: sources a second."""
    rates: dict[str, float] = {}
    for name, body in {
        "A": published_loop,
        "B": in_pool(to_files),
        "C": with_datasets,
        "E": in_pool(decode_and_encode),
    }.items():
        out = folder / name
        out.mkdir()
        some = jobs[: len(jobs) // (2 if name == "E" else 8)]
        began = time.perf_counter()
        seconds = body(some, out) or time.perf_counter() - began
        rates[name] = len(some) / seconds
        shutil.rmtree(out)
        print(f"{name} {rates[name]:.2f}", end=" ", flush=True)
    ours = kp_ray("augment", config, f"run_dir={folder / 'D'}")
    shutil.rmtree(folder / "D")
    rates |= {"D": ours["sources_per_s"], "D_start_up_s": ours["start_up_s"]}
    print(f"D {rates['D']:.2f}, start-up {rates['D_start_up_s']:.1f} s", flush=True)
    return rates


TEXTS = {
    "A": "published loop, one process, OpenCV's threads",
    "B": "the same work, a pool of processes",
    "C": "the same work, Hugging Face datasets.map, its start-up included",
    "D": "kp_ray on Ray, start-up excluded",
    "E": "floor: decode and encode alone, a pool of processes",
}


def main() -> None:
    """Run the turns and write the table."""
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
        jobs = [(f"{data.images}/{i}", k) for i, k in zip(labels.images, labels.keypoints, strict=True)]
        before = cpu_time()
        turns = [measure(config, jobs, folder) for _ in range(options.repeats)]
        stolen = stolen_since(before)
        taken = profile(jobs[:24])
    machine = hardware(cv2, albumentations, datasets, ray)
    text = (
        f"# Augmentation\n\n{machine}. {options.sources} generated 1920x1080 sources, 18 variants each, "
        f"{options.repeats} turns; median (range). The hypervisor gave {stolen:.0%} of the CPU time to others.\n\n"
        "| | what | sources/s |\n|---|---|---|\n"
    )
    text += "".join(f"| {k} | {what} | {median_and_range([t[k] for t in turns])} |\n" for k, what in TEXTS.items())
    text += "\n| ratio within a turn | |\n|---|---|\n"
    for other in "ABCE":
        text += f"| D/{other} | {median_and_range([t['D'] / t[other] for t in turns])} |\n"
    text += (
        f"\nkp_ray's start-up (Ray, imports): {statistics.median(t['D_start_up_s'] for t in turns):.1f} s. Where its "
        "time goes, ms a source in one process (profiler on): "
        f"{', '.join(f'{what} {ms:.0f}' for what, ms in taken.items())}.\n"
    )
    write_results("augment", text, {"hardware": machine, "stolen": stolen, "turns": turns, "profile_ms": taken})


if __name__ == "__main__":
    main()
