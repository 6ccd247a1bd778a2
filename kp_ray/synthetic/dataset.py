"""Write a generated data set: images, labels, truth and a config."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from kp_ray.errors import DataError
from kp_ray.images import encode
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.storage import join, write_bytes
from kp_ray.synthetic.motion import SyntheticClip
from kp_ray.synthetic.scene import Stage

_TABLES = {
    "annotations": "train_df.csv", "sample_submission": "sample_submission.csv", "truth": "truth/test_df.csv",
}  # fmt: skip


@dataclass(frozen=True)
class SampleSummary:
    """A generated data set.

    Attributes:
        num_train, num_test: numbers of images.
        num_scenes: of both.
        config: path of a configuration that every verb takes.
        annotations, images, test_images, sample_submission, truth: paths, as in the config's `data` section.
    """

    num_train: int
    num_test: int
    num_scenes: int
    config: str
    annotations: str
    images: str
    test_images: str
    sample_submission: str
    truth: str

    @property
    def data(self) -> dict[str, str]:
        """The config's `data` section."""
        names = ("annotations", "images", "test_images", "sample_submission", "truth")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        folder = os.path.dirname(self.config)
        return [f"{self.num_train} labelled and {self.num_test} test images in {folder}"]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def make_sample(
    folder: str,
    *,
    num_images: int,
    num_test: int | None = None,
    width: int = 1920,
    height: int = 1080,
    seed: int = 0,
    num_processes: int | None = None,
    progress: Callable[[int], None] | None = None,
    run_dir: str | None = None,
) -> SampleSummary:
    """Write a competition-like data set into a local folder.

    `train_imgs/*.jpg` with `train_df.csv`, `test_imgs/*.jpg` with `sample_submission.csv` (zeros), the test labels in
    `truth/test_df.csv`, and a `config.yaml`. All 24 points of every person are labelled, including hidden ones and
    those outside the frame. Test scenes show other people, rooms and cameras than training scenes. Equal arguments give
    equal bytes for any `num_processes`.

    Args:
        folder: created if needed; it may hold only files of an earlier call with the same numbers of images.
        num_images: of the training set.
        num_test: of the test set; None: a fifth of `num_images`, at least 10.
        width, height: of the frames, in pixels.
        seed: not negative.
        num_processes: None: the number of CPUs. A script needs the `if __name__ == "__main__":` guard for several.
        progress: called with the number of images written so far.
        run_dir: the run folder that `config.yaml` names; None: `run` in the folder.

    Raises:
        DataError: a number is out of range, or the folder holds other files.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    num_test = max(10, num_images // 5) if num_test is None else num_test
    lower_bounds = {"num_images": (num_images, 1), "num_test": (num_test, 0), "width": (width, 64)}
    lower_bounds |= {
        "height": (height, 64),
        "seed": (seed, 0),
        "num_processes": (1 if num_processes is None else num_processes, 1),
    }
    for name, (value, low) in lower_bounds.items():
        if value < low:
            raise DataError(f"sample: {name} must be at least {low}, got {value}")
    clips = [*_plan("train", num_images, seed), *_plan("test", num_test, seed)]
    _refuse_other_files(folder, {"config.yaml", *_TABLES.values(), *(name for clip in clips for name in clip.files)})
    labels: dict[str, FloatArray] = {}
    for labels_of_clip in _run([(clip, folder, width, height) for clip in clips], num_processes):
        labels |= labels_of_clip
        if progress is not None:
            progress(len(labels))
    paths = _write_tables(folder, labels)
    config = join(folder, "config.yaml")
    settings = {"preset": "demo", "run_dir": run_dir or join(folder, "run"), "data": paths}
    write_bytes(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    num_scenes = len({(clip.split, clip.scene) for clip in clips})
    return SampleSummary(num_images, num_test, num_scenes, config, **paths)


def _write_tables(folder: str, labels: dict[str, FloatArray]) -> dict[str, str]:
    """Write labels, truth and sample submission; return the config's `data` section."""
    train, test = ({k: v for k, v in labels.items() if k.startswith(split)} for split in ("train", "test"))
    paths = {key: join(folder, name) for key, name in _TABLES.items()}
    _write_csv(paths["annotations"], train)
    _write_csv(paths["truth"], test)
    _write_csv(paths["sample_submission"], {name: np.zeros_like(xy) for name, xy in test.items()})
    return paths | {"images": join(folder, "train_imgs"), "test_images": join(folder, "test_imgs")}


def _plan(split: str, count: int, seed: int) -> list[SyntheticClip]:
    """Clips of together `count` frames: more images give first more scenes, then more cameras, then longer clips."""
    num_cameras, num_frames = min(5, max(2, count // 150)), min(8, max(2, count // 200))
    clips: list[SyntheticClip] = []
    scene = 0
    while count > 0:
        for camera in sorted((scene + k) % 5 for k in range(num_cameras)):
            frames = tuple(range(1, 2 * min(num_frames, count), 2))
            if frames:
                clips.append(SyntheticClip(split, seed, scene, camera, frames))
            count -= len(frames)
        scene += 1
    return clips


def _refuse_other_files(folder: str, planned: set[str]) -> None:
    if "://" in folder:
        raise DataError(f"{folder}: the sample is written to a local folder; give a path without ://")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"{folder}: is a file; give the name of a new folder")
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in sorted(names)):
            if os.path.relpath(path, folder).replace(os.sep, "/") not in planned:
                raise DataError(f"{path}: not a file of this sample; give a new or empty folder")


def _write_csv(path: str, labels: dict[str, FloatArray]) -> None:
    table = pd.DataFrame([xy.ravel() for xy in labels.values()], columns=DACON24.columns)
    table.insert(0, "image", [os.path.basename(name) for name in labels])
    write_bytes(path, table.to_csv(index=False, float_format="%.4f").encode())


def _run(
    jobs: Sequence[tuple[SyntheticClip, str, int, int]], num_processes: int | None
) -> Iterator[dict[str, FloatArray]]:
    """The labels of each job, in order. A new process takes a second to start, so a few clips are drawn in this one."""
    workers = min(num_processes or os.cpu_count() or 1, -(-len(jobs) // 4) if num_processes is None else len(jobs))
    if workers == 1:
        yield from map(_draw_clip, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the caller's threads' locks
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            yield from pool.map(_draw_clip, jobs)
    except BrokenProcessPool as error:
        raise DataError(
            'sample: a drawing process died; guard the script with if __name__ == "__main__": or use num_processes=1'
        ) from error


def _draw_clip(job: tuple[SyntheticClip, str, int, int]) -> dict[str, FloatArray]:
    """Draw and write one clip; its labels (24, 2) by path inside the data set."""
    clip, folder, width, height = job
    stage = Stage.of(clip, width, height)
    background = stage.background()
    labels = {}
    for name, frame in zip(clip.files, clip.frames, strict=True):
        picture, labels[name] = stage.draw(frame, background)
        write_bytes(join(folder, name), encode(picture, 90))
    return labels
