"""Faces of one image in the formats of other programs."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    import supervision


def supervision_detections(
    boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]
) -> "supervision.Detections":
    """(D, 4), (D,) → ``supervision.Detections`` of one class, number 0.

    Raises:
        InputError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise InputError(
            "to_supervision: needs the package supervision; pip install 'fanet-lightning[supervision]'"
        ) from error
    # supervision takes its arrays as they are, so they are copies: they may be changed in place.
    return supervision.Detections(
        xyxy=boxes_xyxy.copy(), confidence=scores.copy(), class_id=np.zeros(len(scores), dtype=int)
    )


def coco_results(
    boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], *, image_id: int | str, category_id: int
) -> list[dict[str, Any]]:
    """(D, 4), (D,) → entries of a COCO result file, boxes as ``[x, y, width, height]`` in pixels."""
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box_xywh, "score": score}
        for box_xywh, score in zip(boxes.tolist(), scores.tolist(), strict=True)
    ]
