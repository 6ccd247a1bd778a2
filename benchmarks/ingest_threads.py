"""Measure the images/s of one training worker's input, by number of reading threads and by place of the store.

    python benchmarks/ingest_threads.py --sources 24 --repeats 5

The worker reads batches of 4 in random order, as `train` does; no model consumes them. With 1, 2 and 4 threads it reads
a store on the local disk. With as many threads as the machine has cores it also reads the store on a local S3 server
that delays every request by 20 ms: the first epoch copies the parts to the disk (`train.parts_on_disk_gb`), the second
reads the copies. Without copies, every row is read from the server. Each turn measures every number of threads and
every place.
Training sizes: 256x144 as in the `demo` preset, and the published sizes (shortest side 640-800, longest at most 1333).
Results: benchmarks/results/ingest_threads.{md,json}.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray
import simplejpeg
import torch
from measure import cpu_time, hardware, make_sources, median_and_range, run_kp_ray, stolen_since, write_results
from s3_server import slow_s3

from kp_ray.config.load import load_config
from kp_ray.config.training import MemberConfig
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg
from kp_ray.storage import filesystem
from kp_ray.store.local_copies import local_copies
from kp_ray.training.dataloader import iter_batches
from kp_ray.training.rows import usable_rows

BATCH = 4
LATENCY_S = 0.02
SIZES = {"demo, 256x144": "demo", "published, 640-800": "dacon"}
THREADS = (1, 2, 4)
PLACES = ("local disk", "S3, first epoch", "S3, second epoch", "S3 without copies")


def create_reader(config_path: Path, run_dir: str, preset: str) -> Callable[..., list[float]]:
    """Return a function that reads epochs of a store with `num_threads` threads, and returns each epoch's images/s."""
    overrides = [f"run_dir={run_dir}", f"preset={preset}", "train.recipes=null", "augment.min_visible=1"]
    config = load_config(str(config_path), [*overrides, "train.flip=true"])
    rows = usable_rows(config, MemberConfig(name="a"))
    rows = rows.take(np.random.default_rng(0).permutation(len(rows)))
    cfg, num_batches = build_cfg(config, DACON24, "cpu"), len(rows) // BATCH

    def read_epochs(num_threads: int, num_epochs: int = 1, max_bytes: int | None = None) -> list[float]:
        rates = []
        with local_copies(config.path("store"), max_bytes) as locate_part:
            shard = ray.data.from_arrow(rows).iterator()
            batches = iter_batches(
                shard, cfg, DACON24, batch_size=BATCH, seed=0, rank=0, num_threads=num_threads, locate_part=locate_part
            )
            for _ in range(num_epochs):
                began = time.perf_counter()
                for _ in itertools.islice(batches, num_batches):
                    pass
                rates.append(BATCH * num_batches / (time.perf_counter() - began))
        while list(Path(tempfile.gettempdir(), f"kp_ray-{os.getuid()}").glob("parts-*")):
            time.sleep(0.1)  # until the copies are deleted
        return rates

    return read_epochs


def measure_turn(
    read_local: Callable[..., list[float]], read_remote: Callable[..., list[float]], cores: int
) -> dict[str, float]:
    """Read the stores once in every way; return the images/s by number of threads and by place."""
    rates = {f"{count} threads": read_local(count, 2)[-1] for count in THREADS}
    rates["local disk"] = read_local(cores, 2)[-1]
    rates["S3, first epoch"], rates["S3, second epoch"] = read_remote(cores, 2)
    rates["S3 without copies"] = read_remote(cores, 2, 0)[-1]
    return rates


def format_tables(rates: dict[str, list[dict[str, float]]], cores: int) -> str:
    """Format the tables by threads and by place in Markdown."""
    columns = [f"{count} threads" for count in THREADS]
    text = f"| training size | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|\n"
    for size, turns in rates.items():
        text += f"| {size} | {' | '.join(median_and_range([turn[name] for turn in turns], 1) for name in columns)} |\n"
    text += f"\nWith {cores} threads:\n\n| training size | {' | '.join(PLACES)} | second epoch / local disk |\n"
    text += f"|---{'|---' * (len(PLACES) + 1)}|\n"
    for size, turns in rates.items():
        values = [median_and_range([turn[name] for turn in turns], 1) for name in PLACES]
        ratios = [turn["S3, second epoch"] / turn["local disk"] for turn in turns]
        text += f"| {size} | {' | '.join(values)} | {median_and_range(ratios)} |\n"
    return text


def main() -> None:
    """Run the turns and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    torch.set_num_threads(1)
    rates: dict[str, list[dict[str, Any]]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as server_folder:
        config_path, run_dir = make_sources(Path(name), options.sources), Path(name, "run")
        run_kp_ray("augment", config_path, f"run_dir={run_dir}")
        with slow_s3(Path(server_folder), LATENCY_S) as bucket:
            fs, bucket_path = filesystem(f"{bucket}/run/store")
            pafs.copy_files(str(run_dir / "store"), bucket_path, destination_filesystem=fs)
            ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            readers = {
                size: [create_reader(config_path, folder, preset) for folder in (str(run_dir), f"{bucket}/run")]
                for size, preset in SIZES.items()
            }
            ticks = cpu_time()
            for _, size in itertools.product(range(options.repeats), SIZES):
                rates[size].append(measure_turn(*readers[size], cores))
                print(size, rates[size][-1], flush=True)
            ray.shutdown()
    machine = hardware(torch, ray, simplejpeg)
    text = (
        f"# Training input of one worker\n\n{machine}; other virtual machines used {stolen_since(ticks):.0%} of the "
        f"CPU time. {options.sources} generated 1920x1080 sources x 18 recipes, batches of {BATCH}, "
        f"{options.repeats} turns. Images/s, median (smallest-largest).\n\n{format_tables(rates, cores)}"
    )
    write_results("ingest_threads", text, {"hardware": machine, "rates": rates})


if __name__ == "__main__":
    main()
