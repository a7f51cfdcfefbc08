"""Reading WIDER FACE: text, zip, lists, and every way in which they can be wrong."""

import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.records import ATTRIBUTES, ImageRecord, PackedRecords
from fanet_lightning.data.sources import WiderFaceSource
from fanet_lightning.data.wider_face import load_wider_face, read_annotations
from tests.data.wider_files import numbered, write_image, write_wider

THREE = """0--Parade/a.jpg
3
10 20 30 40 1 0 1 0 2 1
5 6 0 8 0 0 0 0 0 0
1 2 3 4 2 1 0 1 0 0
1--Handshaking/b.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/c.jpg
1
7 8 9 10 0 0 0 0 1 0
"""


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def records_of(text: str, root: Path) -> list[ImageRecord]:
    """The records of a val split with these annotations; the images are written where they are missing."""
    labels = root / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    labels.parent.mkdir(exist_ok=True)
    labels.write_bytes(text.encode())
    for name in (line for line in text.splitlines() if line.endswith(".jpg")):
        write_image(root / "WIDER_val" / "images" / name, 0, (2, 2))
    return load_wider_face(root, "val")


def test_text_by_hand(tmp_path: Path) -> None:
    first, second, third = records_of(THREE, tmp_path)
    assert [own.image_id for own in (first, second, third)] == ["0--Parade/a", "1--Handshaking/b", "1--Handshaking/c"]
    assert first.path == tmp_path / "WIDER_val" / "images" / "0--Parade" / "a.jpg"
    assert first.boxes_xyxy.tolist() == [[10, 20, 40, 60]]
    assert first.boxes_xyxy.dtype == np.float32
    assert first.ignored_xyxy.tolist() == [[5, 6, 5, 14], [1, 2, 4, 6]]
    codes = {name: values.tolist() for name, values in first.attributes.items()}
    assert codes == {"blur": [1], "expression": [0], "illumination": [1], "invalid": [0], "occlusion": [2], "pose": [1]}
    assert second.boxes_xyxy.shape == second.ignored_xyxy.shape == (0, 4)
    assert third.boxes_xyxy.tolist() == [[7, 8, 16, 18]]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n",
        lambda text: text.replace("0 0 0 0 0 0 0 0 0 0\n", ""),  # no face without its line of zeros
    ],
)
def test_line_ends_marks_and_blanks(change: Callable[[str], str], tmp_path: Path) -> None:
    expected = records_of(THREE, tmp_path)
    for own, other in zip(records_of(change(THREE), tmp_path), expected, strict=True):
        assert own.image_id == other.image_id and own.boxes_xyxy.tolist() == other.boxes_xyxy.tolist()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("10 20 30 40 1 0 1 0 2 1", "10 20 30 40 1 0 1 0 2", "line 3: '10 20 30 40 1 0 1 0 2'"),
        ("5 6 0 8 0", "5 6 zero 8 0", "line 4: '5 6 zero 8 0 0 0 0 0 0'"),
        ("5 6 0 8 0", "5 6 nan 8 0", "line 4: x1=5 y1=6 x2=nan"),
        ("5 6 0 8 0 0 0 0 0 0\n", "\n", "line 2: '3'"),
        ("a.jpg\n3", "a.jpg\nthree", "line 2: 'three' stands where the number of faces of 0--Parade/a.jpg"),
        ("c.jpg", "b.jpg", "1--Handshaking/b twice"),
    ],
)
def test_malformed_text_names_file_line_and_text(old: str, new: str, says: str, tmp_path: Path) -> None:
    assert old in THREE
    with pytest.raises(InputError) as error:
        records_of(THREE.replace(old, new, 1), tmp_path)
    assert "wider_face_val_bbx_gt.txt" in message(error) and says in message(error)


def test_no_image_at_all_and_no_text(tmp_path: Path) -> None:
    (tmp_path / "WIDER_val" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="names no image"):
        records_of("\n", tmp_path)
    (tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_bytes(b"a\xff\xfe")
    with pytest.raises(InputError, match=r"byte 1"):
        load_wider_face(tmp_path, "val")


rows = st.lists(
    st.tuples(
        *[st.integers(0, 2000)] * 2, *[st.integers(-30, 900)] * 2, st.integers(0, 2), *[st.integers(0, 1)] * 3,
        st.integers(0, 2), st.integers(0, 1),
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, min_size=1, max_size=6))
def test_records_equal_a_plain_reading_of_the_lines(images: list[list[tuple[int, ...]]]) -> None:
    text = ""
    expected = {}
    for number, faces in enumerate(images):
        image_id = f"{number % 3}--Event/{number}"
        text += f"{image_id}.jpg\n{len(faces)}\n" + "".join(" ".join(map(str, face)) + "\n" for face in faces)
        said = [] if len(faces) == 1 and not any(faces[0]) else faces
        usable = [f for f in said if f[2] > 0 and f[3] > 0 and f[7] == 0]
        ignored = [f for f in said if not (f[2] > 0 and f[3] > 0 and f[7] == 0)]
        expected[image_id] = (usable, ignored)
    with tempfile.TemporaryDirectory() as name:
        records = records_of(text, Path(name))
    assert [record.image_id for record in records] == list(expected)
    for record in records:
        usable, ignored = expected[record.image_id]
        assert record.boxes_xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h, *_ in usable]
        assert record.ignored_xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h, *_ in ignored]
        for column, name in enumerate(ATTRIBUTES, start=4):
            assert record.attributes[name].tolist() == [face[column] for face in usable]


def test_zip_folder_and_inner_folder_are_equal(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(4))
    folder = tmp_path / "wider_face_split"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"wider_face_split/{file.name}")
    for source in (folder, tmp_path, tmp_path / "x.zip"):
        images, problems = read_annotations(source, "val")
        assert [image.image_id for image in images] == [f"{name}.jpg" for name in numbered(4)] and not problems
        assert images[2].boxes_xyxy.tolist() == [[2, 0, 14, 10], [2, 1, 14, 12]]
        assert str(images[0].label_path).endswith("wider_face_split/wider_face_val_bbx_gt.txt")
    with pytest.raises(InputError, match=r"wider_face_train_bbx_gt\.txt.*x\.zip"):
        read_annotations(tmp_path / "x.zip", "train")


def test_test_split_has_names_only(tmp_path: Path) -> None:
    (tmp_path / "wider_face_test_filelist.txt").write_text("0--Parade/x.jpg\n0--Parade/y.jpg\n")
    images, _ = read_annotations(tmp_path, "test")
    assert [image.image_id for image in images] == ["0--Parade/x.jpg", "0--Parade/y.jpg"]
    assert not any(len(image.boxes_xyxy) for image in images)


def test_load_whole_split_and_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wider(tmp_path, "val", numbered(5))
    assert [record.image_id for record in load_wider_face(tmp_path, "val")] == list(numbered(5))
    (tmp_path / "list.txt").write_text("# two\n0--Parade/0_Parade_004.jpg\n\n  0--Parade/0_Parade_002  # why\n")
    records = load_wider_face(tmp_path, "val", images=tmp_path / "list.txt")
    assert [record.image_id for record in records] == ["0--Parade/0_Parade_004", "0--Parade/0_Parade_002"]
    assert records[1].boxes_xyxy.tolist() == [[2, 0, 14, 10], [2, 1, 14, 12]]
    assert records[0].path.is_file()
    # Paths as `find` writes them: in the root, in the working folder, absolute.
    monkeypatch.chdir(tmp_path / "WIDER_val")
    names = ("0--Parade/0_Parade_004.jpg", "0--Parade/0_Parade_002.jpg")
    for start in ("./WIDER_val/images/", "./images/", f"{tmp_path}/WIDER_val/images/", "./", ".\\images\\"):
        lines = "".join(f"{start}{name}\r\n" for name in names)
        encoding = "utf-16" if "\\" in start else "utf-8"  # as Windows' tools write them
        (tmp_path / "find.txt").write_bytes((lines.replace("/", "\\") if "\\" in start else lines).encode(encoding))
        found = load_wider_face(tmp_path, "val", images=tmp_path / "find.txt")
        assert [record.image_id for record in found] == [name.removesuffix(".jpg") for name in names]
    (tmp_path / "find.txt").write_text(f"./WIDER_train/images/{names[0]}\n")
    with pytest.raises(InputError, match=r"find\.txt, line 1: "):  # another split's
        load_wider_face(tmp_path, "val", images=tmp_path / "find.txt")
    # Found with the data too.
    assert len(load_wider_face(tmp_path, "val", images=Path("list.txt"))) == 2


def test_a_zip_without_the_list_of_test_images(tmp_path: Path) -> None:
    write_wider(tmp_path, "train", numbered(3))
    write_wider(tmp_path, "val", numbered(2))
    (tmp_path / "WIDER_test" / "images").mkdir(parents=True)
    shutil.make_archive(str(tmp_path / "wider_face_split"), "zip", tmp_path, "wider_face_split")
    shutil.rmtree(tmp_path / "wider_face_split")
    assert (len(load_wider_face(tmp_path, "train")), len(load_wider_face(tmp_path, "val"))) == (3, 2)
    source = WiderFaceSource(tmp_path)
    source.check()
    assert [len(inventory.images) for inventory in source.inventories()] == [3, 2]
    with pytest.raises(InputError, match=r"wider_face_test_filelist\.txt.*split\.zip"):
        load_wider_face(tmp_path, "test")


def test_only_listed_images_need_to_be_there(tmp_path: Path) -> None:
    tmp_path = tmp_path / "my data"
    write_wider(tmp_path, "val", numbered(4))
    for name in ("0_Parade_001", "0_Parade_003"):
        (tmp_path / "WIDER_val" / "images" / "0--Parade" / f"{name}.jpg").unlink()
    with pytest.raises(InputError) as error:
        load_wider_face(tmp_path, "val")
    assert "2 of the 4 images of the val split are missing" in message(error)
    assert message(error).count("0_Parade_001.jpg") == 1 and f"--root '{tmp_path}' --parts val'" in message(error)
    (tmp_path / "list.txt").write_text("0--Parade/0_Parade_002\n")
    assert len(load_wider_face(tmp_path, "val", images=tmp_path / "list.txt")) == 1
    (tmp_path / "list.txt").write_text("0--Parade/0_Parade_003\n")
    with pytest.raises(InputError, match=r"1 of the 1 images.*0_Parade_003\.jpg"):
        load_wider_face(tmp_path, "val", images=tmp_path / "list.txt")


def test_the_exact_name_comes_before_its_variants(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(1))
    event = tmp_path / "WIDER_val/images/0--Parade"
    (event / "0_Parade_000.JPG").write_bytes(b"another")
    assert load_wider_face(tmp_path, "val")[0].path == event / "0_Parade_000.jpg"
    (event / "0_Parade_000.jpg").rename(event / "0_parade_000.jpg")
    with pytest.raises(InputError, match=r"may be 0--Parade/0_Parade_000\.JPG or 0--Parade/0_parade_000\.jpg"):
        load_wider_face(tmp_path, "val")


def test_any_letter_case_gives_the_same_records(tmp_path: Path) -> None:
    """Random cases of every name: records as from the official names, each at a file that is there."""
    chance = random.Random(0)
    faces = {**numbered(4), **numbered(4, "1--Riot"), **numbered(4, "2--Demonstration")}
    for number in range(12):
        root = tmp_path / str(number)
        write_wider(root, "val", faces)
        expected = load_wider_face(root, "val")
        for path in sorted((root / "WIDER_val/images").rglob("*"), reverse=True):
            if chance.random() < 0.5:
                path.rename(path.with_name("".join(chance.choice((c.lower(), c.upper())) for c in path.name)))
        found = load_wider_face(root, "val")
        assert [record.image_id for record in found] == [record.image_id for record in expected]
        for new, old in zip(found, expected, strict=True):
            assert new.path.is_file() and str(new.path).lower() == str(old.path).lower()
            assert (new.boxes_xyxy == old.boxes_xyxy).all()


def test_mistakes_in_lists(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(2))
    path = tmp_path / "list.txt"
    for text, says in (
        (
            "0--Parade/0_Parade_000\n\n0--Parade/nobody.jpg\n",
            "line 3: 0--Parade/nobody is not among the 2 labelled images .*",
        ),
        ("0_Parade_001.jpg\n", r"did you mean 0--Parade/0_Parade_001\?"),
        ("0--Parade/0_Parade_000\n0--Parade/0_Parade_000.jpg\n", r":2: '0--Parade/0_Parade_000'.*line 1"),
        ("# nothing\n", "names no image"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=f"{path}.*{says}") as error:
            load_wider_face(tmp_path, "val", images=path)
        message(error)
    with pytest.raises(InputError, match=r"absent\.txt: No such file"):
        load_wider_face(tmp_path, "val", images=tmp_path / "absent.txt")


def test_missing_data_says_where_it_looked_and_the_ways_on(tmp_path: Path) -> None:
    images = tmp_path / "WIDER_train" / "images"
    for parts in (
        (str(images), "<event>/<name>.jpg", "data=synthetic"),
        (str(tmp_path / "wider_face_split"), "wider_face_train_bbx_gt.txt", "data.annotations"),
    ):
        with pytest.raises(InputError) as error:
            load_wider_face(tmp_path, "train")
        assert all(part in message(error) for part in parts)
        write_image(images / "0--Parade" / "a.jpg", 0)
    with pytest.raises(InputError, match=r"split=validation.*test"):
        read_annotations(tmp_path, "validation")  # type: ignore[arg-type]


def test_records_refuse_boxes_without_area() -> None:
    with pytest.raises(ValueError, match="without area"):
        ImageRecord("e/a", Path("a"), np.array([[3, 0, 3, 2]], np.float32))


def test_packed_records_are_the_records(tmp_path: Path) -> None:
    (tmp_path / "é").mkdir()
    records = records_of(THREE, tmp_path / "é")
    packed = PackedRecords(records)
    assert len(packed) == 3
    for index, record in enumerate(records):
        assert packed.image_id(index) == record.image_id
        assert packed.path(index) == record.path
        np.testing.assert_array_equal(packed.boxes_xyxy(index), record.boxes_xyxy)
    packed.boxes_xyxy(0)[:] = 0
    assert packed.boxes_xyxy(0).tolist() == [[10, 20, 40, 60]]


# The official files


@pytest.mark.parametrize(
    ("split", "count", "rows", "invalid", "empty", "most"),
    [("val", 3226, 39708, 585, 11, 709), ("train", 12880, 159424, 2399, 31, 1968)],
)
def test_official_annotations(
    shared_data: Path, split: str, count: int, rows: int, invalid: int, empty: int, most: int
) -> None:
    archive = shared_data / "wider_face" / "wider_face_split.zip"
    images, problems = read_annotations(archive, split)  # type: ignore[arg-type]
    boxes = np.concatenate([image.boxes_xyxy for image in images])
    without = sum(not len(image.boxes_xyxy) for image in images)  # they have a row of zeros
    assert (len(images), len(boxes) + without) == (count, rows) and not problems
    assert sum(int(image.ignored.sum()) for image in images) == invalid
    assert int((boxes[:, 2:] == boxes[:, :2]).any(axis=1).sum()) + without == empty
    assert max(len(image.boxes_xyxy) for image in images) == most


def test_official_test_names(shared_data: Path) -> None:
    images, _ = read_annotations(shared_data / "wider_face" / "wider_face_split.zip", "test")
    assert len(images) == len({image.image_id for image in images}) == 16097


def test_official_images_by_list(shared_data: Path) -> None:
    root = shared_data / "wider_face"
    train, test = (load_wider_face(root, "val", images=root / f"{name}.txt") for name in ("train", "test"))
    assert not {record.image_id for record in train} & {record.image_id for record in test}
    # More files may be at hand than any list names.
    missing = 3226 - sum(1 for _ in (root / "WIDER_val" / "images").rglob("*.jpg"))
    assert 0 < missing < 3226
    with pytest.raises(InputError, match=f"^{missing} of the 3226 images"):
        load_wider_face(root, "val")
