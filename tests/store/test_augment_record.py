"""`augment.json` is read as it was written, and damage is refused."""

from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.store.augment_record import AugmentRecord, read_augment_record, write_augment_record

RECORD = AugmentRecord(
    sources=2, variants=9, seconds=2.5, start_up_s=1.0, sources_per_s=17.5, parts_written=3, parts_kept=0, quarantined=1
)


def test_a_record_is_read_as_it_was_written(sample_config: Config) -> None:
    assert read_augment_record(sample_config) is None
    write_augment_record(sample_config, RECORD)
    assert read_augment_record(sample_config) == RECORD


@pytest.mark.parametrize("content", ["{", '{"sources": 2}', '{"sources": "two"}'])
def test_a_damaged_record_is_refused(sample_config: Config, content: str) -> None:
    path = Path(sample_config.path("augment.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(StorageError, match=r"augment\.json"):
        read_augment_record(sample_config)
