"""The inventory of WIDER FACE: all that training refuses is in it; where nothing is wrong, it says what records say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.sources import SyntheticSource, WiderFaceSource
from fanet_lightning.data.wider_face import parse_list
from tests.data.wider_files import numbered, write_image, write_wider

ROWS = st.tuples(*[st.floats(-50, 2000).map(lambda value: round(value, 3))] * 4, *[st.integers(0, 3)] * 6)


def boxes_said(rows: Sequence[tuple[float, ...]]) -> list[list[float]]:
    """The boxes of an image's rows: a single row of zeros is the official way to say that there is no face."""
    return [] if len(rows) == 1 and not any(rows[0]) else [list(row[:4]) for row in rows]


@given(
    faces=st.dictionaries(
        st.text("ab1-_ é", min_size=1, max_size=8).map(lambda text: f"e/{text.strip()}x"),
        st.lists(ROWS, max_size=5),
        min_size=1,
        max_size=6,
    ),
    blank=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_sound_lists(faces: dict[str, list[tuple[float, ...]]], blank: bool) -> None:
    """Every row and its line, by a plain reading of what was written."""
    lines: list[str] = []
    for name, rows in faces.items():
        lines += [f"{name}.jpg", str(len(rows)), *(" ".join(map(str, row)) + " " for row in rows)]
        lines += [] if rows else ["0 0 0 0 0 0 0 0 0 0 "]
        lines += [""] if blank else []
    images, problems = parse_list("\n".join(lines), Path("list"), (10,))
    assert problems == []
    assert [image.image_id for image in images] == [f"{name}.jpg" for name in faces]
    for own, rows in zip(images, faces.values(), strict=True):
        said = boxes_said(rows)
        np.testing.assert_array_equal(
            own.boxes_xyxy, np.reshape([[x, y, x + w, y + h] for x, y, w, h in said], (-1, 4))
        )
        assert own.ignored.tolist() == [row[7] != 0 for row in rows][: len(said)]
        assert [float(lines[line - 1].split()[0]) for line in own.box_lines] == [row[0] for row in said]


@given(
    faces=st.lists(st.lists(ROWS, max_size=3), min_size=2, max_size=5),
    where=st.integers(0, 200),
    what=st.sampled_from(["oops", "1 2 3", "", "1 2 3 4 5 6 7 8 9 10 11", "nan nan", "e/new.jpg", "999"]),
)
@settings(max_examples=300, deadline=None)
def test_damage_stays_where_it_is(faces: list[list[tuple[float, ...]]], where: int, what: str) -> None:
    """One line replaced by anything: it is told, and images that it does not touch keep all their boxes."""
    lines: list[str] = []
    owner: list[int] = []
    for number, rows in enumerate(faces):
        own = [f"e/{number}.jpg", str(len(rows)), *(" ".join(map(str, row)) for row in rows)]
        lines += own
        owner += [number] * len(own)
    where %= len(lines)
    untouched = set(range(len(faces))) - {owner[where], owner[where] - 1}
    damaged = [*lines[:where], what, *lines[where + 1 :]]
    images, problems = parse_list("\n".join(damaged), Path("list"), (10,))
    by_id = {image.image_id: image for image in images}
    # Another name for an image is no damage that a list shows; that the image is not there is found later.
    renamed = what in ("e/new.jpg", "oops") and lines[where] == f"e/{owner[where]}.jpg"
    if damaged != lines and not renamed:
        assert problems and abs((problems[0].line or 0) - 1 - where) <= 5
    for number in untouched:
        boxes = by_id[f"e/{number}.jpg"].boxes_xyxy
        said = [[x, y, x + w, y + h] for x, y, w, h in boxes_said(faces[number])]
        np.testing.assert_array_equal(boxes, np.reshape(said, (-1, 4)))


def test_all_that_training_refuses(tmp_path: Path) -> None:
    write_wider(tmp_path, "train", numbered(5))
    write_wider(tmp_path, "val", {"1--Riot/a": [(1, 2, 3, 4, 0, 0, 0, 1, 0, 0), (9, 9, -2, 5, 0, 0, 0, 0, 0, 0)]})
    labels = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    text = labels.read_text().replace("2 1 12 11 0 0 0 0 0 0", "2 1 twelve 11 0 0 0 0 0 0")
    labels.write_text(text + "0--Parade/nowhere.jpg\n1\n5 6 7 8 0 0 0 0 0 0\n")
    images = tmp_path / "WIDER_train" / "images" / "0--Parade"
    (images / "0_Parade_001.jpg").unlink()
    write_image(images / "extra.jpg", 0)
    source = WiderFaceSource(tmp_path)
    with pytest.raises(InputError):
        source.train()
    train, val = source.inventories()
    assert (train.part, val.part) == ("train", "val")
    by_id = {image.image_id: image for image in train.images}
    assert len(by_id) == len(train.images) == 6
    assert [image.image_id for image in train.images if not image.path.exists()] == [
        "0--Parade/0_Parade_001",
        "0--Parade/nowhere",
    ]
    assert train.unlabelled == [images / "extra.jpg"]
    (problem,) = train.problems
    line = text.splitlines().index("2 1 twelve 11 0 0 0 0 0 0 ") + 1
    assert (problem.path, problem.line, problem.value) == (labels, line, "2 1 twelve 11 0 0 0 0 0 0")
    assert by_id["0--Parade/0_Parade_002"].boxes_xyxy.tolist() == [[2, 0, 14, 10]]
    assert by_id["0--Parade/0_Parade_004"].box_lines[0] == text.splitlines().index("4 0 14 10 0 0 0 0 0 0 ") + 1
    assert len(by_id["0--Parade/0_Parade_000"].boxes_xyxy) == 0
    (image,) = val.images
    assert image.boxes_xyxy.tolist() == [[1, 2, 4, 6], [9, 9, 7, 14]] and image.ignored.tolist() == [True, False]
    assert val.problems == [] and val.unlabelled == []


def test_lists_and_absent_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no WIDER FACE here"):
        WiderFaceSource(tmp_path).inventories()
    write_wider(tmp_path, "val", numbered(4))
    (val,) = WiderFaceSource(tmp_path).inventories()
    assert val.part == "val" and len(val.images) == 4
    (tmp_path / "some.txt").write_text("0--Parade/0_Parade_003\n")
    chosen = {"split": "val", "images": "some.txt"}
    train, val = WiderFaceSource(tmp_path, train=chosen, val={"split": "val"}).inventories()
    assert [image.image_id for image in train.images] == ["0--Parade/0_Parade_003"] and len(val.images) == 4
    (tmp_path / "wider_face_split").rename(tmp_path / "labels")
    with pytest.raises(InputError, match="wider_face_split does not exist"):
        WiderFaceSource(tmp_path).inventories()


def test_synthetic_faces(tmp_path: Path) -> None:
    source = SyntheticSource(tmp_path, train_images=3, val_images=2, image_width=[64, 64], image_height=[64, 64])
    inventories = source.inventories()
    assert [(own.part, len(own.images), own.problems, own.unlabelled) for own in inventories] == [
        ("train", 3, [], []),
        ("val", 2, [], []),
    ]
    for own, records in zip(inventories, (source.train(), source.val()), strict=True):
        expected = {record.image_id: len(record.boxes_xyxy) for record in records}
        assert {image.image_id: int((~image.ignored).sum()) for image in own.images} == expected


def test_sample_of_wider_face(shared_data: Path) -> None:
    root = shared_data / "wider_face"
    source = WiderFaceSource(
        root, train={"split": "val", "images": "train.txt"}, val={"split": "val", "images": "test.txt"}
    )
    train, val = source.inventories()
    assert (len(train.images), len(val.images)) == (1698, 320)
    assert train.problems == val.problems == train.unlabelled == val.unlabelled == []
    for own, records in ((train, source.train()), (val, source.val())):
        expected = {record.image_id: record for record in records}
        for image in own.images:
            boxes = image.boxes_xyxy.astype(np.float32)
            usable = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~image.ignored
            assert image.path == expected[image.image_id].path
            assert boxes[usable].tolist() == expected[image.image_id].boxes_xyxy.tolist()
