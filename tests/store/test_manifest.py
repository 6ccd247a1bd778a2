"""The manifest describes the parts; damaged manifests and those of unreadable versions are refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import StoreError
from kp_ray.keypoints import DACON24
from kp_ray.store.manifest import StoredRow, read_manifest, row_schema, store_digest, write_manifest
from tests.helpers.stores import write_small_store


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_small_store(tmp_path)
    assert read_manifest(str(tmp_path)) == manifest


def test_a_store_without_a_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished store"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 3, "kp_ray"', "damaged"),
        ('{"schema_version": 2, "kp_ray"', "damaged"),
        ("", "damaged"),
        ('{"schema_version": 1, "kp_ray"', "older kp_ray"),
        ('{"schema_version": 99}', "newer kp_ray"),
    ],
)
def test_damaged_manifests_and_those_of_unreadable_versions_are_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "_manifest.json").write_text(content)
    with pytest.raises(StoreError, match=rf"_manifest\.json: .*{message}"):
        read_manifest(str(tmp_path))


def test_an_older_manifest_with_the_key_settings_is_read(tmp_path: Path) -> None:
    manifest = write_small_store(tmp_path)
    path = tmp_path / "_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"jpeg_quality": 95}}))
    assert read_manifest(str(tmp_path)) == manifest


def test_the_digest_of_a_store_changes_with_the_bytes_of_a_part(tmp_path: Path) -> None:
    manifest = write_small_store(tmp_path)
    before = store_digest(str(tmp_path))
    write_manifest(str(tmp_path), manifest)
    assert store_digest(str(tmp_path)) == before
    first_part, *other_parts = manifest.parts
    changed_manifest = manifest.model_copy(
        update={"parts": (first_part.model_copy(update={"sha256": "0" * 64}), *other_parts)}
    )
    write_manifest(str(tmp_path), changed_manifest)
    assert store_digest(str(tmp_path)) != before


def test_rows_have_the_documented_columns() -> None:
    assert row_schema(len(DACON24)).names == list(StoredRow.__annotations__)


def test_the_manifest_counts_the_rows_of_its_parts(store_config: Config) -> None:
    manifest = json.loads(Path(store_config.path("store", "_manifest.json")).read_text())
    num_rows_by_path = {
        part["path"]: pq.read_metadata(store_config.path("store", part["path"])).num_rows for part in manifest["parts"]
    }
    assert {part["path"]: part["num_rows"] for part in manifest["parts"]} == num_rows_by_path
    assert manifest["num_variants"] == sum(num_rows_by_path.values()) == sum(manifest["num_rows_by_split"].values())
    metadata = pq.read_metadata(store_config.path("store", manifest["parts"][0]["path"])).metadata
    assert json.loads(metadata[b"kp_ray"])["skeleton"] == manifest["skeleton"]
