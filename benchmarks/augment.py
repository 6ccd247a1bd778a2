"""Compare the speed of `kp-ray augment` with the published loop and with other frameworks.

    python benchmarks/augment.py --sources 1024 --repeats 4

A  the published loop: one process, OpenCV's own threads, one Albumentations pipeline per recipe, cv2.imwrite
B  the same loop in a pool with one process per core
C  the same work in Hugging Face `datasets.map(num_proc=cores)`, which stores the images in its Arrow files
D  `kp-ray augment` on Ray, without its start-up
E  an upper bound for any method: only decode each source and encode as many pixels as its variants have, with one
   process per core

Each turn runs A to E once, so that a change of the machine's speed affects all five. The sources are generated
1920x1080 JPEGs. D reads all sources, E half of them, and A, B and C an eighth: their rates do not depend on the number.
A and B run the published pipelines unchanged (published_loop.py). This script installs older libraries for them
(`PUBLISHED_LIBRARIES`) into a separate environment, because Albumentations 2.0.8 would draw black borders and ignore
`always_apply`. C runs pipelines of equal effect that kp_ray builds for Albumentations 2.0.8.
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
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import albumentations
import cv2
import datasets
import numpy as np
import ray
import simplejpeg
from measure import (
    augment_and_discard,
    cpu_time,
    create_environment,
    hardware,
    make_sources,
    median_and_range,
    run_kp_ray,
    run_script,
    stolen_since,
    write_results,
)

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.augmentation.reference import to_albumentations
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.config.load import load_config
from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.data.load import load_annotations

SourceFile = tuple[str, Any]
"""Path of a source and its keypoints (K, 3)."""
CORES = os.cpu_count() or 1
PUBLISHED_LIBRARIES = ("albumentations==1.3.1", "opencv-python-headless==4.10.0.84", "numpy==1.26.4")
"""The newest libraries with which the published pipelines do the same as in 2021."""


@cache
def pipelines() -> list[tuple[str, Any]]:
    """Return the 18 default recipes as (name, Albumentations pipeline)."""
    return [(f"{i}-{name}", to_albumentations(RECIPES[name])) for i, name in enumerate(DEFAULT_RECIPES)]


def augment_with_albumentations(source: SourceFile) -> list[tuple[str, Any, Any]]:
    """Make all variants of one source, as (file name, BGR image, keypoints)."""
    path, keypoints = source
    image = cv2.imread(path)
    results = [(name, pipeline(image=image, keypoints=keypoints[:, :2])) for name, pipeline in pipelines()]
    return [(f"{name}-{os.path.basename(path)}", result["image"], result["keypoints"]) for name, result in results]


def published_steps(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the published pipeline of a recipe as (Albumentations transform, arguments)."""
    recipe = RECIPES[name]
    crop_h, crop_w = recipe.crop_hw or (1080, 1920)
    steps: list[tuple[str, dict[str, Any]]] = []
    if recipe.rotate_deg:
        steps.append(("Rotate", {"limit": int(recipe.rotate_deg), "p": 1}))
    if recipe.scale_range:
        steps.append(("RandomScale", {"scale_limit": 0.3, "always_apply": True}))
    if recipe.crop_hw or name == "Original":  # the published `Original` is a crop as large as the frame
        crop = "RandomCrop" if recipe.crop == "random" else "CenterCrop"
        steps.append((crop, {"height": crop_h, "width": crop_w, "p": 1}))
    if name == "Random_ScaleCrop":
        steps.append(("RandomScale", {"scale_limit": 0.35, "always_apply": True}))
    if recipe.brightness_contrast:
        steps.append(("RandomBrightnessContrast", {"always_apply": True}))
    return steps


def run_published_loop(python: str, sources: list[SourceFile], out: Path, num_processes: int) -> dict[str, Any]:
    """Run A or B; return the seconds and the versions of the libraries."""
    request = {
        "pipelines": {f"{i}-{name}": published_steps(name) for i, name in enumerate(DEFAULT_RECIPES)},
        "images": [path for path, _ in sources],
        "keypoints": [keypoints[:, :2].tolist() for _, keypoints in sources],
        "folder": str(out),
        "processes": num_processes,
    }
    return run_script(python, "published_loop.py", request, out)


def prepare_worker(barrier: Barrier) -> None:
    """Use one thread per process, and wait until all processes have started."""
    cv2.setNumThreads(1)
    barrier.wait()


def measure_bound(sources: list[SourceFile]) -> float:
    """Run E; return the seconds without the pool's start-up."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(CORES + 1)
    with context.Pool(CORES, prepare_worker, (barrier,)) as pool:
        barrier.wait()
        began = time.perf_counter()
        pool.map(decode_and_encode, sources, chunksize=4)
        return time.perf_counter() - began


def measure_datasets(sources: list[SourceFile], out: Path) -> float:
    """Run C; return the seconds.

    C has its own process, because `datasets` forks, and a process with OpenCV threads must not fork.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_map_dataset, sources, out).result()


def _map_dataset(sources: list[SourceFile], out: Path) -> float:
    warnings.filterwarnings("ignore", message="Got processor for keypoints")

    def augment_row(row: dict[str, Any]) -> dict[str, list[Any]]:
        cv2.setNumThreads(1)
        names, images, points = zip(
            *augment_with_albumentations((row["path"][0], np.array(row["keypoints"][0]))), strict=True
        )
        encoded = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
        return {"name": list(names), "image": encoded, "points": [xy.tolist() for xy in points]}

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"path": [p for p, _ in sources], "keypoints": [k.tolist() for _, k in sources]})
    began = time.perf_counter()
    augmented = table.map(
        augment_row,
        batched=True,
        batch_size=1,
        num_proc=CORES,
        remove_columns=table.column_names,
        cache_file_name=str(out / "cache.arrow"),
    )
    seconds = time.perf_counter() - began
    assert len(augmented) == len(DEFAULT_RECIPES) * len(sources)
    return seconds


@cache
def variant_sizes() -> list[tuple[int, int]]:
    """Return the (width, height) of all variants of a source except `Original`, which is not encoded."""
    samples = [sample_parameters(RECIPES[name], 1920, 1080, 0) for name in DEFAULT_RECIPES if name != "Original"]
    return [(sample.width, sample.height) for sample in samples]


def decode_and_encode(source: SourceFile) -> None:
    """Decode one source and encode a window of the size of each variant: the work of E for one source."""
    content = Path(source[0]).read_bytes()
    image = simplejpeg.decode_jpeg(content, "BGRX")
    for width, height in variant_sizes():
        window = image[:height, :width].copy()
        simplejpeg.encode_jpeg(window, 95, colorspace="BGRX", colorsubsampling="420")


def profile(sources: list[SourceFile]) -> dict[str, float]:
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
        for path, keypoints in sources:
            augment_and_discard(path, keypoints)
    stats = pstats.Stats(profiler)
    milliseconds = dict.fromkeys(kinds.values(), 0.0)
    for (path, _, function), (_, _, _, cumulative_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        kind = kinds.get((os.path.basename(path), function))
        if kind:
            milliseconds[kind] += cumulative_s * 1e3 / len(sources)
    assert all(milliseconds.values()), f"a profiled function was renamed: {milliseconds}"
    total = stats.total_tt * 1e3 / len(sources)  # type: ignore[attr-defined]
    return {**milliseconds, "everything else": total - sum(milliseconds.values())}


def measure_turn(config: Path, sources: list[SourceFile], folder: Path, python: str) -> dict[str, Any]:
    """Run A to E once; return their sources/s, the seconds of D's start-up, and the library versions of A and B."""
    turn: dict[str, Any] = {}
    for name in "ABCE":
        out = folder / name
        out.mkdir()
        selected_sources = sources[: len(sources) // (2 if name == "E" else 8)]
        if name in "AB":
            loop_result = run_published_loop(python, selected_sources, out, 1 if name == "A" else CORES)
            seconds, turn["versions"] = loop_result["seconds"], loop_result["versions"]
        else:
            seconds = measure_datasets(selected_sources, out) if name == "C" else measure_bound(selected_sources)
        turn[name] = len(selected_sources) / seconds
        shutil.rmtree(out)
        print(f"{name} {turn[name]:.2f}", end=" ", flush=True)
    summary = run_kp_ray("augment", config, f"run_dir={folder / 'D'}")
    shutil.rmtree(folder / "D")
    turn |= {"D": summary["sources_per_s"], "D_start_up_s": summary["start_up_s"]}
    print(f"D {turn['D']:.2f}, start-up {turn['D_start_up_s']:.1f} s", flush=True)
    return turn


METHODS = {
    "A": "published loop, one process, OpenCV's threads",
    "B": "the published loop, a pool of processes with one thread each",
    "C": "the same work, Hugging Face datasets.map, start-up included",
    "D": "kp_ray on Ray, without start-up",
    "E": "upper bound: only decode and encode, a pool of processes",
}


def main() -> None:
    """Run the turns and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Got processor for keypoints")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_sources(folder, options.sources)
        data = load_config(str(config)).data
        labels = load_annotations(str(data.annotations))
        sources = [(f"{data.images}/{image}", xyv) for image, xyv in zip(labels.images, labels.keypoints, strict=True)]
        python = create_environment(folder / "published", *PUBLISHED_LIBRARIES)
        ticks = cpu_time()
        turns = [measure_turn(config, sources, folder, python) for _ in range(options.repeats)]
        stolen = stolen_since(ticks)
        profile_ms = profile(sources[:24])
    machine = hardware(cv2, albumentations, datasets, ray)
    published = ", ".join(f"{library} {version}" for library, version in turns[0]["versions"].items())
    text = (
        f"# Augmentation\n\n{machine}. {options.sources} generated 1920x1080 sources, 18 variants each, "
        f"{options.repeats} turns; median (range). Other virtual machines used {stolen:.0%} of the CPU time (steal). "
        f"A and B ran on {published}.\n\n"
        "| | method | sources/s |\n|---|---|---|\n"
    )
    text += "".join(
        f"| {key} | {method} | {median_and_range([turn[key] for turn in turns])} |\n" for key, method in METHODS.items()
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
