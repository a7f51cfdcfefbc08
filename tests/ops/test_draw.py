"""Boxes colored by confidence and the color bar: colors, places and sizes in small images, pixel by pixel."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from fanet_lightning.ops.draw import annotate, confidence_colors, outlined


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def changed(before, after):
    """(H, W) where the two images differ."""
    return (before != after).any(axis=2)


def test_colors_are_the_bright_part_of_matplotlibs_turbo():
    scores = np.concatenate([np.linspace(0, 1, 1001), [-0.5, 1.7]])
    expected = (mpl.colormaps["turbo"](0.15 + 0.65 * np.clip(scores, 0, 1))[:, :3] * 255).round()
    assert (expected @ (0.299, 0.587, 0.114) > 110).all()  # shows on black, as the casing does on white
    colors = confidence_colors(scores)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors, expected)
    np.testing.assert_array_equal(confidence_colors([np.nan]), confidence_colors([0.0]))
    assert confidence_colors([]).shape == (0, 3)


def test_annotated_faces_are_thin_white_frames_beneath_and_outlines_are_of_one_color():
    image, box = grey(900, 60), np.array([[10.0, 10.0, 40.0, 40.0], [50, 50, 50, 60]])
    white = annotate(image, [], [], faces_xyxy=box)
    np.testing.assert_array_equal(white, outlined(image, box, (255, 255, 255)))
    assert (white[8, 8:42] == 255).all() and (white == 255).all(axis=2).sum() == 4 * 33
    assert (white == 0).all(axis=2).sum() == 4 * 31 + 4 * 35  # the casing, inside and outside
    both = annotate(image, box[:1], [0.7], faces_xyxy=box[:1])
    np.testing.assert_array_equal(both, annotate(image, box[:1], [0.7]))


def test_the_frame_lies_around_the_box_and_leaves_the_face_free():
    image = grey(100, 100)
    drawn = annotate(image, [[20, 30, 60, 80]], [0.9])
    expected = image.copy()
    # One pixel around half-open 20..60 x 30..80 between two dark ones.
    for around, color in ((3, 0), (2, confidence_colors([0.9])[0]), (1, 0)):
        expected[30 - around : 80 + around, 20 - around : 60 + around] = color
    expected[30:80, 20:60] = 90
    np.testing.assert_array_equal(drawn, expected)
    assert (image == 90).all() and drawn is not image
    # Confident ones are on top.
    np.testing.assert_array_equal(annotate(image, [[20, 30, 60, 80]] * 3, [0.2, 0.9, 0.5]), expected)


def test_lines_grow_with_the_image_but_not_over_small_faces():
    image = grey(3000, 2000)
    drawn = annotate(image, [[500, 500, 1500, 1500], [100, 100, 112, 112]], [0.9, 0.8])
    # 3000 / 300 = 10 pixels and twice 3 for the large face, 12 / 6 = 2 and twice 1 for the small one.
    assert changed(image, drawn)[1000, 450:500].sum() == 16 and (drawn[1000, 450:500] == 0).all(axis=1).sum() == 6
    assert changed(image, drawn)[106, 80:100].sum() == 4
    assert not changed(image, drawn)[101:111, 101:111].any()
    # A face of one pixel still gets a line that survives shrinking: 10,000 / 2,000.
    long = annotate(grey(40, 10_000), [[5000, 20, 5001, 21]], [0.9])
    assert (long[20] == confidence_colors([0.9])[0]).all(axis=1).sum() == 10


def test_boxes_at_the_border_and_outside_and_none():
    image = grey(50, 40)
    drawn = annotate(image, [[-10, -10, 200, 300]], [0.5])
    expected = np.ones((50, 40), bool)
    expected[3:-3, 3:-3] = False
    np.testing.assert_array_equal(changed(image, drawn), expected)
    outside = [[50, 0, 60, 10], [-20, 0, -1, 10], [0, 60, 10, 70], [0, -9, 9, -1], [5, 5, 5, 9], [9, 9, 5, 5],
               [np.nan, 0, 5, 5], [0, 0, np.inf, 5]]  # fmt: skip
    for boxes in (outside, [], np.zeros((0, 4))):
        np.testing.assert_array_equal(annotate(image, boxes, np.full(len(boxes), 0.9)), image)


def test_the_bar_is_added_at_the_right_and_runs_from_one_to_zero_with_ticks():
    image = grey(480, 640)
    drawn = annotate(image, [], [], bar=True)
    np.testing.assert_array_equal(drawn[:, :640], image)
    bar = drawn[:, 640:]
    column = bar[:, bar.shape[1] // 8]
    ends = np.flatnonzero((column != 255).any(axis=1))
    for value in (0.05, 0.25, 0.5, 0.75, 0.95):
        # The strip is as long as the image but for half a letter at each end, so a value's row is known.
        row = round(ends[-1] - value * (ends[-1] - ends[0]))
        near = column[row - 1 : row + 2].astype(int)
        assert np.abs(near - confidence_colors([value])[0]).max(axis=1).min() <= 6
    # The first column right of the strip holds nothing but ticks.
    strip_end = np.flatnonzero((bar < 100).all(axis=2).sum(axis=0) > 300).max()
    ticks = np.flatnonzero((bar[:, strip_end + 1] < 100).all(axis=1))
    assert len(ticks) == 11 and np.ptp(np.diff(ticks)) <= 1
    drawn[:] = 0  # the bar is shared by images of one size
    assert annotate(image, [], [], bar=True)[:, 640:].max() == 255


@pytest.mark.parametrize("height, width", [(1, 1), (9, 300), (24, 24), (300, 9), (898, 1600), (4000, 6000)])
def test_every_size_of_image_can_be_annotated(height, width):
    drawn = annotate(grey(height, width), [[0, 0, width, height]], [0.5], labels=True, bar=True)
    assert drawn.shape[0] == height and drawn.shape[1] > width
    assert drawn.dtype == np.uint8 and drawn.flags["C_CONTIGUOUS"]
    assert (drawn[height - 1, width - 1] == 0).all()


def test_labels_stand_above_the_face_in_its_color_and_inside_the_image():
    image = grey(200, 200)
    box = [80, 100, 120, 140]
    plain = annotate(image, [box], [0.5])
    labelled = annotate(image, [box], [0.5], labels=True)
    rows, columns = np.nonzero(changed(plain, labelled))
    assert rows.max() < 100 and rows.min() > 80
    assert columns.min() >= 77
    np.testing.assert_array_equal(labelled[rows.min(), columns.min()], confidence_colors([0.5])[0])
    # Different scores, different digits; at the upper edge the label moves inside.
    other = annotate(image, [box], [0.52], labels=True)
    assert (changed(labelled, other)[80:99]).any()
    top = annotate(image, [[190, 0, 199, 20]], [0.5], labels=True)
    assert changed(image, top)[:15, 150:].sum() > 100


@pytest.mark.parametrize(
    "image, boxes, scores, said",
    [
        (np.zeros((5, 5), np.uint8), [], [], r"\(5, 5\) uint8"),
        (np.zeros((5, 5, 3), np.float32), [], [], "float32"),
        (grey(5, 5), [[1, 2, 3, 4]], [], "1 boxes, but 0 scores"),
        (grey(5, 5), [[1, 2, 3]], [1.0], r"\(1, 3\)"),
    ],
)
def test_wrong_arguments_are_named(image, boxes, scores, said):
    with pytest.raises(ValueError, match=said):
        annotate(image, boxes, scores)


def test_drawing_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys, numpy as np; from fanet_lightning.ops.draw import annotate; "
        "annotate(np.zeros((99, 99, 3), np.uint8), [[1, 1, 9, 9]], [0.5], labels=True); "
        "print(sorted({'torch', 'matplotlib', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
