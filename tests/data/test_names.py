"""Names in the labels that nearly match the name of a file."""

import unicodedata

import pytest

from kp_ray.data.names import NameMatch, describe_matches, match_names

KOREAN = "사진/달리기.jpg"
SEVERAL = "two or more of case, Unicode form, percent-encoding, slashes, suffix and folder"
CASES = {
    "case": ("Walk/IMG_1.JPG", "walk/img_1.jpg", "upper and lower case"),
    "case of a letter that becomes two": ("STRASSE.jpg", "straße.jpg", "upper and lower case"),
    "NFD in the labels": (unicodedata.normalize("NFD", KOREAN), KOREAN, "the Unicode form (NFC or NFD)"),
    "NFD in the folder": (KOREAN, unicodedata.normalize("NFD", KOREAN), "the Unicode form (NFC or NFD)"),
    "encoded in the labels": ("a%20b%23.jpg", "a b#.jpg", "percent-encoding"),
    "encoded in the folder": ("a b#.jpg", "a%20b%23.jpg", "percent-encoding"),
    "encoded Korean": ("%EC%82%AC%EC%A7%84.jpg", "사진.jpg", "percent-encoding"),
    "backslashes": ("day1\\a.jpg", "day1/a.jpg", "backslashes for slashes"),
    "suffix": ("a/b.png", "a/b.jpg", "the suffix"),
    "no suffix": ("a/b", "a/b.jpg", "the suffix"),
    "another folder": ("images/b.jpg", "train/b.jpg", "the folder"),
    "no folder in the labels": ("b.jpg", "train/b.jpg", "the folder"),
    "absolute path": ("/home/me/data/b.jpg", "b.jpg", "the folder"),
    "absolute path of Windows": ("C:\\data\\train\\b.jpg", "b.jpg", "the folder"),
    "address": ("https://host/files/b.jpg", "b.jpg", "the folder"),
    "path from another folder": ("../images/b.jpg", "b.jpg", "the folder"),
    "suffix and case": ("A/B.PNG", "a/b.jpg", SEVERAL),
    "folder, encoding and suffix": ("/data/upload/1/a%20b.jpeg", "a b.png", SEVERAL),
}


@pytest.mark.parametrize(("name", "file", "difference"), CASES.values(), ids=CASES)
def test_a_name_that_nearly_matches_a_file_is_listed_with_the_file_and_the_difference(
    name: str, file: str, difference: str
) -> None:
    matches = match_names([name, "labelled.jpg"], [file, "labelled.jpg", "unlike.jpg"])
    assert matches == {name: NameMatch(file, difference)}


def test_names_that_have_a_file_and_names_unlike_any_file_have_no_match() -> None:
    assert match_names(["a.jpg", "b.jpg"], ["a.jpg", "c.jpg"]) == {}
    assert match_names([], ["a.jpg"]) == match_names(["a.jpg"], []) == {}


def test_a_file_of_another_program_beside_an_image_is_no_match() -> None:
    assert match_names(["a.jpg"], ["a.json", "a.txt"]) == {}
    assert match_names(["a.jpg"], ["a.json", "a.png"])["a.jpg"].file == "a.png"
    assert match_names(["a.jpg"], ["a"])["a.jpg"].file == "a"


def test_a_file_that_has_labels_of_its_own_is_no_match() -> None:
    assert match_names(["a.jpg", "a.png"], ["a.jpg"]) == {}


def test_a_name_that_may_mean_two_files_and_a_file_that_two_names_may_mean_have_no_match() -> None:
    assert match_names(["a.jpg"], ["cam1/a.jpg", "cam2/a.jpg"]) == {}
    assert match_names(["cam1/a.jpg", "cam2/a.jpg"], ["a.jpg"]) == {}
    assert match_names(["a.png"], ["a.jpg", "a.webp"]) == {}


def test_files_with_equal_base_names_are_matched_by_their_folders() -> None:
    names = [f"/data/{camera}/1.jpg" for camera in ("cam1", "cam2")]
    matches = match_names(names, ["cam1/1.jpg", "cam2/1.jpg"])
    assert {name: match.file for name, match in matches.items()} == {names[0]: "cam1/1.jpg", names[1]: "cam2/1.jpg"}


def test_a_file_in_no_folder_and_a_file_in_many_folders_are_matched_by_the_end_of_their_paths() -> None:
    files = ["1.jpg", "a/cam1/1.jpg", "b/cam1/1.jpg", "b/cam2/1.jpg"]
    matches = match_names(["/data/b/cam1/1.jpg", "cam2/1.jpg"], files[1:])
    assert {name: match.file for name, match in matches.items()} == {
        "/data/b/cam1/1.jpg": "b/cam1/1.jpg",
        "cam2/1.jpg": "b/cam2/1.jpg",
    }
    assert match_names(["/data/a/cam1/1.jpg"], files) == {}, "1.jpg and a/cam1/1.jpg are both ends of the name"


def test_names_that_differ_in_case_unicode_form_encoding_or_backslashes_are_spellings_of_one_name() -> None:
    same_name_cases = {
        case for case, (_, file, difference) in CASES.items() if NameMatch(file, difference).is_same_spelling
    }
    assert same_name_cases == {case for case in CASES if case.split()[0] in ("case", "NFD", "encoded", "backslashes")}


def test_the_description_counts_names_per_difference_and_gives_an_example() -> None:
    images = ["a.PNG", "b.png", "c.png", "lost.png"]
    matches = match_names(images, ["a.png", "b.jpg", "c.jpg"])
    assert describe_matches(matches, 4) == (
        "2 of 4 differ from a file only in the suffix (name: b.png, file: b.jpg); "
        "1 of 4 differ from a file only in upper and lower case (name: a.PNG, file: a.png)"
    )
    assert describe_matches({}, 4) == ""


def test_twenty_thousand_names_are_matched_without_comparing_all_pairs() -> None:
    names = [f"/data/frames/{i}.png" for i in range(20_000)]
    matches = match_names(names, [f"frames/{i}.jpg" for i in range(20_000)])
    assert len(matches) == 20_000
