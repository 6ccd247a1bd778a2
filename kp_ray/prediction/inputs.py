"""Read the inputs of both `predict` and `evaluate`: sample submission, skeleton and fusion weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission, check_same_keypoints, read_sample_submission
from kp_ray.errors import ConfigError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.store.manifest import read_manifest
from kp_ray.store.skeleton import find_skeleton


def read_run_sample(config: Config) -> SampleSubmission | None:
    """Read `data.sample_submission`; return None if the setting is null.

    Raises:
        DataError: the file is missing or invalid, see `read_sample_submission`.
    """
    path = config.data.sample_submission
    return read_sample_submission(path) if path else None


def resolve_skeleton(config: Config, sample: SampleSubmission | None) -> Skeleton:
    """Return the skeleton that the members predict: see `find_skeleton`; without one, the sample submission's.

    Raises:
        StoreError: the run has neither a store nor a sample submission.
        DataError: the sample submission's keypoints differ from the skeleton's.
        KpRayError: see `find_skeleton`.
    """
    if sample is None:
        return config.build_skeleton(read_manifest(config.path("store")).skeleton)
    # Settings such as `skeleton.sigmas` follow the order of the labels, which the sample need not have.
    skeleton = find_skeleton(config) or config.build_skeleton(sample.names)
    check_same_keypoints(sample, skeleton)
    return skeleton


def check_weighted_members(config: Config, members: Sequence[str]) -> None:
    """Refuse weights of an unknown member.

    Raises:
        ConfigError: `predict.weights` names a member that is not in `members`.
    """
    weights = config.predict.weights
    if isinstance(weights, str):
        return
    for name in weights:
        if name not in members:
            raise ConfigError(
                f"predict.weights: {name} is not a member that predicts: use the names ({', '.join(members)})"
            )


def resolve_weights(config: Config, members: Sequence[str], skeleton: Skeleton) -> FloatArray | None:
    """Convert `predict.weights` to an array of fusion weights.

    Returns:
        (M, K) weights, 1 for a member or keypoint that the setting does not name; None if the setting is `equal`.

    Raises:
        ConfigError: the setting names an unknown member or keypoint, or every member has weight 0 for a keypoint.
    """
    setting = config.predict.weights
    if isinstance(setting, str):
        return None
    check_weighted_members(config, members)
    weights = convert_weights(setting, members, skeleton)
    has_weight = weights.any(axis=0)
    if not has_weight.all():
        name = skeleton.names[int(has_weight.argmin())]
        raise ConfigError(f"predict.weights: every member has weight 0 for {name}: give a member a positive weight")
    return weights


def convert_weights(
    setting: Mapping[str, float | dict[str, float]], members: Sequence[str], skeleton: Skeleton
) -> FloatArray:
    """Convert weights by member, or by member and keypoint, to an array (M, K); a weight that is not set is 1.

    Raises:
        ConfigError: the setting names an unknown keypoint.
    """
    weights = np.ones((len(members), len(skeleton)))
    for member, value in setting.items():
        by_keypoint = value if isinstance(value, dict) else dict.fromkeys(skeleton.names, value)
        for name, weight in by_keypoint.items():
            if name not in skeleton.names:
                raise ConfigError(
                    f"predict.weights: {member}: {name} is not a keypoint: use keypoint names, e.g. {skeleton.names[0]}"
                )
            weights[members.index(member), skeleton.names.index(name)] = weight
    return weights
