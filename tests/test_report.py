"""The page of a run folder: whole, self-contained, safe with any name, and content with whatever stages have run."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.config import Config, InputError, build
from kp_ray.draw import decode
from kp_ray.keypoints import DACON24
from kp_ray.report import write_report

HOSTILE = "<script>alert('1')</script>&\"$x_1$.jpg"
IMAGES = [f"001-1-1-01-Z17_A-000000{i}.jpg" for i in range(6)]


class Page(HTMLParser):
    """What a browser would see: sections, things to load, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        else:
            self.loads += [given[key] for key in ("src", "href", "srcset", "data", "poster") if key in given]
        if tag == "img":
            self.alts.append(given["alt"])

    def handle_data(self, data: str) -> None:
        self.words += f"{data} "


def page_of(config: Config) -> Page:
    path = Path(write_report(config))
    assert path == Path(config.run_dir) / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def config_of(folder: Path, **sections: Any) -> Config:
    (folder / "run").mkdir(exist_ok=True)
    return build({"run_dir": str(folder / "run"), **sections})


def picture(seed: int, width: int = 320, height: int = 240) -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def points(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).uniform([80, 40], [240, 200], (len(DACON24), 2))


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_labels(path: Path, seed: int) -> None:
    lines = [",".join(["image", *DACON24.columns])]
    lines += [",".join([image, *map(str, points(seed + i).ravel())]) for i, image in enumerate(IMAGES)]
    path.write_text("\n".join(lines) + "\n")


def write_store(run: Path) -> None:
    parts = []
    recipes = [("Original", 1), ("Rotate45_CenterCrop", 2)]
    for name, _ in recipes:
        rows = [
            {
                "image": cv2.imencode(".jpg", picture(i))[1].tobytes(),
                "keypoints": np.column_stack([points(i), np.full(24, 2)]).ravel().tolist(),
            }
            for i in range(3)
        ]
        schema = pa.schema([("image", pa.binary()), ("keypoints", pa.list_(pa.float32(), 72))])
        path = f"recipe={name}/part-00000-ab12.parquet"
        (run / "store" / path).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), run / "store" / path)
        parts.append({"path": path, "recipe": name, "num_rows": 3, "num_bytes": 4321, "sha256": "0"})
    manifest = {
        "schema_version": 1, "kp_ray": "0.1.0", "seed": 42, "skeleton": DACON24.names, "num_sources": 1234,
        "recipes": [{"name": name, "copies": copies, "fingerprint": "ab12"} for name, copies in recipes],
        "num_variants": 6, "num_rows_by_split": {"train": 5, "val": 1}, "parts": parts,
        "quarantined": [{"source": HOSTILE, "stage": "decode", "reason": "cut off"}],
    }  # fmt: skip
    write_json(run / "store" / "manifest.json", manifest)
    write_json(
        run / "augment.json", {"sources": 2, "variants": 6, "seconds": 2.5, "sources_per_s": 17.5, "start_up_s": 1}
    )


def write_members(run: Path, names: tuple[str, ...] = ("a", "_b$")) -> None:
    for name in names:
        lines = [json.dumps({"iteration": i, "total_loss": 3 / (i + 1), "lr": 0.001}) for i in range(0, 100, 20)]
        lines += [json.dumps({"iteration": 99, "val/rmse": 12.25}), '{"iteration": 1']
        (run / "members" / name).mkdir(parents=True)
        (run / "members" / name / "metrics.json").write_text("\n".join(lines))


def evaluation() -> dict[str, Any]:
    scores = {"rmse": 7.5, "median_px": 4.0, "p95_px": 20.0, "pck": {"0.05": 0.9, "0.1": 0.95}, "ap": None}
    return {
        **scores, "num_images": 6, "num_missing": 1,
        "by_keypoint": {name: {"rmse": None if name == "nose" else 5.0} for name in DACON24.names},
        "by_camera": {"A": {"num_images": 6, "rmse": 7.5}, HOSTILE: None},
        "worst": [{"image": IMAGES[0], "rmse": 31.25}, {"image": HOSTILE, "rmse": None}],
        "filled": [{"image": IMAGES[1], "how": "frame 12"}, {"image": "../secret.jpg", "how": None}],
        "members": {
            "a": {**scores, "rmse": 7.25, "num_missing": 3}, "b": {**scores, "rmse": 9.0, "pck": None}, "c": None,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("whole")
    config = config_of(folder, data={"test_images": str(folder / "test"), "truth": str(folder / "truth.csv")})
    run = folder / "run"
    (folder / "test").mkdir()
    for i, image in enumerate(IMAGES):
        cv2.imwrite(str(folder / "test" / image), picture(i))
    cv2.imwrite(str(folder / "secret.jpg"), picture(99))
    write_labels(folder / "truth.csv", 0)
    write_labels(run / "submission.csv", 50)
    write_store(run)
    write_members(run)
    write_json(run / "evaluation.json", evaluation())
    (run / "check.csv").write_text(
        "level,kind,image,message,fix\nerror,truncated,<b>x.jpg,ends early,copy it again\n"
        + "".join(f"warning,swap,{image},left is right,\n" for image in IMAGES)
    )
    (run / "tune").mkdir()
    (run / "tune" / "trials.csv").write_text(
        "trial,status,iterations,rmse,base_lr\n00000,TERMINATED,40,12.5,0.001\n00001,ERROR,0,,0.01\n00002,STOPPED,20,9.5,0.002\n"
    )
    (run / "tune" / "best.yaml").write_text("train:\n  base_lr: 0.002\n")
    (run / "config.yaml").write_text(config.to_yaml() + "# s3://KEY:SECRET@bucket/x\n")
    return config


@pytest.fixture(scope="module")
def whole_page(whole_run: Config) -> Page:
    return page_of(whole_run)


def test_every_stage_has_its_section(whole_page: Page) -> None:
    sections = ["result", "predictions", "errors", "training", "tune", "store", "data", "config"]
    assert whole_page.sections == sections
    assert whole_page.links == [f"#{name}" for name in sections]


def test_the_page_loads_nothing_from_elsewhere(whole_run: Config, whole_page: Page) -> None:
    assert whole_page.loads
    assert all(load.startswith("data:") for load in whole_page.loads)
    html = Path(whole_run.run_dir, "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(html) < 20e6


def test_every_picture_and_plot_is_there_and_whole(whole_page: Page) -> None:
    expected = (
        "RMSE of each keypoint", "RMSE of each camera", "Training loss", "Learning rate", "Validation RMSE",
        "metric of each trial", "One variant of each recipe", IMAGES[0], IMAGES[1],
    )  # fmt: skip
    assert len(whole_page.alts) == len(expected)
    assert all(any(words in alt for alt in whole_page.alts) for words in expected)
    for load in whole_page.loads:
        kind, _, content = load.partition(";base64,")
        if kind == "data:image/jpeg":
            assert decode(base64.b64decode(content)) is not None
        elif kind == "data:image/svg+xml":
            assert b"</svg>" in base64.b64decode(content)


def test_names_from_data_are_text_and_never_markup(whole_run: Config, whole_page: Page) -> None:
    assert "script" not in whole_page.tags
    assert HOSTILE in whole_page.words
    assert "<b>x.jpg" in whole_page.words


def test_an_image_outside_the_folder_is_not_shown(whole_page: Page) -> None:
    assert "../secret.jpg" in whole_page.words
    assert not any("secret" in alt for alt in whole_page.alts)


def test_the_best_of_each_column_is_marked(whole_run: Config, whole_page: Page) -> None:
    html = Path(whole_run.run_dir, "report.html").read_text(encoding="utf-8")
    result = html[html.index('id="result"') : html.index('id="predictions"')]
    # The members' median and PCK are the ensemble's own, so only RMSE and missing tell the rows apart.
    assert re.findall(r'class="best"[^>]*>([^<]*)<', result) == ["1", "7.25"]


def test_figures_of_every_stage_are_on_the_page(whole_page: Page) -> None:
    words = " ".join(whole_page.words.split())
    for figure in ("1,234", "17.5 sources/s", "31.25", "12.25", "a near frame (1), unknown (1)", "base_lr: 0.002"):
        assert figure in words
    assert words.index("00002 STOPPED") < words.index("00000 TERMINATED") < words.index("00001 ERROR")


def test_passwords_in_urls_are_left_out(whole_page: Page) -> None:
    assert "s3://***@bucket/x" in whole_page.words
    assert "SECRET" not in whole_page.words


def test_a_run_with_only_a_store_has_only_its_sections(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_store(tmp_path / "run")
    page = page_of(config)
    assert page.sections == ["store", "data", "config"]
    assert len(page.alts) == 1


def test_a_run_with_only_training_has_only_its_section(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_members(tmp_path / "run", ("a",))
    assert page_of(config).sections == ["training", "config"]


def test_a_submission_alone_claims_nothing_about_who_was_found(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_labels(tmp_path / "run" / "submission.csv", 3)
    page = page_of(config)
    assert page.sections == ["predictions", "config"]
    assert "was found" not in page.words
    write_json(tmp_path / "run" / "predict.json", {"filled": []})
    assert "Somebody was found in every image" in page_of(config).words


def test_an_evaluation_of_nothing_but_nulls_is_no_obstacle(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_json(tmp_path / "run" / "evaluation.json", dict.fromkeys(evaluation()))
    assert page_of(config).sections == ["config"]


def test_an_empty_run_folder_has_a_report_with_its_configuration(tmp_path: Path) -> None:
    page = page_of(config_of(tmp_path, seed=4711))
    assert page.sections == ["config"]
    assert "seed: 4711" in page.words


def test_a_lost_part_is_told_and_the_rest_shown(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_store(tmp_path / "run")
    lost = tmp_path / "run" / "store" / "recipe=Original" / "part-00000-ab12.parquet"
    lost.write_bytes(b"cut")
    page = page_of(config)
    assert "1 part could not be read" in page.words
    assert len(page.alts) == 1


@pytest.mark.parametrize("name", ["evaluation.json", "augment.json", "store/manifest.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: str) -> None:
    config = config_of(tmp_path)
    write_store(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(name)) as caught:
        write_report(config)
    assert "\n" not in str(caught.value)


def test_a_missing_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        write_report(build({"run_dir": str(tmp_path / "nowhere")}))
