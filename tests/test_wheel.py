"""The built wheel, installed in a fresh environment."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.data import ROOT
from tests.helpers.processes import last_json, run_command


def run(*command: str, cwd: Path) -> str:
    """Run a command, which must succeed, and return its output."""
    result = run_command(*command, cwd=cwd, timeout_s=900)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def copy_source(folder: Path) -> Path:
    """Copy what a wheel is built of: the build leaves `build/`, whose deleted modules would be in the next wheel."""
    shutil.copytree(ROOT / "kp_ray", folder / "kp_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
def test_the_wheel_augments_in_an_empty_environment_without_torch(tmp_path: Path) -> None:
    source = copy_source(tmp_path / "source")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "empty", cwd=tmp_path)
    python, command = tmp_path / "empty" / "bin" / "python", str(tmp_path / "empty" / "bin" / "kp-ray")
    run(str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel), cwd=tmp_path)
    assert "augment" in run(command, "--help", cwd=tmp_path)
    assert run(str(python), "-c", "import importlib.util as u; print(u.find_spec('torch'))", cwd=tmp_path) == "None\n"
    sample = run(
        command, "sample", "data", "--images", "8", "--width", "320", "--height", "180", "--json", cwd=tmp_path
    )
    summary = last_json(run(command, "augment", last_json(sample)["config"], "--json", cwd=tmp_path))
    assert summary["variants"] > summary["sources"] > 0
