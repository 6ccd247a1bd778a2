"""The forecast of `augment` agrees with the store that `augment` then writes."""

import shutil
from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.store.estimate import START_UP_S, estimate_store, forecast_augment, format_size, format_time
from kp_ray.store.manifest import read_manifest
from kp_ray.store.plan import make_plan
from tests.helpers.data import tiny_config


def test_the_forecast_agrees_with_the_written_store(store_config: Config, sample_config: Config) -> None:
    manifest = read_manifest(store_config.path("store"))
    forecast = forecast_augment(make_plan(sample_config), sample_config)
    assert not Path(sample_config.run_dir).exists()
    assert (forecast.sources, forecast.variants) == (manifest.num_sources, manifest.num_variants)
    assert (forecast.parts, forecast.parts_kept) == (len(manifest.parts), 0)
    assert forecast.bytes == pytest.approx(sum(part.num_bytes for part in manifest.parts), rel=0.2)
    assert forecast.probed > 0
    assert forecast_augment(make_plan(store_config), store_config).parts_kept == len(manifest.parts)


def test_the_forecast_counts_the_parts_of_an_interrupted_run(store_config: Config, tmp_path: Path) -> None:
    shutil.copytree(store_config.path("store"), tmp_path / "run" / "store")
    (tmp_path / "run" / "store" / "_manifest.json").unlink()
    config = tiny_config(store_config.data.model_dump(), tmp_path / "run")
    assert forecast_augment(make_plan(config), config).parts_kept == len(
        read_manifest(store_config.path("store")).parts
    )


def test_the_forecast_has_two_lines_of_text_and_one_json_object(sample_config: Config) -> None:
    forecast = forecast_augment(make_plan(sample_config), sample_config)
    first_line, second_line = forecast.lines()
    assert first_line == (
        f"12 sources, {forecast.variants} variants of 2 recipes, {forecast.parts} parts (0 exist already) in "
        f"{sample_config.path('store')}"
    )
    assert second_line.startswith(f"about {format_size(forecast.bytes)} and {format_time(forecast.seconds)} on ")
    assert list(forecast.to_json()) == [
        "sources",
        "variants",
        "parts",
        "bytes",
        "seconds",
        "cpus",
        "cpu_s_per_source",
        "probed",
        "parts_kept",
    ]


def test_the_number_of_cpus_comes_from_the_config_and_divides_the_time(sample_config: Config) -> None:
    config = tiny_config(sample_config.data.model_dump(), sample_config.run_dir, cluster={"num_cpus": 7})
    assert forecast_augment(make_plan(config), config).cpus == 7
    estimate = estimate_store(make_plan(sample_config), 0.01)
    assert estimate.cpu_s_per_source > 0
    seconds = estimate.cpu_s_per_source * estimate.sources / 0.01
    rounding = 0.00005 * estimate.sources / 0.01  # cpu_s_per_source has four decimal places
    assert estimate.seconds - START_UP_S == pytest.approx(seconds, abs=rounding + 0.001)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (999_600, "1 MB"), (5e9, "5 GB"), (2e16, "2e+04 TB")],
)
def test_sizes_have_at_most_three_digits_and_a_unit(num_bytes: float, text: str) -> None:
    assert format_size(num_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(119, "119 s"), (600, "10 min"), (3 * 3600, "3.0 h")])
def test_times_have_a_unit(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
