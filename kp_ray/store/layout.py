"""The names of the files in a store's folder, in the current layout and in the former layout.

Three rules let data frame libraries open the folder as it is (tests/store/test_readers.py):

- Names of files that are not parts begin with `_`, those of the lock and of temporary files with `.`, because pyarrow,
  pandas and Ray Data skip such files.
- Only parts end in `.parquet`, because DuckDB, Polars and Hugging Face `datasets` read every `**/*.parquet`.
- A recipe's folder is `recipe-NAME`, not `recipe=NAME`, because pyarrow and pandas would read `recipe=NAME` as a second
  column `recipe` of another type.

In the former layout, of schema 2, parts are in `recipe=NAME/`, and the other files are called `manifest.json` and
`quarantine.parquet`. Such a store can be read; the next `kp-ray augment` converts it (`convert.convert_layout`).
"""

from kp_ray.storage import exists, join

MANIFEST_NAME, QUARANTINE_NAME = "_manifest.json", "_quarantine.csv"
FORMER_MANIFEST_NAME, FORMER_QUARANTINE_NAME = "manifest.json", "quarantine.parquet"
_RECIPE_PREFIX, _FORMER_RECIPE_PREFIX = "recipe-", "recipe="


def part_path(recipe: str, name: str) -> str:
    """Return the path, relative to the store, of a recipe's part whose file is called `name`."""
    return f"{_RECIPE_PREFIX}{recipe}/{name}"


def recipe_in_path(path: str) -> str:
    """Return the name of the recipe in a part's path, which is relative to the store."""
    return path.partition("/")[0].removeprefix(_RECIPE_PREFIX)


def is_in_recipe_folder(path: str) -> bool:
    """Return whether a path, relative to the store, is a recipe's folder or inside one."""
    return path.startswith(_RECIPE_PREFIX)


def is_in_former_recipe_folder(path: str) -> bool:
    """Return whether a path, relative to the store, is a recipe's folder of the former layout or inside one."""
    return path.startswith(_FORMER_RECIPE_PREFIX)


def current_path(path: str) -> str:
    """Convert a part's path from either layout to the current layout."""
    return _RECIPE_PREFIX + path.removeprefix(_FORMER_RECIPE_PREFIX) if is_in_former_recipe_folder(path) else path


def former_path(path: str) -> str:
    """Convert a part's path from either layout to the former layout."""
    return _FORMER_RECIPE_PREFIX + path.removeprefix(_RECIPE_PREFIX) if is_in_recipe_folder(path) else path


def find_manifest(store: str) -> str | None:
    """Return the path of a store's manifest in either layout; None if there is no finished store.

    Raises:
        StorageError: the storage does not answer or denies access.
    """
    paths = (join(store, MANIFEST_NAME), join(store, FORMER_MANIFEST_NAME))
    return next((path for path in paths if exists(path)), None)


def has_store(store: str) -> bool:
    """Return whether a folder holds a finished store, in either layout.

    Raises:
        StorageError: the storage does not answer or denies access.
    """
    return find_manifest(store) is not None
