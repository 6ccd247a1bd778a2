"""A plan is refused before a cluster starts if one of its recipes fails on every image, or if no image exists."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kp_ray.augmentation.user_pipeline import import_albumentations
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError
from kp_ray.pipeline import forecast_stage, run_stage
from kp_ray.stage import no_progress
from kp_ray.store.layout import has_store
from kp_ray.store.plan import make_plan
from kp_ray.store.preflight import check_plan
from kp_ray.store.stage import AugmentStage
from tests.helpers.clusters import forbid_ray
from tests.helpers.data import tiny_config


def user_recipe(*steps: Any) -> dict[str, Any]:
    """Return a pipeline of Albumentations steps in the form of `augment.user_recipes`."""
    A = import_albumentations()  # noqa: N806
    return dict(A.to_dict(A.Compose(list(steps))))


def too_large_crop() -> dict[str, Any]:
    """Return a user's pipeline whose crop is larger than every image of the tests."""
    return user_recipe(import_albumentations().CenterCrop(height=5000, width=5000))


def config_with_augment(sample_data: dict[str, Any], tmp_path: Path, **augment: Any) -> Config:
    """Build the tiny config with settings of its section `augment`."""
    return tiny_config(sample_data, tmp_path / "run", augment=augment)


def test_a_users_recipe_that_fails_on_every_image_is_refused(sample_data: dict[str, Any], tmp_path: Path) -> None:
    recipes = {"recipes": ["Original", "Huge"], "user_recipes": {"Huge": too_large_crop()}}
    with pytest.raises(
        ConfigError, match=r"^augment\.recipes: Huge fails on each of the \d+ images .*: correct the pipeline"
    ):
        check_plan(make_plan(config_with_augment(sample_data, tmp_path, **recipes)))


def test_the_error_for_a_crop_larger_than_every_frame_names_the_setting_that_helps(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    recipes = ["Original", "RandomCrop_3"]
    with pytest.raises(ConfigError, match=r"^augment\.recipes: RandomCrop_3 .*: set augment\.oversize=scale"):
        check_plan(make_plan(config_with_augment(sample_data, tmp_path, recipes=recipes, oversize="error")))
    check_plan(make_plan(config_with_augment(sample_data, tmp_path, recipes=recipes, oversize="scale")))


def test_a_recipe_that_succeeds_on_one_image_is_accepted(sample_data: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(sample_data["images"], tmp_path / "images")
    *paths, _ = sorted((tmp_path / "images").iterdir())
    for path in paths:
        Image.new("RGB", (96, 54)).save(path)  # smaller than the crop below
    crop = user_recipe(import_albumentations().CenterCrop(height=100, width=100))
    recipes = {"recipes": ["Crop"], "user_recipes": {"Crop": crop}}
    data = {**sample_data, "images": str(tmp_path / "images")}
    check_plan(make_plan(tiny_config(data, tmp_path / "run", augment=recipes, split={"fraction": 0})))


@pytest.mark.parametrize("is_dry_run", [False, True])
@pytest.mark.parametrize("has_images", [False, True])
def test_augment_and_its_dry_run_refuse_the_plan_without_starting_a_cluster(
    sample_data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_images: bool,
    is_dry_run: bool,
) -> None:
    (tmp_path / "empty").mkdir()
    config = config_with_augment(sample_data, tmp_path, recipes=["Huge"], user_recipes={"Huge": too_large_crop()})
    message = "Huge fails on each"
    if not has_images:
        message = "none of the 12 labelled images"
        config = tiny_config({**sample_data, "images": str(tmp_path / "empty")}, tmp_path / "run")
    forbid_ray(monkeypatch)
    with pytest.raises((ConfigError, DataError), match=message):
        forecast_stage("augment", config) if is_dry_run else run_stage("augment", config, refuse_to_begin, print)
    assert not has_store(config.path("store"))


def refuse_to_begin(verb: str) -> Any:
    """Fail the test: a stage calls this function to open its progress display when it begins."""
    raise AssertionError(f"{verb} began")


def test_a_recipe_that_new_settings_make_fail_is_refused_and_its_stored_rows_stay(
    sample_data: dict[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    recipes = ["Original", "CenterCrop_1"]
    stage = AugmentStage()
    config = config_with_augment(sample_data, tmp_path, recipes=recipes, oversize="scale")
    summary = stage.run(config, no_progress)
    stage.check(config)
    with pytest.raises(
        ConfigError, match=r"CenterCrop_1 fails on each of the \d+ images .*: set augment\.oversize=scale"
    ):
        stage.check(config_with_augment(sample_data, tmp_path, recipes=recipes, oversize="error"))
    assert stage.run(config, no_progress).parts_kept == summary.parts_written


def test_unreadable_images_do_not_count_against_a_recipe(sample_data: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(sample_data["images"], tmp_path / "images")
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"damaged")
    recipes = {"recipes": ["Huge"], "user_recipes": {"Huge": too_large_crop()}}
    check_plan(make_plan(config_with_augment({**sample_data, "images": str(tmp_path / "images")}, tmp_path, **recipes)))


def test_a_recipe_that_fails_on_every_image_is_refused_in_that_run_and_in_later_runs(
    sample_data: dict[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    config = config_with_augment(sample_data, tmp_path, recipes=["Original", "CenterCrop_1"], oversize="error")
    stage = AugmentStage()
    for _ in range(2):  # the second run finds a finished store
        with pytest.raises(ConfigError, match=r"^augment\.recipes: CenterCrop_1 failed on every image, e\.g\. "):
            stage.run(config, no_progress)
    with pytest.raises(ConfigError, match=r"CenterCrop_1 fails on each of the \d+ images"):
        stage.check(config)
