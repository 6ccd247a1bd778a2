"""Resolve `predict.members`: members of this run, and of other run folders."""

from collections.abc import Sequence

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, ModelError, RunStateError
from kp_ray.fingerprint import refuse_difference
from kp_ray.json_files import read_json
from kp_ray.keypoints import Skeleton
from kp_ray.member_files import SETTINGS_NAME, is_trained
from kp_ray.prediction.images import STORE_PREFIX
from kp_ray.storage import exists, join
from kp_ray.store.manifest import store_digest


def list_members(config: Config) -> dict[str, str]:
    """Return the folder of each member that predicts, by the member's name, in the order of the results.

    A member of another run is named `<run folder>/<member>`, or by its path if another member has this name.

    Raises:
        ConfigError: `predict.members` names a member that this run does not have.
    """
    own_folders = {member.name: config.member_dir(member.name) for member in config.train.members}
    if config.predict.members is None:
        return own_folders
    own_names = {folder: name for name, folder in own_folders.items()}
    members: dict[str, str] = {}
    for item in config.predict.members:
        if "/" not in item and item not in own_folders:
            raise ConfigError(
                f"predict.members: {item} is not a member of this run: name members of train.members "
                f"({', '.join(own_folders)}), or the path of another run's member, e.g. runs/other/members/a"
            )
        folder = own_folders.get(item, item)
        if folder in members.values():
            raise ConfigError(f"predict.members: {item} is listed twice, by name and by path: list each member once")
        name = own_names.get(folder) or _short_name(folder) or folder
        members[folder if name in members else name] = folder
    return members


def _short_name(folder: str) -> str:
    """Return `<run folder>/<member>` for the path of a member's folder, or the member's name for a shorter path."""
    *parents, member = folder.rstrip("/").split("/")
    if parents[-1:] == ["members"]:
        parents.pop()
    return "/".join([*parents[-1:], member])


def check_members_of_other_runs(config: Config, skeleton: Skeleton) -> None:
    """Refuse members of other runs that are not trained, or that predict other keypoints than this run's.

    Args:
        config: the run's configuration.
        skeleton: this run's keypoints.

    Raises:
        ConfigError: see `list_members`.
        DataError: a member predicts other keypoints, or the same keypoints in another order.
        ModelError: a folder holds no finished member, or its files are damaged.
    """
    own_folders = {config.member_dir(member.name) for member in config.train.members}
    other_folders = [folder for folder in list_members(config).values() if folder not in own_folders]
    if not other_folders:
        return
    from kp_ray.models.weights import read_keypoint_names  # imports torch

    for folder in other_folders:
        if not is_trained(folder):
            raise ModelError(
                f"predict.members: {folder}: holds no finished member: correct the path, or train the member"
            )
        names = read_keypoint_names(folder)
        if names is not None and names != skeleton.names:
            raise DataError(
                f"predict.members: {folder} has another skeleton than {config.run_dir} (got "
                f"{_describe_keypoints(names)}, expected {_describe_keypoints(skeleton.names)}): name members of one "
                "skeleton"
            )


def _describe_keypoints(names: tuple[str, ...]) -> str:
    return f"{len(names)} keypoints ({', '.join(names[:3])}, ..., {names[-1]})"


def check_validation_images(config: Config) -> None:
    """With `predict.images: store:val`, refuse members of this run that may have been trained on these images.

    Members of other runs are not checked.

    Raises:
        RunStateError, StorageError, StoreError: see `check_training_data`.
    """
    if config.predict.images == f"{STORE_PREFIX}val":
        folders = list_members(config).items()
        check_training_data(config, [name for name, folder in folders if folder == config.member_dir(name)])


def check_training_data(config: Config, members: Sequence[str]) -> None:
    """Refuse members that were trained with a store or a held-out fold other than the config's.

    Args:
        config: the run's configuration; its store has the config's number of folds (`check_num_folds`).
        members: names of trained members.

    Raises:
        RunStateError: as described; the member would be scored on images that it was trained on.
        StorageError: recorded settings are missing or damaged.
        StoreError: there is no finished store.
    """
    digest = store_digest(config.path("store"))
    for name in members:
        folder = config.member_dir(name)
        fix = "delete this folder and train the member again"
        path = join(folder, SETTINGS_NAME)
        if not exists(path):
            raise RunStateError(f"{path}: is missing, so the member's training data are unknown: restore it, or {fix}")
        recorded = read_json(path, fix)
        current = {"member.fold": config.held_out_fold(name), "the store": digest}
        refuse_difference(recorded, current, folder, f"restore the setting or the labels, or {fix}")
