"""Record the settings that decide a member's weights, and refuse to continue the member with different settings."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import ConfigError, ModelError, RunStateError, describe_error
from kp_ray.fingerprint import encode_fields, refuse_difference, with_removed_keys
from kp_ray.json_files import read_json
from kp_ray.member_files import SETTINGS_NAME
from kp_ray.models.presets import build_cfg, check_network, scale_cfg
from kp_ray.storage import exists, is_local, join, write_bytes
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import store_digest
from kp_ray.store.skeleton import run_skeleton
from kp_ray.training.optimizer import build_optimizer
from kp_ray.training.rows import select_training_parts
from kp_ray.training.search_result import uses_search

NON_DECIDING_FIELDS = frozenset(
    [
        "members", "cpus_per_worker", "threads_per_worker", "threads_per_feed", "parts_on_disk_gb", "use_gpu",
        "keep_best", "log_period", "max_failures", "mlflow", "tuned",
    ]
)  # fmt: skip
"""Fields of the config's `train` section that do not decide the weights: they may change when a run resumes."""


def deciding_train_fields(config: Config) -> dict[str, Any]:
    """Return the fields of the `train` section that decide the weights of every member, as JSON values."""
    fields = config.to_dict()["train"]
    return {name: value for name, value in fields.items() if name not in NON_DECIDING_FIELDS}


def member_fields(config: Config, member: MemberConfig) -> dict[str, Any]:
    """Return the settings that decide a member's weights, by dotted name, as JSON values.

    Raises:
        StoreError: there is no finished store.
    """
    values = config.to_dict()
    member_values = {name: value for name, value in member.model_dump(mode="json").items() if name != "name"}
    return {
        **{f"model.{name}": value for name, value in values["model"].items()},
        **{f"train.{name}": value for name, value in deciding_train_fields(config).items()},
        **{f"member.{name}": value for name, value in member_values.items()},
        "member.fold": config.held_out_fold(member.name),
        "augment.min_visible": config.augment.min_visible,
        "skeleton": values["skeleton"],
        "the store": store_digest(config.path("store")),
    }


def record_settings(config: Config, member: MemberConfig, search: Mapping[str, Any] | None = None) -> None:
    """Record the settings that a member begins with.

    Args:
        config: the run's configuration.
        member: the member.
        search: the search that some of the settings come from, as plain values; it is recorded, but never compared.

    Raises:
        StorageError: the member's folder cannot be written.
    """
    path = join(config.member_dir(member.name), SETTINGS_NAME)
    write_bytes(path, encode_fields({**member_fields(config, member), "search": search}))


def check_member_settings(config: Config, *, from_search: bool = False) -> None:
    """Refuse settings other than those that the members of this run folder began with.

    Args:
        config: the run's configuration.
        from_search: True if some settings come from a search; the message then says how to keep the config's own.

    Raises:
        RunStateError: a setting differs; the message names it.
        StorageError: recorded settings are damaged.
        StoreError: there is no finished store.
    """
    # A field that was added to kp_ray after the settings were recorded counts as its default.
    defaults = {f"train.{name}": value for name, value in deciding_train_fields(Config()).items()}
    for member in config.train.members:
        folder = config.member_dir(member.name)
        path = join(folder, SETTINGS_NAME)
        if not exists(path):
            continue
        recorded = defaults | read_json(path, f"restore it, or delete {folder} to train the member again")
        current = member_fields(config, member)
        current["model.cfg"] = with_removed_keys(recorded.get("model.cfg") or {}, current["model.cfg"])
        own_settings_fix = "set train.tuned=false to keep the config's own settings, " if from_search else ""
        refuse_difference(
            recorded,
            current,
            folder,
            f"{own_settings_fix}give the member another name, choose another run_dir, or delete this folder to train "
            "the member again",
        )


def refuse_late_search(config: Config) -> None:
    """Refuse a search for members that already began with the config's own settings.

    Such members are refused if the search finds better settings, which would be known only hours later.

    Raises:
        RunStateError: a member in this run folder began without a search.
        StorageError: recorded settings are damaged.
    """
    for member in config.train.members:
        folder = config.member_dir(member.name)
        path = join(folder, SETTINGS_NAME)
        if exists(path) and read_json(path, f"delete {folder} and train the member again").get("search") is None:
            raise RunStateError(
                f"{folder}: began without a search, whose result it could not take: set tune.num_trials=0 to keep it, "
                "give the members other names, or choose another run_dir"
            )


def refuse_new_store(config: Config) -> None:
    """Refuse to replace the store with which a member or the search of this run folder began.

    `train` and `tune` would refuse to continue them, but only after `augment` has replaced the store.

    Raises:
        RunStateError: see above; the message names the folder.
        StorageError: recorded settings are damaged.
        StoreError: the manifest is damaged.
    """
    present_store = store_digest(config.path("store"))
    places = [(config.member_dir(member.name), "the store", "other member names, ") for member in config.train.members]
    if uses_search(config):
        places.append((config.path("tune"), "store", ""))
    for folder, key, fix in places:
        path = join(folder, SETTINGS_NAME)
        if exists(path) and read_json(path, f"restore it, or delete {folder} to begin again").get(key) == present_store:
            raise RunStateError(
                f"{folder}: began with the present store, and the config's labels, images, seed, split or augment make "
                f"another one: restore them, choose {fix}another run_dir, or delete this folder to begin again"
            )


def starting_weights(config: Config, member: MemberConfig) -> tuple[str, str | None]:
    """Return the config key that sets a member's starting weights, and its value; None means random weights."""
    if member.weights:
        return f"train.members[{member.name}].weights", member.weights
    return "model.weights", config.model.weights


def check_train_config(config: Config) -> None:
    """Refuse settings and inputs with which no worker could train.

    Without a store, Detectron2's options are checked with the labels' keypoints.

    Raises:
        ConfigError: an option of Detectron2 is wrong or would be ignored, the network or the solver cannot be built,
            the skeleton does not fit the store's keypoints, a member's recipe will not be stored, or MLflow is not
            installed or cannot write to the run folder.
        ModelError: a file of starting weights does not exist.
        StoreError: the store does not hold a member's recipe.
    """
    if "://" in config.run_dir and (wrong_characters := set(config.run_dir) & set("#%? ")):
        raise ConfigError(
            f"run_dir: Ray Train does not read {min(wrong_characters)!r} in a URL as kp_ray does "
            f"(got {config.run_dir}): choose another name"
        )
    cfg = build_cfg(config, run_skeleton(config), "cpu")
    if config.model.cfg:
        check_network(cfg)
        _check_solver(config, cfg)
    for member in config.train.members:
        _check_member_inputs(config, member)
    if config.train.mlflow and importlib.util.find_spec("mlflow") is None:
        raise ConfigError("train.mlflow: MLflow is not installed: pip install 'kp_ray[mlflow]'")
    if config.train.mlflow == "local" and not is_local(config.run_dir):
        raise ConfigError(
            f"train.mlflow: `local` needs a local run_dir (got {config.run_dir}): name a tracking server's URI"
        )


def _check_solver(config: Config, cfg: CfgNode) -> None:
    """Refuse options with which Detectron2 cannot build the optimizer or the schedule.

    Raises:
        ConfigError: the options do not fit together.
    """
    model = torch.nn.Linear(1, 1)  # any model shows whether the options are valid
    cfg = scale_cfg(cfg, config.train.max_workers)
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, model, config.train))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = describe_error(error)
        raise ConfigError(
            f"model.cfg: the optimizer or schedule cannot be built ({message}): correct its SOLVER options"
        ) from error


def _check_member_inputs(config: Config, member: MemberConfig) -> None:
    """Refuse recipes that are not stored, and a new member's file of starting weights that does not exist."""
    recipes = member.recipes or config.train.recipes or ()
    if has_store(config.path("store")):
        select_training_parts(config.path("store"), recipes)
    elif missing_recipes := sorted(set(recipes) - set(config.augment.recipes)):
        key = f"train.members[{member.name}].recipes" if member.recipes else "train.recipes"
        raise ConfigError(f"{key}: augment.recipes lacks a recipe (got {missing_recipes[0]}): add it there")
    key, weights = starting_weights(config, member)
    has_begun = exists(join(config.member_dir(member.name), SETTINGS_NAME))  # then it resumes from its checkpoint
    if weights and weights.startswith("/") and not has_begun and not exists(weights):
        raise ModelError(f"{key}: {weights}: there is no such file: correct the path")
