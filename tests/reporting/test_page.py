"""The whole page: its sections, embedded content and escaped names, and damaged files."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kp_ray.cli.main import main
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError, StorageError, StoreError
from kp_ray.images import decode_preview
from kp_ray.reporting.page import write_report
from tests.helpers.pages import Page, write_page
from tests.helpers.run_folders import (
    HOSTILE_NAME,
    OUTSIDE_NAME,
    make_config,
    write_labels,
    write_prediction_details,
    write_run_predictions,
    write_store_and_record,
    write_training_logs,
)

ALTS = (
    "RMSE of each keypoint", "RMSE of each camera", "within a distance", "whose OKS is at least", "Training loss",
    "Learning rate", "Validation RMSE", "trial over its base learning rate", "trial over its iterations",
    "A variant of Original", "A variant of Rotate45_CenterCrop", "a keypoint is inside the image",
    "drawn over each other", "Tilt of the torso", "Size of the person",
)  # fmt: skip
"""A part of the alternative text of each plot and of each recipe's example."""


def read_html(config: Config) -> str:
    """Read the report of a run."""
    return Path(config.run_dir, "report.html").read_text(encoding="utf-8")


def test_every_stage_has_its_section(whole_page: Page) -> None:
    sections = [
        "result", "predictions", "errors", "training", "tune", "store", "poses", "data", "speed", "config",
    ]  # fmt: skip
    assert whole_page.sections == sections
    assert whole_page.links == [f"#{name}" for name in sections]


def test_the_page_loads_nothing_from_elsewhere(whole_run: Config, whole_page: Page) -> None:
    assert whole_page.loaded_urls
    assert [url for url in whole_page.loaded_urls if not url.startswith("data:")] == []
    html = read_html(whole_run)
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(html) < 20e6


def test_every_image_and_plot_is_embedded_whole(whole_page: Page) -> None:
    matches = [next((text for text in ALTS if text in alt), None) for alt in whole_page.alts]
    assert [text for text in ALTS if text not in matches] == []
    # Tiles: one worst image, one filled image, and the five images in which both members found a person.
    num_tiles = 1 + 1 + 5
    assert matches.count(None) == num_tiles
    assert len(whole_page.alts) == len(ALTS) + num_tiles
    num_decoded = {"image/jpeg": 0, "image/svg+xml": 0}
    for url in whole_page.loaded_urls:
        kind, _, content = url.removeprefix("data:").partition(";base64,")
        if kind == "image/jpeg":
            assert decode_preview(base64.b64decode(content)) is not None
            num_decoded[kind] += 1
        elif kind == "image/svg+xml":
            assert b"</svg>" in base64.b64decode(content)
            num_decoded[kind] += 1
    assert sum(num_decoded.values()) == len(whole_page.alts)


def test_markup_in_names_is_shown_as_text(whole_page: Page) -> None:
    assert "script" not in whole_page.tags
    assert HOSTILE_NAME in whole_page.text
    assert "<b>x.jpg" in whole_page.text  # the image of a finding


def test_an_image_outside_the_image_folder_is_named_but_not_shown(whole_page: Page) -> None:
    assert OUTSIDE_NAME in whole_page.text
    assert [alt for alt in whole_page.alts if Path(OUTSIDE_NAME).stem in alt] == []


def test_passwords_in_urls_are_hidden(whole_run: Config, whole_page: Page) -> None:
    assert "s3://***@bucket/x" in whole_page.text
    assert "SECRET" not in read_html(whole_run)


def test_a_run_with_a_store_alone_has_the_sections_of_the_store(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_store_and_record(config)
    page = write_page(config)
    assert page.sections == ["store", "poses", "data", "speed", "config"]


def test_a_run_with_training_alone_has_the_sections_of_training(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_training_logs(config, ("a",))
    assert write_page(config).sections == ["training", "speed", "config"]


def test_a_submission_without_predict_json_is_left_out_because_it_may_be_of_earlier_members(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_labels(tmp_path / "run" / "submission.csv", 3)
    assert write_page(config).sections == ["config"]
    write_prediction_details(config)
    page = write_page(config)
    assert page.sections[0] == "predictions"
    assert "A person was found in every image." in page.text


def test_without_predict_json_the_page_does_not_say_that_everybody_was_found(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_run_predictions(config)
    page = write_page(config)
    assert page.sections == ["predictions", "config"]
    assert "person was found" not in page.text
    assert "no member found" not in page.text


def test_an_empty_run_folder_has_a_report_with_its_configuration(tmp_path: Path) -> None:
    page = write_page(make_config(tmp_path, seed=4711))
    assert page.sections == ["config"]
    assert "seed: 4711" in page.text


@pytest.mark.parametrize(
    "name",
    [
        "evaluation.json",
        "augment.json",
        "predict.json",
        "store/_manifest.json",
        "predictions.parquet",
        "tune/trials.parquet",
    ],
)
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named_and_no_page_is_written(tmp_path: Path, name: str, content: str) -> None:
    config = make_config(tmp_path)
    write_store_and_record(config)
    path = tmp_path / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises((StorageError, StoreError), match=re.escape(name)):
        write_report(config)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_missing_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="nowhere"):
        write_report(build_config({"run_dir": str(tmp_path / "nowhere")}))


def test_the_report_of_a_moved_run_folder_is_written_at_its_new_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new: folder"
    folder.mkdir()
    (folder / "config.yaml").write_text("run_dir: /nowhere/at/all\nseed: 4711\n")
    with pytest.raises(SystemExit) as caught:
        main(["report", str(folder)])
    assert caught.value.code == 0, capsys.readouterr().err
    assert "seed: 4711" in Page((folder / "report.html").read_text()).text


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Start Debian's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e .[dev]")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


# `clipped` lists the elements that reach beyond the right edge; `undrawn` lists the images that could not be decoded.
MEASURE = """() => ({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    clipped: [...document.querySelectorAll("section, h1, p, dd, figcaption")].filter(
        element => element.getBoundingClientRect().right > innerWidth + 1).map(element => element.tagName),
    background: getComputedStyle(document.body).backgroundColor,
    images: document.images.length,
    undrawn: [...document.images].filter(
        image => !image.complete || !image.naturalWidth || !image.width).map(image => image.alt),
})"""


def measure_page(chromium: Any, path: Path, width: int, scheme: str) -> dict[str, Any]:
    """Open a page without a network.

    Returns:
        The values of MEASURE, the console's `messages`, and the URLs of `requests` that are not `data:`.
    """
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode(); }))")
    values: dict[str, Any] = page.evaluate(MEASURE)
    context.close()
    requests = [url for url in requests if not url.startswith("data:")]
    return {**values, "messages": messages, "requests": requests}


def test_a_browser_without_a_network_draws_the_page_at_two_widths_in_light_and_dark(
    whole_run: Config, whole_page: Page, chromium: Any
) -> None:
    path = Path(whole_run.run_dir, "report.html")
    values_by_view = {
        (width, scheme): measure_page(chromium, path, width, scheme)
        for width in (360, 1280)
        for scheme in ("light", "dark")
    }
    for values in values_by_view.values():
        assert values["messages"] == []
        assert values["requests"] == [path.as_uri()]
        assert values["undrawn"] == []
        assert values["images"] == len(whole_page.alts)
        assert values["overflow"] <= 0
        assert values["clipped"] == []

    def brightness(scheme: str) -> int:
        """Sum red, green and blue (0 to 255 each) of the page's background."""
        return sum(map(int, re.findall(r"\d+", values_by_view[360, scheme]["background"])[:3]))

    assert brightness("light") > 600
    assert brightness("dark") < 150
