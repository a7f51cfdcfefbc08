"""Data of one's own as a source: every format by hand, every way to be wrong; parts, lists, names of files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.source import FolderSource, carved
from fanet_lightning.data.sources import build_source
from tests.data.folder_files import FORMATS, TRAIN, VAL, WRITERS, Face, by_id, refusal, write_image, write_text, written
from tests.data.wider_files import turned


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_by_hand(format: str, tmp_path: Path) -> None:
    source, is_yolo = written(tmp_path, format), format == "yolo"
    source.check()
    train = by_id(source.train())
    assert sorted(train) == ["c", "party/a", "party/b"]
    folder = tmp_path / "JPEGImages" if format == "voc" else tmp_path / "images" / "train"
    assert train["party/a"].path == folder / "party" / "a.jpg" and train["party/a"].boxes_xyxy.dtype == np.float32
    np.testing.assert_allclose(train["party/a"].boxes_xyxy, [[10, 20, 40, 60], [100.5, 10.25, 120.5, 26.25]], atol=1e-5)
    np.testing.assert_allclose(train["party/b"].boxes_xyxy, [[5, 5, 15, 15]], atol=1e-5)
    ignored = [] if is_yolo else [[50, 30, 75, 65]]  # YOLO has no place for them
    np.testing.assert_allclose(train["party/b"].ignored_xyxy, np.reshape(ignored, (-1, 4)), atol=1e-5)
    assert train["c"].boxes_xyxy.shape == (0, 4)
    truth = source.ground_truth()
    assert truth.image_ids == ("e", "street/d") and truth.faces_per_setting == {"all": 1}
    np.testing.assert_allclose(truth.boxes_xywh[1], [[20, 10, 40, 50]], atol=1e-4)
    # Inventories hold what training refuses.
    write_image(folder / "unlabelled.jpg")
    (folder / "party" / "b.jpg").unlink()
    inventory, val = FolderSource(tmp_path, format).inventories()
    assert (inventory.part, val.part, inventory.folder) == ("train", "val", folder)
    images = {image.image_id: image for image in inventory.images}
    np.testing.assert_allclose(images["party/a"].boxes_xyxy[1], [100.5, 10.25, 120.5, 26.25], atol=1e-9)
    # YOLO: an image without a file has no face; a file without an image is a problem. VOC has one folder for all parts:
    # an image with an XML file that this part's list leaves out is labelled.
    assert [problem.value for problem in inventory.problems] == (["b.txt"] if is_yolo else [])
    assert [path.name for path in inventory.unlabelled] == ([] if is_yolo else ["unlabelled.jpg"])
    assert "unlabelled" in images if is_yolo else images["party/b"].ignored.tolist() == [True, False]
    assert images["c"].stated_wh == {"coco": (200, 100), "voc": (200, 100)}.get(format)
    assert images["party/a"].box_lines == {"yolo": (1, 2), "wider": (3, 4)}.get(format, ())


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_other_classes_are_refused(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    WRITERS["yolo"](tmp_path)
    (tmp_path / "data.yaml").unlink()
    source = FolderSource(tmp_path, "yolo")
    source.check()
    assert len(by_id(source.train())["party/a"].boxes_xyxy) == 2
    told = capsys.readouterr().out
    assert "class 0 is taken for the face" in told and "1 of 3 images have no label file" in told
    label = tmp_path / "labels" / "train" / "party" / "a.txt"
    label.write_text(label.read_text() + "3 0.5 0.5 0.1 0.1\n")
    assert "3 (1 box)" in refusal(tmp_path, "yolo")
    assert len(by_id(FolderSource(tmp_path, "yolo", classes=[3]).train())["party/a"].boxes_xyxy) == 1
    (tmp_path / "labels" / "train" / "classes.txt").write_text("person\n\n\nface\n")  # where LabelImg leaves it
    assert "person (" in refusal(tmp_path, "yolo")
    source = FolderSource(tmp_path, "yolo", classes=["face"])
    assert len(by_id(source.train())["party/a"].boxes_xyxy) == 1 and not len(source.val()[0].boxes_xyxy)


LABELS = {
    "coco": "annotations/instances_train.json", "yolo": "labels/train/party/a.txt", "voc": "Annotations/party/a.xml",
    "wider": "train.txt",
}  # fmt: skip
Change = Callable[[str], str]


def row(text: str) -> Change:
    """This as the second row of a YOLO file."""
    return lambda _: f"0 0.5 0.5 0.1 0.1\n{text}\n"


def coco(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return changed


FAULTS: list[tuple[str, str, Change]] = [
    ("yolo", "line 2: '0 120 40 30 20' has 120 where a normalized", row("0 120 40 30 20")),
    ("yolo", "is no row of numbers", row("face 0.5 0.5 0.1 0.1")),
    ("yolo", "a confidence is no label", row("0 0.5 0.5 0.1 0.1 0.9")),
    ("yolo", "has the class 0.5", row("0.5 0.5 0.5 0.1 0.1")),
    ("yolo", "has the class 7, which", row("7 0.5 0.5 0.1 0.1")),
    ("yolo", "has nan where", row("0 0.5 0.5 nan 0.1")),
    ("yolo", "data.points=landmarks", row("0 0.1 0.2 0.3 0.4 0.5 0.6")),
    ("voc", "is no object with", lambda text: text.replace("<xmax>40<", "<xmax>forty<")),
    ("voc", "is no XML", lambda text: text.replace("</bndbox>", "", 1)),
    ("coco", "annotations[0] is of image_id 77", coco(lambda c: c["annotations"][0].update(image_id=77))),
    ("coco", "annotations[0] is of category_id 5", coco(lambda c: c["annotations"][0].update(category_id=5))),
    ("coco", "annotations[0] has no bbox of", coco(lambda c: c["annotations"][0].update(bbox=[10**400, 2, 3, 4]))),
    ("coco", "images[0] has no file_name, or an", coco(lambda c: c["images"][1].update(id=c["images"][0]["id"]))),
    ("coco", "has the image party/a twice", coco(lambda c: c["images"].append({**c["images"][0], "id": 99}))),
    ("coco", "x1=30 y1=20 x2=20 y2=25 is no", coco(lambda c: c["annotations"][0].update(bbox=[30, 20, -10, 5]))),
    ("coco", "is no box", coco(lambda c: c["annotations"][0].update(bbox=[30, 20, float("nan"), 5]))),
    ("coco", "'../../a.jpg' leaves the folder", coco(lambda c: c["images"][0].update(file_name="../../a.jpg"))),
    ("coco", "leaves the folder", coco(lambda c: c["images"][0].update(file_name="x\\..\\..\\a.jpg"))),
    ("coco", "'/a.jpg' leaves the folder", coco(lambda c: c["images"][0].update(file_name="/a.jpg"))),
    ("coco", "KeyError: 'images'", coco(lambda c: c.pop("images"))),
    ("coco", "JSONDecodeError", lambda _: "{oops"),
    ("coco", "TypeError", lambda text: json.dumps(json.loads(text)["annotations"])),  # a detector's results
    ("wider", "line 2: '2' faces are said of a.jpg, and 1 rows follow", lambda _: "a.jpg\n2\n1 2 3 4\n"),
    ("wider", "line 3: '1 2 3' is no row of 4 or 10 numbers", lambda _: "a.jpg\n1\n1 2 3\n"),
    ("wider", "line 2: '1 2 3 4' stands where the number of faces of a.jpg", lambda _: "a.jpg\n1 2 3 4\n"),
    ("wider", "line 3: '1 2 3 4 0 0 0 0.5 0 0' has attributes", lambda _: "a.jpg\n1\n1 2 3 4 0 0 0 0.5 0 0\n"),
    ("wider", "line 1: '1 2 3 4' stands where an image's name", lambda _: "1 2 3 4\na.jpg\n0\n"),
    ("wider", "line 3: x1=9 y1=2 x2=6 y2=6 is no box", lambda _: "party/a.jpg\n1\n9 2 -3 4\n"),
    ("wider", "names no image", lambda _: ""),
    ("wider", "line 1: '{' stands where an image's name", lambda _: "{\n}\n"),
]


@pytest.mark.parametrize(("format", "expected", "change"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_labels_that_are_none(format: str, expected: str, change: Change, tmp_path: Path) -> None:
    WRITERS[format](tmp_path)
    path = tmp_path / LABELS[format]
    path.write_text(change(path.read_text()))
    line = refusal(tmp_path, format)
    assert expected in line and str(path) in line


def test_yolo_landmarks_and_polygons(tmp_path: Path) -> None:
    WRITERS["yolo"](tmp_path)
    label, yaml = tmp_path / LABELS["yolo"], tmp_path / "data.yaml"

    def boxes(**options: Any) -> np.ndarray:
        return by_id(FolderSource(tmp_path, "yolo", **options).train())["party/a"].boxes_xyxy

    # Width 200, height 100: x 40, y 20, w 20, h 40 → 30 0 50 40; as a polygon 40 20, 20 40, 100 70.
    label.write_text("0 0.2 0.2 0.1 0.4 0.5 0.7\n")
    np.testing.assert_allclose(boxes(points="landmarks"), [[30, 0, 50, 40]], atol=1e-4)
    np.testing.assert_allclose(boxes(points="polygon"), [[20, 20, 100, 70]], atol=1e-4)
    yaml.write_text(yaml.read_text() + "kpt_shape: [1, 2]\n")
    label.write_text("0 0.2 0.2 0.1 0.4 -1 -1\n0 0.2 0.2 0.1 0.4\n")
    np.testing.assert_allclose(boxes(), [[30, 0, 50, 40], [30, 0, 50, 40]], atol=1e-4)
    yaml.write_text(yaml.read_text().replace("[1, 2]", "[5, 3]"))
    assert "says 15" in refusal(tmp_path, "yolo")


def test_yolo_is_of_the_upright_image(tmp_path: Path) -> None:
    WRITERS["yolo"](tmp_path)
    # Stored lying, shown 100 wide and 200 high.
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "train" / "party" / "a.jpg", exif=turned(6))
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
    (tmp_path / "robo" / "data.yaml").write_text("train: train.txt\nnames: [face]\n")
    assert "data.train.images=LIST" in refusal(tmp_path / "robo", "yolo")
    (tmp_path / "robo" / "train.txt").write_text("a.jpg\n")
    assert len(FolderSource(tmp_path / "robo", "yolo", train={"images": "train.txt"}).train()) == 1


def test_voc_counts_from_one_or_from_zero(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path, {"train": {"a": [(-1, 4, 21, 20, False, "face")]}, "val": VAL})  # xmin is 0
    assert FolderSource(tmp_path, "voc").train()[0].boxes_xyxy.tolist() == [[-1, 4, 20, 24]]
    assert FolderSource(tmp_path, "voc", origin=0).train()[0].boxes_xyxy.tolist() == [[0, 5, 20, 24]]


def test_voc_without_lists(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "old")
    for part, faces in (("train", TRAIN), ("val", VAL)):
        for image_id in faces:
            text = (tmp_path / "old" / f"{image_id}.xml").read_text()
            write_text(tmp_path / "Annotations" / part / f"{image_id}.xml", text)
        (tmp_path / "ImageSets" / "Main" / f"{part}.txt").unlink()
    source = FolderSource(tmp_path, "voc")
    assert sorted(by_id(source.train())) == ["c", "party/a", "party/b"]
    assert sorted(by_id(source.val())) == ["e", "street/d"]


def test_list_with_four_columns(tmp_path: Path) -> None:
    WRITERS["wider"](tmp_path)
    (tmp_path / "train.txt").write_text("party/a.jpg\n2\n1 2 3.5 4\n0 0 7 8\n\nc.jpg\n0\nparty/b.jpg\n1\n0 0 0 0\n")
    train = by_id(FolderSource(tmp_path, "wider").train())
    assert train["party/a"].boxes_xyxy.tolist() == [[1, 2, 4.5, 6], [0, 0, 7, 8]]
    assert len(train["c"].boxes_xyxy) == len(train["party/b"].ignored_xyxy) == 0


@pytest.mark.parametrize("other", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_set_handed_over_as_another_format(other: str, format: str, tmp_path: Path) -> None:
    if other != format:
        WRITERS[other](tmp_path)
        assert str(tmp_path) in refusal(tmp_path, format)


def test_labels_of_another_format_by_name(tmp_path: Path) -> None:
    WRITERS["coco"](tmp_path)
    json_file = {"labels": "annotations/instances_train.json"}
    assert "reads a folder" in refusal(tmp_path, "voc", train=json_file)
    assert "reads one file of labels" in refusal(tmp_path, "coco", train={"labels": "annotations"})


# Parts


ONE: list[Face] = [(10, 20, 30, 40, False, "face")]


def many(count: int) -> dict[str, list[Face]]:
    return {f"event/{number:03d}": ONE for number in range(count)}


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_without_validation_is_divided(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path, format, {"train": many(40)}, val={"share": 0.25})
    source.check()
    train, val = by_id(source.train()), by_id(source.val())
    assert set(val) == carved(set(many(40)), 0.25) and set(train) == set(many(40)) - set(val)
    assert f"has no validation part: {len(val)} of 40 images (25%" in capsys.readouterr().out


@given(
    ids=st.sets(st.text("abc/0", min_size=1, max_size=6), min_size=2, max_size=60),
    more=st.sets(st.text("xyz", min_size=7, max_size=9), max_size=20),
    share=st.floats(0.05, 0.95),
)
@settings(max_examples=200)
def test_division_is_stable(ids: set[str], more: set[str], share: float) -> None:
    chosen = carved(ids, share)
    assert 1 <= len(chosen) < len(ids)
    assert carved(set(), share) == set()
    # Images that are added later do not move the old ones, as far as the hash alone decides.
    grown = carved(ids | more, share)
    if 1 < len(chosen) < len(ids) - 1:
        assert grown & ids == chosen


@pytest.mark.parametrize("format", FORMATS)
def test_lists_select(format: str, tmp_path: Path) -> None:
    WRITERS[format](tmp_path, {"train": many(6)})
    (tmp_path / "mine.txt").write_text("event/004.jpg\n# a comment\nevent/001\n")
    (tmp_path / "test.lst").write_text("event/005.JPG\n")
    val_only = FolderSource(tmp_path, format, val={"images": "test.lst"})
    assert sorted(by_id(val_only.val())) == ["event/005"]
    assert sorted(by_id(val_only.train())) == [f"event/00{number}" for number in range(5)]
    both = FolderSource(tmp_path, format, train={"images": "mine.txt"}, val={"images": "test.lst"})
    assert [record.image_id for record in both.train()] == ["event/004", "event/001"]
    same = {"train": {"images": "mine.txt"}, "val": {"images": "mine.txt"}}
    assert "2 images are both trained and validated on" in refusal(tmp_path, format, **same)


def test_given_labels_and_folders(tmp_path: Path) -> None:
    WRITERS["coco"](tmp_path / "set")
    (tmp_path / "set" / "annotations" / "instances_train.json").rename(tmp_path / "set" / "mine.json")
    (tmp_path / "set" / "images" / "train").rename(tmp_path / "elsewhere")
    own = {"labels": "mine.json", "folder": str(tmp_path / "elsewhere")}
    source = FolderSource(tmp_path / "set", "coco", train=own)
    assert by_id(source.train())["c"].path == tmp_path / "elsewhere" / "c.jpg"
    for train, says in (
        ({"labels": "nothere.json"}, "nothere.json is not there"),
        ({"labels": "mine.json", "folder": "no"}, "data.train.folder="),
        ({"folder": "images"}, "data.train.labels=…"),
    ):
        assert says in refusal(tmp_path / "set", "coco", train=train)
    # A YOLO set whose labels are elsewhere.
    WRITERS["yolo"](tmp_path / "yolo")
    (tmp_path / "yolo" / "labels" / "train").rename(tmp_path / "yolo" / "marks")
    moved = FolderSource(tmp_path / "yolo", "yolo", train={"labels": "marks", "folder": "images/train"})
    assert len(by_id(moved.train())["party/a"].boxes_xyxy) == 2


def test_names_in_other_letter_case_are_found(tmp_path: Path) -> None:
    source, folder = written(tmp_path, "coco"), tmp_path / "images" / "train"
    (folder / "party" / "a.jpg").rename(folder / "party" / "A.JPG")
    (folder / "party" / "b.jpg").rename(folder / "party" / "b.png")
    assert {"party/A": folder / "party" / "A.JPG", "party/b": folder / "party" / "b.png"}.items() <= {
        record.image_id: record.path for record in source.train()
    }.items()
    write_image(folder / "party" / "B.webp")
    assert "'party/b.jpg' may be party/B.webp or party/b.png" in refusal(tmp_path, "coco")


@pytest.mark.parametrize("format", FORMATS)
def test_missing_and_empty_images(format: str, tmp_path: Path) -> None:
    """Missing ones are counted; empty ones are no matter of the labels: training names and replaces them."""
    WRITERS[format](tmp_path)
    image = (tmp_path / "JPEGImages" if format == "voc" else tmp_path / "images" / "train") / "party" / "a.jpg"
    image.write_bytes(b"")
    source = FolderSource(tmp_path, format)
    source.check()
    assert "party/a" in by_id(source.train()) and source.inventories()[0].problems == []
    image.unlink()
    missing = f"1 of the 3 images of the train part are missing, the first is {image}"
    assert ("'a.txt' is a label file without an image" if format == "yolo" else missing) in refusal(tmp_path, format)


def test_problems_of_a_divided_set_are_said_once(tmp_path: Path) -> None:
    """They are refused by both parts, as they are in the labels of both."""
    WRITERS["wider"](tmp_path, {"train": many(6)})
    listed = tmp_path / "train.txt"
    listed.write_text(listed.read_text().replace("10 20 30 40", "10 20 30", 1))
    source = FolderSource(tmp_path, "wider")
    assert [len(own.problems) for own in source.inventories()] == [1, 0]
    for records in (source.train, source.val):
        with pytest.raises(InputError, match=r"train\.txt, line 3"):
            records()


def test_parts_without_labels_or_faces(tmp_path: Path) -> None:
    WRITERS["wider"](tmp_path, {"val": VAL})
    source = FolderSource(tmp_path, "wider")
    source.check(train=False)
    assert len(source.val()) == 2
    assert "has no train part" in refusal(tmp_path, "wider")
    assert "data.val.share=0.5" in refusal(tmp_path, "wider", val={"share": 0.5})
    WRITERS["yolo"](tmp_path / "yolo", {"train": TRAIN, "val": {"e": []}})
    (tmp_path / "yolo" / "labels" / "val").mkdir()
    (tmp_path / "yolo" / "labels" / "val" / "e.txt").touch()
    assert "no face in the 1 images of the val part" in refusal(tmp_path / "yolo", "yolo")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "pascal"}, "data.format=pascal is not"),
        ({"root": None}, "data.root=None is not"),
        ({"root": "nowhere"}, "data.root=nowhere is not a directory"),
        ({"points": "boxes"}, "data.points=boxes is not"),
        ({"origin": 2}, "data.origin=2 is not"),
        ({"train": {"lables": "x"}}, "lables is not known"),
        ({"val": {"share": 1.5}}, "data.val.share=1.5"),
        ({"color": 1}, "data=folder"),
    ],
)
def test_options_that_are_none(options: dict[str, object], expected: str, tmp_path: Path) -> None:
    WRITERS["coco"](tmp_path)
    with pytest.raises(InputError, match=re.escape(expected)):
        build_source("folder", **{"root": tmp_path, "format": "coco", **options}).check()
