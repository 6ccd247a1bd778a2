"""Write a generated data set: images, labels, truth and a config."""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from kp_ray.cpus import usable_cpus
from kp_ray.errors import ConfigError, StorageError
from kp_ray.images import MAX_PIXELS, MAX_SIDE, encode
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.storage import absolute_path, delete_file, exists, join, read_bytes, write_bytes
from kp_ray.synthetic.motion import SyntheticClip
from kp_ray.synthetic.scene import SceneRenderer

JPEG_QUALITY = 90
_TABLES = {
    "annotations": "train_df.csv",
    "sample_submission": "sample_submission.csv",
    "truth": "truth/test_df.csv",
}
"""Key of the config's `data` section -> path of the CSV inside the data set."""
_CONFIG_FILE = "config.yaml"
_MINIMUMS = {"num_images": 1, "num_test": 0, "width": 64, "height": 64, "seed": 0, "num_processes": 1}


@dataclass(frozen=True)
class SampleSummary:
    """A generated data set.

    Attributes:
        num_train, num_test: numbers of training and test images.
        num_scenes: number of training and test scenes together.
        config: path of a config file for `kp-ray run`; if the training images are one scene, it holds none out.
        annotations, images, test_images, sample_submission, truth: values of the config's `data` section.
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
        """Return the lines of text for the terminal."""
        folder = os.path.dirname(self.config)
        return [f"{self.num_train} labelled and {self.num_test} test images in {folder}"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
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
    progress: Callable[[int, int], None] | None = None,
    run_dir: str | None = None,
) -> SampleSummary:
    """Write a generated data set into a local folder, in the files and formats of the competition.

    The folder gets `train_imgs/*.jpg` with `train_df.csv`, `test_imgs/*.jpg` with `sample_submission.csv` (all zeros),
    the test labels in `truth/test_df.csv`, and a `config.yaml`. All 24 keypoints of every person are labelled, even if
    they are hidden or outside the frame. Test scenes show other people, rooms and cameras than training scenes. Equal
    arguments give equal bytes for any `num_processes`.

    Args:
        folder: created if it does not exist; it may hold only files that this call writes too, e.g. those of an earlier
            call with the same seed and numbers of images, and replaces them. The CSV files and `config.yaml` are
            deleted first, so that a call that is stopped leaves no labels of other images.
        num_images: number of training images.
        num_test: number of test images; None: a fifth of `num_images`, at least 10.
        width, height: size of the frames in pixels; at least 64, and not more than kp_ray reads (`kp_ray.images`).
        seed: seed of all random choices; not negative.
        num_processes: number of drawing processes; None: at most the number of CPUs. If there are several, the calling
            script needs the guard `if __name__ == "__main__":`, because each process imports the script.
        progress: called with the number of images written so far and the number of all images.
        run_dir: the run folder that `config.yaml` names; None: `run` in the folder.

    Raises:
        ConfigError: a path is empty or holds credentials, a number is out of range, a drawing process ended early, or
            the memory is not enough.
        StorageError: the folder is not local, holds other files, or cannot be written.
    """
    folder = _make_absolute("folder", folder)
    run_dir = join(folder, "run") if run_dir is None else _make_absolute("run_dir", run_dir)
    num_test = max(10, num_images // 5) if num_test is None else num_test
    numbers = {"num_images": num_images, "num_test": num_test, "width": width, "height": height, "seed": seed}
    _require_minimums(numbers if num_processes is None else {**numbers, "num_processes": num_processes})
    _require_readable_size(width, height)
    clips = [*plan_clips("train", num_images, seed), *plan_clips("test", num_test, seed)]
    _refuse_other_files(folder, {_CONFIG_FILE, *_TABLES.values(), *(name for clip in clips for name in clip.files)})
    _delete_config_and_tables(folder)
    labels: dict[str, FloatArray] = {}
    for clip_labels in _draw_clips(clips, _ClipWriter(folder, width, height), num_processes):
        labels |= clip_labels
        if progress is not None:
            progress(len(labels), num_images + num_test)
    paths = _write_tables(folder, labels)
    config = _write_config(folder, run_dir, paths, clips)
    num_scenes = len({(clip.subset, clip.scene) for clip in clips})
    return SampleSummary(num_images, num_test, num_scenes, config, **paths)


def _make_absolute(name: str, path: str) -> str:
    try:
        return absolute_path(path)
    except ValueError as error:
        raise ConfigError(f"sample: {name}: {error}") from error


def _require_minimums(numbers: dict[str, int]) -> None:
    for name, value in numbers.items():
        if value < _MINIMUMS[name]:
            raise ConfigError(f"sample: {name}: too small (got {value}): give at least {_MINIMUMS[name]}")


def _require_readable_size(width: int, height: int) -> None:
    """Refuse frames that are too large to be written as JPEG or to be read by kp_ray."""
    for name, value in (("width", width), ("height", height)):
        if value > MAX_SIDE:
            raise ConfigError(f"sample: {name}: too large (got {value}): give at most {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise ConfigError(
            f"sample: width, height: too large (got {width}x{height}): give at most {MAX_PIXELS} pixels per frame"
        )


def _write_tables(folder: str, labels: dict[str, FloatArray]) -> dict[str, str]:
    """Write labels, ground truth and sample submission.

    Args:
        folder: the data set's folder.
        labels: path of an image inside the folder -> keypoints (24, 2).

    Returns:
        The config's `data` section.
    """
    train, test = ({name: xy for name, xy in labels.items() if name.startswith(subset)} for subset in ("train", "test"))
    paths = {key: join(folder, name) for key, name in _TABLES.items()}
    _write_csv(paths["annotations"], train)
    _write_csv(paths["truth"], test)
    _write_csv(paths["sample_submission"], {name: np.zeros_like(xy) for name, xy in test.items()})
    return paths | {"images": join(folder, "train_imgs"), "test_images": join(folder, "test_imgs")}


def _write_config(folder: str, run_dir: str, data: dict[str, str], clips: Sequence[SyntheticClip]) -> str:
    """Write the config of the data set, and return its path."""
    settings: dict[str, Any] = {"preset": "demo", "run_dir": run_dir, "data": data}
    train_scenes = {clip.scene for clip in clips if clip.subset == "train"}
    if len(train_scenes) == 1:  # `augment` refuses to hold out the only scene
        settings["split"] = {"fraction": 0}
    path = join(folder, _CONFIG_FILE)
    write_bytes(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    return path


def plan_clips(subset: str, num_images: int, seed: int) -> list[SyntheticClip]:
    """Plan the clips of a subset, `train` or `test`, with `num_images` frames in total.

    More frames give more scenes, more cameras per scene and longer clips.
    """
    num_cameras, num_frames = min(5, max(2, num_images // 150)), min(8, max(2, num_images // 200))
    clips: list[SyntheticClip] = []
    scene, num_left = 0, num_images
    while num_left > 0:
        for camera in sorted((scene + k) % 5 for k in range(num_cameras)):
            frames = tuple(range(1, 2 * min(num_frames, num_left), 2))
            if frames:
                clips.append(SyntheticClip(subset, seed, scene, camera, frames))
            num_left -= len(frames)
        scene += 1
    return clips


def _refuse_other_files(folder: str, planned_files: set[str]) -> None:
    """Refuse a folder that is not local or holds other files than the planned ones.

    Args:
        folder: an absolute path, or a URL.
        planned_files: the files that will be written, as paths inside the folder.

    Raises:
        StorageError: the folder is refused.
    """
    if "://" in folder:
        raise StorageError(f"{folder}: not a local folder: give a path without ://")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise StorageError(f"{folder}: a file, not a folder: give the name of a new folder")
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            # A killed process can leave such a file, see `storage.write_bytes`.
            partial = re.fullmatch(r"\.(.+)\.[0-9a-f]+\.partial", name)
            path = os.path.join(parent, partial[1] if partial else name)
            if os.path.relpath(path, folder).replace(os.sep, "/") not in planned_files:
                path = os.path.join(parent, name)
                raise StorageError(f"{path}: not a file of this sample: give a new or empty folder")


def _delete_config_and_tables(folder: str) -> None:
    """Delete the config and then the CSV files of an earlier call; the images stay until they are replaced."""
    for name in (_CONFIG_FILE, *_TABLES.values()):
        path = join(folder, name)
        if exists(path):
            delete_file(path)


def _write_csv(path: str, labels: dict[str, FloatArray]) -> None:
    """Write a CSV in the competition's format: one row per image, with its keypoints (24, 2)."""
    table = pd.DataFrame([xy.ravel() for xy in labels.values()], columns=DACON24.columns)
    table.insert(0, "image", [os.path.basename(name) for name in labels])
    write_bytes(path, table.to_csv(index=False, float_format="%.4f").encode())


@dataclass(frozen=True)
class _ClipWriter:
    """Draws clips into the data set's folder; other processes can unpickle it, unlike a closure."""

    folder: str
    width: int
    height: int

    def __call__(self, clip: SyntheticClip) -> dict[str, FloatArray]:
        """Draw and write the frames of a clip; return path inside the data set -> keypoints (24, 2)."""
        renderer = SceneRenderer.from_clip(clip, self.width, self.height)
        background = renderer.render_background()
        labels = {}
        for name, frame in zip(clip.files, clip.frames, strict=True):
            image, labels[name] = renderer.render_frame(frame, background)
            _write_if_changed(join(self.folder, name), encode(image, JPEG_QUALITY))
        return labels


def _write_if_changed(path: str, content: bytes) -> None:
    """Write a file, unless it has this content: a new modification time would make `predict` repeat its work."""
    if not exists(path) or read_bytes(path) != content:
        write_bytes(path, content)


def _start_drawing_process() -> None:
    """Let a drawing process use one thread, and end with its parent, also if that is killed."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Let processes that start in this block not receive Ctrl-C, after which they would print tracebacks.

    They inherit the signal mask of the calling thread, which receives the signal when the block ends.
    """
    resource_tracker.ensure_running()  # its start, which the first process needs, would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _draw_clips(
    clips: Sequence[SyntheticClip], write_clip: _ClipWriter, num_processes: int | None
) -> Iterator[dict[str, FloatArray]]:
    """Draw all clips, and yield the labels of each clip in order.

    If `num_processes` is None, every process gets at least four clips, because a process takes about a second to start.

    Raises:
        ConfigError: a drawing process ended early, or the memory is not enough.
    """
    max_processes = -(-len(clips) // 4) if num_processes is None else len(clips)
    pool_size = min(num_processes or usable_cpus(), max_processes)
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that the caller's threads hold
    size = f"(got frames of {write_clip.width}x{write_clip.height} px, {pool_size} processes)"
    fix = "draw smaller frames with width and height (--width, --height)"
    try:
        if pool_size == 1:
            yield from map(write_clip, clips)
            return
        with ProcessPoolExecutor(pool_size, mp_context=context, initializer=_start_drawing_process) as pool:
            with _blocked_interrupts():
                results = pool.map(write_clip, clips)  # starts all processes
            yield from results
    except MemoryError as error:
        raise ConfigError(f"sample: width, height: not enough memory {size}: {fix}") from error
    except BrokenProcessPool as error:
        raise ConfigError(
            f"sample: width, height: a drawing process ended early, e.g. for lack of memory {size}: {fix}; a Python "
            'script can also set num_processes=1, and needs the guard if __name__ == "__main__":'
        ) from error
