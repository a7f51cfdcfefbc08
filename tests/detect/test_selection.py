"""Which boxes count as faces: thresholds by size, small faces, the best few; and turned images."""

from typing import Any

import numpy as np
import pytest
import torch

from fanet_lightning import FaceDetector
from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.selection import Selection
from fanet_lightning.detect.stream import turned_back
from fanet_lightning.ops.boxes import pairwise_iou
from fanet_lightning.ops.structures import Detections
from tests.detect.helpers import light, portrait

# Sides 10 × 20, 64 × 30, 40 × 63, 100 × 100.
BOXES = Detections(
    torch.tensor([[0.0, 0, 10, 20], [0, 0, 64, 30], [0, 0, 40, 63], [0, 0, 100, 100]]),
    torch.tensor([0.9, 0.6, 0.4, 0.3]),
)


@pytest.mark.parametrize("options, left", [
    ({"threshold": 0.5}, [0.9, 0.6]), ({"threshold": 0.0}, [0.9, 0.6, 0.4, 0.3]), ({"threshold": 1}, []),
    ({"threshold": {0: 0.5, 64: 0.25}}, [0.9, 0.6, 0.3]), ({"threshold": {64: 0.7, 0: 0.35}}, [0.9, 0.4]),
    ({"threshold": {0: 1, 21: 0.5, 100: 0.1}}, [0.6, 0.3]), ({"threshold": 0.1, "min_face": 30}, [0.6, 0.4, 0.3]),
    ({"threshold": 0.1, "min_face": 30.5, "max_faces": 1}, [0.4]),
    ({"threshold": 0.1, "max_faces": 9}, [0.9, 0.6, 0.4, 0.3]),
])  # fmt: skip
def test_faces_by_score_size_and_number(options: dict[str, Any], left: list[float]) -> None:
    assert Selection(**options)(BOXES).scores.tolist() == pytest.approx(left)
    assert len(Selection(**options)(BOXES[:0])) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.1}, {"threshold": True}, {"threshold": "0.5"}, {"threshold": {64: 0.3}},
        {"threshold": {0: 0.5, -1: 0.3}}, {"min_face": float("nan")}, {"max_faces": 1.5}, {"rotate": "left"},
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}="):
        FaceDetector.detect_each(None, [], "original", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_boxes_are_turned_back_as_pixels_are(turns: int) -> None:
    image = np.zeros((7, 11), np.uint8)
    image[2:4, 5:10] = 1
    y, x = np.nonzero(np.rot90(image, turns))
    box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]])
    assert turned_back(box, turns, 7, 11).tolist() == [[5, 2, 10, 4]]


@pytest.mark.parametrize("protocol", ["original", "auto"])
def test_turned_photographs(protocol: str) -> None:
    """256 × 300 pixels. By hand: x1, y1, x2, y2 of the face after quarter turns, counter-clockwise."""
    for turns, face in ((0, (88, 54, 178, 166)), (1, (54, 78, 166, 168)), (2, (78, 134, 168, 246)),
                        (3, (134, 88, 246, 178))):  # fmt: skip
        image = np.ascontiguousarray(np.rot90(np.asarray(portrait()), turns))
        for rotate in ("auto", "all"):
            found = light().detect(image, protocol, rotate=rotate)
            assert len(found) == 1
            # Upside down, the face is found as it is, a little off.
            least = 0.6 if (turns, rotate) == (2, "auto") else 0.9
            assert float(pairwise_iou(found.boxes_xyxy, torch.tensor([face]))) > least, (turns, rotate)
        assert len(light().detect(image, protocol)) == (turns % 2 == 0)


def test_images_of_a_batch_are_turned_where_nothing_is_found() -> None:
    detector = FaceDetector.from_pretrained(batch_size=3)
    image = np.asarray(portrait())[:256]
    images = [image, np.rot90(image), np.full_like(image, 90)]
    found = detector.detect(images, "original", rotate="auto")
    assert [len(each) for each in found] == [1, 1, 0]
    x1, y1, x2, y2 = found[0].boxes_xyxy[0].tolist()
    assert found[1].boxes_xyxy[0].tolist() == pytest.approx([y1, 256 - x2, y2, 256 - x1], abs=0.05)
    plain = detector.detect(images, "original")
    assert [len(each) for each in plain] == [1, 0, 0]
    torch.testing.assert_close(plain[0].boxes_xyxy, found[0].boxes_xyxy)
    # Convolutions of a batch may add in another order, so to rounding.
    alone = light().detect(image, "original")
    torch.testing.assert_close(plain[0].boxes_xyxy, alone.boxes_xyxy, atol=1e-2, rtol=0)
    torch.testing.assert_close(plain[0].scores, alone.scores, atol=1e-5, rtol=0)
