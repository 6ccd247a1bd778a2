"""Match image names that have no file to the files that they probably mean."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from kp_ray.data.annotations import remove_suffix
from kp_ray.images import is_image_file


def _use_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _normalize_unicode(name: str) -> str:
    return unicodedata.normalize("NFC", name)


_SPELLINGS: dict[str, Callable[[str], str]] = {
    "upper and lower case": str.casefold,
    "the Unicode form (NFC or NFD)": _normalize_unicode,
    "percent-encoding": unquote,
    "backslashes for slashes": _use_slashes,
}
"""Difference -> function that removes it. Two names that the function makes equal are two spellings of one name."""
_SUFFIX, _FOLDER = "the suffix", "the folder"
_SEVERAL = "two or more of case, Unicode form, percent-encoding, slashes, suffix and folder"


@dataclass(frozen=True)
class NameMatch:
    """The file that an image name without a file probably means.

    Attributes:
        file: a name inside the image folder.
        difference: the difference between the two names, e.g. "the suffix".
    """

    file: str
    difference: str

    @property
    def is_same_spelling(self) -> bool:
        """True if both are one name in two spellings, so that the match cannot be another image."""
        return self.difference in _SPELLINGS


def match_names(images: Sequence[str], files: Collection[str]) -> dict[str, NameMatch]:
    """Match image names that have no file to the files that they probably mean.

    Two names match if they differ only in one or several of these: upper and lower case, the Unicode form,
    percent-encoding, backslashes, the suffix, the folder (another one, or an absolute path). Names are matched only to
    files without labels. If several files share a base name, the folders decide: of cam1/1.jpg and cam2/1.jpg, the name
    /data/cam1/1.jpg matches the first, because one path is the end of the other. A name that fits several files, and a
    file that several names fit, have no match.

    Args:
        images: names in the labels.
        files: names inside the image folder; files with the suffix of another format than an image's are ignored.

    Returns:
        Name in the labels -> match, for names that are not among `files`.
    """
    normalizers = {**_SPELLINGS, _SUFFIX: remove_suffix, _FOLDER: _use_slashes, _SEVERAL: _normalize_all}
    file_names = set(files)
    missing_names = [name for name in dict.fromkeys(images) if name not in file_names]
    candidates = sorted(filter(_can_be_image, file_names - set(images))) if missing_names else []
    matches: dict[str, NameMatch] = {}
    for difference, normalize in normalizers.items():
        names = [name for name in missing_names if name not in matches]
        file_by_name = _match_by(normalize, names, candidates, any_folder=difference in (_FOLDER, _SEVERAL))
        matches |= {name: NameMatch(file, difference) for name, file in file_by_name.items()}
        matched_files = set(file_by_name.values())
        candidates = [file for file in candidates if file not in matched_files]
    return matches


def _can_be_image(file: str) -> bool:
    return is_image_file(file) or "." not in file.rpartition("/")[2]


def match_spellings(images: Sequence[str], files: Collection[str]) -> dict[str, NameMatch]:
    """Return the matches of `match_names` that are one name in two spellings."""
    return {name: match for name, match in match_names(images, files).items() if match.is_same_spelling}


def describe_matches(matches: Mapping[str, NameMatch], num_missing: int) -> str:
    """Count the names with each difference and give an example of each; return "" if there is no match.

    Args:
        matches: from `match_names`.
        num_missing: number of names without a file.
    """
    names_by_difference: dict[str, list[str]] = defaultdict(list)
    for name, match in matches.items():
        names_by_difference[match.difference].append(name)
    return "; ".join(
        f"{len(names)} of {num_missing} differ from a file only in {difference} (name: {names[0][:80]}, "
        f"file: {matches[names[0]].file[:80]})"
        for difference, names in sorted(names_by_difference.items(), key=lambda item: -len(item[1]))
    )


def _match_by(
    normalize: Callable[[str], str], names: Iterable[str], files: Iterable[str], *, any_folder: bool
) -> dict[str, str]:
    """Return name -> file for the pairs that `normalize` makes equal; `any_folder` ignores the folders in the paths."""

    files_by_path: dict[str, list[str]] = defaultdict(list)
    files_by_tail: dict[str, list[str]] = defaultdict(list)
    for file in files:
        path, *tails = _list_tails(normalize(file))
        files_by_path[path].append(file)
        for tail in (path, *tails):
            files_by_tail[tail].append(file)
    file_by_name: dict[str, str] = {}
    for name in names:
        path, *tails = _list_tails(normalize(name))
        candidates = files_by_path.get(path, [])
        if any_folder:
            candidates = files_by_tail.get((path, *tails)[-1], [])
            if len(candidates) > 1:  # those of which one path is the end of the other
                shorter_files = (file for tail in tails for file in files_by_path.get(tail, ()))
                candidates = [*files_by_tail.get(path, ()), *shorter_files]
        if len(candidates) == 1:
            file_by_name[name] = candidates[0]
    num_names = Counter(file_by_name.values())
    return {name: file for name, file in file_by_name.items() if num_names[file] == 1}


def _list_tails(path: str) -> list[str]:
    """Return a path and its ends by whole folders, the file's name last: a/b/c.jpg, b/c.jpg, c.jpg."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _normalize_all(name: str) -> str:
    """Normalize everything except the folder."""
    for normalize in _SPELLINGS.values():
        name = normalize(name)
    return remove_suffix(_normalize_unicode(name))  # again, because percent-decoding may give another Unicode form
