"""Compare reading rows of a store in random order, as training does, with reading image files.

    python benchmarks/read.py --sources 48 --repeats 5

Each method reads the same JPEGs in one thread from the page cache, once per turn, in a new random order. Rows of the
store are read one by one with their keypoints, and decoded by simplejpeg, as in training, or by cv2.imdecode. Files are
read by cv2.imread. Results: benchmarks/results/read.{md,json}.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import simplejpeg
from measure import hardware, make_sources, median_and_range, run_kp_ray, write_results

from kp_ray.store.read import RowReader, select_parts

COLUMNS = ("image", "width", "height", "keypoints", "bbox_xyxy")


def measure_rate(locations: list[tuple[str, int]], read: Callable[[str, int], object]) -> float:
    """Read all (part, row) locations in random order and return the rows/s."""
    random.shuffle(locations)
    began = time.perf_counter()
    for path, row in locations:
        read(path, row)
    return len(locations) / (time.perf_counter() - began)


def main() -> None:
    """Run the turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_sources(folder, options.sources)
        run_kp_ray("augment", config, f"run_dir={folder / 'run'}")
        _, paths = select_parts(str(folder / "run" / "store"))
        locations = [(path, row) for path in paths for row in range(pq.read_metadata(path).num_rows)]
        reader = RowReader(COLUMNS)
        (folder / "files").mkdir()
        files = {}
        for number, (path, row) in enumerate(locations):
            files[path, row] = str(folder / "files" / f"{number:06d}.jpg")
            Path(files[path, row]).write_bytes(reader.read(path, row)["image"])
        ways: dict[str, Callable[[str, int], object]] = {
            "files, cv2.imread": lambda path, row: cv2.imread(files[path, row]),
            "store, simplejpeg": lambda path, row: simplejpeg.decode_jpeg(reader.read(path, row)["image"], "BGR"),
            "store, cv2.imdecode": lambda path, row: cv2.imdecode(
                np.frombuffer(reader.read(path, row)["image"], np.uint8), cv2.IMREAD_COLOR
            ),
            "files, bytes only": lambda path, row: Path(files[path, row]).read_bytes(),
            "store, bytes only": reader.read,
        }
        turns = [{way: measure_rate(locations, read) for way, read in ways.items()} for _ in range(options.repeats)]
    machine = hardware(cv2, pyarrow)
    text = (
        f"# Reading the store\n\n{machine}. {len(locations)} variants of {options.sources} generated 1920x1080 "
        f"sources, {options.repeats} turns; median (range).\n\n| | rows/s |\n|---|---|\n"
    )
    text += "".join(f"| {way} | {median_and_range([turn[way] for turn in turns], 0)} |\n" for way in ways)
    ratios = [turn["store, simplejpeg"] / turn["files, cv2.imread"] for turn in turns]
    text += f"\nRatio of the store by simplejpeg to files by cv2.imread: {median_and_range(ratios)}.\n"
    write_results("read", text, {"hardware": machine, "turns": turns})


if __name__ == "__main__":
    main()
