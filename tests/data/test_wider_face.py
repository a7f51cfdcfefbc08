"""Reading WIDER FACE: text, zip, lists, every way in which they can be wrong, and the inventory that holds it all."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.sources import WiderFaceSource
from fanet_lightning.data.wider_face import Split, load_wider_face, read_annotations
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


def refused(call: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


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
    assert first.boxes_xyxy.tolist() == [[10, 20, 40, 60]] and first.boxes_xyxy.dtype == np.float32
    assert first.ignored_xyxy.tolist() == [[5, 6, 5, 14], [1, 2, 4, 6]]
    (written, *_), _ = read_annotations(tmp_path, "val")
    assert written.attributes is not None and written.attributes[0].tolist() == [1, 0, 1, 0, 2, 1]
    assert second.boxes_xyxy.shape == second.ignored_xyxy.shape == (0, 4)
    assert third.boxes_xyxy.tolist() == [[7, 8, 16, 18]]
    without_zeros = THREE.replace("0 0 0 0 0 0 0 0 0 0\n", "")
    for text in (THREE.replace("\n", "\r\n"), "\ufeff" + THREE, THREE + "\n\n", without_zeros):
        assert [own.boxes_xyxy.tolist() for own in records_of(text, tmp_path)] == [
            own.boxes_xyxy.tolist() for own in (first, second, third)
        ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("10 20 30 40 1 0 1 0 2 1", "10 20 30 40 1 0 1 0 2", "line 3: '10 20 30 40 1 0 1 0 2'"),
        ("5 6 0 8 0", "5 6 nan 8 0", "line 4: x1=5 y1=6 x2=nan"),
        ("c.jpg", "b.jpg", "1--Handshaking/b twice"),
    ],
)
def test_malformed_text_names_file_line_and_text(old: str, new: str, says: str, tmp_path: Path) -> None:
    records_of(THREE, tmp_path)
    text = refused(records_of, THREE.replace(old, new, 1), tmp_path)
    assert says in text and "wider_face_val_bbx_gt.txt" in text


def test_zip_and_folders(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(4))
    folder = tmp_path / "wider_face_split"
    (folder / "wider_face_test_filelist.txt").write_text("0--Parade/x.jpg\n0--Parade/y.jpg\n")
    with zipfile.ZipFile(tmp_path / "wider_face_split.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"wider_face_split/{file.name}")
    for source in (folder, tmp_path, tmp_path / "wider_face_split.zip"):
        images, problems = read_annotations(source, "val")
        assert [image.image_id for image in images] == [f"{name}.jpg" for name in numbered(4)] and not problems
        assert images[2].boxes_xyxy.tolist() == [[2, 0, 14, 10], [2, 1, 14, 12]]
        assert str(images[0].label_path).endswith("wider_face_split/wider_face_val_bbx_gt.txt")
        names = [(own.image_id, len(own.boxes_xyxy)) for own in read_annotations(source, "test")[0]]
        assert names == [("0--Parade/x.jpg", 0), ("0--Parade/y.jpg", 0)]
        assert "wider_face_train_bbx_gt.txt" in refused(read_annotations, source, "train")
    shutil.rmtree(folder)
    assert len(load_wider_face(tmp_path, "val")) == 4
    damaged = (tmp_path / "wider_face_split.zip").read_bytes().replace(b".jpg", b".jqg")
    for content, message in ((damaged, "Bad CRC-32"), (b"PK", "official wider_face_split.zip")):
        (tmp_path / "wider_face_split.zip").write_bytes(content)
        assert message in refused(load_wider_face, tmp_path, "val")


def test_a_list_as_people_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wider(tmp_path, "val", numbered(5))
    assert [record.image_id for record in load_wider_face(tmp_path, "val")] == list(numbered(5))
    listed = tmp_path / "list.txt"
    listed.write_text("# two\n0--Parade/0_Parade_004.jpg\n\n  0--Parade/0_Parade_002  # why\n")
    records = load_wider_face(tmp_path, "val", images=listed)
    assert [record.image_id for record in records] == ["0--Parade/0_Parade_004", "0--Parade/0_Parade_002"]
    assert records[1].boxes_xyxy.tolist() == [[2, 0, 14, 10], [2, 1, 14, 12]] and records[0].path.is_file()
    # Paths as `find` writes them: in the root, in the working folder, absolute.
    monkeypatch.chdir(tmp_path / "WIDER_val")
    names = ("0--Parade/0_Parade_004.jpg", "0--Parade/0_Parade_002.jpg")
    for start in ("./WIDER_val/images/", "./images/", f"{tmp_path}/WIDER_val/images/", "./", ".\\images\\"):
        lines = "".join(f"{start}{name}\r\n" for name in names)
        encoding = "utf-16" if "\\" in start else "utf-8"  # as Windows' tools write them
        listed.write_bytes((lines.replace("/", "\\") if "\\" in start else lines).encode(encoding))
        found = load_wider_face(tmp_path, "val", images=listed)
        assert [record.image_id for record in found] == [record.image_id for record in records]
    for text, says in (
        ("0--Parade/0_Parade_000\n\n0--Parade/nobody.jpg\n", "line 3: 0--Parade/nobody is not among the 5"),
        ("0_Parade_001.jpg\n", "did you mean 0--Parade/0_Parade_001?"),
        ("0--Parade/0_Parade_000\n0--Parade/0_Parade_000.jpg\n", ":2: '0--Parade/0_Parade_000'"),
        ("# nothing\n", "names no image"),
    ):
        listed.write_text(text)
        assert says in refused(load_wider_face, tmp_path, "val", images=listed)


def test_what_is_missing_is_said_with_the_ways_on(tmp_path: Path) -> None:
    root = tmp_path / "my data"
    for place in ("WIDER_val/images", "wider_face_split"):
        text = refused(load_wider_face, root, "val")
        assert f"{root / place}" in text and "data=synthetic" in text and f"--root '{root}'" in text
        (root / "WIDER_val" / "images").mkdir(parents=True, exist_ok=True)
    write_wider(root, "val", numbered(4))
    for name in ("0_Parade_001", "0_Parade_003"):
        (root / "WIDER_val" / "images" / "0--Parade" / f"{name}.jpg").unlink()
    assert "2 of the 4 images of the val split are missing" in refused(load_wider_face, root, "val")
    # Only listed images need to be there.
    (root / "list.txt").write_text("0--Parade/0_Parade_002\n")
    assert len(load_wider_face(root, "val", images="list.txt")) == 1


def test_the_inventory_holds_all_that_training_refuses(tmp_path: Path) -> None:
    write_wider(tmp_path, "train", numbered(5))
    write_wider(tmp_path, "val", {"1--Riot/a": [(1, 2, 3, 4, 0, 0, 0, 1, 0, 0), (9, 9, -2, 5, 0, 0, 0, 0, 0, 0)]})
    labels = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    text = labels.read_text().replace("2 1 12 11 0 0 0 0 0 0", "2 1 twelve 11 0 0 0 0 0 0")
    labels.write_text(text + "0--Parade/nowhere.jpg\n1\n5 6 7 8 0 0 0 0 0 0\n")
    images = tmp_path / "WIDER_train" / "images" / "0--Parade"
    (images / "0_Parade_001.jpg").unlink()
    write_image(images / "extra.jpg", 0)
    source = WiderFaceSource(tmp_path)
    assert "twelve" in refused(source.train)
    train, val = source.inventories()
    assert (train.part, val.part, len(train.images)) == ("train", "val", 6)
    by_id = {image.image_id: image for image in train.images}
    missing = [image.image_id for image in train.images if not image.path.exists()]
    assert missing == ["0--Parade/0_Parade_001", "0--Parade/nowhere"] and train.unlabelled == [images / "extra.jpg"]
    (problem,) = train.problems
    line = text.splitlines().index("2 1 twelve 11 0 0 0 0 0 0 ") + 1
    assert (problem.path, problem.line, problem.value) == (labels, line, "2 1 twelve 11 0 0 0 0 0 0")
    assert by_id["0--Parade/0_Parade_002"].boxes_xyxy.tolist() == [[2, 0, 14, 10]]
    assert by_id["0--Parade/0_Parade_004"].box_lines[0] == text.splitlines().index("4 0 14 10 0 0 0 0 0 0 ") + 1
    (image,) = val.images
    assert image.boxes_xyxy.tolist() == [[1, 2, 4, 6], [9, 9, 7, 14]] and image.ignored.tolist() == [True, False]
    assert val.problems == [] and val.unlabelled == []
    # Lists, and absent parts.
    assert "no WIDER FACE here" in refused(WiderFaceSource(tmp_path / "nowhere").inventories)
    (tmp_path / "some.txt").write_text("0--Parade/0_Parade_003\n")
    chosen = {"split": "train", "images": "some.txt"}
    (train,) = WiderFaceSource(tmp_path, train=chosen, val={"split": "test"}).inventories()
    assert [image.image_id for image in train.images] == ["0--Parade/0_Parade_003"]


@pytest.mark.parametrize(
    ("split", "count", "rows", "invalid", "empty"), [("val", 3226, 39708, 585, 11), ("train", 12880, 159424, 2399, 31)]
)
def test_official_annotations(shared_data: Path, split: Split, count: int, rows: int, invalid: int, empty: int) -> None:
    images, problems = read_annotations(shared_data / "wider_face" / "wider_face_split.zip", split)
    boxes = np.concatenate([image.boxes_xyxy for image in images])
    without = sum(not len(image.boxes_xyxy) for image in images)  # they have a row of zeros
    assert (len(images), len(boxes) + without) == (count, rows) and not problems
    assert sum(int(image.ignored.sum()) for image in images) == invalid
    assert int((boxes[:, 2:] == boxes[:, :2]).any(axis=1).sum()) + without == empty


def test_official_images_by_list(shared_data: Path) -> None:
    root = shared_data / "wider_face"
    assert len(read_annotations(root / "wider_face_split.zip", "test")[0]) == 16097
    train, test = (load_wider_face(root, "val", images=root / f"{name}.txt") for name in ("train", "test"))
    assert not {record.image_id for record in train} & {record.image_id for record in test}
    assert "of the 3226 images" in refused(load_wider_face, root, "val")
