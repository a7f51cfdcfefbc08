"""FDDB's matching, curves and resamples, against the rules in plain Python and the official program's output."""

import json
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.score.bootstrap import image_weights
from fanet_lightning.score.fddb import roc as fddb
from fanet_lightning.score.fddb.roc import match_image, merge_images, resampled_rates, roc_from_counts
from tests.score import fddb_oracle as oracle


def random_image(rng: np.random.Generator, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    faces, detections = rng.integers(0, 5), rng.integers(0, 6)
    # Half of them near one half, where a changed assignment changes the discrete score.
    low, high = (0.45, 0.55) if rng.random() < 0.5 else (0.0, 1.0)
    overlapping = rng.random((faces, detections)) < rng.choice([0.2, 0.5, 1.0])
    if rng.random() < 0.3:  # a chain, where one detection can make all others change over
        overlapping = np.isin(np.arange(detections) - np.arange(faces)[:, None], (0, 1))
    iou = rng.uniform(low, high, (faces, detections)) * overlapping
    scores = rng.integers(0, 4, detections) / 4 if rng.random() < 0.5 else rng.random(detections)
    return (np.round(iou * 8) / 8 if ties else iou), scores


@pytest.mark.parametrize("ties", [False, True])
def test_matching_equals_all_permutations_at_each_threshold(ties: bool) -> None:
    rng = np.random.default_rng(11 + ties)
    larger_than_a_star = fell = 0
    for _ in range(900):
        iou, scores = random_image(rng, ties)
        found = match_image(iou, scores)
        expected = oracle.match_image(iou, scores.tolist())[::-1]
        assert found[:, 0].tolist() == [line[0] for line, _ in expected]
        for (threshold, hits, total, wrong), ((_, _, continuous, _), discrete) in zip(found, expected, strict=True):
            assert total == pytest.approx(continuous, abs=1e-12)
            assert hits in discrete
            assert ties or len(discrete) == 1
            assert wrong == (scores >= threshold).sum() - hits
        larger_than_a_star += ((iou > 0).sum(axis=0) > 1).sum() > 1
        fell += (np.diff(found[:, 1]) < 0).any()
    assert larger_than_a_star > 80
    assert ties or fell >= 5


def test_matchings_of_the_official_program(shared_data: Path) -> None:
    cases = json.loads((shared_data / "fddb" / "fixtures.json").read_text())["matchings"]
    assert len(cases) == 60
    optimal = 0
    for case in cases:
        iou = np.array(case["iou"])
        ((_, hits, total, _),) = match_image(iou, np.ones(iou.shape[1]))
        assert total == pytest.approx(case["optimal_sum"], abs=1e-9)
        if case["official_is_optimal"]:
            optimal += 1
            pairs = [iou[face, detection] for face, detection in case["official_pairs"]]
            assert total == pytest.approx(sum(pairs), abs=1e-9)
            assert hits == sum(value > 0.5 for value in pairs)
        else:
            assert total > case["official_sum"] + 1e-6
    assert optimal == 40


def random_set(rng: np.random.Generator, images: int) -> tuple[list[np.ndarray], list[int]]:
    made = [random_image(rng, ties=False) for _ in range(images)]
    return [match_image(*image) for image in made], [len(iou) for iou, _ in made]


def merged(images: list[np.ndarray]) -> list[oracle.Line]:
    return oracle.merge([[tuple(line) for line in own[::-1].tolist()] for own in images])


def test_curve_equals_the_official_merging() -> None:
    rng = np.random.default_rng(17)
    for _ in range(200):
        images, faces = random_set(rng, int(rng.integers(1, 7)))
        roc = roc_from_counts(merge_images(images, faces))
        expected = np.array(merged(images))
        assert roc.faces == sum(faces)
        assert roc.thresholds.tolist() == expected[:, 0].tolist()
        assert roc.tp_discrete.tolist() == expected[:, 1].tolist()
        assert roc.tp_continuous == pytest.approx(expected[:, 2], abs=1e-9)
        assert roc.false_positives.tolist() == expected[:, 3].tolist()
        for limit in (0, 1, 3, np.inf):
            assert roc.at(limit) == pytest.approx(oracle.rate_at(expected.tolist(), sum(faces), limit), nan_ok=True)


def by_hand_resampled(
    images: list[np.ndarray], faces: list[int], limits: list[float], samples: int, seed: int
) -> np.ndarray:
    """(2, limits, samples), each multiset of images written out and merged by the plain rules."""
    rates = []
    for _, weights in image_weights(len(images), samples, seed):
        for drawn in weights.astype(int).tolist():
            chosen = [i for i, times in enumerate(drawn) for _ in range(times)]
            lines, count = merged([images[i] for i in chosen]), sum(faces[i] for i in chosen)
            rates.append([oracle.rate_at(lines, count, limit) for limit in limits])
    return np.array(rates).transpose(2, 1, 0)


@pytest.mark.parametrize("steps_at_once", [1, 3, 4096])
def test_resamples_equal_scoring_the_drawn_images(monkeypatch: pytest.MonkeyPatch, steps_at_once: int) -> None:
    monkeypatch.setattr(fddb, "_STEPS_AT_ONCE", steps_at_once)
    rng = np.random.default_rng(19)
    for seed in range(40):
        images, faces = random_set(rng, int(rng.integers(1, 9)))
        found = resampled_rates(merge_images(images, faces), [2, 5], 15, seed)
        expected = by_hand_resampled(images, faces, [2, 5, np.inf], 15, seed)
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_resamples_when_false_positives_fall_back_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later step may take false positives away, so the curve may leave the limit and come back."""
    monkeypatch.setattr(fddb, "_STEPS_AT_ONCE", 1)
    # Two detections, each on the wrong side of one half, until a third lets both faces change over.
    image = np.array([[3.0, 0, 0.49, 1], [2.0, 0, 0.98, 2], [1.0, 2, 1.02, 1]])
    images, faces = [image, image], [2, 2]
    found = resampled_rates(merge_images(images, faces), [2], 20, 0)
    assert found == pytest.approx(by_hand_resampled(images, faces, [2, np.inf], 20, 0))
    assert found[0, 0].tolist() == [1.0] * 20
