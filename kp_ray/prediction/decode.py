"""Read, decode and resize images to the members' input sizes: the CPU tasks of `predict`.

This module does not import torch, so that its tasks run on any node.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from kp_ray.errors import DataError, KpRayError
from kp_ray.images import Image, decode, decode_resized, probe
from kp_ray.prediction.images import ImageRef
from kp_ray.storage import read_bytes
from kp_ray.store.read import RowReader

REF_SCHEMA = pa.schema([("image", pa.string()), ("path", pa.string()), ("row", pa.int64()), ("version", pa.string())])
"""Columns of a batch of images to decode: the fields of `ImageRef`."""


class InputSize(NamedTuple):
    """Size of a model's input, as in Detectron2's ResizeShortestEdge.

    Attributes:
        short_edge: length of the shorter side in pixels, `INPUT.MIN_SIZE_TEST`.
        max_long_edge: maximum length of the longer side in pixels, `INPUT.MAX_SIZE_TEST`.
    """

    short_edge: int
    max_long_edge: int

    @property
    def column(self) -> str:
        """Name of the batch column that holds the pixels of this size."""
        return f"pixels_{self.short_edge}x{self.max_long_edge}"

    def scale(self, factor: float) -> "InputSize":
        """Return the size of a TTA view at `factor` times this size."""
        return InputSize(round(self.short_edge * factor), round(self.max_long_edge * factor))

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) in pixels to which an image of the given size is resized."""
        # The operations have the order of Detectron2, because another order can change the result by a pixel.
        factor = self.short_edge / min(width, height)
        if height < width:
            new_width, new_height = factor * width, float(self.short_edge)
        else:
            new_width, new_height = float(self.short_edge), factor * height
        if max(new_width, new_height) > self.max_long_edge:
            factor = self.max_long_edge / max(new_width, new_height)
            new_width, new_height = new_width * factor, new_height * factor
        return max(1, int(new_width + 0.5)), max(1, int(new_height + 0.5))


def refs_table(refs: Sequence[ImageRef]) -> pa.Table:
    """Convert a batch of images to a table of `REF_SCHEMA`."""
    return pa.Table.from_pylist([vars(ref) for ref in refs], schema=REF_SCHEMA)


def decoded_schema(sizes: Sequence[InputSize]) -> pa.Schema:
    """Return the columns of a decoded batch.

    - `image`, `version`: as in `ImageRef`.
    - `width`, `height`: of the upright image in pixels; 0 for an image that could not be used.
    - `reason`: why the image could not be used; "" for a usable image.
    - a column per size, named `InputSize.column`: (3, H, W) uint8 BGR pixels as bytes, where (W, H) is
      `size.fit(width, height)`; null for an image that could not be used.
    """
    # Binary columns, because Ray Data pickles nested lists; `large_binary`, because 32-bit offsets end at 2 GiB.
    pixel_fields = [(size.column, pa.large_binary()) for size in sizes]
    size_fields = [("width", pa.int32()), ("height", pa.int32())]
    return pa.schema(
        [("image", pa.string()), ("version", pa.string()), *size_fields, ("reason", pa.string()), *pixel_fields]
    )


def decode_batch(table: pa.Table, sizes: Sequence[InputSize]) -> pa.Table:
    """Read, decode and resize a batch of images; a task of Ray Data.

    Args:
        table: columns of `REF_SCHEMA`.
        sizes: every input size of the members and their TTA views.

    Returns:
        A table of `decoded_schema` in the order of `table`. `reason` says why an image cannot be used.
    """
    cv2.setNumThreads(1)  # Ray assigns the CPUs
    rows = []
    for values in table.to_pylist():
        ref = ImageRef(**values)
        row = {"image": ref.image, "version": ref.version, "width": 0, "height": 0, "reason": ""}
        try:
            row |= _decode_sizes(_read_image(ref), sizes)
        except KpRayError as error:
            row["reason"] = str(error)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=decoded_schema(sizes))


@cache
def _row_reader() -> RowReader:
    """Return the reader that all tasks of this process share, because it keeps the store's parts open."""
    return RowReader(["image"])


def _read_image(ref: ImageRef) -> bytes:
    return read_bytes(ref.path) if ref.row is None else _row_reader().read(ref.path, ref.row)["image"]


def _decode_sizes(content: bytes, sizes: Sequence[InputSize]) -> Mapping[str, object]:
    """Decode an image file and resize it to every size; return the columns of its row.

    Raises:
        DataError: the content is not an image file, or cannot be decoded.
    """
    info = probe(content)
    if info.is_upright_jpeg:
        try:
            return _resize_to_sizes(content, info.width, info.height, sizes)
        except DataError:
            pass  # `decode` below can decode some JPEGs that cannot be decoded at a reduced size, or raises the error
    image = decode(content)[0]
    height, width = image.shape[:2]
    return _resize_to_sizes(image, width, height, sizes)


def _resize_to_sizes(image: bytes | Image, width: int, height: int, sizes: Sequence[InputSize]) -> Mapping[str, object]:
    pixels = {
        size.column: np.ascontiguousarray(
            decode_resized(image, (width, height), size.fit(width, height)).transpose(2, 0, 1)
        ).tobytes()
        for size in sizes
    }
    return {"width": width, "height": height, **pixels}
