"""The verbs `augment` and `verify`: their checks, files and output."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, RunStateError
from kp_ray.stage import no_progress
from kp_ray.storage import reader_lock, writer_lock
from kp_ray.store import stage as stage_module
from kp_ray.store.manifest import Quarantined
from kp_ray.store.stage import AugmentStage, AugmentSummary, verify
from tests.helpers.data import tiny_config
from tests.helpers.processes import file_times

RECORD_KEYS = [
    "sources",
    "variants",
    "seconds",
    "start_up_s",
    "sources_per_s",
    "parts_written",
    "parts_kept",
    "quarantined",
]


@pytest.mark.usefixtures("ray_cluster")
def test_augment_writes_the_store_and_saves_its_config_and_record(sample_config: Config) -> None:
    stage = AugmentStage()
    stage.check(sample_config)
    assert not stage.is_done(sample_config)
    stage.session_start_up_s = 1000.0
    summary = stage.run(sample_config, no_progress)
    assert stage.is_done(sample_config)
    assert list(summary.to_json()) == RECORD_KEYS
    assert summary.seconds > summary.start_up_s > 1000
    assert json.loads(Path(sample_config.path("augment.json")).read_text()) == summary.to_json()
    assert Path(sample_config.path("config.yaml")).exists()
    assert verify(sample_config).lines() == [f"{sample_config.path('store')} is sound"]
    times = file_times(Path(sample_config.path("augment.json")))
    second_summary = AugmentStage().run(sample_config, no_progress)
    assert (second_summary.parts_written, second_summary.parts_kept) == (0, summary.parts_written)
    assert file_times(*times) == times, "a run that writes no part keeps the record of the run that wrote the parts"


@pytest.mark.parametrize("lock", [reader_lock, writer_lock])
def test_the_config_is_not_saved_while_another_process_reads_or_writes_the_store(
    sample_config: Config, lock: Callable[[str], contextlib.AbstractContextManager[None]]
) -> None:
    Path(sample_config.path("store")).mkdir(parents=True)
    with lock(sample_config.path("store")), pytest.raises(RunStateError, match="another process"):
        AugmentStage().run(sample_config, no_progress)
    assert not Path(sample_config.path("config.yaml")).exists()


def test_progress_is_reported_in_sources(sample_config: Config, ray_cluster: None) -> None:
    reports: list[tuple[str, int, int]] = []
    AugmentStage().run(sample_config, lambda name, done, total, note="": reports.append((name, done, total)))
    assert reports[0] == ("", 0, 12)
    assert reports[-1] == ("", 12, 12)


def test_a_summary_names_an_example_of_the_quarantined_sources() -> None:
    record: dict[str, Any] = dict.fromkeys(RECORD_KEYS, 2)
    item = Quarantined(source="b.jpg", stage="read", reason="the file is empty")
    lines = AugmentSummary(**record, store="run/store", first_quarantined=item).lines()
    assert lines == [
        "2 variants of 2 sources in run/store: 2 parts written, 2 kept, 2.0 sources/s",
        "2 sources lack at least one variant, e.g. b.jpg: the file is empty; all are listed in "
        "run/store/_quarantine.csv",
    ]
    assert len(AugmentSummary(**record, store="run/store", first_quarantined=None).lines()) == 1
    assert [field.name for field in fields(AugmentSummary)][: len(RECORD_KEYS)] == RECORD_KEYS


def test_missing_images_and_wrong_labels_are_refused_before_a_cluster_starts(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.images"):
        AugmentStage().check(tiny_config({**sample_data, "images": str(tmp_path / "none")}, tmp_path / "run"))
    (tmp_path / "labels.csv").write_text("image,nose_x\na.jpg,1\n")
    with pytest.raises(DataError, match=r"labels\.csv"):
        AugmentStage().check(
            tiny_config({**sample_data, "annotations": str(tmp_path / "labels.csv")}, tmp_path / "run")
        )
    assert not (tmp_path / "run").exists()


def test_a_plan_is_made_once_per_config(sample_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned_configs: list[Config] = []
    make_plan = stage_module.make_plan
    monkeypatch.setattr(stage_module, "make_plan", lambda config: planned_configs.append(config) or make_plan(config))
    stage, second_config = AugmentStage(), tiny_config(sample_config.data.model_dump(), tmp_path / "other")
    stage.check(sample_config)
    assert not stage.is_done(sample_config)
    stage.forecast(sample_config)
    stage.check(second_config)
    assert planned_configs == [sample_config, second_config]


def test_the_summary_of_verify_has_one_line_per_problem() -> None:
    summary = stage_module.VerifySummary("run/store", ("a: missing",))
    assert not summary.ok
    assert summary.lines() == ["a: missing"]
    assert summary.to_json() == {"problems": ["a: missing"]}
