"""Section "Cross-validation": the score of every labelled image by members that never saw its scene."""

from dataclasses import dataclass

from kp_ray.reporting.formatting import format_number
from kp_ray.reporting.run_files import RunFiles


@dataclass(frozen=True)
class CrossvalSection:
    """The cross-validated score.

    Attributes:
        lines: the score with its intervals, and the folds that are not scored.
        folds: (number of the fold, members that hold it out, number of images, RMSE in pixels) as texts.
    """

    lines: tuple[str, ...]
    folds: tuple[tuple[str, str, str, str], ...]


def crossval_section(files: RunFiles) -> CrossvalSection | None:
    """Build the section; None without crossval.json."""
    if files.crossval is None:
        return None
    folds = tuple(
        (str(number), ", ".join(fold.members) or "-", format_number(fold.num_images), format_number(fold.rmse))
        for number, fold in enumerate(files.crossval.by_fold)
    )
    return CrossvalSection(tuple(files.crossval.lines()), folds)
