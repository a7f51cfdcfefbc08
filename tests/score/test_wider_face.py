"""WIDER FACE scoring: against hand-computed cases, a slow oracle, and the numbers of the official tool."""

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.score.curves import POINTS, THRESHOLDS, average_precision, normalise_scores
from fanet_lightning.score.inputs import read_selection
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, read_ground_truth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions
from tests.score import wider_oracle

Image = tuple[list[tuple[float, ...]], dict[str, list[bool]], list[tuple[float, ...]]]


def pack(images: list[Image]) -> tuple[GroundTruth, Predictions]:
    """Images as (faces xywh, setting → which count, rows x y w h score)."""
    ids = tuple(f"0--Parade/image_{i}" for i in range(len(images)))
    settings = images[0][1]
    ground_truth = GroundTruth(
        ids,
        [np.array(faces, np.float64).reshape(-1, 4) for faces, _, _ in images],
        {name: [np.array(counted[name], np.bool_) for _, counted, _ in images] for name in settings},
    )
    rows = np.array([row for _, _, rows in images for row in rows], np.float64).reshape(-1, 5)
    starts = np.cumsum([0, *(len(rows) for _, _, rows in images)], dtype=np.int64)
    return ground_truth, Predictions(ids, starts, rows[:, :4], rows[:, 4])


def ap_of(faces: list[tuple[float, ...]], counted: list[bool], rows: list[tuple[float, ...]]) -> float:
    return score(*pack([(faces, {"hard": counted}, rows)]))["hard"].ap


FACE = (0, 0, 9, 9)  # 10 x 10 pixels with the last one counted
NOWHERE = (500, 500, 9, 9)


def test_hand_computed_run() -> None:
    images: list[Image] = [
        (
            [FACE, (100, 100, 9, 9)],
            {"easy": [True, False], "hard": [True, True]},
            [(*FACE, 0.8), (*FACE, 0.9), (100, 100, 9, 9, 0.7)],
        ),
        ([(50, 50, 19, 19)], {"easy": [True], "hard": [True]}, [(50, 50, 19, 19, 0.6), (*NOWHERE, 1.0)]),
        ([], {"easy": [], "hard": []}, [(*FACE, 0.5)]),
        ([FACE], {"easy": [True], "hard": [True]}, []),
    ]
    curves = score(*pack(images))
    # Normalised scores: 1 nowhere, .8 hit, .6 duplicate, .4 face that counts in hard alone, .2 hit.
    # Points well inside those intervals: t = .9, .7, .5, .3, .1.
    points = [99, 299, 499, 699, 899]
    easy, hard = curves["easy"], curves["hard"]
    assert (easy.faces, hard.faces) == (3, 4)
    np.testing.assert_allclose(easy.precision[points], [0, 1 / 2, 1 / 3, 1 / 3, 2 / 4])
    np.testing.assert_allclose(easy.recall[points], [0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(hard.precision[points], [0, 1 / 2, 1 / 3, 2 / 4, 3 / 5])
    np.testing.assert_allclose(hard.recall[points], [0, 1 / 4, 1 / 4, 2 / 4, 3 / 4])
    assert easy.ap == pytest.approx(2 / 3 * 1 / 2)
    assert hard.ap == pytest.approx(3 / 4 * 3 / 5)
    # The image without faces adds no proposal, yet its score is the minimum of the run.
    assert easy.precision[-1] == pytest.approx(2 / 4)


@pytest.mark.parametrize(("height", "expected"), [(4, 1.0), (3.99, 0.0)])
def test_half_an_overlap_is_a_hit_and_counts_the_last_pixel(height: float, expected: float) -> None:
    # 10 x 5 of 10 x 10 pixels is 0.5 exactly; without the +1 it would be 36 / 81.
    assert ap_of([FACE], [True], [(0, 0, 9, height, 1.0), (*NOWHERE, 0.0)]) == pytest.approx(expected)


def test_the_closest_face_decides_even_when_it_does_not_count() -> None:
    counted_face, other_face = (0, 0, 9, 9), (0, 1, 9, 9)
    # The row overlaps the counted face by 9/11, but sits on the other one: no proposal at all, so precision stays 1.
    curve = score(
        *pack(
            [
                (
                    [counted_face, other_face],
                    {"hard": [True, False]},
                    [(*counted_face, 1.0), (*other_face, 0.5), (*NOWHERE, 0.0)],
                )
            ]
        )
    )["hard"]
    assert curve.precision[600] == 1.0
    assert curve.precision[-1] == 0.5


def test_score_on_a_threshold_is_included() -> None:
    ground_truth, predictions = pack(
        [([FACE], {"hard": [True]}, [(*NOWHERE, 1.0), (*FACE, THRESHOLDS[399]), (*NOWHERE, 0.0)])]
    )
    recall = score(ground_truth, predictions)["hard"].recall
    assert recall[398] == 0.0
    assert recall[399] == 1.0


def test_thresholds_are_the_tools() -> None:
    assert THRESHOLDS.tolist() == [1 - (i + 1) / 1000 for i in range(1000)]


def test_face_of_negative_width_is_missed_and_takes_no_row() -> None:
    # The official files have one. Its area of -24 and the first row's 24 would give 0 / 0.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ap = ap_of([(1026, 474, -2, 23), FACE], [True, True], [(0, 0, 0, 23, 0.9), (*FACE, 1.0), (*NOWHERE, 0.0)])
    assert ap == pytest.approx(0.5)


def test_all_scores_equal_takes_all_rows_at_once() -> None:
    curve = score(*pack([([FACE], {"hard": [True]}, [(*FACE, 0.7), (*NOWHERE, 0.7)])]))["hard"]
    assert curve.precision.tolist() == [0.5] * POINTS
    assert curve.recall.tolist() == [1.0] * POINTS
    assert curve.ap == 0.5


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.25, 0.5, 0.75], [0.0, 0.5, 1.0]),
        ([2.0, 3.0], [0.5, 1.0]),  # min starts at 1
        ([-3.0, -1.0], [0.0, 2 / 3]),  # max starts at 0
        ([2.0, 2.0], [1.0, 1.0]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([], []),
    ],
)
def test_normalisation(scores: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(normalise_scores(np.array(scores, np.float64)), expected)


def test_average_precision_of_a_known_envelope() -> None:
    # Envelope .8 up to recall .5, .6 up to .75, nothing after it.
    assert average_precision(np.array([0.5, 0.8, 0.6]), np.array([0.25, 0.5, 0.75])) == pytest.approx(0.55)


def test_nothing_detected_and_nothing_to_find() -> None:
    assert ap_of([FACE], [True], []) == 0.0
    assert math.isnan(ap_of([FACE], [False], [(*FACE, 0.5)]))


def test_different_images_are_refused() -> None:
    ground_truth, predictions = pack([([FACE], {"hard": [True]}, [])] * 2)
    with pytest.raises(ValueError, match="1 images and predictions of 2"):
        score(ground_truth.select(ground_truth.image_ids[:1]), predictions)


def random_run(rng: random.Random) -> list[Image]:
    """Few distinct corners, sizes and scores, so that faces coincide, overlaps tie and scores repeat."""

    def box() -> tuple[float, ...]:
        fraction = rng.choice([0.0, 0.0, 0.5])
        return (
            rng.randrange(8) + fraction,
            rng.randrange(8),
            rng.choice([0, 3, 4, 9, 9]),
            rng.choice([3, 4, 9, 9]) + fraction,
        )

    levels = rng.choice([[0.0, 0.5, 1.0], [i / 20 for i in range(21)], [2.0, 2.5, 7.0], [0.3]])
    images: list[Image] = []
    for _ in range(rng.randint(1, 5)):
        faces = [box() for _ in range(rng.choice([0, 1, 2, 5]))]
        counted = {
            setting: [rng.random() < share for _ in faces]
            for setting, share in (("few", 0.3), ("most", 0.8), ("none", 0))
        }
        rows = []
        for _ in range(rng.choice([0, 1, 4, 9])):
            near = rng.choice(faces) if faces and rng.random() < 0.6 else box()
            moved = (near[0] + rng.choice([0, 0, 1]), near[1], near[2], near[3] + rng.choice([0, 0, 1, 5]))
            rows.append((*moved, rng.choice(levels)))
        images.append((faces, counted, rows))
    return images


@pytest.mark.parametrize("block", range(20))
def test_equals_the_oracle(block: int) -> None:
    hits = 0
    for case in range(20):
        images = random_run(random.Random(1000 * block + case))
        curves = score(*pack(images))
        for setting in ("few", "most", "none"):
            precision, recall, ap = wider_oracle.curve(
                [(faces, counted[setting], rows) for faces, counted, rows in images]
            )
            curve = curves[setting]
            assert curve.precision.tolist() == precision, (block, case, setting)
            assert curve.recall.tolist() == recall, (block, case, setting)
            if curve.faces:
                assert curve.ap == pytest.approx(ap, abs=1e-12)
            else:
                assert math.isnan(curve.ap)
            hits += recall[-1] > 0
    assert hits > 5  # the cases are not all trivial


@pytest.mark.parametrize(
    ("image_list", "images", "expected"),
    [
        (None, 3226, {"easy": 0.907076, "medium": 0.881650, "hard": 0.738273}),
        ("test.txt", 320, {"easy": 0.887357, "medium": 0.869241, "hard": 0.754050}),
    ],
)
def test_numbers_of_the_official_tool(
    shared_data: Path, image_list: str | None, images: int, expected: dict[str, float]
) -> None:
    whole = read_ground_truth(shared_data / "wider_face" / "eval_gt")
    assert whole.faces_per_setting == {"easy": 7211, "medium": 13319, "hard": 31958}
    ids = whole.image_ids
    if image_list:
        ids = tuple(read_selection(shared_data / "wider_face" / image_list, whole.image_ids))
    predictions = read_predictions(
        shared_data / "predictions" / "retinaface_mnet025_wider_val.zip", ids, known_ids=whole.image_ids, strict=True
    )
    curves = score(whole.select(ids), predictions)
    assert len(ids) == images
    assert {setting: round(curve.ap, 6) for setting, curve in curves.items()} == expected
