"""Section "Store"."""

from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.reporting.run_files import read_run_files
from kp_ray.reporting.store import store_section
from tests.helpers.pages import Page, write_page
from tests.helpers.run_folders import HOSTILE_NAME, make_config, write_store_and_record


def test_recipes_have_their_counts_and_an_example(whole_run: Config) -> None:
    section = store_section(whole_run, read_run_files(whole_run))
    assert section is not None
    rows = {row.record.name: row for row in section.recipes}
    assert {name: (row.num_variants, row.num_parts) for name, row in rows.items()} == {
        "Original": (6, 2),
        "Rotate45_CenterCrop": (3, 1),
    }
    parts = list(Path(whole_run.path("store")).glob("recipe-*/*.parquet"))
    assert section.num_bytes == sum(part.stat().st_size for part in parts)
    assert all(row.mean_visible == len(DACON24) for row in section.recipes)
    assert all(row.share_too_few == 0 for row in section.recipes)
    assert all(row.example_uri and row.example_uri.startswith("data:image/jpeg") for row in section.recipes)


def test_variants_with_too_few_visible_keypoints_are_counted(whole_run: Config) -> None:
    augment = whole_run.augment.model_copy(update={"min_visible": len(DACON24) + 1})
    section = store_section(whole_run.model_copy(update={"augment": augment}), read_run_files(whole_run))
    assert section is not None
    assert [row.share_too_few for row in section.recipes] == [1.0, 1.0]


def test_quarantined_sources_are_listed(whole_page: Page) -> None:
    assert "Quarantined images (1)" in whole_page.text
    assert f"{HOSTILE_NAME} read truncated" in whole_page.text


def test_numbers_have_commas_between_thousands(whole_page: Page) -> None:
    assert "sources 1,234" in whole_page.text


@pytest.mark.parametrize("content", [b"cut", None], ids=["damaged", "missing"])
def test_a_missing_or_damaged_part_is_reported_and_the_other_parts_are_shown(
    tmp_path: Path, content: bytes | None
) -> None:
    config = make_config(tmp_path)
    write_store_and_record(config)
    part = "recipe-Original/part-00000-ab12.parquet"
    path = Path(config.path("store", part))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    page = write_page(config)
    assert f"1 part could not be read (the first is {part})" in page.text
    assert "A variant of Original with its skeleton" in page.alts  # from the recipe's other part


def test_a_run_without_a_store_has_no_section(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert store_section(config, read_run_files(config)) is None
