"""Write and read `augment.json`, which holds the counts and times of a run of `augment`.

This module must not import Ray, because the report imports it.
"""

import json
from dataclasses import asdict, dataclass, fields

from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.json_files import read_json, require_keys
from kp_ray.storage import exists, write_bytes

AUGMENT_RECORD_NAME = "augment.json"
"""Name of the record's file in the run folder."""


@dataclass(frozen=True)
class AugmentRecord:
    """The counts and times of a successful run of `augment`; the attributes are the keys of `augment.json`.

    Attributes:
        sources: number of sources with at least one variant in the store.
        variants: number of variants in the store.
        seconds: duration of the run, start-up included.
        start_up_s: seconds before the first task began.
        sources_per_s: number of sources whose parts were written, per second after the start-up.
        parts_written, parts_kept: numbers of new parts, and of parts that existed before the run.
        quarantined: number of sources that at least one recipe could not use.
    """

    sources: int
    variants: int
    seconds: float
    start_up_s: float
    sources_per_s: float
    parts_written: int
    parts_kept: int
    quarantined: int


def write_augment_record(config: Config, record: AugmentRecord) -> None:
    """Write `augment.json` atomically.

    Raises:
        StorageError: the disk is full, or the storage does not answer or denies access.
    """
    write_bytes(config.path(AUGMENT_RECORD_NAME), (json.dumps(asdict(record)) + "\n").encode())


def read_augment_record(config: Config) -> AugmentRecord | None:
    """Read the record that an earlier `augment` wrote; return None if `augment.json` does not exist.

    Raises:
        StorageError: the file is damaged.
    """
    path, fix = config.path(AUGMENT_RECORD_NAME), "delete this file and run the same command again"
    if not exists(path):
        return None
    names = [field.name for field in fields(AugmentRecord)]
    values = require_keys(read_json(path, fix), path, names, fix)
    if not all(isinstance(values[name], int | float) for name in names):
        raise StorageError(f"{path}: damaged (not all values are numbers): {fix}")
    return AugmentRecord(**{name: values[name] for name in names})
