"""Resolve the images, members and skeleton of one `kp-ray predict`, and the folder of its parts."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import yaml

from kp_ray.config.schema import Config
from kp_ray.data.load import FileVersion, file_version
from kp_ray.errors import ConfigError, ModelError, one_line
from kp_ray.fingerprint import digest
from kp_ray.keypoints import Skeleton
from kp_ray.member_files import CFG_NAME, FINAL_WEIGHTS, is_trained
from kp_ray.prediction.decode import InputSize
from kp_ray.prediction.images import ImageRef, list_image_refs
from kp_ray.prediction.inputs import read_run_sample, resolve_skeleton, resolve_weights
from kp_ray.prediction.members import check_members_of_other_runs, check_validation_images, list_members
from kp_ray.prediction.parts import find_missing_images, merge_parts
from kp_ray.prediction.settings import detection_fields, view_scales
from kp_ray.storage import hash_file, join, read_bytes


class PredictionTask:
    """The images, members and skeleton of one `kp-ray predict`, and the folder of its parts.

    Attributes:
        config: the run's configuration.
        images: images to predict, in the order of the result.
        members: folder of each of the M members, by name.
        skeleton: K keypoints.
        input_sizes: the distinct input sizes of all members and TTA views.
        folder: folder of the parts. The folder's name is a digest of members and settings, so that parts of other
            members or settings are not reused.
    """

    def __init__(self, config: Config, images: Sequence[ImageRef] | None = None) -> None:
        """Read the run folder, and write nothing.

        Args:
            config: the run's configuration.
            images: images to predict; None: those of `predict.images`.

        Raises:
            ModelError: a member is not trained, is damaged, or predicts other keypoints.
            DataError: a member of another run predicts other keypoints.
            RunStateError: see `check_validation_images`.
            ConfigError: a setting of the section `predict` does not fit the members.
            KpRayError: the images, the sample submission or the store are missing or invalid.
        """
        self.config = config
        sample = read_run_sample(config)
        self.images = list_image_refs(config, sample) if images is None else list(images)
        self.members = list_members(config)
        for name, folder in self.members.items():
            if not is_trained(folder):
                raise ModelError(f"{folder}: member {name} is not trained: run train first")
        check_validation_images(config)
        self.skeleton = resolve_skeleton(config, sample)
        check_members_of_other_runs(config, self.skeleton)
        sizes = [_check_member(config, name, folder, self.skeleton) for name, folder in self.members.items()]
        scales = view_scales(config)
        self.input_sizes = list(dict.fromkeys(size.scale(scale) for size in sizes for scale in scales))
        resolve_weights(config, list(self.members), self.skeleton)  # refuses invalid weights
        self.folder = config.path("predictions", digest(self._fingerprint_fields()))

    def _fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings and members' digests on which the detections in an image depend."""
        flips = {"flip_indices": self.skeleton.flip_indices} if "flip" in self.config.predict.tta else {}
        return {
            **flips,
            **detection_fields(self.config),
            "keypoints": self.skeleton.names,
            "members": {
                name: {file: _hash_file(join(folder, file)) for file in (FINAL_WEIGHTS, CFG_NAME)}
                for name, folder in self.members.items()
            },
        }

    def find_missing_images(self) -> list[ImageRef]:
        """List the images to predict: first those without a result, then the unusable ones, which are tried again."""
        return find_missing_images(self.folder, self.images)

    def predictor_arguments(self, has_gpu: bool) -> dict[str, Any]:
        """Return the arguments of `Predictor`; `has_gpu` is True if Ray gives the actor a GPU."""
        return {
            "values": self.config.to_dict(),
            "members": self.members,
            "keypoint_names": self.skeleton.names,
            "folder": self.folder,
            "has_gpu": has_gpu,
        }

    def merge(self, target: str | None = None) -> None:
        """Merge the parts into `target`; None: the run's `predictions.parquet`."""
        target = target or self.config.path("predictions.parquet")
        merge_parts(self.config, self.folder, self.images, list(self.members), self.skeleton, target)


def _hash_file(path: str) -> str:
    """Return a file's SHA-256; it is cached until the file's size or modification time changes."""
    return _hash_version(path, file_version(path))


@lru_cache(maxsize=256)
def _hash_version(path: str, version: FileVersion) -> str:
    return hash_file(path)[1]


def _check_member(config: Config, name: str, folder: str, skeleton: Skeleton) -> InputSize:
    """Return a member's input size; refuse a member that does not fit the skeleton or `predict.tta`.

    Raises:
        ModelError: the number of keypoints differs, or the member's config is damaged.
        ConfigError: `predict.tta` has `flip`, and the member was trained without flips.
    """
    path = join(folder, CFG_NAME)
    try:
        cfg = yaml.safe_load(read_bytes(path))
        model, inputs = cfg.get("MODEL", {}), cfg.get("INPUT", {})
        num_keypoints = model.get("ROI_KEYPOINT_HEAD", {}).get("NUM_KEYPOINTS", len(skeleton))
        has_flips = inputs.get("RANDOM_FLIP") != "none"
        input_size = InputSize(int(inputs["MIN_SIZE_TEST"]), int(inputs["MAX_SIZE_TEST"]))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, LookupError, TypeError, ValueError) as error:
        fix = f"restore it, or delete {FINAL_WEIGHTS} beside it and run train in that run"
        raise ModelError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    if num_keypoints != len(skeleton):
        raise ModelError(
            f"{path}: member {name} has another number of keypoints than the labels (got {num_keypoints}, expected "
            f"{len(skeleton)}): use the labels and the sample submission with which the member was trained"
        )
    if "flip" in config.predict.tta and not has_flips:
        # Refused, because mirrored images doubled the error of the demo's members, which were trained without flips.
        raise ConfigError(
            f"predict.tta: member {name} was trained without flips: remove flip, or train with train.flip: true"
        )
    return input_size
