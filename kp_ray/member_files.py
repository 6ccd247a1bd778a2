"""Names of the files of a trained member; this module does not import torch."""

from kp_ray.storage import exists, join

FINAL_WEIGHTS = "model_final.pth"
"""File of a member's weights; a member that has it is finished."""
CFG_NAME = "config.yaml"
"""File of a member's Detectron2 config."""
SETTINGS_NAME = "settings.json"
"""File with the settings that the member began with, and the search that they come from."""


def is_trained(folder: str) -> bool:
    """Return whether a folder holds a finished member.

    Raises:
        StorageError: the storage does not answer.
    """
    return exists(join(folder, FINAL_WEIGHTS))
