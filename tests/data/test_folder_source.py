"""Data of one's own as a source: parts, lists, the share for validation, names of files, and the command line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.source import FolderSource, carved
from fanet_lightning.data.sources import build_source
from tests.data.folder_files import (
    FORMATS,
    TRAIN,
    VAL,
    WRITERS,
    Face,
    by_id,
    one_line,
    refusal,
    write_coco,
    write_image,
    write_wider_list,
    write_yolo,
)

ONE: list[Face] = [(10, 20, 30, 40, False, "face")]


def many(count: int) -> dict[str, list[Face]]:
    return {f"event/{number:03d}": ONE for number in range(count)}


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_without_validation_part_is_divided(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS[format](tmp_path, {"train": many(40)})
    source = FolderSource(tmp_path, format, val={"share": 0.25})
    source.check()
    train, val = by_id(source.train()), by_id(source.val())
    assert set(train) | set(val) == set(many(40)) and not set(train) & set(val)
    assert set(val) == carved(set(many(40)), 0.25)
    line = [line for line in capsys.readouterr().out.splitlines() if "has no validation part" in line]
    assert len(line) == 1 and f"{len(val)} of 40 images (25%" in line[0]


@given(
    ids=st.sets(st.text("abc/0", min_size=1, max_size=6), min_size=2, max_size=60),
    more=st.sets(st.text("xyz", min_size=7, max_size=9), max_size=20),
    share=st.floats(0.05, 0.95),
)
@settings(max_examples=200, deadline=None)
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
    lists = {"train": {"images": "mine.txt"}, "val": {"images": "test.lst"}}
    for text, expected in (
        ("event/004\nevent/999\n", "line 2: event/999 is not among the 6 labelled images of "),
        ("004.jpg\n", "did you mean event/004?"),
        ("zzzz.png\n", "correct the name"),
        ("# none\n", "names no image"),
    ):
        (tmp_path / "mine.txt").write_text(text)
        line = refusal(tmp_path, format, **lists)
        assert expected in line and str(tmp_path / "mine.txt") in line


def test_given_labels_and_folders(tmp_path: Path) -> None:
    write_coco(tmp_path / "set")
    (tmp_path / "set" / "annotations" / "instances_train.json").rename(tmp_path / "set" / "mine.json")
    (tmp_path / "set" / "images" / "train").rename(tmp_path / "elsewhere")
    source = FolderSource(
        tmp_path / "set", "coco", train={"labels": "mine.json", "folder": str(tmp_path / "elsewhere")}
    )
    assert by_id(source.train())["c"].path == tmp_path / "elsewhere" / "c.jpg"
    assert "nothere.json does not exist" in refusal(tmp_path / "set", "coco", train={"labels": "nothere.json"})
    assert "data.train.folder=" in refusal(tmp_path / "set", "coco", train={"labels": "mine.json", "folder": "no"})
    assert "data.train.labels=…" in refusal(tmp_path / "set", "coco", train={"folder": "images"})
    # A YOLO set whose labels are elsewhere.
    write_yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "labels" / "train").rename(tmp_path / "yolo" / "marks")
    moved = FolderSource(tmp_path / "yolo", "yolo", train={"labels": "marks", "folder": "images/train"})
    assert len(by_id(moved.train())["party/a"].boxes_xyxy) == 2


def test_names_in_other_letter_case_are_found(tmp_path: Path) -> None:
    write_coco(tmp_path)
    folder = tmp_path / "images" / "train"
    (folder / "party" / "a.jpg").rename(folder / "party" / "A.JPG")
    (folder / "party" / "b.jpg").unlink()
    write_image(folder / "party" / "b.png")
    source = FolderSource(tmp_path, "coco")
    source.check()
    assert by_id(source.train())["party/A"].path == folder / "party" / "A.JPG"
    assert by_id(source.train())["party/b"].path == folder / "party" / "b.png"
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


@pytest.mark.parametrize("format", FORMATS)
def test_inventories_hold_what_training_refuses(format: str, tmp_path: Path) -> None:
    WRITERS[format](tmp_path)
    folder = tmp_path / "JPEGImages" if format == "voc" else tmp_path / "images" / "train"
    write_image(folder / "unlabelled.jpg")
    (folder / "party" / "b.jpg").unlink()
    train, val = FolderSource(tmp_path, format).inventories()
    assert (train.part, val.part, train.folder) == ("train", "val", folder)
    images = {image.image_id: image for image in train.images}
    np.testing.assert_allclose(images["party/a"].boxes_xyxy[1], [100.5, 10.25, 120.5, 26.25], atol=1e-9)
    assert images["party/a"].boxes_xyxy.dtype == np.float64
    if format == "yolo":  # an image without a file has no face; a file without an image is a problem
        assert [(problem.value, problem.line) for problem in train.problems] == [("b.txt", None)]
        assert "unlabelled" in images
    else:
        assert not images["party/b"].path.exists() and images["party/b"].ignored.tolist() == [True, False]
        # VOC has one folder for all parts: an image with an XML file that this part's list leaves out is labelled.
        assert {path.name for path in train.unlabelled} == {"unlabelled.jpg"}
    stated = {"coco": (200, 100), "voc": (200, 100)}
    assert images["c"].stated_wh == stated.get(format)
    lines = {"coco": (), "yolo": (1, 2), "voc": (), "wider": (3, 4)}
    assert images["party/a"].box_lines == lines[format]


def test_problems_of_a_divided_set_are_said_once(tmp_path: Path) -> None:
    """They are refused by both parts, as they are in the labels of both."""
    write_wider_list(tmp_path, {"train": many(6)})
    listed = tmp_path / "train.txt"
    listed.write_text(listed.read_text().replace("10 20 30 40", "10 20 30", 1))
    source = FolderSource(tmp_path, "wider")
    assert [len(own.problems) for own in source.inventories()] == [1, 0]
    for records in (source.train, source.val):
        with pytest.raises(InputError, match=r"train\.txt, line 3"):
            records()


def test_parts_without_labels_or_faces(tmp_path: Path) -> None:
    write_wider_list(tmp_path, {"val": VAL})
    source = FolderSource(tmp_path, "wider")
    source.check(train=False)
    assert len(source.val()) == 2
    assert "has no train part" in refusal(tmp_path, "wider")
    assert "data.val.share=0.5" in refusal(tmp_path, "wider", val={"share": 0.5})
    write_yolo(tmp_path / "yolo", {"train": TRAIN, "val": {"e": []}})
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
    write_coco(tmp_path)
    with pytest.raises(InputError) as error:
        build_source("folder", **{"root": tmp_path, "format": "coco", **options}).check()
    assert expected in one_line(error.value)
