"""A store's row is mapped as by Detectron2's DatasetMapper, and its coordinates keep the pixel convention."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from detectron2.data import DatasetMapper, transforms
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import read_instances
from kp_ray.models.inputs import to_dataset_dict
from tests.helpers.rows import random_row


def map_with_detectron2(
    row: dict[str, Any], cfg: Any, image: np.ndarray[Any, Any], folder: Path, *, flip: bool
) -> dict[str, Any]:
    """Map a row with Detectron2's own DatasetMapper, with the flip forced on or off."""
    augmentations = [transforms.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice")]
    if flip:
        augmentations.append(transforms.RandomFlip(prob=1.0))
    mapper = DatasetMapper(
        True,
        augmentations=augmentations,
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=np.array(DACON24.flip_indices),
    )
    keypoints = np.array(row["keypoints"]).reshape(-1, 3)
    keypoints[:, :2] += 0.5
    keypoints[~np.isfinite(keypoints).all(axis=1)] = 0
    annotation = {
        "bbox": (np.array(row["bbox_xyxy"]) + 0.5).tolist(),
        "bbox_mode": BoxMode.XYXY_ABS,
        "keypoints": keypoints.ravel().tolist(),
        "category_id": 0,
        "iscrowd": 0,
    }
    path = str(folder / "image.png")
    cv2.imwrite(path, image)
    record = {"file_name": path, "width": row["width"], "height": row["height"], "annotations": [annotation]}
    return dict(mapper(copy.deepcopy(record)))


class FixedFlip:
    """A random generator that chooses the first size, and flips always or never."""

    def __init__(self, flip: bool) -> None:
        self.flip = flip

    def integers(self, _: int) -> int:
        return 0

    def random(self) -> float:
        return 0.0 if self.flip else 0.9


@pytest.mark.parametrize("flip", [False, True])
@given(width=st.integers(90, 400), height=st.integers(90, 400), seed=st.integers(0, 50))
@settings(max_examples=12)
def test_a_row_is_mapped_as_by_detectron2s_mapper(
    cfg: Any, tmp_path_factory: pytest.TempPathFactory, flip: bool, width: int, height: int, seed: int
) -> None:
    row = random_row(width, height, seed)
    image = simplejpeg.decode_jpeg(row["image"], "BGRX")
    mapped = to_dataset_dict({**row, "image": image}, cfg, DACON24, FixedFlip(flip))  # type: ignore[arg-type]
    expected = map_with_detectron2(row, cfg, image[..., :3], tmp_path_factory.mktemp("mapped"), flip=flip)
    assert torch.equal(mapped["image"], expected["image"])
    instances, expected_instances = mapped["instances"], expected["instances"]
    assert torch.equal(instances.gt_boxes.tensor, expected_instances.gt_boxes.tensor)
    assert torch.equal(instances.gt_keypoints.tensor, expected_instances.gt_keypoints.tensor)
    assert torch.equal(instances.gt_classes, expected_instances.gt_classes)


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1267, 717), (720, 540), (961, 1279)])
def test_decoding_at_a_smaller_scale_keeps_positions(cfg: Any, width: int, height: int) -> None:
    """A blob near the lower right corner moves by less than 0.02 px.

    libjpeg decodes to 1/8, 1/4 or 1/2 of the size, rounded up. If the resize took the rounded size for exact, the blob
    would move further.
    """
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    blob = np.exp(-((x - (width - 100)) ** 2 + (y - (height - 100)) ** 2) / (2 * 24**2))
    pixels = np.repeat(np.round(255 * blob).astype(np.uint8)[..., None], 3, axis=2)
    row = {"image": simplejpeg.encode_jpeg(pixels, 95, colorspace="BGR"), "width": width, "height": height}
    centres = []
    for image in (row["image"], simplejpeg.decode_jpeg(row["image"], "BGRX")):
        mapped = to_dataset_dict({**row, "image": image}, cfg, DACON24, None)["image"][0].double()
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in mapped.shape)
        centres.append(torch.stack([mapped.sum(0) @ columns, mapped.sum(1) @ rows]) / mapped.sum())
    torch.testing.assert_close(centres[0], centres[1], atol=0.02, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_half_a_pixel_is_added_once_and_subtracted_once(cfg: Any, flip: bool) -> None:
    row = random_row()
    gt_instances = to_dataset_dict(row, cfg, DACON24, FixedFlip(flip))["instances"]  # type: ignore[arg-type]
    scale = row["width"] / gt_instances.image_size[1], row["height"] / gt_instances.image_size[0]
    pred_instances = Instances((row["height"], row["width"]))
    pred_instances.pred_keypoints = gt_instances.gt_keypoints.tensor * torch.tensor([*scale, 1.0])
    pred_instances.pred_boxes = Boxes(gt_instances.gt_boxes.tensor * torch.tensor([*scale, *scale]))
    pred_instances.scores = torch.tensor([0.9])
    _, box, keypoints = read_instances(pred_instances)[0]
    if flip:  # in pixel indices x becomes width - 1 - x
        keypoints = keypoints[DACON24.flip_indices]
        keypoints[:, 0] = row["width"] - 1 - keypoints[:, 0]
        box[[2, 0]] = row["width"] - 1 - box[[0, 2]]
    expected = np.array(row["keypoints"]).reshape(-1, 3)
    is_labelled = expected[:, 2] > 0
    np.testing.assert_allclose(keypoints[is_labelled, :2], expected[is_labelled, :2], atol=1e-4)
    np.testing.assert_allclose(box, row["bbox_xyxy"], atol=1e-4)
