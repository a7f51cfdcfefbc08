"""FDDB as a benchmark, from files to numbers, and rectangles turned into ellipses."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.score.fddb.benchmark import FddbBenchmark, FddbPredictions, fit_without_fold
from fanet_lightning.score.fddb.ground_truth import FddbGroundTruth
from fanet_lightning.score.fddb.regions import fit_ellipses, inscribed_ellipses
from tests.score.fddb_files import block, write_detections, write_folds, write_sizes
from tests.score.helpers import refused

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fddb.json").read_text())


def test_golden_set_from_files_to_curves(tmp_path: Path) -> None:
    """The small set over folds 1 … 4."""
    faces: dict[int, dict[str, Any]] = defaultdict(dict)
    rows: dict[int, dict[str, Any]] = defaultdict(dict)
    for place, image in enumerate(GOLDEN["images"]):
        faces[1 + place // 3][image["image_id"]], rows[1 + place // 3][image["image_id"]] = (
            image["faces"],
            image["rows"],
        )
    write_folds(tmp_path / "FDDB-folds", faces)
    write_sizes(tmp_path / "image_sizes.json", faces, (GOLDEN["width"], GOLDEN["height"]))
    write_detections(tmp_path / "run", rows)
    scores = FddbBenchmark().score(FddbBenchmark().read_ground_truth(tmp_path), tmp_path / "run", strict=True)
    count = sum(len(image["faces"]) for image in GOLDEN["images"])
    assert (scores.faces, scores.rules["folds"], len(scores.image_ids)) == ({"all": count}, [1, 2, 3, 4], 12)
    end = GOLDEN["lines"][0]
    for setting in ("1000", "2000", "max"):
        assert scores.values["discrete"][setting] == end[1] / count
        assert scores.values["continuous"][setting] == pytest.approx(end[2] / count)
    assert scores.warnings == ("4 of 10 folds: the numbers do not compare with published ones",)
    discrete, continuous = scores.write_curves(tmp_path / "out")
    expected = [
        (f"{hits / count:g} {false:g} {threshold:g}", f"{total / count:g} {false:g}")
        for threshold, hits, total, false in GOLDEN["lines"]
    ]
    assert list(zip(discrete.read_text().splitlines(), continuous.read_text().splitlines(), strict=True)) == expected


def test_rates_at_the_limits(tmp_path: Path) -> None:
    """1,002 faces that are lines of 9 pixels; the found ones are 1, each between two false positives."""
    faces = {1: {f"2002/a/img_{number}": [(4, 0, 0, 10, 3)] for number in range(1002)}}
    write_folds(tmp_path / "fddb", faces)
    write_sizes(tmp_path / "fddb" / "image_sizes.json", faces, (40, 10))
    rows = {1: {}}
    for number, image_id in enumerate(faces[1]):
        # Scores fall: a false positive, a hit on two thirds of the line, a false positive; half of the images.
        score = 1 - number / 2000
        rows[1][image_id] = [(20, 5, 3, 3, score), (6, 3, 5, 0, score - 1e-4), (20, 5, 3, 3, score - 2e-4)]
    write_detections(tmp_path / "run", rows)
    benchmark = FddbBenchmark()
    scores = benchmark.score(benchmark.read_ground_truth(tmp_path / "fddb"), tmp_path / "run", strict=True)
    # After 1,000 false positives 500 faces are found, and the next detection is a false positive.
    assert scores.values["discrete"] == {"1000": 500 / 1002, "2000": 1000 / 1002, "max": 1.0}
    for setting, rate in scores.values["discrete"].items():
        assert scores.values["continuous"][setting] == pytest.approx(rate * 6 / 9)


def made_pairs(rng: np.random.Generator, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles, and ellipses that follow from them: half-axes 0.5 w + 0.25 h and 0.4 w, centre moved by 0.1 h."""
    rows = np.column_stack([rng.uniform(0, 300, (pairs, 2)), rng.uniform(20, 200, (pairs, 2))])
    w, h = rows[:, 2], rows[:, 3]
    angle = np.pi / 2 - np.pi * rng.integers(0, 2, pairs)  # π/2 and -π/2 are the same axis
    ellipses = np.column_stack([0.5 * w + 0.25 * h, 0.4 * w, angle, rows[:, 0] + w / 2, rows[:, 1] + 0.6 * h])
    return rows, ellipses


def test_fit_equals_the_normal_equations() -> None:
    rng = np.random.default_rng(6)
    rows, ellipses = made_pairs(rng, 60)
    ellipses[:, :2] += rng.normal(0, 3, (60, 2))
    ellipses[:, 3:] += rng.normal(0, 3, (60, 2))
    # Half-axes are taken along the common angle: a lying ellipse is one that is short there.
    lying = ellipses.copy()
    lying[:5, :2], lying[:5, 2] = ellipses[:5, 1::-1], 0
    fit = fit_ellipses(rows, lying)
    targets = [ellipses[:, 0], ellipses[:, 1], ellipses[:, 3] - rows[:, 0] - rows[:, 2] / 2]
    for column, target in enumerate(targets):
        normal, right = np.zeros((2, 2)), np.zeros(2)
        for (_, _, w, h), value in zip(rows, target, strict=True):
            normal += np.outer([w, h], [w, h]) / h**2
            right += np.array([w, h]) * value / h**2
        assert fit.coefficients[:, column] == pytest.approx(np.linalg.solve(normal, right))


def crowd(folds: int, rng: np.random.Generator) -> tuple[FddbGroundTruth, FddbPredictions]:
    """One upright face of 30 × 20 half-axes an image, and the box around the part of it that detectors like."""
    count = 12 * folds
    faces = [np.array([[30.0, 20.0, np.pi / 2, *rng.uniform(60, 140, 2)]]) for _ in range(count)]
    rows = [np.array([[face[0, 3] - 17, face[0, 4] - 20, 34, 44]]) + rng.normal(0, 1, (1, 4)) for face in faces]
    ids = tuple(f"2002/01/01/big/img_{number}" for number in range(count))
    of_image = np.repeat(np.arange(1, folds + 1), 12)
    truth = FddbGroundTruth(ids, of_image, faces, np.full((count, 2), 200))
    return truth, FddbPredictions(ids, tuple(rows), tuple(rng.random((count, 1))))


def test_cross_fitted_ellipses_fit_better_and_are_named() -> None:
    truth, predictions = crowd(3, np.random.default_rng(8))
    scores = {
        ellipses: FddbBenchmark(ellipses).score_predictions(truth, predictions)
        for ellipses in ("as_given", "inscribed", "cross_fitted")
    }
    rates = {ellipses: own.values["continuous"]["max"] for ellipses, own in scores.items()}
    assert rates["cross_fitted"] > 0.9 > rates["as_given"] > rates["inscribed"]
    for ellipses, own in scores.items():
        assert own.rules["ellipses"] == ellipses
        assert any(f"ellipses={ellipses}" in warning for warning in own.warnings) == (ellipses != "as_given")
    assert scores["cross_fitted"].rules["pairs_of_fit"] == {"1": 24, "2": 24, "3": 24}
    upright, lying, circle = inscribed_ellipses([(10, 20, 6, 8), (0, 0, 8, 6), (1, 1, 4, 4)]).tolist()
    assert (upright, lying) == ([4, 3, np.pi / 2, 13, 24], [4, 3, 0, 4, 3])
    assert circle == [2, 2, np.pi / 2, 3, 3]


def test_no_fold_fits_itself() -> None:
    truth, predictions = crowd(3, np.random.default_rng(8))
    moved = [face + 3 * (fold == 2) for face, fold in zip(truth.ellipses, truth.folds, strict=True)]
    fits, others = (fit_without_fold(own, predictions) for own in (truth, replace(truth, ellipses=moved)))
    assert list(fits) == [1, 2, 3]
    assert np.array_equal(others[2].coefficients, fits[2].coefficients)
    assert not np.allclose(others[1].coefficients, fits[1].coefficients)


def test_boxes_that_cannot_be_fitted(tmp_path: Path) -> None:
    truth, predictions = crowd(1, np.random.default_rng(8))
    refused("to 20 found faces .* 0;", FddbBenchmark("cross_fitted").score_predictions, truth, predictions)
    joined = tmp_path / "ellipses.txt"
    joined.write_text(block(truth.image_ids[0], [(5, 4, 0, 20, 20, 0.5)]))
    for ellipses in ("cross_fitted", "inscribed"):
        refused(f"ellipses already; leave benchmark.ellipses={ellipses}", FddbBenchmark(ellipses).score, truth, joined)


def test_ellipses_of_the_reference_detections(shared_data: Path) -> None:
    """Ours, measured once: what turning the boxes into ellipses is worth (0.896345 and 0.674485 without)."""
    benchmark = FddbBenchmark("cross_fitted")
    truth = benchmark.read_ground_truth(shared_data / "fddb")
    values = benchmark.score(truth, shared_data / "predictions" / "fddb_mtcnn").values
    assert (values["discrete"]["max"], values["continuous"]["max"]) == pytest.approx((0.898085, 0.768381), abs=1e-6)
