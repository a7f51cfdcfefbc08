"""COCO's files: what is read, what is refused and how, and predictions that come back as they were."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.coco import (
    CocoBenchmark,
    CocoDetections,
    CocoGroundTruth,
    read_ground_truth,
    read_results,
    write_results,
)


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


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write(tmp_path / "truth.json", truth())


def test_what_is_read_by_hand(annotations: Path, tmp_path: Path) -> None:
    ground_truth = read_ground_truth(annotations)
    # In the order of the file's image numbers; only the last extension goes.
    assert ground_truth.image_ids == ("event/a", "event/b.v2", "event/c")
    assert ground_truth.categories == ("head", "face")
    assert ground_truth.starts.tolist() == [0, 1, 1, 3]
    assert ground_truth.boxes_xywh.tolist() == [[5.5, 6, 0, 8], [1, 2, 30, 40], [0, 0, 50, 50]]
    assert ground_truth.category.tolist() == [1, 1, 0]
    assert ground_truth.areas.tolist() == [0, 900.5, 2500]  # without an area that of the box
    assert ground_truth.crowd.tolist() == [False, False, True]
    detections = read_results(write(tmp_path / "found.json", found()), ground_truth)
    assert detections.starts.tolist() == [0, 1, 1, 3]
    assert detections.boxes_xywh.tolist() == [[0, 0, 5, 5], [1, 2, 30, 40], [2, 2, 30, 40]]
    assert detections.scores.tolist() == [0.5, 0.9, 1.0]
    assert detections.category.tolist() == [0, 1, 1]
    assert detections.missing == ("event/b.v2",)


def test_one_category_leaves_the_others_out_of_both_files(annotations: Path, tmp_path: Path) -> None:
    ground_truth = read_ground_truth(annotations, category="face")
    assert ground_truth.categories == ("face",) and ground_truth.category.tolist() == [0, 0]
    detections = read_results(write(tmp_path / "found.json", found()), ground_truth)
    assert detections.scores.tolist() == [0.9, 1.0]
    assert detections.missing == ("event/a", "event/b.v2")


@pytest.mark.parametrize("lines", ["event/c.jpg\nevent/a", "event/a.png\n# note\nevent/c"])
def test_a_list_restricts_everything(annotations: Path, tmp_path: Path, lines: str) -> None:
    ground_truth = read_ground_truth(annotations, write(tmp_path / "list.txt", lines))
    assert ground_truth.image_ids == ("event/a", "event/c")
    results = [*found(), {"image_id": 20, "category_id": 5, "bbox": [0, 0, 1, 1], "score": 0.1}]
    detections = read_results(write(tmp_path / "found.json", results), ground_truth)
    assert detections.scores.tolist() == [0.5, 0.9, 1.0]
    benchmark = CocoBenchmark(backend="pycocotools")
    scores = benchmark.score(ground_truth, tmp_path / "found.json")
    assert scores.headline == "COCO sample, 2 of 3 images"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("event/d.jpg", r"list\.txt:1: 'event/d' is not in .*truth\.json; write file names as there"),
        ("event/a\nevent/a.png", r"list\.txt:2: 'event/a' stands there already; keep one of them"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(annotations: Path, tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_ground_truth(annotations, write(tmp_path / "list.txt", lines))


def changed(content: Any, *place: Any, value: Any) -> Any:
    *path, last = place
    inner = content
    for step in path:
        inner = inner[step]
    inner[last] = value
    return content


BAD_TRUTH = {
    "not JSON": (
        "{'images': []}",
        r"truth\.json:1: not JSON \(Expecting property name.*\); give a COCO annotation file",
    ),
    "cut off": ('{"images": [', r"truth\.json:1: not JSON"),
    "brackets without end": ("[" * 200_000, r"truth\.json:?1?: not JSON"),
    "a list": ([], "truth.json holds a list; give a COCO annotation file"),
    "no images": ({"annotations": [], "categories": []}, "there is no list 'images' in it"),
    "empty images": ({**truth(), "images": []}, "'images' is empty"),
    "no categories": ({k: v for k, v in truth().items() if k != "categories"}, "there is no list 'categories' in it"),
    "no annotations": ({k: v for k, v in truth().items() if k != "annotations"}, "there is no list 'annotations'"),
    "image is text": (changed(truth(), "images", 1, value="a.jpg"), r"images\[1\] is text, not an object"),
    "image id twice": (changed(truth(), "images", 2, "id", value=10), r"images\[2\]: id 10 stands there already"),
    "image id missing": (changed(truth(), "images", 2, value={"file_name": "x"}), r"images\[2\]: id None is no id"),
    "image id true": (changed(truth(), "images", 2, "id", value=True), r"images\[2\]: id True is no id"),
    "ids mixed": (changed(truth(), "images", 2, "id", value="20"), "some ids of images are numbers and some are text"),
    "file name missing": (changed(truth(), "images", 0, value={"id": 1}), r"images\[0\]: file_name None is no name"),
    "file name a dot": (
        changed(truth(), "images", 0, "file_name", value="."),
        r"images\[0\]: file_name '\.' names no f",
    ),
    "file name twice": (
        changed(truth(), "images", 2, "file_name", value="event/a.jpg"),
        r"images\[2\]: 'event/a' is the name of images\[1\] too; names must differ before their extension",
    ),
    "category twice": (
        changed(truth(), "categories", 1, "id", value=5),
        r"categories\[1\]: id 5 or name 'head' stands",
    ),
    "category name twice": (
        changed(truth(), "categories", 1, "name", value="face"),
        r"categories\[1\]: id 2 or name 'fa",
    ),
    "category without name": (changed(truth(), "categories", 1, value={"id": 3}), r"categories\[1\]: name None is no"),
    "annotation twice": (
        changed(truth(), "annotations", 2, "id", value=1),
        r"annotations\[2\]: id 1 is that of annotations\[0\] too; remove one",
    ),
    "unknown image": (
        changed(truth(), "annotations", 1, "image_id", value=11),
        r"annotations\[1\]: image_id 11 is not",
    ),
    "unknown category": (changed(truth(), "annotations", 1, "category_id", value=1), r"\[1\]: category_id 1 is not am"),
    "box of three": (
        changed(truth(), "annotations", 1, "bbox", value=[1, 2, 3]),
        r"\[1\]: bbox \[1, 2, 3\] is not a l",
    ),
    "box missing": (changed(truth(), "annotations", 1, "bbox", value=None), r"\[1\]: bbox None is not a list of four"),
    "box NaN": (
        changed(truth(), "annotations", 0, "bbox", 0, value=math.nan),
        r"\[0\]: bbox nan is not a finite number",
    ),
    "box infinite": (changed(truth(), "annotations", 0, "bbox", 3, value=math.inf), r"\[0\]: bbox inf is not a finite"),
    "box comma": (
        changed(truth(), "annotations", 0, "bbox", 0, value="1,5"),
        r"\[0\]: bbox '1,5' is text; write a numb",
    ),
    "negative side": (changed(truth(), "annotations", 0, "bbox", 2, value=-3), r"\[0\]: bbox width -3 is negative"),
    "area NaN": (changed(truth(), "annotations", 0, "area", value=math.nan), r"\[0\]: area nan is not a finite number"),
    "area negative": (changed(truth(), "annotations", 0, "area", value=-1), r"\[0\]: area -1 is negative"),
    "crowd of two": (changed(truth(), "annotations", 0, "iscrowd", value=2), r"\[0\]: iscrowd 2 is neither 0 nor 1"),
}


@pytest.mark.parametrize("name", BAD_TRUTH)
def test_bad_annotations_are_refused_by_entry_and_value(tmp_path: Path, name: str) -> None:
    content, message = BAD_TRUTH[name]
    with pytest.raises(InputError, match=message) as error:
        read_ground_truth(write(tmp_path / "truth.json", content))
    assert "\n" not in str(error.value) and str(tmp_path / "truth.json") in str(error.value)


BAD_RESULTS = {
    "not JSON": ("nothing", r"found\.json:1: not JSON .*; give a results file"),
    "an object": ({"annotations": found()}, "found.json holds an object, not a list"),
    "an entry is a number": ([*found(), 3], r"\[3\] is a number, not an object"),
    "unknown image": (
        changed(changed(found(), 1, "image_id", value=99), 2, "image_id", value=98),
        r"\[1\]: image_id 99 is not in the annotations, among 2 such entries",
    ),
    "image as text": (changed(found(), 1, "image_id", value="10"), r"\[1\]: image_id '10' is not in the annotations"),
    "image true": (changed(found(), 1, "image_id", value=True), r"\[1\]: image_id True is no id"),
    "image missing": (changed(found(), 1, value={"bbox": [1, 2, 3, 4], "score": 1, "category_id": 5}), "image_id None"),
    "unknown category": (
        changed(found(), 2, "category_id", value=1),
        r"\[2\]: category_id 1 is not in the annotations",
    ),
    "category a list": (changed(found(), 2, "category_id", value=[5]), r"\[2\]: category_id \[5\] is no id"),
    "box missing": (
        changed(found(), 0, value={"image_id": 30, "category_id": 5, "score": 1}),
        r"\[0\]: bbox None is n",
    ),
    "box of five": (changed(found(), 0, "bbox", value=[1, 2, 3, 4, 5]), r"\[0\]: bbox \[1, 2, 3, 4, 5\] is not a list"),
    "box as text": (changed(found(), 0, "bbox", value="1 2 3 4"), r"\[0\]: bbox '1 2 3 4' is not a list of four"),
    "box NaN": (changed(found(), 2, "bbox", 1, value=math.nan), r"\[2\]: bbox nan is not a finite number"),
    "box infinite": (changed(found(), 2, "bbox", 1, value=-math.inf), r"\[2\]: bbox -inf is not a finite number"),
    "box too large": (changed(found(), 2, "bbox", 1, value=10**400), r"\[2\]: bbox 10{79} is not a finite number"),
    "box null": (changed(found(), 2, "bbox", 1, value=None), r"\[2\]: bbox None is not a finite number"),
    "box true": (changed(found(), 2, "bbox", 1, value=True), r"\[2\]: bbox True is not a finite number"),
    "box comma": (changed(found(), 2, "bbox", 1, value="0,5"), r"\[2\]: bbox '0,5' is text"),
    "box text": (changed(found(), 2, "bbox", 1, value="0.5"), r"\[2\]: bbox '0.5' is text; write a number"),
    "corners": (
        changed(found(), 2, "bbox", value=[90, 80, 100, -5]),
        r"\[2\]: bbox height -5 is negative; boxes are x",
    ),
    "score missing": (changed(found(), 2, value={**found()[2], "score": None}), r"\[2\]: score None is not a finite"),
    "score NaN": (changed(found(), 2, "score", value=math.nan), r"\[2\]: score nan is not a finite number"),
    "score comma": (changed(found(), 2, "score", value="0,9"), r"\[2\]: score '0,9' is text; write a number, 1.5"),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_bad_results_are_refused_by_entry_and_value(annotations: Path, tmp_path: Path, name: str) -> None:
    content, message = BAD_RESULTS[name]
    path = write(tmp_path / "found.json", content)
    with pytest.raises(InputError, match=message) as error:
        read_results(path, read_ground_truth(annotations))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_files_that_are_not_there_are_named(annotations: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*nothing\.json; give a COCO annotation file"):
        read_ground_truth(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="is a folder; give a COCO annotation file"):
        read_ground_truth(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*predictions\.json; give a results file"):
        read_results(tmp_path, read_ground_truth(annotations))
    (tmp_path / "binary.json").write_bytes(b"\x81\xff\xfe{")
    with pytest.raises(InputError, match=r"binary\.json: not JSON"):
        read_ground_truth(tmp_path / "binary.json")


def test_ids_may_be_text_and_whole_floats_are_whole_numbers(tmp_path: Path) -> None:
    content = truth()
    for image in content["images"]:
        image["id"] = f"n{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"n{annotation['image_id']}"
    ground_truth = read_ground_truth(write(tmp_path / "truth.json", content))
    assert ground_truth.image_ids == ("event/a", "event/b.v2", "event/c")
    content = changed(truth(), "annotations", 0, "image_id", value=30.0)
    ground_truth = read_ground_truth(write(tmp_path / "truth.json", content))
    detections = read_results(write(tmp_path / "found.json", changed(found(), 0, "image_id", value=30.0)), ground_truth)
    assert detections.starts.tolist() == [0, 1, 1, 3]


def test_unknown_category_by_name_is_refused(annotations: Path) -> None:
    with pytest.raises(InputError, match=r"category=Face is not in .*truth\.json; choose one of face, head"):
        CocoBenchmark(category="Face").read_ground_truth(annotations)


@pytest.mark.parametrize("cap", [0, -1, 2.5, True])
def test_caps_below_one_are_refused(cap: Any) -> None:
    with pytest.raises(InputError, match=f"max_detections={cap} is no number of detections; give 1 or more"):
        CocoBenchmark(max_detections=cap)


def test_backends_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"backend=fast is not known; choose one of auto, pycoco"):
        CocoBenchmark(backend="fast")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="backend=faster_coco_eval is not installed; pip install faster-coco-eval"):
        CocoBenchmark(backend="faster_coco_eval")


def test_missing_images_are_named_and_an_error_when_strict(annotations: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "found.json", found())
    benchmark = CocoBenchmark(backend="pycocotools")
    ground_truth = benchmark.read_ground_truth(annotations)
    scores = benchmark.score(ground_truth, path)
    assert scores.warnings == ("1 of 3 images have no predictions and count as empty: event/b.v2",)
    with pytest.raises(InputError, match=r"found\.json: 1 of 3 images have no entry, the first is 'event/b\.v2'"):
        benchmark.score(ground_truth, path, strict=True)
    write(path, [*found(), {"image_id": 20, "category_id": 5, "bbox": [0, 0, 1, 1], "score": 0.1}])
    assert benchmark.score(ground_truth, path, strict=True).warnings == ()


def test_predictions_come_back_as_they_were(annotations: Path, tmp_path: Path) -> None:
    benchmark = CocoBenchmark(category="face", backend="pycocotools")
    ground_truth = benchmark.read_ground_truth(annotations)
    boxes_xyxy = np.array([[1.25, 2, 31.0625, 42], [5, 6, 7, 8]])
    detections = {"event/c": (boxes_xyxy, np.array([0.25, 0.75])), "event/a": (np.empty((0, 4)), np.empty(0))}
    for _ in range(2):  # the second takes the place of the first
        benchmark.write_predictions(tmp_path / "out", ground_truth, detections)
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    assert entries == [
        {"image_id": 30, "category_id": 5, "bbox": [5, 6, 2, 2], "score": 0.75},
        {"image_id": 30, "category_id": 5, "bbox": [1.25, 2, 29.8125, 40], "score": 0.25},
    ]
    read = read_results(tmp_path / "out", ground_truth)
    packed = CocoDetections.from_detections(detections, ground_truth)
    np.testing.assert_array_equal(read.boxes_xywh, packed.boxes_xywh[::-1])
    assert read.missing == packed.missing == ("event/a", "event/b.v2")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_predictions_are_not_written_over_other_things(annotations: Path, tmp_path: Path) -> None:
    ground_truth = read_ground_truth(annotations, category="face")
    with pytest.raises(InputError, match="holds something else than predictions"):
        write_results(tmp_path, ground_truth, {})
    with pytest.raises(InputError, match="the annotations have 2; give category= one of head, face"):
        write_results(tmp_path / "out", read_ground_truth(annotations), {})
    with pytest.raises(ValueError, match="event/a: a box that is not finite or has a negative side"):
        write_results(tmp_path / "out", ground_truth, {"event/a": ([[5, 5, 4, 9]], [1.0])})
    with pytest.raises(ValueError, match="a detection that is not finite"):
        write_results(tmp_path / "out", ground_truth, {"event/a": ([[5, 5, 6, 9]], [math.nan])})
    with pytest.raises(ValueError, match="detections of 1 images outside the run, the first is 'event/x'"):
        write_results(tmp_path / "out", ground_truth, {"event/x": ([[5, 5, 6, 9]], [1.0])})
    assert not (tmp_path / "out").exists()


def test_ground_truth_from_arrays() -> None:
    ground_truth = CocoGroundTruth.from_faces({"b": ([[0, 0, 2, 3], [1, 1, 4, 5]], [False, True]), "a": ([], None)})
    assert ground_truth.image_ids == ("b", "a") and ground_truth.starts.tolist() == [0, 2, 2]
    assert ground_truth.areas.tolist() == [6, 12] and ground_truth.crowd.tolist() == [False, True]
    assert ground_truth.file_images == {1: "b", 2: "a"} and ground_truth.file_categories == {1: "face"}
    assert ground_truth.select(["a"]).starts.tolist() == [0, 0]
    with pytest.raises(ValueError, match="1 image ids are not in the ground truth, the first is 'c'"):
        ground_truth.select(["a", "c"])
    with pytest.raises(ValueError, match="b: 1 faces but 2 flags"):
        CocoGroundTruth.from_faces({"b": ([[0, 0, 2, 3]], [False, True])})
    with pytest.raises(ValueError, match="b: a box that is not finite"):
        CocoGroundTruth.from_faces({"b": ([[0, 0, 2, math.nan]], None)})
