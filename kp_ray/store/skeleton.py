"""Find the skeleton of a run before and after its store is written."""

from kp_ray.config.schema import Config
from kp_ray.data.load import load_labels
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.storage import exists
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import read_manifest


def run_skeleton(config: Config) -> Skeleton:
    """Return the skeleton of the store; without a store, that of the labels; without labels, DACON24.

    The section `skeleton` of the config is applied in each case.

    Raises:
        ConfigError: `skeleton` does not fit the keypoints.
        KpRayError: the manifest is damaged, or the labels cannot be used.
    """
    return find_skeleton(config) or config.build_skeleton(DACON24.names)


def find_skeleton(config: Config) -> Skeleton | None:
    """Return the skeleton of the store; without a store, that of the labels; without labels, None.

    Raises:
        ConfigError, KpRayError: see `run_skeleton`.
    """
    if has_store(config.path("store")):
        return config.build_skeleton(read_manifest(config.path("store")).skeleton)
    if config.data.annotations is not None and exists(config.data.annotations):
        return load_labels(config).skeleton
    return None
