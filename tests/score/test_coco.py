"""COCO's average precision: the reference tool, our own matching and a slow oracle say the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.score.bootstrap import image_weights, interval_of
from fanet_lightning.score.coco import (
    CocoBenchmark,
    CocoDetections,
    CocoGroundTruth,
    average_precision,
    match,
    precision_at_recalls,
    read_ground_truth,
    read_results,
    reference_precision,
)
from tests.score import coco_oracle as oracle
from tests.score.coco_cases import SETTINGS, as_oracle_images, plain, plain_ap, random_case

Case = tuple[dict[str, Any], list[dict[str, Any]]]


def write(folder: Path, case: Case) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(case[0]))
    (folder / "found.json").write_text(json.dumps(case[1]))
    return folder / "truth.json", folder / "found.json"


def read(folder: Path, case: Case, category: str | None = None) -> tuple[CocoGroundTruth, CocoDetections]:
    truth, found = write(folder, case)
    ground_truth = read_ground_truth(truth, category=category)
    return ground_truth, read_results(found, ground_truth)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coco")


def same(found: dict[str, float], expected: dict[str, float], within: float = 1e-12) -> None:
    assert list(found) == list(expected) == SETTINGS
    for setting in SETTINGS:
        np.testing.assert_allclose(found[setting], expected[setting], rtol=0, atol=within, err_msg=setting)


# By hand


def test_two_faces_two_hits_and_a_miss_between_them(folder: Path) -> None:
    """Precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3; at overlap 0.81 the second is lost from 0.85 on."""
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "face"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]},
            {"image_id": 1, "category_id": 1, "bbox": [200, 0, 100, 100]},
        ],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [500, 0, 100, 100], "score": 0.8},
        {"image_id": 1, "category_id": 1, "bbox": [200, 0, 90, 90], "score": 7e-1},
    ]
    paths = write(folder, (truth, found))
    benchmark = CocoBenchmark(backend="pycocotools")
    scores = benchmark.score(benchmark.read_ground_truth(paths[0]), paths[1])
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    ap = scores.values["ap"]
    assert ap["50"] == pytest.approx(both, abs=1e-12)
    assert ap["75"] == pytest.approx(both, abs=1e-12)
    assert ap["all"] == pytest.approx((7 * both + 3 * one) / 10, abs=1e-12)
    assert ap["large"] == pytest.approx((7 * both + 3 * one) / 10, abs=1e-12)
    assert np.isnan(ap["small"]) and np.isnan(ap["medium"])
    assert scores.faces == {"all": 2, "50": 2, "75": 2, "small": 0, "medium": 0, "large": 2}
    assert scores.image_ids == ("a",)
    assert scores.headline == "COCO, 1 images"


def crowded(faces: int) -> Case:
    boxes = [[20.0 * (i % 20), 20.0 * (i // 20), 16.0, 16.0] for i in range(faces)]
    truth = {
        "images": [{"id": 1, "file_name": "crowd.jpg"}],
        "categories": [{"id": 1, "name": "face"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 256.0, "iscrowd": 0}
            for i, box in enumerate(boxes, start=1)
        ],
    }
    return truth, [{"image_id": 1, "category_id": 1, "bbox": b, "score": 1 - i / 1000} for i, b in enumerate(boxes)]


def test_four_hundred_perfect_detections_are_perfect_unless_cut_off_at_a_hundred(folder: Path) -> None:
    truth, found = write(folder, crowded(400))
    assert plain_ap(plain(*crowded(400), cap=100))["all"] == pytest.approx(0.257, abs=5e-4)
    for cap, expected in ((1000, 1.0), (100, 26 / 101)):
        benchmark = CocoBenchmark(max_detections=cap, backend="pycocotools")
        ap = benchmark.score(benchmark.read_ground_truth(truth), found).values["ap"]
        assert ap["all"] == pytest.approx(expected, abs=1e-12)
    assert CocoBenchmark().max_detections >= 1000


def test_a_face_that_is_number_0_is_a_face_like_any_other(folder: Path) -> None:
    case = crowded(4)
    for annotation in case[0]["annotations"]:
        annotation["id"] -= 1
    assert plain_ap(plain(*case))["all"] < 0.8  # what a plain call makes of it
    truth, found = write(folder, case)
    benchmark = CocoBenchmark(backend="pycocotools")
    assert benchmark.score(benchmark.read_ground_truth(truth), found).values["ap"]["all"] == pytest.approx(1.0)


def test_a_crowd_takes_any_number_of_rows_and_counts_neither_way(folder: Path) -> None:
    truth, found = crowded(2)
    truth["annotations"][1]["iscrowd"] = 1
    inside = {"image_id": 1, "category_id": 1, "bbox": [22.0, 2.0, 4.0, 4.0], "score": 2.0}
    case = truth, [inside, inside, *found]
    scores = CocoBenchmark(backend="pycocotools").score(*paths(folder, case))
    assert scores.values["ap"]["all"] == pytest.approx(1.0)
    assert scores.faces["all"] == 1
    truth["annotations"][1]["iscrowd"] = 0  # a face: 0.06 of it is covered, so both rows are misses in front
    scores = CocoBenchmark(backend="pycocotools").score(*paths(folder, case))
    assert scores.values["ap"]["all"] == pytest.approx(0.5)


@pytest.mark.parametrize(("first", "expected"), [(0.0, 1.0), (4.0, 51 / 101)])
def test_of_two_faces_equally_far_the_later_in_the_file_is_taken(folder: Path, first: float, expected: float) -> None:
    """The first row overlaps both faces by 2/3, the second only the left one, which must still be free for it."""
    truth, _ = crowded(2)
    for annotation, x in zip(truth["annotations"], (first, 4.0 - first), strict=True):
        annotation["bbox"] = [x, 0.0, 10.0, 10.0]
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [x, 0.0, 10.0, 10.0], "score": score}
        for x, score in ((2.0, 0.9), (-2.0, 0.8))
    ]
    ground_truth, detections = read(folder, (truth, rows))
    assert plain_ap(plain(truth, rows))["50"] == pytest.approx(expected)
    assert average_precision(match(ground_truth, detections))["50"] == pytest.approx(expected)


def paths(folder: Path, case: Case) -> tuple[CocoGroundTruth, Path]:
    truth, found = write(folder, case)
    return read_ground_truth(truth), found


# Against the tool and the oracle


@pytest.mark.parametrize("categories", [1, 3])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cap=st.sampled_from([1, 3, 1000]), ties=st.booleans())
def test_values_are_those_of_a_plain_call_and_our_matching_agrees(
    folder: Path, categories: int, seed: int, cap: int, ties: bool
) -> None:
    case = random_case(seed, categories=categories, ties=ties)
    expected = plain_ap(plain(*case, cap=cap))
    ground_truth, detections = read(folder, case)
    scores = CocoBenchmark(max_detections=cap, backend="pycocotools").score_detections(ground_truth, detections)
    same(dict(scores.values["ap"]), expected)
    own = average_precision(match(ground_truth, detections, cap))
    same({setting: value.item() for setting, value in own.items()}, expected)
    scores = CocoBenchmark(max_detections=cap, backend="numpy").score_detections(ground_truth, detections)
    same(dict(scores.values["ap"]), expected)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cap=st.sampled_from([1, 3, 1000]))
def test_a_slow_oracle_says_the_same(folder: Path, seed: int, cap: int) -> None:
    case = random_case(seed, images=4)
    images = as_oracle_images(*case)
    expected = {setting: oracle.average_precision(images, setting, cap) for setting in SETTINGS}
    same(plain_ap(plain(*case, cap=cap)), expected)
    own = average_precision(match(*read(folder, case), cap))
    same({setting: value.item() for setting, value in own.items()}, expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_are_judged_one_by_one_as_the_tool_judges_them(folder: Path, seed: int) -> None:
    case = random_case(seed)
    tool = plain(*case)
    ground_truth, detections = read(folder, case)
    (rows,) = match(ground_truth, detections)
    np.testing.assert_allclose(precision_at_recalls([rows]), tool.eval["precision"][..., 0], rtol=0, atol=1e-12)
    numbers = sorted(image["id"] for image in case[0]["images"])
    checked = 0
    for place, number in enumerate(numbers):
        own = rows.image == place
        for area, limits in enumerate(tool.params.areaRng):
            (image,) = [
                e for e in tool.evalImgs if e is not None and e["image_id"] == number and e["aRng"] == limits
            ] or [None]
            if image is None:
                assert not own.any()
                continue
            # Within an image both are by score, equal ones in file order.
            assert rows.scores[own].tolist() == image["dtScores"]
            ignored = image["dtIgnore"].astype(bool)
            np.testing.assert_array_equal(rows.ignored[:, area, own], ignored)
            np.testing.assert_array_equal(rows.hits[:, area, own], (image["dtMatches"] > 0) & ~ignored)
            assert rows.faces[area, place] == np.sum(image["gtIgnore"] == 0)
            checked += 1
    assert checked == 4 * len({e["image_id"] for e in tool.evalImgs if e is not None})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), categories=st.sampled_from([1, 2]))
def test_a_resample_is_the_tool_on_copies_of_the_images(folder: Path, seed: int, categories: int) -> None:
    case = random_case(seed, ties=False, categories=categories)
    # Equal scores in different images are fair game; within one image they are the stated exception.
    for results in case[1]:
        results["score"] = round(results["score"], 3)
    for number in {r["image_id"] for r in case[1]}:
        own = [r for r in case[1] if r["image_id"] == number]
        for rank, r in enumerate(own):
            r["score"] = (rank + 1) / 100
    weights = np.random.default_rng(seed).integers(0, 4, (2, len(case[0]["images"])))
    found = average_precision(match(*read(folder, case)), weights.astype(np.float32))
    numbers = sorted(image["id"] for image in case[0]["images"])
    for draw, row in enumerate(weights):
        copies = [(number, number * 10 + k) for number, times in zip(numbers, row, strict=True) for k in range(times)]
        if not copies:
            continue
        truth = {
            "images": [{"id": new} for _, new in copies],
            "categories": case[0]["categories"],
            "annotations": [
                {**a, "image_id": new} for old, new in copies for a in case[0]["annotations"] if a["image_id"] == old
            ],
        }
        for i, annotation in enumerate(truth["annotations"], start=1):
            annotation["id"] = i
        results = [{**r, "image_id": new} for old, new in copies for r in case[1] if r["image_id"] == old]
        same({setting: float(found[setting][draw]) for setting in SETTINGS}, plain_ap(plain(truth, results)))


def test_resampled_values_are_drawn_over_the_same_images_as_everywhere(folder: Path) -> None:
    case = random_case(5, images=12)
    ground_truth, detections = read(folder, case)
    scores = CocoBenchmark().score_detections(ground_truth, detections)
    drawn = scores.resampled(40, 3)["ap"]
    assert list(drawn) == SETTINGS
    rows = match(ground_truth, detections)
    for part, weights in image_weights(12, 40, 3):
        np.testing.assert_array_equal(drawn["all"][part], average_precision(rows, weights)["all"])
    np.testing.assert_array_equal(scores.resampled(40, 3)["ap"]["all"], drawn["all"])
    assert not np.array_equal(scores.resampled(40, 4)["ap"]["all"], drawn["all"])
    interval = interval_of(scores.values["ap"]["all"], drawn["all"])
    assert interval.low < interval.high


def test_values_do_not_depend_on_how_many_resamples_are_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = match(*read(folder, random_case(5, images=12, categories=2)))
    weights = np.random.default_rng(0).integers(0, 3, (7, 12)).astype(np.float32)
    together = average_precision(rows, weights)
    monkeypatch.setattr("fanet_lightning.score.coco._NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr("fanet_lightning.score.coco._CURVES_AT_ONCE", 3)
    apart = average_precision(rows, weights)
    for setting in SETTINGS:
        np.testing.assert_array_equal(apart[setting], together[setting])


def test_a_disagreement_between_the_tool_and_our_matching_is_never_kept_quiet(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground_truth, detections = read(folder, random_case(5))
    benchmark = CocoBenchmark(backend="pycocotools")
    precision = reference_precision(ground_truth, detections, 1000, "pycocotools") * 0.5
    monkeypatch.setattr("fanet_lightning.score.coco.reference_precision", lambda *_: precision)
    with pytest.raises(RuntimeError, match=r"AP all is .* here and .* in the reference tool"):
        benchmark.score_detections(ground_truth, detections).resampled(2, 0)


@pytest.mark.parametrize("seed", range(12))
def test_the_compiled_tool_gives_the_same_numbers(folder: Path, seed: int) -> None:
    pytest.importorskip("faster_coco_eval")
    case = random_case(seed, images=20, categories=1 + seed % 3, ties=seed % 2 == 0)
    ground_truth, detections = read(folder, case)
    for cap in (2, 1000):
        slow, fast = (
            CocoBenchmark(max_detections=cap, backend=backend).score_detections(ground_truth, detections)
            for backend in ("pycocotools", "faster_coco_eval")
        )
        same(dict(fast.values["ap"]), dict(slow.values["ap"]))
        fast.resampled(2, 0)  # and our matching agrees, else it would raise
    assert CocoBenchmark().backend == "faster_coco_eval"  # of itself, where it is installed
    assert str(fast.rules["backend"]).startswith("faster-coco-eval 1.")


# Edges


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ground_truth, detections = read(folder, random_case(1))
    CocoBenchmark().score_detections(ground_truth, detections).resampled(2, 0)
    assert capfd.readouterr() == ("", "")


def test_without_a_row_ap_is_0_and_without_a_face_there_is_none(folder: Path) -> None:
    truth, found = random_case(2)
    ground_truth, detections = read(folder, (truth, []))
    scores = CocoBenchmark(backend="pycocotools").score_detections(ground_truth, detections)
    assert scores.values["ap"]["all"] == 0.0
    assert (scores.resampled(5, 0)["ap"]["all"] == 0.0).any()
    assert "6 of 6 images have no predictions and count as empty" in scores.warnings[0]
    ground_truth, detections = read(folder, ({**truth, "annotations": []}, found))
    scores = CocoBenchmark(backend="pycocotools").score_detections(ground_truth, detections)
    assert all(np.isnan(value) for value in scores.values["ap"].values())
    assert all(np.isnan(value).all() for value in scores.resampled(5, 0)["ap"].values())
    assert set(scores.faces.values()) == {0}


def test_a_resample_without_a_face_has_no_ap(folder: Path) -> None:
    truth, found = random_case(2)
    place = sorted(image["id"] for image in truth["images"]).index(truth["annotations"][0]["image_id"])
    truth["annotations"] = truth["annotations"][:1]
    truth["annotations"][0]["iscrowd"] = 0
    weights = np.ones((2, 6))
    weights[1, place] = 0
    ap = average_precision(match(*read(folder, (truth, found))), weights)["all"]
    assert not np.isnan(ap[0]) and np.isnan(ap[1])


def test_one_category_by_name_or_the_mean_of_all(folder: Path) -> None:
    truth, found = random_case(11, categories=2)
    both = CocoBenchmark(backend="pycocotools")
    benchmarks = [CocoBenchmark(category=name, backend="pycocotools") for name in ("kind 1", "kind 2")]
    paths = write(folder, (truth, found))
    mean, *single = (b.score(b.read_ground_truth(paths[0]), paths[1]) for b in (both, *benchmarks))
    singles = [scores.values["ap"]["all"] for scores in single]
    assert singles[0] != pytest.approx(singles[1])
    assert mean.values["ap"]["all"] == pytest.approx(sum(singles) / 2)
    assert mean.faces["all"] == single[0].faces["all"] + single[1].faces["all"]
    assert single[0].rules["category"] == "kind 1"


def test_programmers_errors_are_named(folder: Path) -> None:
    ground_truth, detections = read(folder, random_case(1))
    one = ground_truth.select(ground_truth.image_ids[:1])
    with pytest.raises(ValueError, match="ground truth of 1 images, detections of 6"):
        match(one, detections)
    with pytest.raises(ValueError, match="ground truth of 1 images, detections of 6"):
        reference_precision(one, detections, 1000, "pycocotools")
    with pytest.raises(ValueError, match="max_detections 0"):
        match(ground_truth, detections, 0)
    with pytest.raises(ValueError, match="backend 'other'"):
        reference_precision(ground_truth, detections, 1000, "other")
    with pytest.raises(ValueError, match=r"weights \(6,\) for 6 images"):
        average_precision(match(ground_truth, detections), np.ones(6))
    for function in (average_precision, precision_at_recalls):
        with pytest.raises(ValueError, match="no category"):
            function([])


def test_curves_are_kept_with_what_their_axes_are(tmp_path: Path, folder: Path) -> None:
    ground_truth, detections = read(folder, random_case(3, categories=2))
    scores = CocoBenchmark(backend="pycocotools").score_detections(ground_truth, detections)
    (path,) = scores.write_curves(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pr_curves.npz"] == [path.name]
    with np.load(path) as curves:
        assert curves["precision"].shape == (10, 101, 2, 4)
        assert float(np.nanmean(curves["precision"][..., 0])) == pytest.approx(scores.values["ap"]["all"])
        assert curves["iou_thresholds"][[0, 9]].tolist() == [0.5, 0.95] and curves["recall"][[0, 100]].tolist() == [
            0,
            1,
        ]
        assert curves["categories"].tolist() == ["kind 1", "kind 2"]
        assert curves["areas"].tolist() == ["all", "small", "medium", "large"]
