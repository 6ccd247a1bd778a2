"""`augment.json` is read as it was written, and damage is refused."""

from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.store.figures import StoreFigures, read_store_figures, write_store_figures

FIGURES = StoreFigures(
    sources=2, variants=9, seconds=2.5, start_up_s=1.0, sources_per_s=17.5, parts_written=3, parts_kept=0, quarantined=1
)


def test_figures_are_read_as_they_were_written(sample_config: Config) -> None:
    assert read_store_figures(sample_config) is None
    write_store_figures(sample_config, FIGURES)
    assert read_store_figures(sample_config) == FIGURES


@pytest.mark.parametrize("content", ["{", '{"sources": 2}', '{"sources": "two"}'])
def test_damaged_figures_are_refused(sample_config: Config, content: str) -> None:
    path = Path(sample_config.path("augment.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(StorageError, match=r"augment\.json"):
        read_store_figures(sample_config)
