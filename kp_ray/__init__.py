"""kp_ray: human-keypoint training on a Ray cluster, from labelled frames to a submission.

A notebook calls the stages in this order::

    import kp_ray

    config = kp_ray.load_config("config.yaml", ["train.max_iter=500"])
    with kp_ray.session(config):
        kp_ray.augment(config)
        kp_ray.tune(config)  # optional; `train` then uses the settings that `tune` found
        kp_ray.train(config)
        kp_ray.predict(config)
    evaluation = kp_ray.evaluate(config)
    rows = kp_ray.read_store(config.path("store"), columns=["source", "recipe", "keypoints"])

Each name is imported on first use, so `import kp_ray` loads neither Ray nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kp_ray.api import augment, cross_validate, evaluate, find_suspects, predict, train, tune
    from kp_ray.cluster.session import session
    from kp_ray.config.load import load_config
    from kp_ray.store.read import read_table as read_store

__version__ = "0.2.0.dev0"

__all__ = [
    "augment",
    "cross_validate",
    "evaluate",
    "find_suspects",
    "load_config",
    "predict",
    "read_store",
    "session",
    "train",
    "tune",
]

_LOCATIONS = {
    "augment": "kp_ray.api:augment",
    "cross_validate": "kp_ray.api:cross_validate",
    "evaluate": "kp_ray.api:evaluate",
    "find_suspects": "kp_ray.api:find_suspects",
    "load_config": "kp_ray.config.load:load_config",
    "predict": "kp_ray.api:predict",
    "read_store": "kp_ray.store.read:read_table",
    "session": "kp_ray.cluster.session:session",
    "train": "kp_ray.api:train",
    "tune": "kp_ray.api:tune",
}


def __getattr__(name: str) -> Any:
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'kp_ray' has no attribute {name!r}")
    module, _, attribute = _LOCATIONS[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
