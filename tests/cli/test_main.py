"""The command line without a cluster: help, user errors, `check`, and the contents of stdout and stderr."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import ray
import yaml
from PIL import Image

from kp_ray import __version__
from kp_ray.cli.main import main
from kp_ray.config.load import load_config
from kp_ray.keypoints import DACON24

VERBS = [
    "sample",
    "check",
    "augment",
    "verify",
    "train",
    "tune",
    "crossval",
    "predict",
    "suspects",
    "evaluate",
    "fuse",
    "report",
    "show",
    "export",
    "doctor",
    "run",
]
IMAGES = [f"s{scene}_A-{frame:07d}.jpg" for scene in (1, 2) for frame in (1, 2)]


class Result(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


class Folder:
    """A working directory with four labelled images, a folder of test images and a config."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        for folder in ("frames", "test"):
            (root / folder).mkdir()
        for number, name in enumerate(IMAGES):
            Image.fromarray(np.full((90, 160, 3), 40 * number, np.uint8)).save(root / "frames" / name)
        self.write_labels()
        self.write_config()

    def write_labels(self, names: list[str] = IMAGES, cell: str | None = None) -> None:
        """Write the labels of a standing person for every image; `cell` replaces a number of the second image."""
        rows = [",".join(["image", *DACON24.columns])]
        side_offset_px = {"left": 8, "right": -8}
        for number, name in enumerate(names):
            numbers = []
            for index, keypoint in enumerate(DACON24.names):
                offset_px = side_offset_px.get(keypoint.partition("_")[0], 0)
                numbers += [str(80 + offset_px + 0.25 * index + number), str(10 + 3 * index)]
            rows.append(",".join([name, *numbers]))
        if cell is not None:
            rows[2] = rows[2].replace(",34", f",{cell}", 1)
        (self.root / "labels.csv").write_text("\n".join(rows) + "\n")

    def write_config(self, **changes: Any) -> str:
        """Write a config with the sections `changes` replaced; return its path."""
        data = {"annotations": "labels.csv", "images": "frames", "test_images": "test"}
        values = {"run_dir": "run", "split": {"fraction": 0}, "data": data, **changes}
        (self.root / "config.yaml").write_text(yaml.safe_dump(values))
        return "config.yaml"

    def run(self, *arguments: str) -> Result:
        """Run `kp-ray` in this process."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, err = self.capsys.readouterr()
        return Result(int(end.value.code or 0), out, err)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file, by relative path."""
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Folder:
    def fail(**options: Any) -> NoReturn:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Folder(tmp_path, capsys)


def test_the_version_is_printed(folder: Folder) -> None:
    assert folder.run("--version") == Result(0, f"{__version__}\n", "")


def test_help_lists_every_verb(folder: Folder) -> None:
    result = folder.run("--help")
    assert result.code == 0
    first_words = [line.strip("│ ").split()[0] for line in result.out.splitlines() if line.strip("│ ")]
    assert [word for word in first_words if word in VERBS] == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(folder: Folder, verb: str) -> None:
    result = folder.run(verb, "--help")
    assert result.code == 0
    assert f"{verb} [OPTIONS]" in result.out
    assert "--json" in result.out
    assert result.err == ""


def assert_refused(folder: Folder, message: str, *arguments: str) -> None:
    """Assert that a command ends with one line and exit code 2, starts no cluster and writes nothing."""
    files_before = folder.files()
    result = folder.run(*arguments)
    assert result.err.startswith("kp-ray: ")
    assert len(result.err.splitlines()) == 1
    assert message in result.err
    assert (result.code, result.out) == (2, "")
    assert folder.files() == files_before
    assert not (folder.root / "run").exists()


VERBS_WITH_CONFIG = [verb for verb in VERBS if verb not in ("sample", "fuse", "show", "doctor")]


@pytest.mark.parametrize("verb", VERBS_WITH_CONFIG)
def test_a_missing_or_invalid_config_is_refused(folder: Folder, verb: str) -> None:
    assert_refused(folder, "Missing argument", verb)
    assert_refused(folder, "nowhere.yaml: there is no such file", verb, "nowhere.yaml")
    path = folder.write_config(train={"max_iters": 3})
    assert_refused(folder, "train.max_iters: unknown key; did you mean max_iter?", verb, path)
    path = folder.write_config()
    assert_refused(folder, "train.max_iter: Input should be a valid integer", verb, path, "--set", "train.max_iter=few")
    assert_refused(folder, "a b: unknown key", verb, path, "--set", "a\nb=1")
    assert_refused(folder, "--set nothing: expected KEY=VALUE", verb, path, "--set", "nothing")


@pytest.mark.parametrize("verb", ["check", "augment", "verify", "run"])
def test_missing_and_invalid_labels_are_refused(folder: Folder, verb: str) -> None:
    assert_refused(folder, "data.annotations is not set", verb, "config.yaml", "--set", "data.annotations=null")
    for key in ("data.annotations", "data.corrections"):
        message = f"{key}: there is no such file or folder (got {folder.root}/gone.csv)"
        assert_refused(folder, message, verb, "config.yaml", "--set", f"{key}=gone.csv")
    folder.write_labels(cell="abc")
    assert_refused(folder, "labels.csv: row 3: right_elbow_y: 'abc' is not a number", verb, "config.yaml")
    folder.write_labels(names=[*IMAGES, "../up.jpg"])
    assert_refused(folder, "row 6: image '../up.jpg' is not a plain name", verb, "config.yaml")


@pytest.mark.parametrize("verb", ["augment", "verify", "run"])
def test_unknown_recipes_and_missing_images_are_refused_before_a_cluster_starts(folder: Folder, verb: str) -> None:
    for override, message in (
        ("augment.recipes=[Rotate46]", "augment.recipes: unknown recipe (got 'Rotate46')"),
        (
            "augment.user_recipes={mine: {transform: {}}}",
            "augment.user_recipes.mine: Albumentations cannot load this pipeline",
        ),
        ("data.images=gone", f"data.images: there is no such file or folder (got {folder.root}/gone)"),
    ):
        assert_refused(folder, message, verb, "config.yaml", "--set", override)


@pytest.mark.parametrize("key", ["test_images", "sample_submission", "truth"])
def test_run_refuses_missing_inputs_of_its_last_stages_before_the_first_stage_runs(folder: Folder, key: str) -> None:
    message = f"data.{key}: there is no such file or folder (got {folder.root}/gone)"
    options = ["--set", "data.test_images=frames", "--set", f"data.{key}=gone"]
    assert_refused(folder, message, "run", "config.yaml", *options)


def test_run_and_predict_need_test_images(folder: Folder) -> None:
    for verb in ("run", "predict"):
        assert_refused(folder, "data.test_images is not set", verb, "config.yaml", "--set", "data.test_images=null")


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_training_without_a_store_names_the_verb_to_run(folder: Folder, verb: str) -> None:
    assert_refused(folder, "no finished store here: run augment first", verb, "config.yaml")


def test_an_unknown_verb_or_option_is_refused_and_the_help_is_named(folder: Folder) -> None:
    assert_refused(folder, "No such command 'trian'. Did you mean 'train'?", "trian")
    assert_refused(folder, "No such option: --nope (see kp-ray --help", "check", "config.yaml", "--nope")
    assert_refused(folder, "Invalid value for '--images': Input should be greater", "sample", "new", "--images", "0")


def test_without_arguments_the_help_is_printed(folder: Folder) -> None:
    assert folder.run() == folder.run("--help")


def test_fuse_refuses_wrong_arguments_and_names_them(folder: Folder) -> None:
    assert_refused(folder, "Missing argument 'A.csv B.csv'", "fuse", "--out", "c.csv")
    assert_refused(folder, "Missing option '--out'", "fuse", "a.csv", "b.csv")
    assert_refused(folder, "fuse: needs two or more submissions (got 1)", "fuse", "a.csv", "--out", "c.csv")
    assert_refused(folder, "a.csv: there is no such file", "fuse", "a.csv", "b.csv", "--out", "c.csv")
    weights = ["--weights", "2;1"]
    assert_refused(folder, "--weights: numbers with commas are expected", "fuse", "a", "b", "--out", "c", *weights)


def test_check_writes_its_findings_and_the_resolved_config(folder: Folder) -> None:
    mlflow = "train.mlflow=http://me:secret@host"
    result = folder.run("check", "config.yaml", "--set", "seed=7", "--set", "data.people = error", "--set", mlflow)
    assert (result.code, result.out) == (0, "")
    assert "4 labelled images, " in result.err
    next_options = "--set seed=7 --set 'data.people = error' --set train.mlflow=http://***@host"
    assert f"next: kp-ray augment config.yaml {next_options}\n" in result.err
    assert set(folder.files()) >= {"run/check.csv", "run/config.yaml"}
    assert load_config(str(folder.root / "run" / "config.yaml")) == load_config("config.yaml", ["seed=7", mlflow])


def test_refused_commands_and_a_report_keep_the_config_of_the_earlier_run(folder: Folder) -> None:
    folder.run("check", "config.yaml", "--set", "seed=7")
    files_before = folder.files()
    for verb in ("check", "augment", "run"):
        assert folder.run(verb, "config.yaml", "--set", "seed=8", "--set", "data.annotations=gone.csv").code == 2
    for verb, code in {"verify": 2, "export": 2, "report": 0}.items():
        assert folder.run(verb, "config.yaml", "--set", "seed=8").code == code
    assert folder.files()["run/config.yaml"] == files_before["run/config.yaml"]


def test_check_works_without_images(folder: Folder) -> None:
    result = folder.run("check", "config.yaml", "--set", "data.images=null")
    assert result.code == 0
    assert "data.images is not set: only the labels were checked" in result.err
    assert "next:" not in result.err  # augment needs the images


def test_check_exits_with_1_if_images_are_missing(folder: Folder) -> None:
    folder.write_labels(names=[*IMAGES, "gone.jpg", "[/red]left.jpg"])
    result = folder.run("check", "config.yaml")
    assert result.code == 1
    assert "error missing: 2" in result.err
    assert "next:" not in result.err
    assert "Traceback" not in result.err


def test_brackets_in_a_name_are_printed_as_text(folder: Folder) -> None:
    folder.write_labels(names=[*IMAGES, "[/red]left.jpg"])
    assert "e.g. [/red]left.jpg: no such file" in folder.run("check", "config.yaml").err


@pytest.mark.parametrize("num_missing", [0, 1])
def test_json_is_one_object_and_nothing_else_is_on_stdout(folder: Folder, num_missing: int) -> None:
    folder.write_labels(names=[*IMAGES, "gone.jpg"][: 4 + num_missing])
    result = folder.run("check", "config.yaml", "--json")
    assert len(result.out.splitlines()) == 1
    summary = json.loads(result.out)
    assert summary["images"] == 4 + num_missing
    assert summary["errors"] == num_missing
    assert summary["findings"].get("missing", 0) == num_missing
    assert result.code == num_missing


def test_progress_without_a_terminal_is_printed_as_unwrapped_lines_of_plain_text(folder: Folder) -> None:
    result = folder.run("check", "config.yaml")
    progress = [line for line in result.err.splitlines() if line.startswith("check ")]
    assert progress
    assert len(progress) <= 2  # one at the beginning and one at the end; the command takes less than ten seconds
    assert "4/4" in progress[-1]
    assert "\x1b" not in result.err
    assert "\r" not in result.err
    # A path is not wrapped, although it is longer than a line.
    assert f"findings in {folder.root}/run/check.csv" in result.err


def test_sample_writes_a_data_set_that_check_accepts(folder: Folder) -> None:
    sizes = ["--images", "4", "--test-images", "2", "--width", "192", "--height", "108"]
    result = folder.run("sample", "people", *sizes, "--json")
    assert result.code == 0
    config = json.loads(result.out)["config"]
    assert f"next: kp-ray run {config}" in result.err
    assert folder.run("check", config).code == 0


def test_quiet_prints_only_json_and_errors(folder: Folder) -> None:
    result = folder.run("check", "config.yaml", "--json")
    quiet_result = folder.run("--quiet", "check", "config.yaml", "--json")
    assert "next: kp-ray augment config.yaml" in result.err
    assert quiet_result == Result(result.code, result.out, "")
    assert folder.run("-q", "check", "none.yaml").err.startswith("kp-ray: none.yaml")
    assert folder.run("check", "config.yaml").err  # --quiet has no effect on the next command


def test_quiet_prints_no_table(folder: Folder) -> None:
    options = ["evaluate", "config.yaml", "--submission", "labels.csv", "--set", "data.truth=labels.csv"]
    assert "RMSE px" in folder.run(*options).out
    assert folder.run("--quiet", *options) == Result(0, "", "")


def test_predict_can_be_forecast_before_members_are_trained(folder: Folder) -> None:
    result = folder.run("predict", "config.yaml", "--dry-run", "--set", "data.test_images=frames")
    assert result.code == 0
    assert "4 images by 2 members (0 trained)" in result.err


def test_a_verb_that_needs_torch_names_the_missing_package(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for module in [name for name in sys.modules if name.startswith(("kp_ray.training", "kp_ray.models"))]:
        monkeypatch.delitem(sys.modules, module)
    result = folder.run("train", "config.yaml")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "pip install 'kp_ray[train]'" in result.err
