"""COCO's average precision: the reference tool, our own matching and a slow oracle say the same."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.score.bootstrap import image_weights
from fanet_lightning.score.coco import (
    CocoBenchmark,
    CocoDetections,
    CocoGroundTruth,
    CocoScores,
    average_precision,
    evaluated,
    matched_rows,
    read_coco_curves,
    read_ground_truth,
    read_results,
)
from tests.score.coco_cases import SETTINGS, plain, plain_ap, random_case
from tests.score.helpers import invalid, refused

Case = tuple[dict[str, Any], list[dict[str, Any]]]


def write(folder: Path, case: Case) -> tuple[Path, Path]:
    (folder / "truth.json").write_text(json.dumps(case[0]))
    (folder / "found.json").write_text(json.dumps(case[1]))
    return folder / "truth.json", folder / "found.json"


def read(folder: Path, case: Case) -> tuple[CocoGroundTruth, CocoDetections]:
    truth, found = write(folder, case)
    ground_truth = read_ground_truth(truth)
    return ground_truth, read_results(found, ground_truth)


def scores_of(folder: Path, case: Case, **options: Any) -> CocoScores:
    return CocoBenchmark(**{"backend": "pycocotools", **options}).score_detections(*read(folder, case))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coco")


def same(found: Mapping[str, float], expected: Mapping[str, float]) -> None:
    assert list(found) == list(expected) == SETTINGS
    assert dict(found) == pytest.approx(dict(expected), rel=0, abs=1e-12, nan_ok=True)


# Against the tool and the oracle


@pytest.mark.parametrize("categories", [1, 3])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), cap=st.sampled_from([1, 3, 1000]), ties=st.booleans())
def test_values_are_those_of_a_plain_call_and_our_matching_agrees(
    folder: Path, categories: int, seed: int, cap: int, ties: bool
) -> None:
    case = random_case(seed, categories=categories, ties=ties)
    expected = plain_ap(plain(*case, cap=cap))
    scores = scores_of(folder, case, max_detections=cap)
    same(scores.values["ap"], expected)
    own = average_precision(matched_rows(scores.ground_truth, scores.detections, cap))
    same({setting: value.item() for setting, value in own.items()}, expected)


def test_a_face_that_is_number_0_is_a_face_like_any_other(folder: Path) -> None:
    case = random_case(5)
    expected = plain_ap(plain(*case))
    for annotation in case[0]["annotations"]:
        annotation["id"] -= 1
    assert plain_ap(plain(*case))["all"] < expected["all"]  # what a plain call makes of it
    same(scores_of(folder, case).values["ap"], expected)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), cap=st.sampled_from([2, 1000]))
def test_rows_are_judged_one_by_one_as_the_tool_judges_them(folder: Path, seed: int, cap: int) -> None:
    ground_truth, detections = read(folder, random_case(seed, categories=2))
    per_image = evaluated(ground_truth, detections, cap).evalImgs
    images = len(ground_truth.image_ids)
    for category, own in enumerate(matched_rows(ground_truth, detections, cap)):
        for area in range(4):
            first = (4 * category + area) * images
            found = [image for image in per_image[first : first + images] if image is not None]
            ids = np.concatenate([np.zeros(0, np.int64), *(image["dtIds"] for image in found)]).astype(np.int64) - 1
            order = np.argsort(-detections.scores[ids], kind="stable")
            np.testing.assert_array_equal(own.image, detections.image[ids][order])
            took, ignored = (
                np.concatenate([np.zeros((10, 0)), *(image[key] for image in found)], axis=1)[:, order] > 0
                for key in ("dtMatches", "dtIgnore")
            )
            np.testing.assert_array_equal(own.ignored[:, area], ignored)
            np.testing.assert_array_equal(own.hits[:, area], took & ~ignored)
            assert own.faces[area].sum() == sum(int(np.sum(np.equal(image["gtIgnore"], 0))) for image in found)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), categories=st.sampled_from([1, 2]))
def test_a_resample_is_the_tool_on_copies_of_the_images(folder: Path, seed: int, categories: int) -> None:
    case = random_case(seed, ties=False, categories=categories)
    # Equal scores in different images are fair game; within one image they are the stated exception.
    ranks: dict[int, int] = defaultdict(int)
    for result in case[1]:
        ranks[result["image_id"]] += 1
        result["score"] = ranks[result["image_id"]] / 100
    weights = np.random.default_rng(seed).integers(0, 4, (2, len(case[0]["images"])))
    found = average_precision(matched_rows(*read(folder, case)), weights.astype(np.float32))
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
    scores = scores_of(folder, random_case(5, images=12))
    drawn = scores.resampled(40, 3)["ap"]
    assert list(drawn) == SETTINGS
    rows = matched_rows(scores.ground_truth, scores.detections)
    for part, weights in image_weights(12, 40, 3):
        np.testing.assert_array_equal(drawn["all"][part], average_precision(rows, weights)["all"])
    # A disagreement between the tool and our matching is never kept quiet.
    other = replace(scores, values={"ap": {name: value / 2 for name, value in scores.values["ap"].items()}})
    with pytest.raises(RuntimeError, match=r"AP all is .* here and .* in the reference tool"):
        other.resampled(2, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_compiled_tool_gives_the_same_numbers(folder: Path, seed: int) -> None:
    pytest.importorskip("faster_coco_eval")
    case = random_case(seed, images=20, categories=1 + seed % 3, ties=seed % 2 == 0)
    for cap in (2, 1000):
        # Of itself, where it is installed.
        slow, fast = (scores_of(folder, case, max_detections=cap, backend=name) for name in ("pycocotools", "auto"))
        same(fast.values["ap"], slow.values["ap"])
        fast.resampled(2, 0)  # and our matching agrees, else it would raise
    assert str(fast.rules["backend"]).startswith("faster-coco-eval 1.")


def test_without_a_row_ap_is_0_and_without_a_face_there_is_none(folder: Path) -> None:
    truth, found = random_case(2)
    scores = scores_of(folder, (truth, []))
    assert scores.values["ap"]["all"] == 0.0
    assert (scores.resampled(5, 0)["ap"]["all"] == 0.0).any()
    assert "6 of 6 images have no predictions and count as empty" in scores.warnings[0]
    scores = scores_of(folder, ({**truth, "annotations": []}, found))
    assert np.isnan([*scores.values["ap"].values(), *scores.resampled(5, 0)["ap"]["all"]]).all()
    assert set(scores.faces.values()) == {0}


def test_one_category_by_name_or_the_mean_of_all_and_curves(folder: Path, tmp_path: Path) -> None:
    truth, found = write(folder, random_case(11, categories=2))
    benchmarks = [CocoBenchmark(category=name, backend="pycocotools") for name in (None, "kind 1", "kind 2")]
    mean, *single = (b.score(b.read_ground_truth(truth), found) for b in benchmarks)
    singles = [scores.values["ap"]["all"] for scores in single]
    assert singles[0] != pytest.approx(singles[1])
    assert mean.values["ap"]["all"] == pytest.approx(sum(singles) / 2)
    assert mean.faces["all"] == single[0].faces["all"] + single[1].faces["all"]
    assert single[0].rules["category"] == "kind 1"
    assert mean.write_curves(tmp_path) == [tmp_path / "pr_curves.npz"]
    with np.load(tmp_path / "pr_curves.npz") as curves:
        assert curves["precision"].shape == (10, 101, 2, 4)
        assert float(np.nanmean(curves["precision"][..., 0])) == pytest.approx(mean.values["ap"]["all"])
        assert curves["categories"].tolist() == ["kind 1", "kind 2"]
    means = [curve.ap for curve in read_coco_curves(tmp_path / "pr_curves.npz").values()]
    assert means == pytest.approx([mean.values["ap"]["50"], mean.values["ap"]["75"]])


# Files


def truth() -> dict[str, Any]:
    """Image numbers in no order, one image without a face, two categories."""
    return {
        "images": [
            {"id": 30, "file_name": "event/c.jpg"},
            {"id": 10, "file_name": "event/a.png"},
            {"id": 20, "file_name": "event/b.v2.jpg"},
        ],
        "categories": [{"id": 5, "name": "face"}, {"id": 2, "name": "head"}],
        "annotations": [
            {"id": 1, "image_id": 30, "category_id": 5, "bbox": [1, 2, 30, 40], "area": 900.5, "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 5, "bbox": [5.5, 6, 0, 8]},
            {"id": 3, "image_id": 30, "category_id": 2, "bbox": [0, 0, 50, 50], "iscrowd": 1},
        ],
    }


def found() -> list[dict[str, Any]]:
    return [
        {"image_id": 30, "category_id": 5, "bbox": [1, 2, 3e1, 40], "score": 9e-1},
        {"image_id": 10, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 0.5},
        {"image_id": 30, "category_id": 5, "bbox": [2, 2, 30, 40], "score": 1},
    ]


def put(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def ground_truth(tmp_path: Path) -> CocoGroundTruth:
    return read_ground_truth(put(tmp_path / "truth.json", truth()))


def test_what_is_read_by_hand(ground_truth: CocoGroundTruth, tmp_path: Path) -> None:
    # In the order of the file's image numbers; only the last extension goes.
    assert ground_truth.image_ids == ("event/a", "event/b.v2", "event/c")
    assert ground_truth.categories == ("head", "face")
    assert ground_truth.image.tolist() == [0, 2, 2]
    assert ground_truth.boxes_xywh.tolist() == [[5.5, 6, 0, 8], [1, 2, 30, 40], [0, 0, 50, 50]]
    assert ground_truth.category.tolist() == [1, 1, 0]
    assert ground_truth.areas.tolist() == [0, 900.5, 2500]  # without an area that of the box
    assert ground_truth.crowd.tolist() == [False, False, True]
    detections = read_results(put(tmp_path / "found.json", found()), ground_truth)
    assert detections.image.tolist() == [0, 2, 2]
    assert detections.boxes_xywh.tolist() == [[0, 0, 5, 5], [1, 2, 30, 40], [2, 2, 30, 40]]
    assert (detections.scores.tolist(), detections.category.tolist()) == ([0.5, 0.9, 1.0], [0, 1, 1])
    assert detections.missing == ("event/b.v2",)
    mixed = changed(truth(), "images", 0, "id", value="3") | {"annotations": []}  # numbers before texts
    assert read_ground_truth(put(tmp_path / "mixed.json", mixed)).image_ids == ground_truth.image_ids


def test_a_list_restricts_everything(ground_truth: CocoGroundTruth, tmp_path: Path) -> None:
    part = read_ground_truth(tmp_path / "truth.json", put(tmp_path / "list.txt", "event/c.jpg\nevent/a"))
    assert part.image_ids == ("event/a", "event/c")
    results = [*found(), {"image_id": 20, "category_id": 5, "bbox": [0, 0, 1, 1], "score": 0.1}]
    path = put(tmp_path / "found.json", results)
    assert read_results(path, part).scores.tolist() == [0.5, 0.9, 1.0]
    assert CocoBenchmark(backend="pycocotools").score(part, path).headline == "COCO sample, 2 of 3 images"
    # Thresholds of detect that go by size.
    own = {**truth(), "annotations": [], "settings": {"threshold": [[0.0, 0.01], [64.0, 0.3]]}}
    (line,) = read_results(put(tmp_path / "detections.json", own), part).warnings
    assert "above a score of 0.3 alone" in line


def changed(content: Any, *place: Any, value: Any) -> Any:
    *path, last = place
    inner = content
    for step in path:
        inner = inner[step]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    ("is_truth", "content", "message"),
    [
        (True, "{'images': []}", "cannot be read"),
        (True, {k: v for k, v in truth().items() if k != "annotations"}, "'annotations'"),
        (True, changed(truth(), "images", 2, "id", value=10), "images is there twice"),
        (True, changed(truth(), "annotations", 1, "image_id", value=11), r"annotations\[1\].* 11"),
        (True, changed(truth(), "annotations", 0, "bbox", 0, value=math.nan), r"annotations\[0\].*nan"),
        (False, {"annotations": found()}, "give a results file"),
        (False, {**truth(), "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "head"}]}, " 5"),
        (False, changed(found(), 2, "bbox", value=[90, 80, 100, -5]), r"\[2\].*negative"),
        (False, changed(found(), 2, "score", value="0,9"), r"\[2\].*0,9"),
    ],
)
def test_bad_files_are_refused_by_entry_and_value(
    ground_truth: CocoGroundTruth, tmp_path: Path, is_truth: bool, content: Any, message: str
) -> None:
    path = put(tmp_path / "bad.json", content)
    words = [read_ground_truth, path] if is_truth else [read_results, path, ground_truth]
    assert str(path) in refused(message, *words)


def test_backends_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(r"backend=fast .* auto, pycocotools", CocoBenchmark, backend="fast")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("pip install faster-coco-eval", CocoBenchmark, backend="faster_coco_eval")


def test_predictions_come_back_as_they_were(ground_truth: CocoGroundTruth, tmp_path: Path) -> None:
    write_results, out, faces = (
        CocoBenchmark().write_predictions,
        tmp_path / "out",
        replace(ground_truth, categories=("face",)),
    )
    detections = {"event/c": ([[1.25, 2, 31.0625, 42], [5, 6, 7, 8]], [0.25, 0.75]), "event/a": ((), ())}
    for _ in range(2):  # the second takes the place of the first
        write_results(out, faces, detections)
    assert json.loads((out / "predictions.json").read_text()) == [
        {"image_id": 30, "category_id": 5, "bbox": [5, 6, 2, 2], "score": 0.75},
        {"image_id": 30, "category_id": 5, "bbox": [1.25, 2, 29.8125, 40], "score": 0.25},
    ]
    read, packed = read_results(out, faces), CocoDetections.from_detections(detections, faces)
    np.testing.assert_array_equal(read.boxes_xywh, packed.boxes_xywh[::-1])
    assert read.missing == packed.missing == ("event/a", "event/b.v2")
    refused("something else", write_results, tmp_path, faces, {})
    refused("category= one of head, face", write_results, tmp_path / "new", ground_truth, {})
    invalid("event/a: a detection", write_results, tmp_path / "new", faces, {"event/a": ([[5, 5, 4, 9]], [1.0])})
    invalid("not finite", write_results, tmp_path / "new", faces, {"event/a": ([[5, 5, 6, 9]], [math.nan])})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
