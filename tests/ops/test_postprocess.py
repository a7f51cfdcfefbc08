"""From heads to faces, against hand-worked cases and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fanet_lightning.cli.errors import InputError
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, decode, paired_iou
from fanet_lightning.ops.postprocess import detect, detection_settings
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput

GRID = AnchorGrid(((6, 5), (3, 3)), strides=(4, 8), sizes=(16, 32))  # 39 anchors


def heads_with(scores: dict[int, float], anchors: int = GRID.count, batch_size: int = 1) -> NetworkOutput:
    """Image 0 has the given scores, every other anchor practically 0; offsets are 0, so boxes are the anchors."""
    logits = torch.zeros(batch_size, anchors, 2)
    logits[..., 0] = 30
    for anchor, score in scores.items():
        logits[0, anchor] = torch.tensor([math.log(1 - score), math.log(score)])
    return NetworkOutput([HeadOutput(logits, torch.zeros(batch_size, anchors, 4))], [])


def anchor_box(anchor: int) -> list[float]:
    return cxcywh_to_xyxy(GRID.boxes_cxcywh())[anchor].tolist()


def slow_detect(
    logits: Tensor, offsets: Tensor, floor: float, top_k: int, iou: float, keep: int
) -> list[tuple[float, list[float]]]:
    """One image, one box at a time."""
    scores = torch.softmax(logits.float(), dim=-1)[:, 1].tolist()
    boxes = decode(offsets.float(), GRID.boxes_cxcywh())
    order = sorted((a for a in range(len(scores)) if scores[a] >= floor), key=lambda a: (-scores[a], a))[:top_k]
    standing: list[int] = []
    for anchor in order:
        if all(paired_iou(boxes[anchor], boxes[other]).item() <= iou for other in standing):
            standing.append(anchor)
    return [(scores[anchor], boxes[anchor].tolist()) for anchor in standing[:keep]]


def test_a_face_is_an_anchor_with_its_softmax_score() -> None:
    last = heads_with({7: 0.9}).hierarchies
    (found,) = detect(NetworkOutput([*heads_with({0: 0.9}).hierarchies, *last], []), GRID)  # the last is the detector
    assert found.boxes_xyxy.tolist() == [anchor_box(7)] == [[2, -2, 18, 14]]
    assert found.scores.tolist() == pytest.approx([0.9])
    with pytest.raises(ValueError, match=r"40.*39"):
        detect(heads_with({}, anchors=40), GRID)


def test_settings_are_numbers_in_their_range() -> None:
    assert detection_settings({"nms_iou": 1, "keep": None}, None, {"top_k": 5})["nms_iou"] == 1
    for key, value in (("score_floor", True), ("nms_iou", True), ("nms_iou", 1.5), ("keep", True), ("top_k", 0.5)):
        with pytest.raises(InputError, match=rf"detection\.{key}={value}"):
            detection_settings({key: value})


@pytest.mark.parametrize("options", [{}, {"keep": 0}, {"top_k": 0}])
def test_nothing_found_keeps_its_shape(options: dict[str, int]) -> None:
    found = detect(heads_with({0: 0.9} if options else {}, batch_size=2), GRID, **options)
    assert len(found) == 2
    for detections in found:
        assert detections.boxes_xyxy.shape == (0, 4) and detections.boxes_xyxy.dtype == torch.float32
        assert detections.scores.shape == (0,) and detections.scores.dtype == torch.float32


def test_what_is_not_finite_never_comes_out() -> None:
    output = heads_with({0: 0.9, 4: 0.8, 25: 0.7})
    output.hierarchies[0].logits[0, 0, 0] = math.nan
    output.hierarchies[0].offsets[0, 4, 1] = math.nan
    for floor in (0.01, 0.0):
        (found,) = detect(output, GRID, score_floor=floor)
        assert found.scores.isfinite().all() and found.boxes_xyxy.isfinite().all()
        assert found.scores[0].item() == pytest.approx(0.7)


@settings(max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([0.01, 0.3, 0.5]), st.sampled_from([3, 10, 5000]),
    st.sampled_from([0.3, 0.5]), st.sampled_from([2, 750]), st.booleans(),
)  # fmt: skip
def test_equals_plain_loops(
    seed: int, batch_size: int, floor: float, top_k: int, iou: float, keep: int, ties: bool
) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch_size, GRID.count, 2, generator=random)
    if ties:
        logits = logits.round()
    offsets = torch.randn(batch_size, GRID.count, 4, generator=random)
    output = NetworkOutput([HeadOutput(logits, offsets)], [])
    found = detect(output, GRID, score_floor=floor, top_k=top_k, nms_iou=iou, keep=keep)
    assert len(found) == batch_size
    for image, detections in enumerate(found):
        expected = slow_detect(logits[image], offsets[image], floor, top_k, iou, keep)
        assert len(detections.scores) == len(expected)
        torch.testing.assert_close(detections.scores, torch.tensor([score for score, _ in expected]))
        torch.testing.assert_close(detections.boxes_xyxy, torch.tensor([box for _, box in expected]).reshape(-1, 4))
        assert (detections.scores.diff() <= 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [0, 1, 5, 20, 60, 5000])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_many_candidates_equal_one_nms_over_all_of_them(seed: int, keep: int, spread: float) -> None:
    """Enough candidates that the best 2 × keep do not always suffice; ``spread`` 0: a crowd of a few heaps."""
    random = torch.Generator().manual_seed(seed)
    grid = AnchorGrid(((24, 24), (12, 12)), strides=(4, 8), sizes=(16, 32))
    logits = torch.randn(1, grid.count, 2, generator=random)
    offsets = spread * torch.randn(1, grid.count, 4, generator=random)
    if not spread:
        # Boxes drawn to nine places: most of the best fall, and those behind them are needed.
        anchors = grid.boxes_cxcywh()
        offsets[0, :, :2] = ((anchors[:, :2] / 32).floor() * 32 + 16 - anchors[:, :2]) / (0.1 * anchors[:, 2:])
    (found,) = detect(NetworkOutput([HeadOutput(logits, offsets)], []), grid, keep=keep)
    scores = torch.softmax(logits[0], dim=-1)[:, 1]
    order = scores.argsort(descending=True, stable=True)
    boxes = decode(offsets[0], grid.boxes_cxcywh())[order]
    overlaps = paired_iou(boxes[:, None], boxes[None])
    standing: list[int] = []
    for i in range(len(order)):
        if scores[order[i]] >= 0.01 and not (overlaps[i, standing] > 0.3).any():
            standing.append(i)
    assert len(standing) > 5 and (spread or len(standing) < 40)
    torch.testing.assert_close(found.boxes_xyxy, boxes[standing[:keep]])
    torch.testing.assert_close(found.scores, scores[order[standing[:keep]]])


def test_half_precision_heads_are_read_in_float32() -> None:
    output = heads_with({0: 0.9, 25: 0.7})
    ((logits, offsets),) = output.hierarchies
    narrow = NetworkOutput([HeadOutput(logits.bfloat16(), offsets.bfloat16())], [])
    wide = NetworkOutput([HeadOutput(logits.bfloat16().float(), offsets)], [])
    for found, expected in zip(detect(narrow, GRID), detect(wide, GRID), strict=True):
        assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
        assert torch.equal(found.scores, expected.scores) and torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
