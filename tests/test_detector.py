"""From a network to boxes in the original image, and what is drawn of them."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

from fanet_lightning import FaceDetector
from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import encode
from fanet_lightning.data.resize import TestScale
from fanet_lightning.plots import draw_detections, precision_recall_figure, save_figure
from fanet_lightning.scoring.curves import Curve
from fanet_lightning.structures import HeadOutput, NetworkOutput


class OneFace(nn.Module):
    """Says that there is a face at ``box_xyxy`` of its input, with probability 0.9, and nothing else."""

    def __init__(self, box_xyxy: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.box_xyxy = torch.tensor([box_xyxy])

    def forward(self, images: torch.Tensor) -> NetworkOutput:
        height, width = images.shape[2:]
        shapes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64, 128)]
        anchors = AnchorGrid(tuple(shapes)).boxes_cxcywh()
        logits = torch.tensor([20.0, 0.0]).repeat(1, len(anchors), 1)
        logits[0, 7] = torch.tensor([0.0, float(np.log(9.0))])
        offsets = torch.zeros(1, len(anchors), 4)
        offsets[0, 7] = encode(self.box_xyxy, anchors[7:8])[0]
        return NetworkOutput([HeadOutput(logits, offsets)], shapes)


def test_boxes_come_back_in_pixels_of_the_original_image() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    detector = FaceDetector(OneFace((16.0, 8.0, 40.0, 48.0)))
    as_it_is = detector.detect(image)
    torch.testing.assert_close(as_it_is.boxes_xyxy, torch.tensor([[16.0, 8.0, 40.0, 48.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(as_it_is.scores, torch.tensor([0.9]))
    # Shorter side 200 doubles the image, so the network's pixels are half as large.
    doubled = detector.detect(image, TestScale("short", 200))
    torch.testing.assert_close(doubled.boxes_xyxy, torch.tensor([[8.0, 4.0, 20.0, 24.0]]), atol=1e-3, rtol=0)


def test_boxes_are_clipped_to_the_image() -> None:
    detector = FaceDetector(OneFace((-10.0, -5.0, 300.0, 60.0)))
    boxes_xyxy = detector.detect(np.zeros((50, 80, 3), np.uint8)).boxes_xyxy
    torch.testing.assert_close(boxes_xyxy, torch.tensor([[0.0, 0.0, 80.0, 50.0]]))


def test_an_array_of_another_kind_is_refused() -> None:
    detector = FaceDetector(OneFace((0.0, 0.0, 8.0, 8.0)))
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, not \(3, 8, 8\) float64"):
        detector.detect(np.zeros((3, 8, 8)))  # type: ignore[arg-type]


def test_a_box_has_the_colour_of_its_confidence() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    drawn = draw_detections(image, np.array([[5.0, 5.0, 30.0, 30.0]]), np.array([0.8]))
    expected = np.array(mpl.colormaps["turbo"](0.8)[:3]) * 255
    np.testing.assert_allclose(drawn[5, 15], expected, atol=1)
    assert (drawn[15, 15] == 0).all() and (image == 0).all()


def test_curves_have_a_panel_per_setting_and_the_ap_in_the_legend(tmp_path) -> None:
    recall = np.linspace(0, 1, 1000)
    curves = {s: Curve(1 - recall / 2, recall, recall, ap, 10) for s, ap in (("easy", 0.75), ("hard", 0.5))}
    figure = precision_recall_figure({"level3": curves}, "title")
    assert [axis.get_title() for axis in figure.axes] == ["easy", "hard"]
    assert [axis.get_legend().get_texts()[0].get_text() for axis in figure.axes] == ["level3 0.750", "level3 0.500"]
    pdf, png = save_figure(figure, tmp_path / "pr_curves")
    assert pdf.read_bytes()[:5] == b"%PDF-" and png.read_bytes()[1:4] == b"PNG"
