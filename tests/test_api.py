"""The Python API, called in the order of a notebook."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kp_ray
from tests.helpers.data import tiny_config


def test_a_notebook_calls_the_stages_in_order(ray_cluster: None, sample_data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(tiny_config(sample_data, tmp_path / "run").to_yaml())
    config = kp_ray.load_config(str(path), ["train.max_iter=2", "train.steps=[1]"])
    assert kp_ray.augment(config).sources == 12
    rows = kp_ray.read_store(config.path("store"), columns=["source", "recipe", "keypoints"])
    assert set(rows["recipe"].to_pylist()) == {"Original", "Rotate45_CenterCrop"}
    assert [member.name for member in kp_ray.train(config).members] == ["a"]
    assert kp_ray.tune(config).trials == 2
    assert kp_ray.predict(config).details.images == 10
    evaluation = kp_ray.evaluate(config)
    assert evaluation.to_json()["num_images"] == 10
    assert Path(config.path("submission.csv")).stat().st_size > 0


def test_every_name_of_the_api_is_documented_and_nothing_else_is_exported() -> None:
    assert all(getattr(kp_ray, name).__doc__ for name in kp_ray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        kp_ray.trian  # noqa: B018


def test_importing_the_package_loads_neither_ray_nor_torch() -> None:
    code = "import sys, kp_ray; print({'ray', 'torch', 'cv2', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
