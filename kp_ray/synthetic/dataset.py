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

from kp_ray.errors import ConfigError, StorageError
from kp_ray.images import encode
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.storage import join, write_bytes
from kp_ray.synthetic.motion import SyntheticClip
from kp_ray.synthetic.scene import SceneRenderer

JPEG_QUALITY = 90
_TABLES = {
    "annotations": "train_df.csv", "sample_submission": "sample_submission.csv", "truth": "truth/test_df.csv",
}  # fmt: skip
_MIN_NUMBERS = {"num_images": 1, "num_test": 0, "width": 64, "height": 64, "seed": 0, "num_processes": 1}


@dataclass(frozen=True)
class SampleSummary:
    """A generated data set.

    Attributes:
        num_train, num_test: numbers of images.
        num_scenes: number of scenes of both.
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
        ConfigError: a number is out of range, or drawing processes cannot be started.
        StorageError: the folder is not local, holds other files, or cannot be written.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    num_test = max(10, num_images // 5) if num_test is None else num_test
    numbers = {"num_images": num_images, "num_test": num_test, "width": width, "height": height, "seed": seed}
    _check_numbers(numbers if num_processes is None else {**numbers, "num_processes": num_processes})
    clips = [*plan_clips("train", num_images, seed), *plan_clips("test", num_test, seed)]
    _refuse_other_files(folder, {"config.yaml", *_TABLES.values(), *(name for clip in clips for name in clip.files)})
    labels: dict[str, FloatArray] = {}
    for clip_labels in _draw_clips(clips, _ClipWriter(folder, width, height), num_processes):
        labels |= clip_labels
        if progress is not None:
            progress(len(labels))
    paths = _write_tables(folder, labels)
    config = join(folder, "config.yaml")
    settings = {"preset": "demo", "run_dir": run_dir or join(folder, "run"), "data": paths}
    write_bytes(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    num_scenes = len({(clip.split, clip.scene) for clip in clips})
    return SampleSummary(num_images, num_test, num_scenes, config, **paths)


def _check_numbers(numbers: dict[str, int]) -> None:
    for name, value in numbers.items():
        if value < _MIN_NUMBERS[name]:
            raise ConfigError(f"sample: {name} must be at least {_MIN_NUMBERS[name]}, got {value}")


def _write_tables(folder: str, labels: dict[str, FloatArray]) -> dict[str, str]:
    """Write labels, truth and sample submission; return the config's `data` section."""
    train, test = ({k: v for k, v in labels.items() if k.startswith(split)} for split in ("train", "test"))
    paths = {key: join(folder, name) for key, name in _TABLES.items()}
    _write_csv(paths["annotations"], train)
    _write_csv(paths["truth"], test)
    _write_csv(paths["sample_submission"], {name: np.zeros_like(xy) for name, xy in test.items()})
    return paths | {"images": join(folder, "train_imgs"), "test_images": join(folder, "test_imgs")}


def plan_clips(split: str, count: int, seed: int) -> list[SyntheticClip]:
    """Plan clips of `count` frames in total: larger data sets have more scenes, more cameras and longer clips."""
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
    """Refuse a folder that is not local or holds files other than the planned ones, given by path inside it."""
    if "://" in folder:
        raise StorageError(f"{folder}: the sample is written to a local folder; give a path without ://")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise StorageError(f"{folder}: is a file; give the name of a new folder")
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in sorted(names)):
            if os.path.relpath(path, folder).replace(os.sep, "/") not in planned:
                raise StorageError(f"{path}: not a file of this sample; give a new or empty folder")


def _write_csv(path: str, labels: dict[str, FloatArray]) -> None:
    """Write keypoints (24, 2) by image as a table of the competition."""
    table = pd.DataFrame([xy.ravel() for xy in labels.values()], columns=DACON24.columns)
    table.insert(0, "image", [os.path.basename(name) for name in labels])
    write_bytes(path, table.to_csv(index=False, float_format="%.4f").encode())


@dataclass(frozen=True)
class _ClipWriter:
    """Draws clips into a data set's folder; a call can run in another process."""

    folder: str
    width: int
    height: int

    def __call__(self, clip: SyntheticClip) -> dict[str, FloatArray]:
        """Draw and write the frames of a clip; returns keypoints (24, 2) by path inside the data set."""
        renderer = SceneRenderer.from_clip(clip, self.width, self.height)
        background = renderer.render_background()
        labels = {}
        for name, frame in zip(clip.files, clip.frames, strict=True):
            picture, labels[name] = renderer.render_frame(frame, background)
            write_bytes(join(self.folder, name), encode(picture, JPEG_QUALITY))
        return labels


def _draw_clips(
    clips: Sequence[SyntheticClip], write_clip: _ClipWriter, num_processes: int | None
) -> Iterator[dict[str, FloatArray]]:
    """Draw all clips; yields the labels of each, in order.

    A process takes a second to start: without `num_processes`, each one gets at least four clips.
    """
    max_workers = -(-len(clips) // 4) if num_processes is None else len(clips)
    num_workers = min(num_processes or os.cpu_count() or 1, max_workers)
    if num_workers == 1:
        yield from map(write_clip, clips)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of the caller hold
    try:
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            yield from pool.map(write_clip, clips)
    except BrokenProcessPool as error:
        raise ConfigError(
            "sample: num_processes: a drawing process ended early: "
            'guard the script with if __name__ == "__main__": or use num_processes=1'
        ) from error
