"""The work of a prediction: which images, by which members, and where the parts go."""

import hashlib
from typing import Any

import yaml

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, ModelError, one_line
from kp_ray.fingerprint import digest
from kp_ray.keypoints import Skeleton
from kp_ray.models.weights import CFG_NAME, FINAL_WEIGHTS, is_trained
from kp_ray.prediction.images import ImageRef, list_image_refs
from kp_ray.prediction.inputs import read_run_sample, resolve_skeleton, resolve_weights
from kp_ray.prediction.parts import find_missing, lowest_threshold, merge_parts
from kp_ray.storage import join, read_bytes


class PredictionTask:
    """Everything that is fixed before the first image is predicted.

    Attributes:
        config: the run's configuration.
        images: to predict, in the order of the result.
        members: M names.
        skeleton: K keypoints.
        folder: of the parts; its name is a digest of what decides a prediction besides the images.
    """

    def __init__(self, config: Config) -> None:
        """Read what the run folder holds; write nothing.

        Raises:
            ModelError: a member is not trained, is damaged, or predicts other keypoints.
            ConfigError: `predict` has settings that do not fit the members.
            KpRayError: the images, the sample submission or the store cannot be used.
        """
        self.config = config
        sample = read_run_sample(config)
        self.images = list_image_refs(config, sample)
        self.members = [member.name for member in config.train.members]
        for name in self.members:
            if not is_trained(config.member_dir(name)):
                raise ModelError(f"{config.member_dir(name)}: member {name} is not trained: run train first")
        self.skeleton = resolve_skeleton(config, sample)
        for name in self.members:
            _check_member(config, name, self.skeleton)
        resolve_weights(config, self.members, self.skeleton)  # refuses wrong names
        self.folder = config.path("predictions", digest(self._fingerprint_fields()))

    def _fingerprint_fields(self) -> dict[str, Any]:
        """Return what decides a prediction besides the image: views, threshold, keypoints and the members' files."""
        return {
            "tta": self.config.predict.tta,
            "lowest_threshold": lowest_threshold(self.config),
            "keypoints": self.skeleton.names,
            "members": {
                name: {
                    file: hashlib.sha256(read_bytes(join(self.config.member_dir(name), file))).hexdigest()
                    for file in (FINAL_WEIGHTS, CFG_NAME)
                }
                for name in self.members
            },
        }

    def find_missing(self) -> list[ImageRef]:
        """List the images that no part holds, then those that could not be used: they are tried again."""
        return find_missing(self.folder, self.images)

    def merge(self) -> None:
        """Write `predictions.parquet` from the parts."""
        target = self.config.path("predictions.parquet")
        merge_parts(self.config, self.folder, self.images, self.members, self.skeleton, target)


def _check_member(config: Config, name: str, skeleton: Skeleton) -> None:
    """Refuse a member of another number of keypoints, and mirrored views for one that was trained without flips."""
    path = join(config.member_dir(name), CFG_NAME)
    try:
        cfg = yaml.safe_load(read_bytes(path))
        model, inputs = cfg.get("MODEL", {}), cfg.get("INPUT", {})
        num_keypoints = model.get("ROI_KEYPOINT_HEAD", {}).get("NUM_KEYPOINTS", len(skeleton))
        is_flipped = inputs.get("RANDOM_FLIP") != "none"
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{path}: damaged ({one_line(error)}): train member {name} again") from error
    if num_keypoints != len(skeleton):
        raise ModelError(
            f"{path}: member {name} predicts {num_keypoints} keypoints, {len(skeleton)} are asked for: use the labels "
            "and the sample submission that it was trained with"
        )
    if "flip" in config.predict.tta and not is_flipped:
        # Mirrored images doubled the error of the demo's members, which never saw any.
        raise ConfigError(
            f"predict.tta: flip: member {name} was trained without flips; take flip out, or train with it"
        )
