"""Paths of the repository, and a config with which every stage takes seconds."""

from pathlib import Path
from typing import Any

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
"""Optional folder with the competition's labels and with photographs; tests that need it are skipped without it."""

TINY_NET = {
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MAX_SIZE_TRAIN": 114,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 114,
}
"""Detectron2 options that resize images to 114x64 pixels, so that a step takes a fraction of a second."""


def tiny_config(data: dict[str, Any], run_dir: Path, **sections: Any) -> Config:
    """Build a config with which every stage takes seconds.

    Args:
        data: the `data` section.
        run_dir: the run folder.
        sections: settings that replace those of the tiny config, by section or top-level key, e.g.
            `train={"max_iter": 8}`.
    """
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": data,
        "split": {"fraction": 0.25},
        "augment": {"recipes": ["Original", "Rotate45_CenterCrop", "Rotate45_CenterCrop"], "sources_per_part": 4},
        "model": {"preset": "r18", "cfg": dict(TINY_NET)},
        "train": {
            "members": [{"name": "a", "seed": 1}],
            "max_iter": 4,
            "steps": [3],
            "warmup_iters": 1,
            "ims_per_batch": 4,
            "eval_period": 2,
            "checkpoint_period": 4,
            "log_period": 1,
            "cpus_per_worker": 0.5,
            "optimizer": "adamw",
        },
        "tune": {"num_trials": 2, "max_iter": 2, "eval_period": 1},
        "predict": {"actors": [1, 1], "score_threshold": 0.5, "fallback_threshold": 0.0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return build_config(values)
