"""Convert a store of the former layout to the current one by moving its files."""

from kp_ray.storage import delete_file, delete_folder, exists, file_sizes, join, list_folders, move_file
from kp_ray.store.layout import (
    FORMER_MANIFEST_NAME,
    FORMER_QUARANTINE_NAME,
    current_path,
    is_in_former_recipe_folder,
)
from kp_ray.store.manifest import SCHEMA_VERSION, read_manifest, write_manifest


def convert_layout(store: str) -> None:
    """Move the files of a store to their names in the current layout; do nothing if they already have these names.

    The parts keep their bytes. The former manifest is deleted last, so that the next call resumes an interrupted
    conversion. The caller must hold the writer lock.

    Raises:
        StoreError: the former manifest is damaged, or another version of kp_ray wrote it.
        StorageError: the storage does not answer or denies access.
    """
    former_manifest, former_quarantine = join(store, FORMER_MANIFEST_NAME), join(store, FORMER_QUARANTINE_NAME)
    manifest = read_manifest(store) if exists(former_manifest) else None
    for folder in filter(is_in_former_recipe_folder, list_folders(store)):
        for name in file_sizes(join(store, folder)):
            if name.endswith(".parquet"):  # not the unfinished files of a killed writer
                move_file(join(store, folder, name), join(store, current_path(folder), name))
        delete_folder(join(store, folder))
    if exists(former_quarantine):
        delete_file(former_quarantine)
    if manifest is not None:
        parts = tuple(part.model_copy(update={"path": current_path(part.path)}) for part in manifest.parts)
        write_manifest(store, manifest.model_copy(update={"schema_version": SCHEMA_VERSION, "parts": parts}))
        delete_file(former_manifest)
