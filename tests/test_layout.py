"""The package's modules are short and their import has no side effects. `make lint` checks the import contracts."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib
import pytest
import yaml

import kp_ray
from tests.helpers.data import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "kp_ray").rglob("*.py")
    if path.name != "__main__.py"
)
TORCH_MODULES = ("kp_ray.models", "kp_ray.training", "kp_ray.tuning", "kp_ray.prediction", "kp_ray.crossval.run")
JOBS = ["augment", "crossval", "pipeline", "predict", "suspects", "train", "tune"]
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


def run_python(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter whose home and temporary folders are in `cwd`, and return its output."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(cwd / "home"),
        "TMPDIR": str(cwd / "tmp"),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }
    for name in ("home", "tmp"):
        (cwd / name).mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_short(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert len(text.splitlines()) <= MAX_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_a_call_of_the_command_line(job: str) -> None:
    text = (ROOT / "jobs" / f"{job}.py").read_text()
    assert len(text.splitlines()) <= 20
    docstring, *imports, entry = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in imports)
    assert isinstance(entry, ast.If)
    assert ast.unparse(entry.test) == "__name__ == '__main__'"
    verb = "run" if job == "pipeline" else job
    assert [ast.unparse(node) for node in entry.body] == [f"main(['{verb}', *sys.argv[1:]])"]


def test_the_folder_jobs_holds_exactly_the_listed_jobs() -> None:
    assert sorted(path.stem for path in (ROOT / "jobs").glob("*.py")) == JOBS


def test_every_installation_of_detectron2_has_the_commit_of_the_wheel() -> None:
    texts = {path: (ROOT / path).read_text() for path in ("cluster.yaml", "docs/install.md", "docs/cluster.md")}
    commits = {path: re.findall(r"detectron2\.git(\S*?)'", text) for path, text in texts.items()}
    assert all(commits.values())
    assert {commit for found in commits.values() for commit in found} == {"@a59f0563"}
    assert "upstream commit a59f0563" in (ROOT / "Makefile").read_text()


def test_neither_a_cluster_nor_a_docker_image_receives_runs_environments_or_old_builds() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in (".git", ".venv", "runs", "build", "*.egg-info"):
        assert f"**/{name}" in cluster["rsync_exclude"]
        assert {name, f"**/{name}"} & set(ignored)


@pytest.mark.parametrize(
    ("contract", "exceptions"),
    [
        ("Ray stays at the edge", {"cluster", "doctor", "prediction", "store", "training", "tuning"}),
        ("Augmenting needs no torch", {"models", "prediction", "training", "tuning"}),
    ],
)
def test_every_top_level_module_is_in_a_contract_or_an_exception(contract: str, exceptions: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (modules,) = (c["source_modules"] for c in project["tool"]["importlinter"]["contracts"] if c["name"] == contract)
    top_level = {module for module in MODULES if module.count(".") == 1}
    assert top_level - {f"kp_ray.{name}" for name in exceptions} == set(modules)


def test_make_clean_removes_everything_that_git_ignores_but_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nclean:")[2].replace("$(VENV)", ".venv").split()
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert ignored - set(recipe) == {"runs"}


def test_the_package_has_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kp_ray.__version__"}
    assert importlib.metadata.version("kp_ray") == kp_ray.__version__


COMPARE_STATE = """
import importlib, logging, os, pathlib, random, signal, sys, threading, warnings
# Imported before the state is recorded, because these packages have side effects of their own.
import cv2, numpy, ray, ray.data, ray.train, ray.train.torch, ray.tune, torch, detectron2.model_zoo, detectron2.engine

def state():
    return {
        "root handlers": [*logging.getLogger().handlers], "root level": logging.getLogger().level,
        "cv2 threads": cv2.getNumThreads(), "torch threads": torch.get_num_threads(),
        "environment": dict(os.environ), "path": [*sys.path], "folder": os.getcwd(),
        "threads": len(threading.enumerate()), "interrupt": signal.getsignal(signal.SIGINT),
        "random": random.getstate(), "numpy": numpy.random.get_state()[1].tolist(),
        "torch": torch.random.get_rng_state().tolist(), "ray": ray.is_initialized(),
        "files": sorted(str(path) for path in pathlib.Path.cwd().rglob("*")),
    }

state_before = state()
for name in MODULES:
    importlib.import_module(name)
state_after = state()
print([key for key in state_before if state_before[key] != state_after[key]], ray.is_initialized())
"""


def test_importing_has_no_side_effect(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    assert run_python(f"MODULES = {MODULES}\n{COMPARE_STATE}", tmp_path) == "[] False"


IMPORT_WITHOUT_TORCH = """
import importlib, sys

class TorchBlocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "fvcore", "pycocotools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, TorchBlocker())
for name in MODULES:
    importlib.import_module(name)
print("torch" in sys.modules)
"""


def test_a_machine_that_only_augments_needs_no_torch(tmp_path: Path) -> None:
    modules = [module for module in MODULES if not module.startswith(TORCH_MODULES)]
    assert run_python(f"MODULES = {modules}\n{IMPORT_WITHOUT_TORCH}", tmp_path) == "False"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "tmp"]


def test_the_command_line_imports_neither_ray_nor_torch(tmp_path: Path) -> None:
    code = "import sys, kp_ray.cli.main; print({'ray', 'torch', 'cv2'} & {*sys.modules})"
    assert run_python(code, tmp_path) == "set()"
