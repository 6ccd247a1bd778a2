"""The Python API, as the notebook in docs/ calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kp_ray
from kp_ray.errors import ClusterError
from kp_ray.store.plan import make_plan
from tests.helpers.data import ROOT, tiny_config
from tests.helpers.stores import write_planned_store


def test_the_notebook_of_the_docs_runs_from_labels_to_scores(sample_data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "demo" / "data" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(tiny_config(sample_data, tmp_path / "run", tune={"num_trials": 1}).to_yaml())
    notebook = json.loads((ROOT / "docs" / "walkthrough.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(cells)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    run_dir = tmp_path / "runs" / "notebook"
    assert json.loads((run_dir / "evaluation.json").read_text())["num_images"] == 10
    assert (run_dir / "submission.csv").stat().st_size > 0
    assert {"Original", "Rotate45_CenterCrop"} == set(kp_ray.read_store(str(run_dir / "store"))["recipe"].to_pylist())


def test_every_name_of_the_api_is_documented_and_an_unknown_name_raises_attribute_error() -> None:
    assert all(getattr(kp_ray, name).__doc__ for name in kp_ray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        kp_ray.trian  # noqa: B018


def test_without_a_session_the_error_says_to_open_one(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    with pytest.raises(ClusterError, match=r"augment: no session is open: call it inside `with kp_ray\.session"):
        kp_ray.augment(config)
    write_planned_store(make_plan(config))
    assert kp_ray.augment(config).parts_written == 0, "a finished store needs no session"


def test_importing_the_package_loads_neither_ray_nor_torch() -> None:
    code = "import sys, kp_ray; print({'ray', 'torch', 'cv2', 'pyarrow'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
