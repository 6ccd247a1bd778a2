"""The CSV of findings."""

import pytest

from kp_ray.checks.findings import Finding, list_names, read_findings, write_findings
from kp_ray.errors import StorageError


def test_findings_read_back_as_written(tmp_path):
    path = str(tmp_path / "run" / "check.csv")
    findings = [
        Finding("error", "missing", "사진, 1.jpg", 'no "such" file', "add it"),
        Finding("warning", "unlabelled_files", "", "2 images", ""),
    ]
    for expected in (findings, []):
        write_findings(path, expected)
        assert read_findings(path) == expected


def test_the_csv_has_a_header_and_one_line_per_finding(tmp_path):
    path = tmp_path / "check.csv"
    write_findings(str(path), [Finding("error", "empty", "a.jpg", "has no bytes", "drop it")])
    assert path.read_bytes() == b"level,kind,image,message,fix\nerror,empty,a.jpg,has no bytes,drop it\n"


HEADER = b"level,kind,image,message,fix\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"level,kind\n", HEADER + b"fatal,a,b,c,d\n", HEADER + b"error,a\n", b"\xff", HEADER + b'"error,a'],
)
def test_a_damaged_csv_is_refused(tmp_path, content):
    (tmp_path / "check.csv").write_bytes(content)
    with pytest.raises(StorageError, match=r"check\.csv: damaged .*: run check again"):
        read_findings(str(tmp_path / "check.csv"))


def test_a_long_list_of_names_is_cut_and_counted():
    assert list_names(["a", "b"]) == "a, b"
    assert list_names(list("abcdef"), max_names=3) == "a, b, c and 3 more"
