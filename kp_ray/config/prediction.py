"""Section of the configuration that describes prediction and fusion."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kp_ray.config.types import DecodeMethod, Fraction, MemberRef, Positive, PrecisionSetting, PredictImages, Section


class PredictConfig(Section):
    """Prediction by every member, and fusion of their results."""

    images: PredictImages | None = None
    """Images to predict: a folder; a `.txt` or `.csv` list of names in `data.test_images`, of paths or of URLs;
    `store:val` or `store:train`, without `split.folds`. null: the images of the sample submission, or all in
    `data.test_images` if `data.sample_submission` is null."""
    members: Annotated[tuple[MemberRef, ...], Field(min_length=1)] | None = None
    """Members to fuse: names of this run's members, and paths of other runs' member folders, e.g.
    [a, runs/other/members/a]. null: all members of this run."""
    actors: tuple[Positive, Positive] = (1, 4)
    """Smallest and largest size of the actor pool; each actor holds all members."""
    cpus_per_actor: Annotated[float, Field(ge=0.01)] = 1.0
    """CPUs of each actor; also its torch threads, rounded."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each actor; with a fraction, actors share a GPU; 0 computes on CPUs. null: 1 if the cluster has GPUs."""
    precision: PrecisionSetting = "auto"
    """Number format of the models' backbones on GPUs; auto: bf16, or fp16 on GPUs older than Ampere. CPUs compute in
    fp32."""
    batch_size: Positive = 8
    """Images that a model sees at once; after the loss of an actor, at most this many are predicted again."""
    tta: tuple[Literal["flip"] | Annotated[float, Field(gt=0, le=4)], ...] = ()
    """Test-time augmentation: `flip` adds mirrored images, a number adds images rescaled by this factor. The views of
    an image are averaged, with the keypoints' scores as weights."""
    decode: DecodeMethod = "expectation"
    """Method of finding a keypoint in its heat map: the `expectation` of its position near the peak, or the pixel of
    the peak (`argmax`), as in Detectron2 and in the published solution. `train` and `tune` evaluate with it too."""
    person: Literal["score", "largest", "track"] = "track"
    """Choice among several people: best score, largest box, or best score times closeness to the clip's track."""
    fusion: Literal["mean", "median", "score"] = "mean"
    """Method of combining the members' points; `score` weights them by the scores of person and keypoint."""
    weights: Literal["equal"] | dict[str, float | dict[str, float]] = "equal"
    """Weights of the members: equal, or {member: weight or {keypoint: weight}}. A member or keypoint that is not named
    has weight 1. Another run's member is named `<run folder>/<member>`."""
    reject_sigmas: Annotated[float, Field(gt=0)] | None = None
    """Drop a member's point whose distance from the members' median is more than this many robust sigmas. A robust
    sigma is 1.4826 times the median of the members' distances, and at least 2 px. The nearer half of the points always
    stays. null: keep all."""
    smooth_frames: Annotated[float, Field(gt=0)] | None = None
    """Smooth each clip over time by a Gaussian with this sigma in frames; null: do not."""
    score_threshold: Fraction = 0.7
    """Lowest score at which a person counts as found; 0.7 as in the published solution."""
    fallback_threshold: Fraction = 0.05
    """Lowest score that counts in an image where no member found a person."""
    missing: Literal["fill", "zeros"] = "fill"
    """Images without any person: `fill` from the nearest frame of the clip, else by the mean pose; or write `zeros`."""

    @model_validator(mode="after")
    def _check_actors_members_and_weights(self) -> "PredictConfig":
        gpus = self.gpus_per_actor
        if gpus and (gpus < 0.01 or (gpus > 1 and gpus % 1)):
            raise ValueError(
                f"gpus_per_actor: Ray takes 0, a share of 0.01 to 1, or a whole number (got {gpus:g}): change it"
            )
        if self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: [smallest, largest] is expected (got {list(self.actors)}): exchange the numbers")
        if len(set(self.members or ())) < len(self.members or ()):
            raise ValueError(f"members: a member is listed twice (got {list(self.members or ())}): list it once")
        if len({1.0, *self.tta}) <= len(self.tta):
            raise ValueError(
                f"tta: a view is listed twice, or 1, which is always there (got {list(self.tta)}): remove it"
            )
        for member, value in ({} if isinstance(self.weights, str) else self.weights).items():
            if min(value.values() if isinstance(value, dict) else [value], default=0) < 0:
                raise ValueError(f"weights: {member}: a weight is negative (got {value}): set 0 or more")
        return self
