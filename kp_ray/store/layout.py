"""The names of the files in a store's folder, and those of the former layout.

Data frame libraries can open the folder as it is (tests/store/test_readers.py), thanks to three rules. Names of files
that are not parts begin with `_`, or with `.` while they are temporary: pyarrow, pandas and Ray Data skip such files.
Only parts end in `.parquet`: the pattern `**/*.parquet` of DuckDB and Polars, and Hugging Face `datasets`, find nothing
else. The folder of a recipe is not called `recipe=NAME`: pyarrow and pandas would add a second column `recipe`, of
another type.

In the former layout, of schema 2, parts are in `recipe=NAME/`, and the other files are called `manifest.json` and
`quarantine.parquet`. Such a store can be read; the next `kp-ray augment` converts it (`convert.convert_layout`).
"""

from kp_ray.storage import exists, join

MANIFEST_NAME, QUARANTINE_NAME = "_manifest.json", "_quarantine.csv"
FORMER_MANIFEST_NAME, FORMER_QUARANTINE_NAME = "manifest.json", "quarantine.parquet"
_PREFIX, _FORMER_PREFIX = "recipe-", "recipe="


def part_path(recipe: str, name: str) -> str:
    """Return the path, relative to the store, of a recipe's part called `name`."""
    return f"{_PREFIX}{recipe}/{name}"


def recipe_of(path: str) -> str:
    """Return the name of the recipe to which the part at a path inside the store belongs."""
    return path.partition("/")[0].removeprefix(_PREFIX)


def is_in_recipe_folder(path: str) -> bool:
    """Return whether a path inside the store is, or is in, the folder of a recipe."""
    return path.startswith(_PREFIX)


def is_in_former_recipe_folder(path: str) -> bool:
    """Return whether a path inside the store is, or is in, the folder of a recipe in the former layout."""
    return path.startswith(_FORMER_PREFIX)


def current_path(path: str) -> str:
    """Convert a part's path from either layout to the current layout."""
    return _PREFIX + path.removeprefix(_FORMER_PREFIX) if is_in_former_recipe_folder(path) else path


def former_path(path: str) -> str:
    """Convert a part's path from either layout to the former layout."""
    return _FORMER_PREFIX + path.removeprefix(_PREFIX) if is_in_recipe_folder(path) else path


def find_manifest(store: str) -> str | None:
    """Return the path of a store's manifest in either layout; None if there is no finished store.

    Raises:
        StorageError: the storage does not answer or refuses.
    """
    paths = (join(store, MANIFEST_NAME), join(store, FORMER_MANIFEST_NAME))
    return next((path for path in paths if exists(path)), None)


def has_store(store: str) -> bool:
    """Return whether a folder holds a finished store, in either layout.

    Raises:
        StorageError: the storage does not answer or refuses.
    """
    return find_manifest(store) is not None
