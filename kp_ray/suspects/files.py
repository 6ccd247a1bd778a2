"""Write and read `suspects.csv`, and write `corrections.csv` with a commented row per proposed correction."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kp_ray.data.corrections import COMMENT, CORRECTIONS_HEADER, read_corrections
from kp_ray.errors import StorageError, one_line
from kp_ray.storage import exists, read_bytes, write_bytes
from kp_ray.suspects.rank import Suspect

SUSPECTS_FILE, CORRECTIONS_FILE = "suspects.csv", "corrections.csv"
"""Names of the files in the run folder."""
_SUSPECTS_COLUMNS = ["rank", "image", "kind", "points", "score", "reason"]


@dataclass(frozen=True)
class SuspectRow:
    """A row of `suspects.csv`.

    Attributes:
        rank: number of the row, from 1.
        image, kind, score, reason: as in `Suspect`.
        points: names of the keypoints concerned, separated by spaces; "" for all keypoints.
    """

    rank: int
    image: str
    kind: str
    points: str
    score: float
    reason: str


def write_suspects(path: str, suspects: Sequence[Suspect]) -> None:
    """Write suspects as a CSV file with a header and a `SuspectRow` per line.

    Raises:
        StorageError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_SUSPECTS_COLUMNS)
    for rank, suspect in enumerate(suspects, start=1):
        points, score = " ".join(suspect.points), f"{suspect.score:.2f}"
        writer.writerow([rank, suspect.image, suspect.kind, points, score, suspect.reason])
    write_bytes(path, text.getvalue().encode())


def read_suspects(path: str) -> list[SuspectRow]:
    """Read a CSV file that `write_suspects` wrote.

    Raises:
        StorageError: the file does not exist, cannot be read or is damaged.
    """
    try:
        header, *body = list(csv.reader(io.StringIO(read_bytes(path).decode(), newline=""), strict=True)) or [[]]
        if header != _SUSPECTS_COLUMNS:
            raise ValueError(f"its header is not {','.join(_SUSPECTS_COLUMNS)}")
        return [
            SuspectRow(int(rank), image, kind, points, float(score), reason)
            for rank, image, kind, points, score, reason in body
        ]
    except (csv.Error, ValueError) as error:
        raise StorageError(f"{path}: damaged ({one_line(error)}): run suspects again") from error


def write_corrections(path: str, suspects: Sequence[Suspect], applied_path: str | None = None) -> int:
    """Write a corrections file in which every proposed row is a comment, so that a user must apply it.

    The file keeps its active rows, which are not comments, at its top and in their order, because later rows win. Rows
    of another corrections file are not copied: a copy would outlive a row that the user changes or deletes there.

    Args:
        path: path of the file, which may exist.
        suspects: the ranked images.
        applied_path: path of `data.corrections`; None if no corrections are applied.

    Returns:
        The number of images with a proposed correction.

    Raises:
        DataError: an existing file is not a CSV of corrections.
        StorageError: a file cannot be read or written.
    """
    how = "set data.corrections to this file" if applied_path in (None, path) else f"move it to {applied_path}"
    lines = [
        CORRECTIONS_HEADER,
        *_active_rows(path),
        f"{COMMENT} Each row below is a proposal. Look at the image; to apply a row, remove the leading '{COMMENT} ',",
        f"{COMMENT} {how}, and run augment again. The report shows labels and predictions.",
    ]
    for rank, suspect in enumerate(suspects, start=1):
        if suspect.corrections:
            lines.append(
                f"{COMMENT} {rank}. {suspect.image}: {suspect.kind} ({suspect.score:.1f}): {one_line(suspect.reason)}"
            )
            lines += [f"{COMMENT} {_format_row(row)}" for row in suspect.corrections]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return sum(bool(suspect.corrections) for suspect in suspects)


def _active_rows(path: str) -> Iterator[str]:
    """Iterate over the active rows of a corrections file, formatted with the columns of `CORRECTIONS_HEADER`."""
    if exists(path):
        for _, row in read_corrections(path):
            yield _format_row([row[column] for column in CORRECTIONS_HEADER.split(",")])


def _format_row(row: Sequence[str | float | None]) -> str:
    """Format a row as CSV, and quote an image name that begins like a comment."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(["" if cell is None else cell for cell in row])
    content = text.getvalue()
    if str(row[0]).startswith(COMMENT) and not content.startswith('"'):
        content = f'"{row[0]}"{content.removeprefix(str(row[0]))}'
    return content
