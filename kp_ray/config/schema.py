"""The whole configuration, and its sections `augment` and `cluster`; other modules define the other sections.

A field's docstring states its meaning, its unit and the meaning of null. A key that no section defines is refused.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from kp_ray.config.inputs import DataConfig, SkeletonConfig, SplitConfig
from kp_ray.config.prediction import PredictConfig
from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.config.training import ModelConfig, TrainConfig
from kp_ray.config.tuning import TuneConfig
from kp_ray.config.types import AnyPath, FolderName, NotNegative, Positive, Section, Seed
from kp_ray.errors import ConfigError
from kp_ray.keypoints import Skeleton, skeleton_for
from kp_ray.storage import join, write_bytes


class AugmentConfig(Section):
    """The store. A changed field rewrites the parts that depend on it; `min_visible` affects training only."""

    recipes: tuple[str, ...] = DEFAULT_RECIPES
    """Names of recipes. A name that is listed twice gives two different variants (copies 0 and 1)."""
    user_recipes: dict[FolderName, dict[str, Any]] = Field(default_factory=dict)
    """Your own recipes by name, each an Albumentations pipeline as `albumentations.to_dict` writes it."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the variants, with 4:2:0 chroma subsampling; lower values make a smaller store."""
    sources_per_part: Positive = 32
    """Sources per part. More sources make fewer files, but a stopped run loses the parts that it was writing. Use 256
    for more than 100,000 sources."""
    oversize: Literal["scale", "error"] = "scale"
    """Size of crops in frames that are not 1920x1080: `scale`: in proportion to the frame; `error`: as many pixels as
    in 1920x1080, and a crop that is larger than its frame is refused."""
    box_margin_px: Annotated[float, Field(ge=0)] = 0.0
    """Margin around the labelled keypoints that makes the person's box, in pixels of the variant; the default is that
    of the published solution. The training loss ignores keypoints outside the box that the model proposes; with a
    margin this box also holds the outermost keypoints."""
    min_visible: NotNegative = 1
    """Training skips variants with fewer visible keypoints (v 1 or 2) than this, and always those without any."""


class ClusterConfig(Section):
    """Ray cluster of the run."""

    address: str | None = None
    """Address of a cluster to join; null: the environment's RAY_ADDRESS, or else a new local cluster."""
    num_cpus: Positive | None = None
    """CPUs of a local cluster, or the number that an autoscaling cluster may grow to; null: the CPUs that exist."""
    num_gpus: NotNegative | None = None
    """GPUs of a local cluster, or the number that an autoscaling cluster may grow to; null: the GPUs that exist."""


class Config(Section):
    """The whole configuration; `kp_ray.config.load.load_config` reads it from YAML."""

    preset: Literal["demo", "dacon", "best"] | None = None
    """Defaults for a purpose: `demo` learns on two CPU cores in minutes, `dacon` is the published solution, `best` the
    published network with settings for the lowest error on GPUs."""
    run_dir: Annotated[AnyPath, Field(validate_default=True)] = "runs/first"
    """Run folder that receives every result: a local path or a URL. In a cluster, every node must reach it."""
    seed: Seed = 42
    """Seed of the variants and the search, and of the split unless `split.seed` is set."""
    data: DataConfig = DataConfig()
    skeleton: SkeletonConfig = SkeletonConfig()
    split: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    predict: PredictConfig = PredictConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _check_folds(self) -> "Config":
        folds = self.split.folds
        for member in self.train.members:
            if member.fold is not None and folds is None:
                raise ValueError(
                    f"train.members: {member.name} names a fold (got {member.fold}), but there are no folds: set "
                    "split.folds"
                )
            if member.fold is not None and folds is not None and member.fold >= folds:
                raise ValueError(
                    f"train.members: {member.name} names a fold that does not exist (got {member.fold}): name one from "
                    f"0 to {folds - 1}, or raise split.folds"
                )
        if folds is not None and "Original" not in self.augment.recipes:
            raise ValueError("augment.recipes: members validate on the recipe Original, which is not listed: add it")
        return self

    def held_out_fold(self, member: str) -> int | None:
        """Return the fold that the member of this name validates on; None without `split.folds`."""
        if self.split.folds is None:
            return None
        index = [config.name for config in self.train.members].index(member)
        fold = self.train.members[index].fold
        return index % self.split.folds if fold is None else fold

    def path(self, *names: str) -> str:
        """Join names to a path inside the run folder."""
        return join(self.run_dir, *names)

    def member_dir(self, name: str) -> str:
        """Return the folder of a member."""
        return self.path("members", name)

    def require_input(self, key: str) -> str:
        """Return the path under `data.<key>`.

        Raises:
            ConfigError: the path is not set.
        """
        value: str | None = getattr(self.data, key)
        if value is None:
            raise ConfigError(f"data.{key} is not set: add it to the config, or --set data.{key}=PATH")
        return value

    def build_skeleton(self, names: Sequence[str]) -> Skeleton:
        """Build the skeleton of these keypoints, with the config's flip pairs and sigmas.

        Raises:
            ConfigError: flip pairs and sigmas are required for these names but not set, or do not fit them.
        """
        try:
            return skeleton_for(names, self.skeleton.flip_pairs, self.skeleton.sigmas)
        except ValueError as error:
            raise ConfigError(f"skeleton: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values, which can be written as YAML and sent to a Ray worker."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved configuration, with every default, as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def save(self) -> None:
        """Write the resolved configuration to `config.yaml` in the run folder; stages do so after they check inputs."""
        write_bytes(self.path("config.yaml"), self.to_yaml().encode())
