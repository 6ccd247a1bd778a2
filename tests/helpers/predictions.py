"""Write a file of predictions from arrays."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from kp_ray.prediction.predictions import PersonChoices, prediction_schema, write_predictions


def write_prediction_arrays(
    path: str,
    members: Sequence[str],
    images: Sequence[str],
    keypoints: np.ndarray,
    keypoint_names: Sequence[str],
    *,
    size: tuple[int, int] = (64, 64),
) -> None:
    """Write `predictions.parquet` with keypoints (M, N, K, 3); NaN means that the member found nobody."""
    rows = []
    for row, image in enumerate(images):
        for member, name in enumerate(members):
            points = np.asarray(keypoints[member, row], dtype=float)
            is_found = bool(np.isfinite(points).all())
            low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
            rows.append(
                {
                    "image": image,
                    "member": name,
                    "found": is_found,
                    "score": 0.9 if is_found else 0.0,
                    "num_people": int(is_found),
                    "bbox_xyxy": [*low, *high],
                    "keypoints": points.ravel().tolist(),
                    "width": size[0],
                    "height": size[1],
                    "reason": "",
                }
            )
    table = pa.Table.from_pylist(rows, schema=prediction_schema(len(keypoint_names)))
    write_predictions(path, table, keypoint_names, PersonChoices("score", several=0, other_than_best_score=0), {})
