"""Inputs that predicting, fusing and evaluating share: the sample submission, the skeleton, the members' weights."""

from collections.abc import Sequence

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission, check_same_keypoints, read_sample_submission
from kp_ray.errors import ConfigError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import read_manifest


def read_run_sample(config: Config) -> SampleSubmission | None:
    """Read `data.sample_submission`; None if it is not set.

    Raises:
        DataError: as `read_sample_submission`.
    """
    path = config.data.sample_submission
    return read_sample_submission(path) if path else None


def resolve_skeleton(config: Config, sample: SampleSubmission | None) -> Skeleton:
    """Return the members' skeleton: the store's if there is a store, otherwise the sample submission's.

    Raises:
        StoreError: there is neither a store nor a sample submission.
        DataError: the sample submission has other keypoints than the store.
    """
    store = config.path("store")
    if sample is None:
        return config.build_skeleton(read_manifest(store).skeleton)
    skeleton = config.build_skeleton(read_manifest(store).skeleton if has_store(store) else sample.names)
    check_same_keypoints(sample, skeleton)
    return skeleton


def check_weighted_members(config: Config, members: Sequence[str]) -> None:
    """Refuse a name in `predict.weights` that is no member.

    Raises:
        ConfigError: there is one.
    """
    weights = config.predict.weights
    unknown = [] if isinstance(weights, str) else [name for name in weights if name not in members]
    if unknown:
        raise ConfigError(f"predict.weights: {unknown[0]}: is no member; train.members has {', '.join(members)}")


def resolve_weights(config: Config, members: Sequence[str], skeleton: Skeleton) -> FloatArray | None:
    """Return the weights (M, K) that `predict.weights` gives; what it does not name weighs 1. None: equal weights.

    Raises:
        ConfigError: it names an unknown member or keypoint, or leaves a keypoint without any weight.
    """
    given = config.predict.weights
    if isinstance(given, str):
        return None
    check_weighted_members(config, members)
    weights = np.ones((len(members), len(skeleton)))
    for member, value in given.items():
        by_keypoint = value if isinstance(value, dict) else dict.fromkeys(skeleton.names, value)
        for name, weight in by_keypoint.items():
            if name not in skeleton.names:
                raise ConfigError(f"predict.weights: {member}: {name}: is no keypoint of the labels")
            weights[members.index(member), skeleton.names.index(name)] = weight
    has_weight = weights.any(axis=0)
    if not has_weight.all():
        name = skeleton.names[int(has_weight.argmin())]
        raise ConfigError(f"predict.weights: every member has weight 0 for {name}: give one of them more than 0")
    return weights
