"""Conversion: every format to every other and back, what each loses, names, images, and the command line."""

import json
import os
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.convert import convert, main
from fanet_lightning.data.folder.source import FolderSource
from fanet_lightning.data.records import Inventory
from tests.data.folder_files import FORMATS, HEIGHT, TRAIN, VAL, WIDTH, WRITERS, Face, Tell, write_image, written

# Pixels. YOLO's normalized coordinates have ten decimals, the others' pixels six.
TOLERANCE = 2e-6


def faces_of(inventory: Inventory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {image.image_id: (image.boxes_xyxy, image.ignored) for image in inventory.images}


def assert_same(found: Inventory, expected: Inventory, *, ignored: bool) -> None:
    """The same images in the same order with the same boxes; without the ignored ones where a format has none."""
    assert found.part == expected.part and not found.problems
    own, other = faces_of(found), faces_of(expected)
    # YOLO and VOC without lists have no order of images.
    assert sorted(own) == sorted(other)
    for image_id, (boxes, flags) in other.items():
        kept = np.ones(len(boxes), np.bool_) if ignored else ~flags
        np.testing.assert_allclose(own[image_id][0], boxes[kept], atol=TOLERANCE, rtol=0)
        assert own[image_id][1].tolist() == flags[kept].tolist()


@st.composite
def sets(draw: st.DrawFn) -> dict[str, list[Face]]:
    """Images with awkward names and boxes inside them, at least a hundredth of a pixel large."""
    word = st.text("aB1 .é'&<", min_size=1, max_size=5).map(str.strip).filter(lambda text: text.strip(".") != "")
    names = draw(st.lists(st.lists(word, min_size=1, max_size=3).map("/".join), min_size=2, max_size=5))
    # Not told apart on some disks, or hidden, or a folder and a file in one.
    unique = {name.casefold(): name for name in names if not any(step.startswith(".") for step in name.split("/"))}
    kept = [name for key, name in unique.items() if not any(other.startswith(f"{key}.jpg/") for other in unique)]

    def box() -> Face:
        x1, y1 = draw(st.floats(0, WIDTH - 1)), draw(st.floats(0, HEIGHT - 1))
        width, height = draw(st.floats(0.01, WIDTH - x1)), draw(st.floats(0.01, HEIGHT - y1))
        return (x1, y1, width, height, draw(st.booleans()), "face")

    return {name: [box() for _ in range(draw(st.integers(0, 4)))] for name in kept}


@given(faces=sets(), to=st.sampled_from(FORMATS), then=st.sampled_from(FORMATS))
@settings(max_examples=30)
def test_round_trips(faces: dict[str, list[Face]], to: str, then: str) -> None:
    """COCO → a format → another → COCO: the boxes of the start, whatever the images are called."""
    if not any(not face[4] for own in faces.values() for face in own):
        faces["certain"] = [(1, 2, 3, 4, False, "face")]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        first = written(root / "0", "coco", {"train": faces, "val": VAL})
        convert(first, to, root / "1")
        convert(FolderSource(root / "1", to), then, root / "2", images="link")
        convert(FolderSource(root / "2", then), "coco", root / "3", images="none")
        folders = {own.part: {"folder": str(own.folder)} for own in FolderSource(root / "2", then).inventories()}
        last = FolderSource(root / "3", "coco", **folders)  # type: ignore[arg-type]
        for own, other in zip(last.inventories(), first.inventories(), strict=True):
            assert_same(own, other, ignored="yolo" not in (to, then))
            originals = {image.image_id: image.path.read_bytes() for image in other.images}
            assert {image.image_id: image.path.read_bytes() for image in own.images} == originals


def test_every_format_by_hand(tmp_path: Path) -> None:
    convert(written(tmp_path / "0", "voc"), "coco", tmp_path / "coco")
    coco = COCO(str(tmp_path / "coco" / "annotations" / "instances_train.json"))
    found = {item["file_name"]: [(own["bbox"], own["iscrowd"]) for own in coco.imgToAnns[number]]
             for number, item in coco.imgs.items()}  # fmt: skip
    assert found == {
        "party/a.jpg": [([10, 20, 30, 40], 0), ([100.5, 10.25, 20, 16], 0)],
        "party/b.jpg": [([50, 30, 25, 35], 1), ([5, 5, 10, 10], 0)],
        "c.jpg": [],
    }
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "face", "supercategory": "face"}]
    assert all((item["width"], item["height"]) == (WIDTH, HEIGHT) for item in coco.imgs.values())
    for to in ("voc", "yolo", "wider"):
        record = convert(FolderSource(tmp_path / "coco", "coco"), to, tmp_path / to)
        assert json.loads((tmp_path / to / "converted.json").read_text()) == record
        assert record["parts"]["train"] == {"images": 3, "faces": 3, "ignored": 0 if to == "yolo" else 1}
    tree = ElementTree.parse(tmp_path / "voc" / "Annotations" / "party" / "a.xml")
    sides = [[side.text for side in item] for item in tree.iter("bndbox")]
    assert sides == [["11", "21", "40", "60"], ["101.5", "11.25", "120.5", "26.25"]]
    assert tree.findtext("filename") == "a.jpg" and tree.findtext("size/width") == "200"
    rows = (
        "0 0.1250000000 0.4000000000 0.1500000000 0.4000000000\n0 0.5525000000 0.1825000000 0.1000000000 0.1600000000\n"
    )
    for path, text in {
        "voc/ImageSets/Main/train.txt": "party/a\nparty/b\nc\n",
        "yolo/labels/train/party/a.txt": rows,
        "yolo/labels/train/c.txt": "",
        "yolo/data.yaml": "train: images/train\nval: images/val\nnames:\n  0: face\n",
        "wider/wider_face_split/wider_face_train_bbx_gt.txt": (
            "party/a.jpg\n2\n10 20 30 40 0 0 0 0 0 0\n100.5 10.25 20 16 0 0 0 0 0 0\n"
            "party/b.jpg\n2\n50 30 25 35 0 0 0 1 0 0\n5 5 10 10 0 0 0 0 0 0\nc.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
        ),
    }.items():
        assert (tmp_path / path).read_text() == text


def test_attributes_go_to_wider_alone(tmp_path: Path) -> None:
    labels = "a.jpg\n1\n10 20 30 40 2 1 0 0 1 0\n"
    for part in ("train", "val"):
        write_image(tmp_path / "own" / part / "a.jpg")
        (tmp_path / "own" / f"{part}.txt").write_text(labels)
    source = FolderSource(tmp_path / "own", "wider")
    assert convert(source, "wider", tmp_path / "wider")["lost"] == {}
    assert (tmp_path / "wider/wider_face_split/wider_face_train_bbx_gt.txt").read_text() == labels
    assert list(convert(source, "coco", tmp_path / "coco")["lost"].values()) == [2]


def test_yolo_cuts_boxes_to_the_image_and_says_so(tmp_path: Path) -> None:
    faces: dict[str, list[Face]] = {
        "a": [(-10, 20, 30, 40, False, "face"), (190, 90, 50, 50, False, "face"), (300, 5, 10, 10, False, "face")],
        "b": [(1, 2, 3, 4, False, "face"), (5, 5, 0, 10, False, "face")],
    }
    source = written(tmp_path / "coco", "coco", {"train": faces, "val": VAL})
    record = convert(source, "yolo", tmp_path / "yolo")
    assert record["lost"] == {
        "boxes without area left out": 1, "boxes cut to their image": 2, "boxes outside their image left out": 1,
    }  # fmt: skip
    train = FolderSource(tmp_path / "yolo", "yolo").inventories()[0]
    np.testing.assert_allclose(faces_of(train)["a"][0], [[0, 20, 20, 60], [190, 90, 200, 100]], atol=TOLERANCE)
    kept = convert(source, "wider", tmp_path / "wider")
    assert kept["lost"] == {"boxes without area left out": 1}
    wider = FolderSource(tmp_path / "wider", "wider").inventories()[0]
    assert faces_of(wider)["a"][0].tolist() == [[-10, 20, 20, 60], [190, 90, 240, 140], [300, 5, 310, 15]]


def test_images_linked_or_copied_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "coco", "coco")
    convert(source, "yolo", tmp_path / "linked", images="link")
    original, linked = (tmp_path / name / "images" / "train" / "c.jpg" for name in ("coco", "linked"))
    assert original.samefile(linked)
    convert(source, "coco", tmp_path / "left", images="none")
    assert not list((tmp_path / "left").rglob("*.jpg"))

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    convert(source, "yolo", tmp_path / "copied", images="link")
    assert len(list((tmp_path / "copied").rglob("*.jpg"))) == 5


def test_names_that_two_parts_share_and_unreadable_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VOC has one folder of images, the others one for each part."""
    source = written(tmp_path / "coco", "coco", {"train": TRAIN, "val": {"c": [(1, 2, 3, 4, False, "face")]}})
    broken = tmp_path / "coco" / "images" / "train" / "party" / "a.jpg"
    broken.write_bytes(b"")
    record = convert(source, "voc", tmp_path / "voc")
    assert record["lost"] == {"images that cannot be read left out": 1} and str(broken) in capsys.readouterr().out
    train, val = FolderSource(tmp_path / "voc", "voc").inventories()
    assert sorted(faces_of(train)) == ["train/c", "train/party/b"]
    assert faces_of(val)["val/c"][0].tolist() == [[1, 2, 4, 6]]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source, out = written(tmp_path / "coco", "coco"), tmp_path / "out"
    convert(source, "voc", out)
    (out / "Annotations" / "stale.xml").touch()
    convert(source, "voc", out, overwrite=True)
    assert not (out / "Annotations" / "stale.xml").exists()
    # A conversion of a conversion into itself would remove what it reads.
    with pytest.raises(InputError, match="which is to be converted"):
        convert(FolderSource(out, "voc"), "coco", out, overwrite=True)
    (tmp_path / "mine").mkdir()
    for place, foreign in ((out, "notes.txt"), (tmp_path / "mine", "thesis.tex")):
        (place / foreign).touch()
        with pytest.raises(InputError, match=f"holds something else .*{foreign}"):
            convert(source, "voc", place, overwrite=True)
    assert (out / "Annotations" / "c.xml").exists()


def test_command_line(tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["voc"](tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    words = ("data.format=voc", "to=yolo")
    done = tell(main, Path("mine"), *words, "out=out")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "train: 3 images, 3 faces, 0 ignored boxes",
        "val: 2 images, 1 faces, 0 ignored boxes",
        "ignored boxes left out: 1",
        "written: out; read it with data=folder data.root=out data.format=yolo",
    ]
    for root, extra, expected in (
        ("mine", ("out=out",), "out=out holds an earlier conversion"),
        ("mine", ("out=new", "images=move"), "images=move is unknown"),
        ("mine", ("out=new", "to=tfrecord"), "to=tfrecord is unknown"),
        ("mine", ("out=new", "data.format=coco"), "holds no labels"),
        # What convert has made itself: its record with the labels is no COCO file.
        ("out", ("out=new", "data.format=coco"), "holds no labels"),
        ("mine", (), "out=… must be given"),
    ):
        refused = tell(main, Path(root), *words, *extra)
        assert refused.code == 2 and refused.out == ""
        assert expected in refused.err and refused.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
