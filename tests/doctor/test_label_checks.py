"""The doctor's checks of boxes: by hand, against a slow oracle, and that fixing leaves nothing to fix."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.data.images import ImageFrame
from fanet_lightning.data.records import LabelledImage
from fanet_lightning.doctor.checks import BoxFaults, FileFacts, box_faults, fixed_boxes, frame_fault, label_findings

FRAME = (100, 80)
NAN, INF = math.nan, math.inf


def image_of(boxes: list[tuple[float, ...]], ignored: list[bool] | None = None, stated=None) -> LabelledImage:
    rows = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    flags = np.array(ignored or [False] * len(rows), dtype=bool)
    return LabelledImage("a/b", Path("a/b.jpg"), rows, flags, stated)


def oracle(boxes, ignored, frame) -> dict[str, list[int]]:
    """Box by box, as the docstrings say it."""
    found: dict[str, list[int]] = {name: [] for name in BoxFaults._fields}
    sound, shape = [], {}
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            found["not_finite"].append(i)
        elif x2 <= x1 or y2 <= y1:
            found["without_area"].append(i)
        elif x1 >= frame[0] or y1 >= frame[1] or x2 <= 0 or y2 <= 0:
            found["outside"].append(i)
        else:
            sound.append(i)
            if max(-x1, -y1, x2 - frame[0], y2 - frame[1]) > 1:
                shape[i] = "partly_outside"
            elif not ignored[i] and min(x2 - x1, y2 - y1) < 1:
                shape[i] = "tiny"
    kept: list[int] = []
    for i in sorted(sound, key=lambda i: (ignored[i], i)):
        if any(iou(boxes[i], boxes[k]) > 0.95 and not (ignored[i] and ignored[k]) for k in kept):
            found["doubled"].append(i)
        else:
            kept.append(i)
            if i in shape:
                found[shape[i]].append(i)
    return {name: sorted(rows) for name, rows in found.items()}


def iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# A coarse grid, so that doubles, edges and boxes without area are common.
COORDINATE = st.one_of(
    st.sampled_from([-9.0, -1.0, -0.4, 0.0, 0.5, 6.0, 11.0, 12.0, 13.0, 40.0, NAN, INF]), st.integers(-3, 14).map(float)
)
BOXES = st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE, st.booleans()), max_size=12).map(
    lambda rows: (np.reshape([row[:4] for row in rows], (-1, 4)), np.array([row[4] for row in rows], dtype=bool))
)


@settings(max_examples=200)
@given(BOXES)
def test_faults_are_the_oracles(drawn) -> None:
    boxes, ignored = drawn
    faults = box_faults(boxes, ignored, (12, 11))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in faults._asdict().items()} == oracle(
        boxes.tolist(), ignored.tolist(), (12, 11)
    )


@settings(max_examples=200)
@given(BOXES)
def test_fixing_leaves_nothing_to_fix_and_invents_nothing(drawn) -> None:
    boxes, ignored = drawn
    fixed = fixed_boxes(boxes, ignored, (12, 11))
    faults = box_faults(fixed.boxes_xyxy, fixed.ignored, (12, 11))
    for name in ("not_finite", "without_area", "outside", "partly_outside", "doubled"):
        assert not getattr(faults, name).any(), name
    # Every box is kept or dropped, once; what is kept is its own part within the image, in the same order.
    gone = np.concatenate(list(fixed.dropped.values()))
    assert sorted([*fixed.source.tolist(), *gone.tolist()]) == list(range(len(boxes)))
    assert (np.diff(fixed.source) > 0).all()
    np.testing.assert_array_equal(fixed.ignored, ignored[fixed.source])
    for row, source, clipped in zip(fixed.boxes_xyxy, fixed.source, fixed.clipped, strict=True):
        x1, y1, x2, y2 = boxes[source]
        assert row.tolist() == [max(x1, 0), max(y1, 0), min(x2, 12), min(y2, 11)]
        assert clipped == (row.tolist() != boxes[source].tolist())


def test_clipping_drops_slivers_and_finds_new_doubles() -> None:
    boxes = np.array([(-50, 10, 0.5, 20), (90, 0, 120, 10), (90, 0, 150, 10), (10, 10, 20, 20)], dtype=float)
    fixed = fixed_boxes(boxes, np.zeros(4, dtype=bool), FRAME)
    assert fixed.boxes_xyxy.tolist() == [[90, 0, 100, 10], [10, 10, 20, 20]]
    assert fixed.clipped.tolist() == [True, False]
    assert {name: rows.tolist() for name, rows in fixed.dropped.items()} == {
        "not_finite": [], "without_area": [], "outside": [0], "doubled": [2],
    }  # fmt: skip


def facts(width: int, height: int, orientation: int = 1) -> FileFacts:
    return FileFacts(Path("a/b.jpg"), 10, b"1", ImageFrame(width, height, orientation))


@pytest.mark.parametrize(
    ("boxes", "stated", "file", "expected"),
    [
        ([(1, 1, 5, 5)], (100, 80), facts(80, 100, 6), None),  # stated as it is shown
        ([(1, 1, 5, 5)], (80, 100), facts(80, 100, 6), "mis_rotated"),  # stated as it is stored
        ([(1, 1, 5, 5)], (100, 81), facts(100, 80), "mis_sized"),
        ([(1, 1, 5, 5)], (100, 100), facts(100, 100, 6), None),
        # Stored 100 × 80, shown 80 × 100. A box at x = 90 fits the stored frame alone.
        ([(85, 10, 95, 20)], None, facts(100, 80, 6), "mis_rotated"),
        ([(10, 85, 20, 95)], None, facts(100, 80, 6), None),  # fits as it is shown
        ([(10, 10, 20, 20)], None, facts(100, 80, 6), None),  # fits both
        ([(85, 10, 95, 20), (10, 85, 20, 95)], None, facts(100, 80, 6), None),  # fits neither
        ([(10, 85, 20, 95)], None, facts(100, 80), "mis_rotated"),  # no orientation, its centre is outside
        ([(10, 60, 20, 90)], None, facts(100, 80), None),  # reaches out, its centre does not
        ([(10, 85, 20, 95), (NAN, 0, 1, 1)], None, facts(100, 80), "mis_rotated"),
        ([], None, facts(100, 80, 6), None),
        ([(10, 85, 20, 95)], None, facts(100, 100), None),
    ],
)
def test_labels_of_another_frame(boxes, stated, file, expected) -> None:
    fault = frame_fault(image_of(boxes, stated=stated), file)
    assert (fault and fault[0]) == expected


def test_findings_name_boxes_sizes_and_numbers() -> None:
    image = image_of([(10, 10, 20, 20), (-5, 0, 10, 10), (50, 50, 112, 60), (200, 0, 210, 10)])
    found = {finding.kind: finding for finding in label_findings("val", image, facts(100, 80))}
    assert set(found) == {"label_partly_outside", "label_outside"}
    partly = found["label_partly_outside"]
    assert partly.boxes_xyxy == ((-5, 0, 10, 10), (50, 50, 112, 60))
    assert (partly.part, partly.image_id, partly.badness) == ("val", "a/b", 12)
    assert partly.detail == "2 boxes, first x1 y1 x2 y2 -5 0 10 10; image 100 × 80"
    # In a turned image the box outside is the consequence; the one without area is a fault of its own.
    turned = label_findings("train", image_of([(85, 10, 95, 20), (3, 3, 3, 9)]), facts(100, 80, 6))
    assert [finding.kind for finding in turned] == ["mis_rotated", "label_without_area"]
    ignored = label_findings("train", image_of([(1, 1, 5, 5), (3, 3, 3, 9)], [True, False]), facts(100, 80))
    assert [finding.kind for finding in ignored] == ["label_without_area", "no_faces"]
