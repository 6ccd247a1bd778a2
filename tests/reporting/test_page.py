"""The page of a run folder: whole, self-contained, safe with any name, and content with whatever stages have run."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.cli.main import main
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.images import decode_bgr
from kp_ray.keypoints import DACON24
from kp_ray.reporting.page import write_report
from kp_ray.reporting.show import show
from kp_ray.store.manifest import row_schema
from kp_ray.visualization.colors import TRUTH
from kp_ray.visualization.plots import plot_points

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
    return build_config({"run_dir": str(folder / "run"), **sections})


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


def variant(recipe: str, number: int, split: str) -> dict[str, Any]:
    xy = points(number)
    return {
        "source": IMAGES[number], "scene": "001-1-1-01-Z17", "camera": "A", "frame": number, "split": split,
        "recipe": recipe, "copy": 0, "width": 320, "height": 240, "num_visible": 24, "affine": [1, 0, 0, 0, 1, 0],
        "image": cv2.imencode(".jpg", picture(number))[1].tobytes(), "seed": number,
        "keypoints": np.column_stack([xy, np.full(24, 2)]).ravel().tolist(),
        "bbox_xyxy": [*xy.min(axis=0), *xy.max(axis=0)],
    }  # fmt: skip


def write_store(run: Path) -> None:
    parts = []
    recipes = [("Original", 1, ("train", "val")), ("Rotate45_CenterCrop", 2, ("train",))]
    for name, _, splits in recipes:
        for number, split in enumerate(splits):
            rows = [variant(name, i, split) for i in range(3)]
            path = f"recipe={name}/part-{number:05d}-ab12.parquet"
            (run / "store" / path).parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist(rows, schema=row_schema(24))
            pq.write_table(table, run / "store" / path, row_group_size=1)
            parts.append({"path": path, "recipe": name, "split": split, "num_rows": 3, "num_bytes": 4321})
    manifest = {
        "schema_version": 1, "kp_ray": "0.1.0", "seed": 42, "skeleton": DACON24.names, "num_sources": 1234,
        "recipes": [{"name": name, "copies": copies, "fingerprint": "ab12"} for name, copies, _ in recipes],
        "num_variants": 9, "num_rows_by_split": {"train": 6, "val": 3}, "parts": parts,
        "units": {"train": ["001-1-1-01-Z17", "002-1-1-01-Z17"], "val": ["003-1-1-01-Z17"]},
        "quarantined": [{"source": HOSTILE, "stage": "decode_bgr", "reason": "cut off"}],
    }  # fmt: skip
    write_json(run / "store" / "manifest.json", manifest)
    write_json(
        run / "augment.json", {"sources": 2, "variants": 9, "seconds": 2.5, "sources_per_s": 17.5, "start_up_s": 1}
    )


def write_predictions(run: Path, members: tuple[str, ...] = ("a", "b")) -> None:
    """Members that agree but in IMAGES[4]; b finds nobody in IMAGES[5], and one image lies outside the folder."""
    rows: list[dict[str, Any]] = []
    for number, image in enumerate([*IMAGES, "../secret.jpg"]):
        for index, member in enumerate(members):
            xy = points(50 + number) + (60 * index if number == 4 else index)
            if index and number == 5:
                xy = np.full((24, 2), np.nan)
            flat = np.column_stack([xy, np.full(24, 0.5)]).ravel().tolist()
            rows.append({"image": image, "member": member, "keypoints": flat})
    schema = pa.schema([("image", pa.string()), ("member", pa.string()), ("keypoints", pa.list_(pa.float64(), 72))])
    table = pa.Table.from_pylist(
        rows, schema=schema.with_metadata({"kp_ray": json.dumps({"keypoints": DACON24.names})})
    )
    pq.write_table(table, run / "predictions.parquet")


def write_members(run: Path, names: tuple[str, ...] = ("a", "_b$")) -> None:
    for name in names:
        lines = [json.dumps({"iteration": i, "total_loss": 3 / (i + 1), "lr": 0.001}) for i in range(0, 100, 20)]
        lines += [json.dumps({"iteration": 99, "val/rmse": 12.25}), '{"iteration": 1']
        (run / "members" / name).mkdir(parents=True)
        (run / "members" / name / "metrics.json").write_text("\n".join(lines))


def evaluation() -> dict[str, Any]:
    scores = {"rmse": 7.5, "median_px": 4.0, "p95_px": 20.0, "pck": {"0.05": 0.9, "0.1": 0.95}, "ap": None}
    return {
        **scores, "num_images": 6, "num_missing": 1, "rmse_interval": [6.125, 9.5],
        "by_keypoint": {name: {"rmse": None if name == "nose" else 5.0} for name in DACON24.names},
        "by_camera": {"A": {"num_images": 6, "rmse": 7.5, "rmse_interval": [6.0, 9.0]}, HOSTILE: None},
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
    write_predictions(run)
    write_json(run / "evaluation.json", evaluation())
    (run / "check.csv").write_text(
        "level,kind,image,message,fix\nerror,truncated,<b>x.jpg,ends early,copy it again\n"
        + "".join(f"warning,swap,{image},left is right,\n" for image in IMAGES)
    )
    (run / "tune").mkdir()
    (run / "tune" / "trials.csv").write_text(
        "trial,status,iterations,rmse,base_lr,schedule\n00000,finished,40,12.5,0.001,cosine\n00001,failed,0,,0.01,cosine\n"
        "00002,stopped,20,9.5,0.002,multistep\n00003,stopped,20,10.5,0.0002,multistep\n"
    )
    for name in ("learning_rate", "curves"):
        (run / "tune" / f"{name}.svg").write_bytes(plot_points([1e-4, 1e-3], [9, 12], "lr", "rmse", name))
    (run / "tune" / "best.yaml").write_text("train:\n  base_lr: 0.002\n")
    (run / "config.yaml").write_text(config.to_yaml() + "# s3://KEY:SECRET@bucket/x\n")
    return config


@pytest.fixture(scope="module")
def whole_page(whole_run: Config) -> Page:
    return page_of(whole_run)


def test_every_stage_has_its_section(whole_page: Page) -> None:
    sections = [
        "result", "predictions", "errors", "training", "tune", "store", "poses", "data", "speed", "config",
    ]  # fmt: skip
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
        "RMSE of each keypoint", "RMSE of each camera", "within a distance", "whose OKS is at least", "Training loss",
        "Learning rate", "Validation RMSE", "trial over its base learning rate", "trial over its iterations",
        "A variant of Original", "A variant of Rotate45_CenterCrop",
        "a keypoint is inside the picture", "laid over each other", "torso tilts", "large the person is",
    )  # fmt: skip
    # Pictures: the worst (one of two is there), the filled one, and the five in which both members found somebody.
    assert len(whole_page.alts) == len(expected) + 1 + 1 + 5
    assert all(any(words in alt for alt in whole_page.alts) for words in expected)
    for load in whole_page.loads:
        kind, _, content = load.partition(";base64,")
        if kind == "data:image/jpeg":
            assert decode_bgr(base64.b64decode(content)) is not None
        elif kind == "data:image/svg+xml":
            assert b"</svg>" in base64.b64decode(content)


def test_names_from_data_are_text_and_never_markup(whole_run: Config, whole_page: Page) -> None:
    assert "script" not in whole_page.tags
    assert HOSTILE in whole_page.words
    assert "<b>x.jpg" in whole_page.words


def test_an_image_outside_the_folder_is_not_shown(whole_page: Page) -> None:
    assert "../secret.jpg" in whole_page.words
    assert not any("secret" in alt for alt in whole_page.alts)


def test_disputed_images_come_most_disputed_first(whole_page: Page) -> None:
    words = " ".join(whole_page.words.split())
    disputes = words[words.index("Where members disagree most") :]
    # Members 60 px apart in x and y lie 30 px each side of their mean in both: sqrt(2) * 30 = 42.4.
    assert re.search(r"px in the median image. a b 42.43 px apart " + re.escape(IMAGES[4]), disputes)
    assert "Member b found nobody in 1 of 7 images." in words


def test_the_best_of_each_column_is_marked(whole_run: Config, whole_page: Page) -> None:
    html = Path(whole_run.run_dir, "report.html").read_text(encoding="utf-8")
    result = html[html.index('id="result"') : html.index('id="predictions"')]
    # The members' median and PCK are the ensemble's own, so only RMSE and missing tell the rows apart.
    assert re.findall(r'class="best"[^>]*>([^<]*)<', result) == ["1", "7.25"]


def test_figures_of_every_stage_are_on_the_page(whole_page: Page) -> None:
    words = " ".join(whole_page.words.split())
    for figure in (
        "6.12 to 9.50",
        "1,234",
        "17.5 sources/s",
        "31.25",
        "12.25",
        "a near frame (1), unknown (1)",
        "base_lr: 0.002",
    ):
        assert figure in words
    # Stopped trials were not measured where the others were; a failed one was not measured.
    order = [words.index(told) for told in ("00000 finished", "00002 stopped", "00003 stopped", "00001 failed")]
    assert order == sorted(order)


def test_passwords_in_urls_are_left_out(whole_page: Page) -> None:
    assert "s3://***@bucket/x" in whole_page.words
    assert "SECRET" not in whole_page.words


def test_a_run_with_only_a_store_has_only_its_sections(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_store(tmp_path / "run")
    page = page_of(config)
    assert page.sections == ["store", "poses", "data", "speed", "config"]
    assert [alt for alt in page.alts if "A variant of" in alt] == [
        "A variant of Original with its skeleton", "A variant of Rotate45_CenterCrop with its skeleton"
    ]  # fmt: skip


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
    assert "A variant of Original with its skeleton" in page.alts  # from its other part


@pytest.mark.parametrize("name", ["evaluation.json", "augment.json", "store/manifest.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: str) -> None:
    config = config_of(tmp_path)
    write_store(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(KpRayError, match=re.escape(name)) as caught:
        write_report(config)
    assert "\n" not in str(caught.value)


def test_a_missing_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(KpRayError, match="no such run folder"):
        write_report(build_config({"run_dir": str(tmp_path / "nowhere")}))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e .[dev]")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


SEEN = """() => ({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: [...document.querySelectorAll("section, h1, p, dd, figcaption")].filter(
        one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName),
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    pictures: document.images.length,
    undrawn: [...document.images].filter(one => !one.complete || !one.naturalWidth || !one.width).map(one => one.alt),
})"""


def look(chromium: Any, path: Path, width: int, scheme: str) -> dict[str, Any]:
    """What a browser makes of a page: its sizes, colours, pictures, requests and complaints."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("Promise.all([...document.images].map(one => { one.loading = 'eager'; return one.decode(); }))")
    seen: dict[str, Any] = page.evaluate(SEEN)
    context.close()
    return {**seen, "said": said, "asked": [url for url in asked if not url.startswith("data:")]}


def test_a_browser_draws_all_of_it_wide_and_narrow_light_and_dark_without_a_network(
    whole_run: Config, whole_page: Page, chromium: Any
) -> None:
    path = Path(whole_run.run_dir, "report.html")
    seen = {
        (width, scheme): look(chromium, path, width, scheme) for width in (360, 1280) for scheme in ("light", "dark")
    }
    for one in seen.values():
        assert one["said"] == []
        assert one["asked"] == [path.as_uri()]
        assert one["undrawn"] == []
        assert one["pictures"] == len(whole_page.alts)
        assert one["wide"] <= 0
        assert one["cut"] == []
    light, dark = (sum(map(int, re.findall(r"\d+", seen[360, scheme]["ground"])[:3])) for scheme in ("light", "dark"))
    assert light > 600
    assert dark < 150


def test_shown_variants_are_chosen_by_seed_recipe_and_image(whole_run: Config, tmp_path: Path) -> None:
    store = str(Path(whole_run.run_dir, "store"))

    def shown(**selection: Any) -> dict[str, bytes]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        assert show(store, str(folder), **selection)["pictures"] == len(list(folder.glob("*.jpg"))) - 1
        return {path.name: path.read_bytes() for path in folder.glob("*.jpg")}

    few = shown(num=2, seed=1)
    assert few == shown(num=2, seed=1)
    assert any(few != shown(num=2, seed=seed) for seed in (2, 3, 4))
    assert all(decode_bgr(content) is not None for content in few.values())
    stem = IMAGES[1].removesuffix(".jpg")
    assert shown(recipe="Rotate45_CenterCrop", image=IMAGES[1]).keys() == {
        f"Rotate45_CenterCrop-0-{stem}.jpg", "sheet.jpg"
    }  # fmt: skip


def test_shown_skeletons_lie_on_the_keypoints(whole_run: Config, tmp_path: Path) -> None:
    stem = IMAGES[0].removesuffix(".jpg")
    show(str(Path(whole_run.run_dir, "predictions.parquet")), str(tmp_path), image=IMAGES[0])
    drawn = decode_bgr((tmp_path / f"{stem}.jpg").read_bytes())
    assert drawn is not None
    plain = picture(0).astype(int)
    # The truth lies apart from the predictions, so its discs' centres are its colour, as JPEG keeps it.
    for x, y in np.rint(points(0)).astype(int):
        before, after = np.abs(plain[y, x] - TRUTH).sum(), np.abs(drawn[y, x].astype(int) - TRUTH).sum()
        assert after < 150 or after < before or np.abs(drawn[y, x] - plain[y, x]).sum() > 30


def test_show_lies_beside_what_it_shows_unless_told_otherwise(whole_run: Config) -> None:
    result = show(str(Path(whole_run.run_dir, "store")), num=1)
    assert result == {"pictures": 1, "folder": str(Path(whole_run.run_dir, "show"))}


@pytest.mark.parametrize(
    ("path", "selection", "message"),
    [
        ("nowhere", {}, "neither a store nor predictions: name RUN/store or RUN/predictions.parquet"),
        ("", {}, "neither a store nor predictions"),
        ("store", {"recipe": "Rotate46"}, "holds no recipe 'Rotate46': it has Original, Rotate45_CenterCrop"),
        ("store", {"image": "x.jpg"}, "holds nothing of this selection"),
        ("predictions.parquet", {"recipe": "Original"}, "predictions have no recipe"),
        ("predictions.parquet", {"image": "../secret.jpg"}, "no such picture"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    whole_run: Config, tmp_path: Path, path: str, selection: dict[str, Any], message: str
) -> None:
    with pytest.raises(KpRayError, match=re.escape(message)) as caught:
        show(str(Path(whole_run.run_dir, path)), str(tmp_path / "out"), **selection)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_folder_that_moved_is_reported_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "moved: here"
    moved.mkdir()
    (moved / "config.yaml").write_text("run_dir: /nowhere/at/all\nseed: 4711\n")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(moved)])
    assert ended.value.code == 0, capsys.readouterr().err
    assert "seed: 4711" in Page((moved / "report.html").read_text()).words
