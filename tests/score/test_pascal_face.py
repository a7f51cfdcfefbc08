"""Matching, alignment and AP of PASCAL face and AFW: by hand, against the slow oracle, against face-eval's numbers."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.score.pascal_face.average_precision import (
    Alignment,
    PascalFaceResult,
    evaluate_detections,
    lower_top,
    weighted_ap,
)
from fanet_lightning.score.pascal_face.benchmark import PascalFaceBenchmark
from fanet_lightning.score.pascal_face.ground_truth import PascalFaceDetections, PascalFaceGroundTruth
from tests.score.pascal_face_oracle import Detection, Face, oracle_scores

A: Face = (100, 100, 139, 139, False)  # 40 × 40 pixels with the last ones


def evaluate(
    faces: Mapping[str, Sequence[Face]], detections: Sequence[Detection], *, alignment: bool = False
) -> PascalFaceResult:
    ids = tuple(faces)
    truth = PascalFaceGroundTruth(
        ids,
        [np.array([face[:4] for face in faces[i]], np.float64).reshape(-1, 4) for i in ids],
        [np.array([face[4] for face in faces[i]], np.bool_) for i in ids],
        tuple(f"{i}.jpg" for i in ids),
    )
    index = np.array([ids.index(name) for name, *_ in detections], np.int64)
    numbers = np.array([own for _, *own in detections], np.float64).reshape(-1, 5)
    found = PascalFaceDetections(ids, index, numbers[:, 1:], numbers[:, 0])
    return evaluate_detections(truth, found, alignment=alignment)


def outcomes(result: PascalFaceResult) -> list[str]:
    return [
        "hit" if hit else "false" if wrong else "neither"
        for hit, wrong in zip(result.hit, result.false_positive, strict=True)
    ]


# 40 × 20 of 40 × 40 pixels: exactly one half is not enough; 40 × 21.
@pytest.mark.parametrize(("y2", "outcome"), [(119, "false"), (120, "hit")])
def test_overlap_counts_last_pixel_and_must_exceed_one_half(y2: int, outcome: str) -> None:
    assert outcomes(evaluate({"a": [A]}, [("a", 1.0, 100, 100, 139, y2)])) == [outcome]


@pytest.mark.parametrize(
    "detections", [[], [("a", 1.0, 300, 300, 340, 340)], [("b", 1.0, 300, 300, 340, 340)], [("a", 1.0, 0, 0, 5, 5)]]
)
def test_alignment_without_a_hit_changes_nothing(detections: list[Detection]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate({"a": [A], "b": []}, detections, alignment=True)
    assert (result.curve.ap, result.alignment) == (0.0, Alignment(0, 0, 1, 1))
    assert np.isfinite(result.boxes_xyxy).all()


def test_lower_top() -> None:
    boxes = np.array([[10.0, 20.0, 30.0, 70.0], [0.0, -10.0, 5.0, 0.0]])
    np.testing.assert_allclose(lower_top(boxes), [[10, 30, 30, 70], [0, -8, 5, 0]])
    np.testing.assert_allclose(lower_top(boxes, 0.5)[:, 1], [45, -5])
    assert list(boxes[:, 1]) == [20, -10]


def random_case(seed: int) -> tuple[dict[str, list[Face]], list[Detection]]:
    """Few coordinates and few scores, so that ties of every kind are common; one shift and scale for all."""
    rng = np.random.default_rng(seed)
    faces: dict[str, list[Face]] = {}
    for i in range(rng.integers(1, 7)):
        own: list[Face] = []
        for _ in range(rng.integers(0, 5)):
            x, y = (int(v) for v in rng.integers(0, 8, 2) * 10)
            width, height = (int(v) for v in rng.choice([20, 29, 30, 40, 40, 40, 50, 60], 2))
            face: Face = (x, y, x + width, y + height, bool(rng.random() < 0.2))
            own += [face, (*face[:4], bool(rng.random() < 0.3))] if rng.random() < 0.2 else [face]
        faces[f"{i}"] = own
    shift, scale = rng.integers(-8, 9, 2), rng.choice([0.6, 0.75, 1.0, 1.25])
    detections: list[Detection] = []
    for image, own in faces.items():
        for _ in range(rng.integers(0, 9)):
            if own and rng.random() < 0.8:
                box = np.array(own[rng.integers(len(own))][:4], np.float64)
                centre = (box[:2] + box[2:]) / 2 + shift + rng.integers(-4, 5, 2)
                half = (box[2:] - box[:2]) / 2 * scale
            else:
                centre, half = rng.integers(0, 100, 2).astype(float), rng.integers(5, 30, 2).astype(float)
            score = float(rng.integers(0, 6)) / 5
            detections.append((image, score, *(float(v) for v in [*(centre - half), *(centre + half)])))
    order = rng.permutation(len(detections))
    return faces, [detections[i] for i in order]


@pytest.mark.parametrize("first", range(0, 800, 200))
def test_equal_to_oracle(first: int) -> None:
    aps, kinds = set(), set()
    for seed in range(first, first + 200):
        faces, detections = random_case(seed)
        for passes in (1, 5):
            result = evaluate(faces, detections, alignment=passes > 1)
            expected = oracle_scores(faces, detections, passes=passes)
            assert outcomes(result) == expected.outcomes
            boxes = np.array([d[2:] for d in expected.detections]).reshape(-1, 4)
            np.testing.assert_allclose(result.boxes_xyxy, boxes, atol=1e-9)
            assert result.curve.thresholds.tolist() == [d[1] for d in expected.detections]
            ap = np.nan if expected.ap is None else expected.ap
            assert result.curve.ap == pytest.approx(ap, abs=1e-12, nan_ok=True)
            if passes > 1:
                assert result.alignment == pytest.approx(expected.alignment, abs=1e-9)
        aps.add(expected.ap)
        kinds |= set(expected.outcomes)
    # The cases are worth something: many different answers, every outcome.
    assert len(aps) > 60
    assert kinds == {"hit", "false", "neither"}


def test_weighted_ap_equals_scoring_the_multiset() -> None:
    different = 0
    for seed in range(300):
        faces, detections = random_case(seed)
        result = evaluate(faces, detections, alignment=True)
        kept = oracle_scores(faces, detections).detections
        weights = np.random.default_rng(seed).integers(0, 4, (3, len(faces)))
        weights[0] = 1
        found = weighted_ap(result, weights)
        for row, value in zip(weights, found, strict=True):
            times = dict(zip(faces, row.tolist(), strict=True))
            many = {f"{image}#{k}": faces[image] for image in faces for k in range(times[image])}
            copies = [(f"{d[0]}#{k}", *d[1:]) for d in kept for k in range(times[d[0]])]
            expected = oracle_scores(many, copies, passes=1, size_filter=False).ap
            assert value == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True)
            different += expected is not None and abs(expected - result.curve.ap) > 1e-3
        assert found[0] == pytest.approx(result.curve.ap, abs=1e-12, nan_ok=True)
    assert different > 150


@pytest.mark.parametrize(
    ("labels", "alignment", "ap"),
    [("corrected", True, 89.6299), ("corrected", False, 87.1771), ("original", True, 82.7589)],
)
def test_headhunter_as_face_eval_has_it(shared_data: Path, labels: str, alignment: bool, ap: float) -> None:
    benchmark = PascalFaceBenchmark(labels, alignment)
    truth = benchmark.read_ground_truth(shared_data / "pascal_face")
    scores = benchmark.score(truth, shared_data / "predictions" / "pascal_headhunter.txt")
    assert round(100 * scores.values["ap"]["all"], 4) == ap
    assert scores.warnings == (
        "4 of 851 images have no predictions and count as empty: 2007_008690, 2008_003933, 2011_000280, …",
    )
