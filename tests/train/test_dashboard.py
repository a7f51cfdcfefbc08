"""Curves and images of a validation, as W&B gets them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fanet_lightning.data.records import ImageRecord
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.curves import THRESHOLDS, Curve
from fanet_lightning.train.wandb_run import CURVE_POINTS, WandbValidation, curves_chart, spread


class Recorded:
    """Stands in for a run: keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)


class Stage:
    """What the callback reads of a trainer and of a module."""

    sanity_checking, is_global_zero, global_step = False, True, 40

    def __init__(self, records: list[ImageRecord], detections: dict[str, Detections]) -> None:
        self.datamodule, self.val_records = self, records
        self.detections, self.curves = detections, {}


def test_boxes_are_scaled_with_their_image_and_weak_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((512, 1024, 3), (0, 0, 255), np.uint8))  # red, as OpenCV's BGR
    record = ImageRecord("event/image", path, np.array([[100, 50, 300, 150]], np.float32))
    found = Detections(
        torch.tensor([[120.0, 60, 310, 170], [0, 0, 10, 10], [4, 4, 8, 8]]), torch.tensor([0.9, 0.3, 0.29])
    )
    stage, run = Stage([record], {"event/image": found}), Recorded()
    WandbValidation(run, 4).on_validation_end(stage, stage)  # type: ignore[arg-type]
    (row,) = run.rows
    assert row["trainer/global_step"] == 39
    image = row["images/0"]
    assert image.image.size == (512, 256)
    assert image.image.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=3)  # JPEG
    boxes = {name: layer._val for name, layer in image._boxes.items()}
    assert boxes["ground_truth"] == [
        {"position": {"minX": 50, "minY": 25, "maxX": 150, "maxY": 75}, "domain": "pixel", "class_id": 0}
    ]
    assert [box["position"] for box in boxes["predictions"]] == [
        {"minX": 60, "minY": 30, "maxX": 155, "maxY": 85},
        {"minX": 0, "minY": 0, "maxX": 5, "maxY": 5},
    ]
    assert [box["box_caption"] for box in boxes["predictions"]] == ["0.90", "0.30"]


def test_no_images_are_read_when_none_are_wanted() -> None:
    stage, run = Stage([ImageRecord("a", Path("not/there.jpg"))], {}), Recorded()
    WandbValidation(run, 0).on_validation_end(stage, stage)  # type: ignore[arg-type]
    assert run.rows == [{"trainer/global_step": 39}]


def test_images_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(5, 1) == [0]
    assert spread(5, 0) == spread(0, 3) == []


def test_a_chart_keeps_each_point_of_a_curve_once() -> None:
    recall, precision = np.zeros(1000), np.zeros(1000)
    recall[10:500], precision[10:500] = 0.25, 1.0
    recall[500:], precision[500:] = 0.5, 0.75
    few = Curve(precision, recall, THRESHOLDS, 0.4375, 8)
    nothing = Curve(np.zeros(1000), np.zeros(1000), THRESHOLDS, 0.0, 8)
    fine = np.linspace(1e-3, 1, 1000)
    many = Curve(1 - fine / 2, fine, THRESHOLDS, 0.75, 8)
    rows = curves_chart({"few": few, "nothing": nothing, "many": many}).table.data
    assert [row for row in rows if row[1] != "many"] == [[0.25, "few", 1.0], [0.5, "few", 0.75]]
    points = [(x, y) for x, name, y in rows if name == "many"]
    assert len(points) == CURVE_POINTS
    assert points[0] == (fine[0], 1 - fine[0] / 2) and points[-1] == (1.0, 0.5)
    assert points == sorted(points)
