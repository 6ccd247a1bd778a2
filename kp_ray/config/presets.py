"""Presets of the configuration, and the default recipes."""

from typing import Any

DEFAULT_RECIPES = (
    "Original", "RandomCrop_1", "RandomCrop_2", "RandomSquare_1", "CenterCrop_1", "Rotate45", "Rotate45_CenterCrop",
    "Rotate45_RandomCrop_1", "Rotate45_RandomCrop_2", "Rotate45_CenterCrop", "Rescale_RandomCrop_1",
    "Rescale_RandomCrop_2", "Rescale_RandomCrop_3", "Rescale_CenterCrop", "Rescale_Rotate45_RandomCrop_1",
    "Rescale_Rotate45_RandomCrop_2", "Rescale_Rotate45_RandomCrop_3", "Rescale_Rotate45_CenterCrop",
)  # fmt: skip
"""The 18 recipes of the published solution, which lists `Rotate45_CenterCrop` twice as well."""
CONFIG_PRESETS: dict[str, dict[str, Any]] = {
    # The published solution that kp_ray scales out: hangjoo/dacon_key_point_detection.
    "dacon": {
        "seed": 423,
        "split": {"seed": 42},
        "model": {"preset": "x101", "weights": "zoo", "cfg": {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256}},
        "train": {
            "base_lr": 0.001,
            "max_iter": 10000,
            "steps": [3000, 4000, 5000, 6000, 7000, 8000],
            "gamma": 0.8,
            "ims_per_batch": 2,
            "eval_period": 5000,
        },
        "tune": {"num_trials": 0},  # `run` should not start a search of this size unless it is asked to
        "predict": {"score_threshold": 0.7},
    },
    # A small network that learns on two CPU cores in minutes, from the recipes that keep people upright.
    "demo": {
        "augment": {"box_margin_px": 20, "min_visible": 14},
        "model": {"preset": "r18"},
        "train": {
            "recipes": ["Original", "CenterCrop_1", "Rescale_CenterCrop", "Rescale_RandomCrop_3"],
            "flip": False,
            "optimizer": "adamw",
            "base_lr": 0.0015,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "max_iter": 340,
            "warmup_iters": 20,
            "ims_per_batch": 4,
            "eval_period": 170,
            "checkpoint_period": 85,
            "cpus_per_worker": 0.5,
            "threads_per_worker": 1,
        },
        "tune": {"num_trials": 2, "max_iter": 20, "eval_period": 10},
        "predict": {"actors": [1, 2], "score_threshold": 0.5},
    },
}
"""Settings by name of the preset, in the structure of a configuration file, which overrides them."""
