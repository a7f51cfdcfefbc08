"""What W&B shows of a validation beside its numbers: precision-recall curves, and the same images all along."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from pytorch_lightning import Callback, LightningModule, Trainer

from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.scoring.curves import Curve
from fanet_lightning.structures import Detections

if TYPE_CHECKING:
    import wandb

    from fanet_lightning.wandb_run import GuardedRun

# A page of images must stay light; boxes are scaled with them.
LONG_SIDE = 512
MIN_SCORE = 0.3
CURVE_POINTS = 200


class WandbValidation(Callback):
    """After each validation: curves per setting, and ``images`` fixed validation images with their boxes.

    The images are spread evenly over the sorted validation set, so that every epoch and every cell shows the same.

    Args:
        run: takes them.
        images: how many; 0: none.
    """

    def __init__(self, run: "GuardedRun", images: int) -> None:
        self._run, self._images = run, images
        self._cache: dict[str, tuple[npt.NDArray[np.uint8], float]] = {}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        # One behind the count, as Lightning's own metrics of the same validation: the step that it came after.
        logged: dict[str, Any] = {"trainer/global_step": max(trainer.global_step - 1, 0)}
        curves: dict[str, Curve] = module.curves  # type: ignore[assignment]
        if curves:
            logged["val/pr_curves"] = curves_chart(curves)
        records: list[ImageRecord] = trainer.datamodule.val_records  # type: ignore[attr-defined]
        detections: dict[str, Detections] = module.detections  # type: ignore[assignment]
        chosen = [records[index] for index in spread(len(records), self._images)]
        for number, record in enumerate(chosen):
            # A panel each: W&B wants the images of one panel to be of one size.
            logged[f"images/{number}"] = self._image(record, detections.get(record.image_id))
        self._run.log(logged)

    def _image(self, record: ImageRecord, found: Detections | None) -> "wandb.Image":
        import wandb

        image, scale = self._read(record)
        boxes: dict[str, Any] = {
            "ground_truth": {"box_data": [_box(b * scale) for b in record.boxes_xyxy], "class_labels": {0: "face"}}
        }
        if found is not None:
            data = [
                _box(box * scale, score)
                for box, score in zip(found.boxes_xyxy.numpy(), found.scores.tolist(), strict=True)
                if score >= MIN_SCORE
            ]
            boxes["predictions"] = {"box_data": data, "class_labels": {0: "face"}}
        # JPEG, because encoding PNG would be most of what a validation waits for here.
        return wandb.Image(image, caption=record.image_id, boxes=boxes, file_type="jpg")

    def _read(self, record: ImageRecord) -> tuple[npt.NDArray[np.uint8], float]:
        if record.image_id not in self._cache:
            image = read_image_rgb(record.path)
            scale = min(1.0, LONG_SIDE / max(image.shape[:2]))
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
            self._cache[record.image_id] = (np.asarray(resized, np.uint8), scale)
        return self._cache[record.image_id]


def _box(box_xyxy: npt.NDArray[np.floating], score: float | None = None) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    box: dict[str, Any] = {
        "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
        "domain": "pixel",
        "class_id": 0,
    }
    if score is not None:
        box |= {"box_caption": f"{score:.2f}", "scores": {"confidence": score}}
    return box


def spread(size: int, count: int) -> list[int]:
    """``count`` of ``size`` indices, the first and the last among them, as evenly apart as whole numbers can be."""
    return sorted(set(np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()))


def curves_chart(curves: Mapping[str, Curve]) -> Any:
    """Setting → curve, as one W&B chart of precision over recall; at most :data:`CURVE_POINTS` points each.

    Thresholds at which nothing has been proposed yet have no precision and are left out.
    """
    import wandb

    recall, precision = [], []
    for curve in curves.values():
        points = np.stack([curve.recall, curve.precision], axis=1)[curve.precision > 0]
        # Many thresholds in a row see the same boxes.
        changes = np.any(np.diff(points, axis=0, prepend=np.nan) != 0, axis=1)
        points = points[changes]
        points = points[spread(len(points), CURVE_POINTS)]
        recall.append(points[:, 0].tolist())
        precision.append(points[:, 1].tolist())
    return wandb.plot.line_series(recall, precision, keys=list(curves), title="precision over recall", xname="recall")
