"""The fixed copy: what is in it, what is not, and that nothing else is touched."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.source import FolderSource
from fanet_lightning.data.wider_face import load_wider_face, read_annotations
from fanet_lightning.doctor.__main__ import main
from tests.data.wider_files import write_text
from tests.doctor.doctor_files import FACE, QUICK, found, image_path, run, save, scene

GONE = {"missing", "empty", "html", "cut", "turned", "again", "leaked", "nearly", "all_outside"}


def test_the_copy_has_none_of_what_is_fixed(examined: Path, tmp_path: Path) -> None:
    words = [f"data.root={examined / 'cleaned'}", "data.format=wider", f"out={tmp_path / 'out'}"]
    assert main(["data=folder", *words, *QUICK]) == 0  # as a folder of one's own
    assert found(tmp_path / "out") == {
        "duplicate_in_val": {"val:copy"},
        "label_tiny": {"train:tiny"},
        "blank_image": {"train:blank"},
        "no_faces": {"train:faceless"},
    }


def test_the_official_reader_takes_the_copy(examined: Path) -> None:
    train = {record.image_id: record for record in load_wider_face(examined / "cleaned", "train")}
    kept = {f"0--A/{name}" for name in ("sound", "shown", "outside", "reaching", "flat", "doubled", "tiny")}
    kept |= {f"0--A/{name}" for name in ("first", "blank", "faceless", "infinite", "odd")}
    assert set(train) == kept
    assert train["0--A/reaching"].boxes_xyxy.tolist() == [[0, 10, 22, 50], [300, 200, 320, 240]]
    assert train["0--A/outside"].boxes_xyxy.tolist() == [[10, 10, 40, 50]]
    # Named twice, and with a copy that has a face more: the boxes of all.
    joined = [[10, 10, 40, 50], [120, 120, 140, 140], [70, 70, 90, 90]]
    assert train["0--A/first"].boxes_xyxy.tolist() == joined
    sound = train["0--A/sound"]
    assert sound.boxes_xyxy.tolist() == [[10, 10, 40, 50]] and sound.ignored_xyxy.tolist() == [[200, 100, 230, 140]]
    # Attributes stay: FACE is blurred (1) and heavily occluded (2).
    written = {own.image_id: own for own in read_annotations(examined / "cleaned", "train")[0]}
    assert written["0--A/sound.jpg"].attributes[0].tolist() == [1, 0, 0, 0, 2, 0]  # type: ignore[index]
    val = {record.image_id: record for record in load_wider_face(examined / "cleaned", "val")}
    # Of val only what cannot be read is gone.
    assert set(val) == {f"1--B/{name}" for name in ("sound", "leaked", "nearly", "copy", "reaching")}


def test_sizes_that_coco_states(tmp_path: Path) -> None:
    root, names = tmp_path / "own", ("sound", "quarter", "other")
    labels: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "face"}]}
    # In "other" the box fits the size stated and is outside the file's: named once, as mis-sized.
    faces = (320, 240, [10, 10, 30, 40]), (240, 320, [10, 10, 30, 40]), (640, 480, [500, 400, 30, 40])
    for i, (w, h, box) in enumerate(faces):
        labels["images"].append({"id": i, "file_name": f"{names[i]}.jpg", "width": w, "height": h})
        labels["annotations"].append({"id": i, "image_id": i, "category_id": 1, "bbox": box})
    (root / "annotations").mkdir(parents=True)
    for part, seed in (("train", 0), ("val", 10)):
        for i, name in enumerate(names):
            save(root / "images" / part / f"{name}.jpg", scene(seed + i))
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(labels))
    words = [f"data.root={root}", "data.format=coco", f"out={tmp_path / 'out'}", "fix=true"]
    assert main(["data=folder", *words, *QUICK]) == 1
    assert found(tmp_path / "out") == {
        "mis_sized": {"train:other", "val:other"}, "mis_rotated": {"train:quarter", "val:quarter"},
    }  # fmt: skip
    # The copy states no sizes: what cannot be fixed must not be trained on unseen, and of val nothing is taken.
    texts = [path.read_text() for path in sorted((tmp_path / "out/cleaned/wider_face_split").iterdir())]
    assert [[line for line in text.split("\n") if ".jpg" in line] for text in texts] == [
        ["sound.jpg"], ["sound.jpg", "quarter.jpg", "other.jpg"],
    ]  # fmt: skip
    assert "left as it is" in (tmp_path / "out/cleaned/changes.csv").read_text()


def test_images_that_differ_in_the_ending_alone_keep_their_own_boxes(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for part in ("train", "val"):
        for seed, ending in enumerate(("jpg", "png")):
            save(root / part / f"{part}.{ending}", scene(seed + 10 * len(part)))
        (root / f"{part}.txt").write_text(f"{part}.jpg\n1\n10 10 30 40\n{part}.png\n1\n50 10 20 30\n")
    with pytest.raises(InputError, match=r"train\.jpg and train\.png differ"):
        FolderSource(root, "wider").check()
    main(["data=folder", f"data.root={root}", "data.format=wider", f"out={tmp_path / 'out'}", "fix=true", *QUICK])
    source = FolderSource(tmp_path / "out/cleaned", "wider")
    boxes = {record.image_id: record.boxes_xyxy[0].tolist() for record in source.train()}
    assert boxes == {"train": [10, 10, 40, 50], "train_png": [50, 10, 70, 40]}
    assert "image renamed" in (tmp_path / "out/cleaned/changes.csv").read_text()


def test_every_change_is_listed(examined: Path) -> None:
    with (examined / "cleaned" / "changes.csv").open(newline="", encoding="utf-8") as file:
        changes = [tuple(line.values()) for line in csv.DictReader(file)]
    names = [(part, name.rpartition("/")[2], what) for part, name, what, *_ in changes]
    dropped = {(part, name) for part, name, what in names if what == "image dropped"}
    assert dropped == {("train", name) for name in GONE} | {("val", "empty")}
    assert names.count(("train", "doubled", "box dropped")) == 2
    assert names.count(("train", "reaching", "box clipped")) == 2
    reaching = next(change for change in changes if change[:3] == ("train", "0--A/reaching", "box clipped"))
    assert reaching[4:] == ("-8 10 22 50", "0 10 22 50")
    assert ("train", "first", "labels joined") in names


def test_the_original_is_as_it_was_and_no_name_leads_out_of_the_copy(tmp_path: Path) -> None:
    root = tmp_path / "wider"
    write_text(root / "wider_face_split" / "wider_face_train_bbx_gt.txt", {"0--A/a": [FACE], "../../../b": [FACE]})
    save(image_path(root, "train", "0--A/a"), scene(0))
    save(image_path(root, "train", "../../../b"), scene(1))
    (root / "WIDER_val" / "images").mkdir(parents=True)
    write_text(root / "wider_face_split" / "wider_face_val_bbx_gt.txt", {})
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    for _ in range(2):  # the second replaces the copy of the first
        run(root, tmp_path / "deep" / "out", "fix=true", "images=false")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    assert [path.name for path in (tmp_path / "deep").rglob("*.jpg")] == ["a.jpg"]


def test_a_copy_is_written_into_nothing_of_value(examined: Path, planted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="WIDER_train"):
        run(planted, planted / "WIDER_train" / "images", "fix=true", "images=false")
    assert not (planted / "WIDER_train" / "images" / "cleaned").exists()
    with pytest.raises(InputError, match="WIDER_train"):  # a copy of the copy, in its own place
        run(examined / "cleaned", examined, "fix=true", "images=false")
    (tmp_path / "cleaned").mkdir()
    (tmp_path / "cleaned" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="thesis"):
        run(planted, tmp_path, "fix=true", "images=false")
    assert (tmp_path / "cleaned" / "thesis.tex").read_text() == "precious"
