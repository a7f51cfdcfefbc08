"""Data of one's own, read in each format: boxes by hand, ignored ones, classes, and every way to be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fanet_lightning.data.folder.source import FolderSource
from tests.data.folder_files import (
    FORMATS,
    TRAIN,
    VAL,
    WRITERS,
    Face,
    by_id,
    refusal,
    write_coco,
    write_image,
    write_voc,
    write_yolo,
)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_by_hand(format: str, tmp_path: Path) -> None:
    WRITERS[format](tmp_path)
    source = FolderSource(tmp_path, format)
    source.check()
    train = by_id(source.train())
    assert sorted(train) == ["c", "party/a", "party/b"]
    folder = tmp_path / "JPEGImages" if format == "voc" else tmp_path / "images" / "train"
    assert train["party/a"].path == folder / "party" / "a.jpg"
    assert train["party/a"].boxes_xyxy.dtype == np.float32
    np.testing.assert_allclose(train["party/a"].boxes_xyxy, [[10, 20, 40, 60], [100.5, 10.25, 120.5, 26.25]], atol=1e-5)
    np.testing.assert_allclose(train["party/b"].boxes_xyxy, [[5, 5, 15, 15]], atol=1e-5)
    ignored = [] if format == "yolo" else [[50, 30, 75, 65]]  # YOLO has no place for them
    np.testing.assert_allclose(train["party/b"].ignored_xyxy, np.reshape(ignored, (-1, 4)), atol=1e-5)
    assert train["c"].boxes_xyxy.shape == (0, 4)
    assert [record.image_id for record in source.val()] == ["e", "street/d"]
    truth = source.ground_truth()
    assert truth.image_ids == ("e", "street/d")
    assert truth.faces_per_setting == {"all": 1}
    np.testing.assert_allclose(truth.boxes_xywh[1], [[20, 10, 40, 50]], atol=1e-4)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_other_classes_are_refused_unless_named(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces: dict[str, list[Face]] = {
        "a": [(1, 2, 30, 40, False, "face"), (50, 2, 30, 40, False, "head"), (90, 2, 30, 40, False, "dog")]
    }
    WRITERS[format](tmp_path, {"train": faces, "val": VAL})
    line = refusal(tmp_path, format)
    assert "dog (1 box)" in line and "head (1 box)" in line and "data.classes=" in line
    source = FolderSource(tmp_path, format, classes=["face", "head", "faec"])
    source.check()
    told = capsys.readouterr().out
    assert "dog (1 box)" in told and "no box is of the class faec" in told
    np.testing.assert_allclose(source.train()[0].boxes_xyxy, [[1, 2, 31, 42], [50, 2, 80, 42]], atol=1e-5)
    assert "no face in the 1 images of the train part" in refusal(tmp_path, format, classes=["faec"])


def test_yolo_numbers_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    source = FolderSource(tmp_path, "yolo")
    source.check()
    assert len(by_id(source.train())["party/a"].boxes_xyxy) == 2
    assert "class 0 is taken for the face" in capsys.readouterr().out
    label = tmp_path / "labels" / "train" / "party" / "a.txt"
    label.write_text(label.read_text() + "3 0.5 0.5 0.1 0.1\n")
    assert "3 (1 box)" in refusal(tmp_path, "yolo")
    assert len(by_id(FolderSource(tmp_path, "yolo", classes=[3]).train())["party/a"].boxes_xyxy) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0 120 40 30 20", "'0 120 40 30 20' has 120 where a normalized"),
        ("face 0.5 0.5 0.1 0.1", "is no row of numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "a confidence is no label"),
        ("0.5 0.5 0.5 0.1 0.1", "has the class 0.5"),
        ("7 0.5 0.5 0.1 0.1", "has the class 7, which"),
        ("0 0.5 0.5 nan 0.1", "has nan where"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6", "data.points=landmarks"),
    ],
)
def test_yolo_rows_that_are_none(row: str, expected: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    label = tmp_path / "labels" / "train" / "party" / "a.txt"
    label.write_text(f"0 0.5 0.5 0.1 0.1\n{row}\n")
    line = refusal(tmp_path, "yolo")
    assert expected in line and f"{label}, line 2: " in line


def test_a_yolo_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    label = tmp_path / "labels" / "train" / "party" / "a.txt"
    label.unlink()
    label.symlink_to("nowhere")
    (problem,) = FolderSource(tmp_path, "yolo").inventories()[0].problems
    assert (problem.path, problem.line) == (label, None) and "No such file" in problem.reason


def test_yolo_labels_of_two_images_are_named(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    write_image(tmp_path / "images" / "train" / "party" / "b.png")
    label = tmp_path / "labels" / "train" / "party" / "b.txt"
    assert f"{label} has the image party/b twice" in refusal(tmp_path, "yolo")


def test_yolo_landmarks_and_polygons(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    label = tmp_path / "labels" / "train" / "party" / "a.txt"
    # Width 200, height 100: x 40, y 20, w 20, h 40 → 30 0 50 40; as a polygon 40 20, 20 40, 100 70.
    label.write_text("0 0.2 0.2 0.1 0.4 0.5 0.7\n")
    for points, expected in (("landmarks", [30, 0, 50, 40]), ("polygon", [20, 20, 100, 70])):
        boxes = by_id(FolderSource(tmp_path, "yolo", points=points).train())["party/a"].boxes_xyxy
        np.testing.assert_allclose(boxes, [expected], atol=1e-4)
    yaml = tmp_path / "data.yaml"
    yaml.write_text(yaml.read_text() + "kpt_shape: [1, 2]\n")
    label.write_text("0 0.2 0.2 0.1 0.4 -1 -1\n0 0.2 0.2 0.1 0.4\n")
    declared = by_id(FolderSource(tmp_path, "yolo").train())["party/a"].boxes_xyxy
    np.testing.assert_allclose(declared, [[30, 0, 50, 40], [30, 0, 50, 40]], atol=1e-4)
    yaml.write_text(yaml.read_text().replace("[1, 2]", "[5, 3]"))
    assert "says 15" in refusal(tmp_path, "yolo")
    yaml.write_text("train: train.txt\nnames: [face]\n")
    assert "data.train.images=LIST" in refusal(tmp_path, "yolo")


def test_yolo_is_of_the_upright_image(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown 100 wide and 200 high
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "train" / "party" / "a.jpg", exif=exif)
    boxes = by_id(FolderSource(tmp_path, "yolo").train())["party/a"].boxes_xyxy
    np.testing.assert_allclose(boxes[0], [5, 40, 20, 120], atol=1e-4)


def test_yolo_roboflow_and_side_by_side(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write_image(tmp_path / "robo" / part / "images" / "a.jpg")
        write_image(tmp_path / "together" / part / "a.jpg")
        (tmp_path / "robo" / part / "labels").mkdir()
        for path in (tmp_path / "robo" / part / "labels" / "a.txt", tmp_path / "together" / part / "a.txt"):
            path.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "robo" / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [face]\n")
    (tmp_path / "together" / "train" / "classes.txt").write_text("face\n")
    for name in ("robo", "together"):
        source = FolderSource(tmp_path / name, "yolo")
        source.check()
        assert source.train()[0].boxes_xyxy.tolist() == [[50, 25, 150, 75]]


def test_voc_counts_from_one_or_from_zero(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": {"a": [(-1, 4, 21, 20, False, "face")]}, "val": VAL})  # xmin is 0
    assert FolderSource(tmp_path, "voc").train()[0].boxes_xyxy.tolist() == [[-1, 4, 20, 24]]
    assert FolderSource(tmp_path, "voc", origin=0).train()[0].boxes_xyxy.tolist() == [[0, 5, 20, 24]]


def test_voc_without_lists(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "old")
    for part, faces in (("train", TRAIN), ("val", VAL)):
        for image_id in faces:
            target = tmp_path / "Annotations" / part / f"{image_id}.xml"
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "old" / f"{image_id}.xml").rename(target)
        (tmp_path / "ImageSets" / "Main" / f"{part}.txt").unlink()
    source = FolderSource(tmp_path, "voc")
    assert sorted(by_id(source.train())) == ["c", "party/a", "party/b"]
    assert sorted(by_id(source.val())) == ["e", "street/d"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<xmax>40</xmax>", "<xmax>forty</xmax>", "is no object with"),
        ("</bndbox>", "", "is no XML"),
        ("<xmax>40</xmax>", "<xmax>5</xmax>", "x1=10 y1=20 x2=5 y2=60 is no box"),
    ],
)
def test_voc_objects_that_are_none(old: str, new: str, expected: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    path = tmp_path / "Annotations" / "party" / "a.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    line = refusal(tmp_path, "voc")
    assert expected in line and str(path) in line


COCO_FAULTS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("annotations[0] is of image_id 77", lambda c: c["annotations"][0].update(image_id=77)),
    ("annotations[0] is of category_id 5", lambda c: c["annotations"][0].update(category_id=5)),
    ("annotations[0] has no bbox of four numbers", lambda c: c["annotations"][0].update(bbox=[10**400, 2, 3, 4])),
    ("images[0] has no file_name, or another's id", lambda c: c["images"][1].update(id=c["images"][0]["id"])),
    ("has the image party/a twice", lambda c: c["images"].append({**c["images"][0], "id": 99})),
    ("x1=30 y1=20 x2=20 y2=25 is no box", lambda c: c["annotations"][0].update(bbox=[30, 20, -10, 5])),
    ("is no box", lambda c: c["annotations"][0].update(bbox=[30, 20, float("nan"), 5])),
    ("'../../secret.jpg' leaves the folder", lambda c: c["images"][0].update(file_name="../../secret.jpg")),
    ("leaves the folder", lambda c: c["images"][0].update(file_name="x\\..\\..\\secret.jpg")),
    ("'/secret.jpg' leaves the folder", lambda c: c["images"][0].update(file_name="/secret.jpg")),
    ("KeyError: 'images'", lambda c: c.pop("images")),
]


@pytest.mark.parametrize(("expected", "change"), COCO_FAULTS)
def test_coco_files_that_are_none(expected: str, change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    line = refusal(tmp_path, "coco")
    assert expected in line and str(path) in line
    for text in ("{oops", json.dumps(content.get("annotations"))):  # no JSON, and a detector's results
        path.write_text(text)
        assert str(path) in refusal(tmp_path, "coco")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("party/a.jpg\n2\n1 2 3 4\n", "line 2: '2' faces are said of party/a.jpg, and 1 rows follow"),
        ("party/a.jpg\n1\n1 2 3\n", "line 3: '1 2 3' is no row of 4 or 10 numbers"),
        ("party/a.jpg\n1 2 3 4\n", "line 2: '1 2 3 4' stands where the number of faces of party/a.jpg"),
        ("party/a.jpg\n1\n1 2 3 4 0 0 0 0.5 0 0\n", "line 3: '1 2 3 4 0 0 0 0.5 0 0' has attributes"),
        ("1 2 3 4\nparty/a.jpg\n0\n", "line 1: '1 2 3 4' stands where an image's name is expected"),
        ("party/a.jpg\n1\n9 2 -3 4\n", "line 3: x1=9 y1=2 x2=6 y2=6 is no box"),
        ("", "names no image"),
    ],
)
def test_lists_that_are_none(content: str, expected: str, tmp_path: Path) -> None:
    WRITERS["wider"](tmp_path)
    (tmp_path / "train.txt").write_text(content)
    line = refusal(tmp_path, "wider")
    assert expected in line and "train.txt" in line


def test_list_with_four_columns(tmp_path: Path) -> None:
    WRITERS["wider"](tmp_path)
    (tmp_path / "train.txt").write_text("party/a.jpg\n2\n1 2 3.5 4\n0 0 7 8\n\nc.jpg\n0\nparty/b.jpg\n1\n0 0 0 0\n")
    train = by_id(FolderSource(tmp_path, "wider").train())
    assert train["party/a"].boxes_xyxy.tolist() == [[1, 2, 4.5, 6], [0, 0, 7, 8]]
    assert len(train["c"].boxes_xyxy) == len(train["party/b"].ignored_xyxy) == 0
    assert "has no classes" in refusal(tmp_path, "wider", classes=["face"])


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_set_handed_over_as_another_format(written: str, format: str, tmp_path: Path) -> None:
    if written != format:
        WRITERS[written](tmp_path)
        assert str(tmp_path) in refusal(tmp_path, format)


def test_labels_of_another_format_by_name(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "notes.txt").write_text("a\n")
    json_file = {"labels": "annotations/instances_train.json"}
    assert "reads a folder" in refusal(tmp_path, "voc", train=json_file)
    assert "notes.txt" in refusal(tmp_path, "coco", train={"labels": "notes.txt"})
    assert "reads lists of a name" in refusal(tmp_path, "wider", train=json_file)
    assert "reads one file of labels" in refusal(tmp_path, "coco", train={"labels": "annotations"})
