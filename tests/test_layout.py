"""The shape of the package: who imports whom, who knows Ray, and that importing does nothing else."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import ray
import yaml

import kp_ray

ROOT = Path(kp_ray.__file__).parent.parent
MODULES = [
    "keypoints", "config", "annotations", "split", "recipes", "augment", "metrics", "ensemble", "submission", "draw",
    "sample", "detectron", "store", "train", "tune", "predict", "report", "doctor", "cli",
]  # fmt: skip
"""In reading order: each imports only from those before it."""
WITH_RAY = {"store", "train", "tune", "predict", "doctor", "cli"}
WITH_TORCH = {"detectron", "train", "tune", "predict"}
JOBS = ["augment", "pipeline", "predict", "train", "tune"]


def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / "kp_ray" / f"{module}.py").read_text())


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints whose home and temporary folder are under `cwd`."""
    environment = {
        "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(cwd / "home"),
        "TMPDIR": str(cwd / "tmp"), "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }  # fmt: skip
    for name in ("home", "tmp"):
        (cwd / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_modules_are_those_of_the_design() -> None:
    assert {path.stem for path in (ROOT / "kp_ray").glob("*.py")} == {*MODULES, "__init__"}
    assert not [path for path in (ROOT / "kp_ray").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    above = MODULES[: MODULES.index(module)]
    ours = [name.split(".")[1] for name in imports_of(tree_of(module)) if name.startswith("kp_ray.")]
    assert "kp_ray" not in imports_of(tree_of(module))
    assert set(ours) <= {*above, "__version__"}


@pytest.mark.parametrize("module", MODULES)
def test_only_the_edge_knows_ray(module: str) -> None:
    known = {name.split(".")[0] for name in imports_of(tree_of(module))}
    assert ("ray" in known) <= (module in WITH_RAY)


def test_only_the_command_line_starts_ray() -> None:
    def starts(tree: ast.Module) -> bool:
        return any(
            isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.init", "init") for node in ast.walk(tree)
        )

    assert [module for module in MODULES if starts(tree_of(module))] == ["cli"]


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


def test_there_is_a_job_for_each_stage_of_a_cluster() -> None:
    assert sorted(path.stem for path in (ROOT / "jobs").glob("*.py")) == JOBS


def test_the_package_has_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kp_ray.__version__"}
    assert importlib.metadata.version("kp_ray") == kp_ray.__version__


STATE = """
import importlib, logging, os, pathlib, random, signal, sys, threading, warnings
# Whatever these do is theirs.
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

before = state()
for name in MODULES:
    importlib.import_module(f"kp_ray.{name}")
after = state()
print([key for key in before if before[key] != after[key]], ray.is_initialized())
"""


def test_importing_has_no_side_effect(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    assert run_python(f"MODULES = {MODULES}\n{STATE}", tmp_path) == "[] False"


WITHOUT_TORCH = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "fvcore", "pycocotools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
for name in MODULES:
    importlib.import_module(f"kp_ray.{name}")
print("torch" in sys.modules)
"""


def test_a_machine_that_only_augments_needs_no_torch(tmp_path: Path) -> None:
    base = [module for module in MODULES if module not in WITH_TORCH]
    assert run_python(f"MODULES = {base}\n{WITHOUT_TORCH}", tmp_path) == "False"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "tmp"]


def test_help_waits_for_neither_ray_nor_torch(tmp_path: Path) -> None:
    assert run_python("import sys, kp_ray.cli; print({'ray', 'torch', 'cv2'} & {*sys.modules})", tmp_path) == "set()"


def test_cluster_yaml_satisfies_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    assert f"ray:{ray.__version__}-" in cluster["docker"]["image"]
