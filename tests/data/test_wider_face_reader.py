"""Reading WIDER FACE: text, .mat, zip, lists, and every way in which they can be wrong."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.records import ATTRIBUTES, ImageRecord, PackedRecords
from fanet_lightning.data.sources import WiderFaceSource
from fanet_lightning.data.wider_face import load_wider_face, parse_mat, parse_text, read_annotations, records_of
from tests.data.wider_files import numbered, write_image, write_text, write_wider

THREE = b"""0--Parade/a.jpg
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


def write_mat(path: Path, faces: dict[str, list[tuple[int, ...]]]) -> None:
    """The official nested cells, by hand."""

    def cells(items: list[object]) -> np.ndarray:
        out = np.empty((len(items), 1), dtype=object)
        for i, item in enumerate(items):
            out[i, 0] = item
        return out

    events = sorted({image_id.split("/")[0] for image_id in faces})
    of_event = [[image_id for image_id in faces if image_id.startswith(f"{event}/")] for event in events]
    content: dict[str, object] = {
        "event_list": cells(list(events)),
        "file_list": cells([cells([name.split("/")[1] for name in names]) for names in of_event]),
        "face_bbx_list": cells([cells([np.array(faces[n], np.int32)[:, :4] for n in names]) for names in of_event]),
    }
    for column, attribute in enumerate(ATTRIBUTES, start=4):
        content[f"{attribute}_label_list"] = cells(
            [cells([np.array(faces[n])[:, column : column + 1].astype(np.uint8) for n in names]) for names in of_event]
        )
    savemat(path, content)


def test_text_by_hand(tmp_path: Path) -> None:
    table = parse_text(THREE, "gt.txt")
    assert table.image_ids == ["0--Parade/a", "1--Handshaking/b", "1--Handshaking/c"]
    assert table.starts.tolist() == [0, 3, 4, 5]
    first, second, third = records_of(table, tmp_path)
    assert first.path == tmp_path / "0--Parade" / "a.jpg"
    assert first.boxes_xyxy.tolist() == [[10, 20, 40, 60]]
    assert first.boxes_xyxy.dtype == np.float32
    assert first.ignored_xyxy.tolist() == [[5, 6, 5, 14], [1, 2, 4, 6]]
    codes = {name: values.tolist() for name, values in first.attributes.items()}
    assert codes == {"blur": [1], "expression": [0], "illumination": [1], "invalid": [0], "occlusion": [2], "pose": [1]}
    assert second.boxes_xyxy.shape == (0, 4)
    assert second.ignored_xyxy.tolist() == [[0, 0, 0, 0]]
    assert third.boxes_xyxy.tolist() == [[7, 8, 16, 18]]


def test_no_face_without_its_line_of_zeros() -> None:
    table = parse_text(THREE.replace(b"0 0 0 0 0 0 0 0 0 0\n", b""), "gt.txt")
    assert table.starts.tolist() == [0, 3, 3, 4] and table.image_ids[2] == "1--Handshaking/c"
    assert parse_text(b"0--Parade/a.jpg\n0", "gt.txt").rows.shape == (0, 10)


@pytest.mark.parametrize(
    "change", [lambda b: b.replace(b"\n", b"\r\n"), lambda b: b"\xef\xbb\xbf" + b, lambda b: b + b"\n\n"]
)
def test_line_ends_marks_and_trailing_blanks(change) -> None:
    table = parse_text(change(THREE), "gt.txt")
    assert table.image_ids == parse_text(THREE, "gt.txt").image_ids
    np.testing.assert_array_equal(table.rows, parse_text(THREE, "gt.txt").rows)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("10 20 30 40 1 0 1 0 2 1", "10 20 30 40 1 0 1 0 2", 3, "'10 20 30 40 1 0 1 0 2'"),
        ("5 6 0 8 0", "5 6 zero 8 0", 4, "'5 6 zero 8 0 0 0 0 0 0'"),
        ("5 6 0 8 0", "5 6 nan 8 0", 4, "nan"),
        ("5 6 0 8 0 0 0 0 0 0\n", "\n", 2, "'3'"),
        ("a.jpg\n3", "a.jpg\nthree", 2, "the number of faces of 0--Parade/a.jpg"),
        ("1--Handshaking/c.jpg", "c.jpg", 9, "an image name"),
    ],
)
def test_malformed_text_names_file_line_and_text(old: str, new: str, line: int, says: str) -> None:
    assert old in THREE.decode()
    with pytest.raises(InputError) as error:
        parse_text(THREE.decode().replace(old, new, 1).encode(), "gt.txt")
    assert message(error).startswith(f"gt.txt, line {line}: ")
    assert says in message(error)


def test_an_image_twice_and_no_image_at_all_and_no_text() -> None:
    with pytest.raises(InputError, match=r"1--Handshaking/b"):
        parse_text(THREE.replace(b"c.jpg", b"b.jpg"), "gt.txt")
    with pytest.raises(InputError, match="names no image"):
        parse_text(b"\n", "gt.txt")
    with pytest.raises(InputError, match=r"byte 1"):
        parse_text(b"a\xff\xfe", "gt.txt")


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
        usable = [f for f in faces if f[2] > 0 and f[3] > 0 and f[7] == 0]
        ignored = [f for f in faces if not (f[2] > 0 and f[3] > 0 and f[7] == 0)]
        expected[image_id] = (usable, ignored)
    records = records_of(parse_text(text.encode(), "gt.txt"), Path())
    assert [record.image_id for record in records] == list(expected)
    for record in records:
        usable, ignored = expected[record.image_id]
        assert record.boxes_xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h, *_ in usable]
        assert record.ignored_xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h, *_ in ignored]
        for column, name in enumerate(ATTRIBUTES, start=4):
            assert record.attributes[name].tolist() == [face[column] for face in usable]


def test_mat_gives_what_the_text_gives(tmp_path: Path) -> None:
    faces = {
        "0--Parade/a": [(10, 20, 30, 40, 1, 0, 1, 0, 2, 1), (5, 6, 0, 8, 0, 0, 0, 1, 0, 0)],
        "0--Parade/b": [(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)],
        "9--Press/c": [(7, 8, 9, 10, 0, 0, 0, 0, 1, 0)],
    }
    write_text(tmp_path / "wider_face_val_bbx_gt.txt", faces)
    write_mat(tmp_path / "wider_face_val.mat", faces)
    text, mat = read_annotations(tmp_path, "val"), read_annotations(tmp_path, "val", form="mat")
    assert text.source.endswith(".txt") and mat.source.endswith(".mat")
    assert text.image_ids == mat.image_ids == list(faces)
    np.testing.assert_array_equal(text.starts, mat.starts)
    np.testing.assert_array_equal(text.rows, mat.rows)


def test_negative_sides_of_the_mat_are_the_zeros_of_the_text(tmp_path: Path) -> None:
    write_mat(tmp_path / "x.mat", {"0--Parade/a": [(10, 20, -2, 40, 0, 0, 0, 0, 0, 0)]})
    assert parse_mat((tmp_path / "x.mat").read_bytes(), "x.mat").rows[0, :4].tolist() == [10, 20, 0, 40]


def test_mat_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "wider_face_val.mat").write_bytes(b"not a mat file")
    with pytest.raises(InputError, match=r"wider_face_val\.mat") as error:
        read_annotations(tmp_path, "val")
    message(error)


def test_zip_folder_and_inner_folder_are_equal(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(4))
    folder = tmp_path / "wider_face_split"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"wider_face_split/{file.name}")
    tables = [read_annotations(source, "val") for source in (folder, tmp_path, tmp_path / "x.zip")]
    for table in tables:
        assert table.image_ids == list(numbered(4))
        np.testing.assert_array_equal(table.rows, tables[0].rows)
    assert tables[2].source.endswith("x.zip:wider_face_split/wider_face_val_bbx_gt.txt")
    with pytest.raises(InputError, match=r"wider_face_train\.mat.*x\.zip"):
        read_annotations(tmp_path / "x.zip", "train")


def test_test_split_has_names_only(tmp_path: Path) -> None:
    (tmp_path / "wider_face_test_filelist.txt").write_text("0--Parade/x.jpg\n0--Parade/y.jpg\n")
    table = read_annotations(tmp_path, "test")
    assert table.image_ids == ["0--Parade/x", "0--Parade/y"]
    assert [len(record.boxes_xyxy) for record in records_of(table, tmp_path)] == [0, 0]


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
    with pytest.raises(InputError, match=r"wider_face_test\.mat.*split\.zip"):
        load_wider_face(tmp_path, "test")


def test_only_listed_images_need_to_be_there(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(4))
    for name in ("0_Parade_001", "0_Parade_003"):
        (tmp_path / "WIDER_val" / "images" / "0--Parade" / f"{name}.jpg").unlink()
    with pytest.raises(InputError) as error:
        load_wider_face(tmp_path, "val")
    assert "2 of the 4 images of the val split are missing" in message(error)
    assert message(error).count("0_Parade_001.jpg") == 1
    (tmp_path / "list.txt").write_text("0--Parade/0_Parade_002\n")
    assert len(load_wider_face(tmp_path, "val", images=tmp_path / "list.txt")) == 1
    (tmp_path / "list.txt").write_text("0--Parade/0_Parade_003\n")
    with pytest.raises(InputError, match=r"1 of the 1 images.*0_Parade_003\.jpg"):
        load_wider_face(tmp_path, "val", images=tmp_path / "list.txt")


def test_mistakes_in_lists(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(2))
    path = tmp_path / "list.txt"
    for text, says in (
        (
            "0--Parade/0_Parade_000\n\n0--Parade/nobody.jpg\n",
            "line 3: 0--Parade/nobody is not among the 2 images .*; correct the name, or name the split that has it",
        ),
        ("0_Parade_001.jpg\n", r"\(0--Parade/0_Parade_001\?\)"),
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
        (str(images), "<event>/<name>.jpg", "get WIDER FACE", "data=synthetic"),
        (str(tmp_path / "wider_face_split"), "wider_face_train_bbx_gt.txt", "data.annotations", "data=synthetic"),
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


def test_packed_records_are_the_records() -> None:
    records = records_of(parse_text(THREE, "gt.txt"), Path("/data/é"))
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
    ("split", "images", "boxes", "invalid", "empty", "most"),
    [("val", 3226, 39708, 585, 11, 709), ("train", 12880, 159424, 2399, 31, 1968)],
)
def test_official_annotations(
    shared_data: Path, split: str, images: int, boxes: int, invalid: int, empty: int, most: int
) -> None:
    archive = shared_data / "wider_face" / "wider_face_split.zip"
    text = read_annotations(archive, split)  # type: ignore[arg-type]
    assert (len(text.image_ids), len(text.rows)) == (images, boxes)
    assert int((text.rows[:, 7] == 1).sum()) == invalid
    assert int(((text.rows[:, 2] == 0) | (text.rows[:, 3] == 0)).sum()) == empty
    assert int(np.diff(text.starts).max()) == most
    mat = read_annotations(archive, split, form="mat")  # type: ignore[arg-type]
    assert mat.image_ids == text.image_ids
    np.testing.assert_array_equal(mat.starts, text.starts)
    np.testing.assert_array_equal(mat.rows, text.rows)
    records = records_of(text, Path())
    assert sum(len(record.boxes_xyxy) + len(record.ignored_xyxy) for record in records) == boxes


def test_official_test_names(shared_data: Path) -> None:
    archive = shared_data / "wider_face" / "wider_face_split.zip"
    text, mat = read_annotations(archive, "test"), read_annotations(archive, "test", form="mat")
    assert len(text.image_ids) == 16097
    assert set(text.image_ids) == set(mat.image_ids)


def test_official_images_by_list(shared_data: Path) -> None:
    root = shared_data / "wider_face"
    train, test = (load_wider_face(root, "val", images=root / f"{name}.txt") for name in ("train", "test"))
    assert not {record.image_id for record in train} & {record.image_id for record in test}
    # More files may be at hand than any list names.
    missing = 3226 - sum(1 for _ in (root / "WIDER_val" / "images").rglob("*.jpg"))
    assert 0 < missing < 3226
    with pytest.raises(InputError, match=f"^{missing} of the 3226 images"):
        load_wider_face(root, "val")
