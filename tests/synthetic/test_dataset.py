"""A generated data set is reproducible and has the files and formats of the competition."""

import contextlib
import hashlib
import os
import re
import signal
import sys
from multiprocessing import parent_process
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest
import yaml

from kp_ray.config.load import load_config
from kp_ray.cpus import usable_cpus
from kp_ray.errors import ConfigError, StorageError
from kp_ray.keypoints import DACON24
from kp_ray.pipeline import make_stage
from kp_ray.synthetic.dataset import SampleSummary, _ClipWriter, _draw_clips, make_sample, plan_clips
from kp_ray.synthetic.motion import SyntheticClip
from tests.helpers.processes import file_times, has_ended, run_command, start_kp_ray, wait_until
from tests.helpers.synthetic import SIZE, read_labels

NAME = re.compile(r"(?P<scene>\d{3}-\d-\d-\d{2}-Z\d+)_(?P<camera>[A-E])-(?P<frame>\d{7})\.jpg")
"""Format of the competition's image names."""


def file_digests(folder: Path) -> dict[str, str]:
    """Digest every file by its path inside the folder, except `config.yaml`, which holds the folder's path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "config.yaml")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stop(*_: object) -> NoReturn:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def test_one_process_and_two_write_the_same_bytes(tmp_path: Path) -> None:
    for num_processes in (1, 2):
        folder = str(tmp_path / str(num_processes))
        make_sample(folder, num_images=4, num_test=2, seed=7, num_processes=num_processes, **SIZE)
    digests = file_digests(tmp_path / "1")
    assert len(digests) == 4 + 2 + 3, "six images and three CSV files"
    assert digests == file_digests(tmp_path / "2")


def test_writing_again_gives_the_same_bytes_and_another_seed_different_ones(tmp_path: Path) -> None:
    options = {"num_images": 2, "num_test": 1, "num_processes": 1, **SIZE}
    make_sample(str(tmp_path / "a"), seed=1, **options)
    digests_of_seed_1 = file_digests(tmp_path / "a")
    images = list((tmp_path / "a").rglob("*.jpg"))
    write_times = file_times(*images)
    make_sample(str(tmp_path / "a"), seed=1, **options)
    assert file_digests(tmp_path / "a") == digests_of_seed_1
    assert file_times(*images) == write_times, "predict would repeat its work on images with another time"
    make_sample(str(tmp_path / "b"), seed=2, **options)
    digests_of_seed_2 = set(file_digests(tmp_path / "b").values())
    equal_files = [name for name, digest in digests_of_seed_1.items() if digest in digests_of_seed_2]
    assert equal_files in ([], ["sample_submission.csv"])  # the sample submission holds only names and zeros


def test_a_stopped_second_call_leaves_no_config_and_no_labels_of_the_first(tmp_path: Path) -> None:
    options = {"num_images": 4, "num_test": 1, "num_processes": 1}
    make_sample(str(tmp_path), **options, **SIZE)
    with pytest.raises(KeyboardInterrupt):
        make_sample(str(tmp_path), width=256, height=144, progress=stop, **options)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".jpg"}
    make_sample(str(tmp_path), width=256, height=144, **options)
    assert (tmp_path / "config.yaml").exists()


def test_an_earlier_call_with_fewer_images_is_completed(tmp_path: Path) -> None:
    for num_images in (2, 4):
        make_sample(str(tmp_path), num_images=num_images, num_test=1, num_processes=1, **SIZE)
    assert len(read_labels(str(tmp_path / "train_df.csv"))[0]) == 4


def test_every_row_has_an_image_and_the_header_is_the_competitions(sample: SampleSummary) -> None:
    assert (sample.num_train, sample.num_test) == (20, 4)
    for table, folder in ((sample.annotations, sample.images), (sample.truth, sample.test_images)):
        assert Path(table).read_text().splitlines()[0].split(",") == ["image", *DACON24.columns]
        names, points = read_labels(table)
        assert sorted(names) == sorted(path.name for path in Path(folder).iterdir())
        assert np.isfinite(points).all()
    names, points = read_labels(sample.sample_submission)
    assert names == read_labels(sample.truth)[0]
    assert not points.any()


def test_names_have_the_competitions_format_and_no_scene_is_in_both_subsets(sample: SampleSummary) -> None:
    train, test = (
        [NAME.fullmatch(name) for name in read_labels(path)[0]] for path in (sample.annotations, sample.truth)
    )
    assert all(train)
    assert all(test)
    scenes = [{match["scene"] for match in matches if match} for matches in (train, test)]
    assert not scenes[0] & scenes[1]
    assert len(scenes[0]) + len(scenes[1]) == sample.num_scenes
    assert {match["camera"] for match in train if match} == set("ABCDE")
    assert {int(match["frame"]) for match in train if match} == {1, 3}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 59, 200, 601, 4000])
def test_a_plan_has_exactly_the_requested_number_of_frames(count: int) -> None:
    names = [name for clip in plan_clips("train", count, 0) for name in clip.files]
    assert len(set(names)) == len(names) == count


def test_consecutive_frames_of_a_clip_differ_by_a_small_motion(sample: SampleSummary) -> None:
    names, points = read_labels(sample.annotations)
    moves = [
        np.sqrt(((points[k] - points[k + 1]) ** 2).mean()) * 1080 / SIZE["height"]
        for k in range(len(names) - 1)
        if names[k].rsplit("-", 1)[0] == names[k + 1].rsplit("-", 1)[0]
    ]
    assert len(moves) == 10, "20 frames are 10 clips of two frames"
    assert min(moves) > 0.05
    assert np.median(moves) < 30
    assert max(moves) < 90


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_images": 0}, "num_images"),
        ({"num_images": 1, "num_test": -1}, "num_test"),
        ({"num_images": 1, "width": 10}, "width"),
        ({"num_images": 1, "height": 10}, "height"),
        ({"num_images": 1, "seed": -1}, "seed"),
        ({"num_images": 1, "num_processes": 0}, "num_processes"),
    ],
)
def test_a_number_out_of_range_is_refused_and_named(tmp_path: Path, options: dict[str, int], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sample: {name}: too small \(got -?\d+\): give at least \d+$"):
        make_sample(str(tmp_path), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (66000, 64, r"sample: width: too large \(got 66000\): give at most 65500"),
        (64, 66000, r"sample: height: too large \(got 66000\): give at most 65500"),
        (
            10001,
            10000,
            r"sample: width, height: too large \(got 10001x10000\): give at most 100000000 pixels per frame",
        ),
    ],
)
def test_frames_that_kp_ray_could_not_read_are_refused(tmp_path: Path, width: int, height: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        make_sample(str(tmp_path), num_images=1, num_processes=1, width=width, height=height)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StorageError, match=r"thesis\.txt: not a file of this sample"):
        make_sample(str(tmp_path), num_images=1, **SIZE)
    with pytest.raises(StorageError, match="a file, not a folder"):
        make_sample(str(tmp_path / "thesis.txt"), num_images=1, **SIZE)
    with pytest.raises(StorageError, match="not a local folder"):
        make_sample("s3://bucket/sample", num_images=1, **SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_written_run_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"num_images": 1, "num_test": 0, "num_processes": 1, **SIZE}
    for run_dir, path in (
        (None, str(tmp_path / "data" / "run")),
        ("runs", str(tmp_path / "runs")),
        *[("s3://b/x",) * 2],
    ):
        config = make_sample("data", run_dir=run_dir, **options).config
        assert yaml.safe_load(Path(config).read_text())["run_dir"] == path


@pytest.mark.parametrize(("num_images", "holds_out"), [(1, False), (4, False), (5, True)])
def test_augment_accepts_the_config_of_any_number_of_images(tmp_path: Path, num_images: int, holds_out: bool) -> None:
    summary = make_sample(str(tmp_path), num_images=num_images, num_test=1, num_processes=1, **SIZE)
    config = load_config(summary.config)
    make_stage("augment").check(config)
    assert (config.split.fraction > 0) == holds_out


@pytest.mark.parametrize(
    ("folder", "run_dir", "message"),
    [
        ("", None, "sample: folder: a path is expected"),
        ("data", "", "sample: run_dir: a path is expected"),
        ("data", "s3://user:word@host/x", "sample: run_dir: credentials belong in the environment"),
        ("s3://user:word@host/x", None, "sample: folder: credentials belong in the environment"),
    ],
)
def test_paths_that_no_config_may_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, run_dir: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{message}") as refusal:
        make_sample(folder, run_dir=run_dir, num_images=1, num_processes=1, **SIZE)
    assert "word" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_files_that_a_killed_sample_left_are_no_other_files(tmp_path: Path) -> None:
    partial_file = tmp_path / ".train_df.csv.123.partial"
    partial_file.write_text("image,")
    make_sample(str(tmp_path), num_images=1, num_test=0, num_processes=1, **SIZE)
    (tmp_path / ".thesis.txt.123.partial").write_text("precious")
    with pytest.raises(StorageError, match=r"\.thesis\.txt\.123\.partial: not a file of this sample"):
        make_sample(str(tmp_path), num_images=1, num_test=0, num_processes=1, **SIZE)


def test_drawing_processes_end_with_a_killed_sample(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom multiprocessing import active_children\n"
        "from kp_ray.synthetic.dataset import make_sample\n"
        "def report(done, total):\n"
        "    print(*[child.pid for child in active_children()], flush=True)\n    os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    make_sample(sys.argv[1], num_images=8, num_processes=2, width=320, height=180, progress=report)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    result = run_command(sys.executable, str(script), str(tmp_path / "data"), timeout_s=120)
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    wait_until(lambda: all(has_ended(pid) for pid in pids), timeout_s=30)


@pytest.mark.skipif(usable_cpus() < 2, reason="on one CPU, no process starts")
def test_ctrl_c_while_the_drawing_processes_start_prints_one_line(tmp_path: Path) -> None:
    sizes = ["--images", "40", "--width", "320", "--height", "180"]
    process = start_kp_ray("sample", str(tmp_path / "data"), *sizes)
    try:
        wait_until(lambda: count_importing(process.pid), process, poll_s=0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes of the command
        _, err = process.communicate(timeout=300)  # the processes draw the clips that are queued
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err
    assert "Exception" not in err


def count_importing(pid: int) -> int:
    """Count the drawing processes of a process that have begun to import modules."""
    with contextlib.suppress(psutil.Error):
        children = [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]
        return sum(child.cpu_times().user > 0.2 for child in children)  # Python itself starts in less
    return 0


class ExhaustedWriter(_ClipWriter):
    """Fails as NumPy does without memory; in a drawing process, ends as if the kernel had killed it."""

    def __call__(self, clip: SyntheticClip) -> NoReturn:
        """Fail on any clip."""
        if parent_process() is None:
            raise MemoryError
        os._exit(9)


@pytest.mark.parametrize(
    ("num_processes", "cause"),
    [(1, "not enough memory"), (2, "a drawing process ended early, e.g. for lack of memory")],
)
def test_without_memory_the_advice_names_options_of_python_and_of_the_command_line(
    num_processes: int, cause: str
) -> None:
    size = rf"\(got frames of 320x180 px, {num_processes} processes\)"
    advice = r"draw smaller frames with width and height \(--width, --height\)"
    with pytest.raises(ConfigError, match=rf"^sample: width, height: {cause} {size}: {advice}"):
        list(_draw_clips(plan_clips("train", 4, 0), ExhaustedWriter("unused", **SIZE), num_processes))


def test_progress_is_called_with_rising_counts_up_to_the_number_of_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def record(done: int, total: int) -> None:
        calls.append((done, total))

    make_sample(str(tmp_path), num_images=3, num_test=1, num_processes=1, progress=record, **SIZE)
    assert calls == sorted(calls)
    assert calls[-1] == (4, 4)
