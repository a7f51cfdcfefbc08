"""Data of one's own from the command line: trained on, scored, converted, examined."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fanet_lightning.data.folder.convert import main as convert
from fanet_lightning.doctor.__main__ import main as doctor
from tests.data.folder_files import FORMATS, HEIGHT, VAL, WIDTH, WRITERS, Face, Tell
from tests.data.wider_files import turned, write_wider

TINY = [
    "level=1", "model.width=0.0625", "input_size=64", "batch_size=2", "epochs=1", "workers=0", "logger=none",
    "trainer.accelerator=cpu", "optim.warmup_steps=2", "ema=null",
]  # fmt: skip


def faces(names: list[str]) -> dict[str, list[Face]]:
    """Every third image has none."""
    own: list[Face] = [(20, 10, 40, 50, False, "face"), (100, 30, 16, 20, False, "face")]
    return {name: own[: number % 3] for number, name in enumerate(names)}


def test_train_and_evaluate(tmp_path: Path) -> None:
    """Images may be in folders of folders; a photo as telephones take it, and one that is no JPEG, are among them."""
    WRITERS["yolo"](tmp_path / "mine", {"train": faces([f"two/deep/{number}" for number in range(8)])})
    images = tmp_path / "mine" / "images" / "train" / "two" / "deep"
    (images / "1.jpg").rename(images / "1.JPG")
    (images / "2.jpg").rename(images / "2.png")
    words = ["data=folder", "data.root=mine", "data.format=yolo", "data.val.share=0.4", "out=run", *TINY]
    command = [sys.executable, "-m", "fanet_lightning.train", *words]
    trained = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("mine has no validation part") == 1
    scores = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    assert scores["benchmark"] == "folder"
    assert list(scores["ap"]) == ["all"] and 0 <= scores["ap"]["all"] <= 1


def converted(out: Path, part: str = "train") -> dict[str, tuple[tuple[int, int], list[list[float]]]]:
    """Size and boxes x y w h of each image of a conversion to COCO."""
    content = json.loads((out / "annotations" / f"instances_{part}.json").read_text())
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for item in content["annotations"]:
        boxes[item["image_id"]].append([round(value, 3) for value in item["bbox"]])
    return {image["file_name"]: ((image["width"], image["height"]), boxes[image["id"]]) for image in content["images"]}


def kinds(out: Path) -> set[str]:
    with (out / "findings.csv").open(newline="", encoding="utf-8") as file:
        return {row["kind"] for row in csv.DictReader(file)}


def photo(path: Path, size_wh: tuple[int, int], orientation: int = 1) -> None:
    """A photo with so many pixels stored, and an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = sum(map(ord, path.name)) % 256
    Image.new("RGB", size_wh, (color, 90, 200 - orientation)).save(path, exif=turned(orientation))


# One face, at x 10 … 30, y 5 … 25 of the 200 × 100 stored pixels: where it is in the photo as it is shown.
STORED: list[Face] = [(10, 5, 20, 20, False, "face")]
SHOWN = {
    5: ((100, 200), [[5, 10, 20, 20]]),
    6: ((100, 200), [[75, 10, 20, 20]]),
    7: ((100, 200), [[75, 170, 20, 20]]),
    8: ((100, 200), [[5, 170, 20, 20]]),
}


@pytest.mark.parametrize(("format", "suffix"), [("coco", ".jpg"), ("voc", ".png"), ("coco", ".tif")])
def test_photos_labelled_as_they_are_stored(format: str, suffix: str, tmp_path: Path, tell: Tell) -> None:
    WRITERS[format](tmp_path / "mine", {"train": {f"o{number}": STORED for number in SHOWN}, "val": VAL})
    for number in SHOWN:
        (path,) = (tmp_path / "mine").rglob(f"o{number}.jpg")
        path.unlink()
        photo(path.with_suffix(suffix), (WIDTH, HEIGHT), number)
    told = tell(convert, tmp_path / "mine", "to=coco", f"out={tmp_path / 'out'}")
    assert told.code == 0, told.err
    assert "the boxes of 4 photos" in told.out
    expected = {f"o{number}{suffix}": shown for number, shown in SHOWN.items()}
    assert converted(tmp_path / "out") == expected
    # The copy states the size as shown, and is not turned again; nor is a copy of the copy.
    for number, to in enumerate(("voc", "yolo", "coco")):
        source = tmp_path / (f"again{number - 1}" if number else "out")
        told = tell(convert, source, f"to={to}", f"out={tmp_path / f'again{number}'}")
        assert told.code == 0 and "orientation" not in told.out
    assert converted(tmp_path / "again2") == expected
    assert tell(doctor, tmp_path / "mine", "page=false", "workers=1", f"out={tmp_path / 'doctor'}").code == 0
    assert "mis_rotated" not in kinds(tmp_path / "doctor")


@pytest.mark.parametrize(("format", "size_wh"), [("voc", (100, 200)), ("coco", (200, 101))])
def test_labels_of_another_size(format: str, size_wh: tuple[int, int], tmp_path: Path, tell: Tell) -> None:
    root = tmp_path / "mine"
    WRITERS[format](root, {"train": {"a": STORED, "b": STORED}, "val": VAL})
    (path,) = root.rglob("b.jpg")
    photo(path, size_wh)
    told = tell(convert, root, "to=yolo", f"out={tmp_path / 'out'}")
    assert told.code == 2 and not (tmp_path / "out").exists()
    assert all(text in told.err for text in (str(path), "200 × 100", "{} × {}".format(*size_wh)))
    # No size, or that of tools which do not know it, says nothing.
    for label in (path for path in root.rglob("*") if path.suffix in (".xml", ".json")):
        text = label.read_text().replace("<width>200</width><height>100<", "<width>0</width><height>0<")
        label.write_text(text.replace('"width": 200, "height": 100', '"flickr_url": ""'))
    assert tell(convert, root, "to=yolo", f"out={tmp_path / 'out'}").code == 0


# Written by the format's own writer, so that the numbers in the file are others than the format has.
ODD: dict[str, list[Face]] = {
    "coco": [(0.3, 0.2, 0.1, 0.2, False, "face"), (0.5, 0.2, 0.1, 0.2, False, "face")],
    "voc": [(-0.7, -0.8, 1.2, 1.3, False, "face"), (-0.5, -0.4, 1.1, 1.2, False, "face")],
    "wider": [(0.3, 0.2, 0.1, 0.2, False, "face"), (0.5, 0.2, 0.1, 0.2, False, "face")],
    # x1 y1 x2 y2 as centre and sides: 0.4 0.4 0.6 0.9 and 0.1 0.1 0.2 0.3
    "yolo": [(20, -5, 120, 90, False, "face"), (0, -5, 40, 30, False, "face")],
}


@pytest.mark.parametrize("format", list(ODD))
def test_boxes_of_another_convention(format: str, tmp_path: Path, tell: Tell) -> None:
    # A sound box among them does not hide them.
    train = {"a": ODD[format], "b": [*ODD[format], (20.0, 10.0, 40.0, 50.0, False, "face")]}
    WRITERS[format](tmp_path / "mine", {"train": train, "val": VAL})
    told = tell(convert, tmp_path / "mine", "to=coco", f"out={tmp_path / 'out'}")
    assert told.code == 0 and told.err.count("warning: ") == told.err.count("\n") == 1
    assert "4 of 5 boxes" in told.err and "a.jpg" in told.err
    assert tell(doctor, tmp_path / "mine", "page=false", "workers=1", f"out={tmp_path / 'doctor'}").code == 1
    assert "label_convention" in kinds(tmp_path / "doctor")


def test_odd_boxes_in_the_official_layout(tmp_path: Path, tell: Tell) -> None:
    """data=wider_face reads lists, too: x1 y1 x2 y2 in them."""
    for split in ("train", "val"):
        write_wider(tmp_path, split, {"0--A/a": [(40, 20, 60, 46, *[0] * 6)], "0--A/b": [(30, 20, 50, 45, *[0] * 6)]})
    told = tell(convert, tmp_path, "data=wider_face", "to=coco", f"out={tmp_path / 'out'}")
    assert told.code == 0 and told.err.count("warning: 2 of 2 boxes leave") == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("format", FORMATS)
def test_labels_as_systems_leave_them(format: str, encoding: str, tmp_path: Path, tell: Tell) -> None:
    """Unicode, suffixes in capital letters, hidden and other files."""
    root = tmp_path / format
    WRITERS[format](root, {"train": dict.fromkeys(("a", "b"), STORED), "val": VAL})
    labels = [path for path in root.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".yaml")]
    for path in labels:
        path.write_bytes(path.read_text().encode(encoding))
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        for name in (".DS_Store", "Thumbs.db", "train.cache"):
            (path.parent / name).write_bytes(b"\0\0")
        if path.suffix != ".yaml" and path.stem != "b":
            path.rename(path.with_suffix(path.suffix.upper()))
    told = tell(convert, root, "to=coco", f"out={tmp_path / 'out'}")
    assert told.code == 0 and f"data.format={format}" in told.out, told.err
    assert converted(tmp_path / "out") == {f"{name}.jpg": ((200, 100), [[10, 5, 20, 20]]) for name in ("a", "b")}


def test_a_format_is_recognised_or_asked_for(tmp_path: Path, tell: Tell) -> None:
    WRITERS["coco"](tmp_path / "mine")
    told = tell(doctor, tmp_path / "mine", "page=false", "workers=1", f"out={tmp_path / 'doctor'}")
    assert told.out.count("data.format=coco") == 1 and "instances_train.json" in told.out
    WRITERS["wider"](tmp_path / "mine")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "readme.txt").write_text("nothing\n")
    (tmp_path / "bare" / "settings.json").write_text("{}")
    for name, says in (
        ("mine", ("coco (", "instances_train.json", "wider (", "train.txt", "data.format=")),
        ("bare", ("data.format=coco|yolo|voc|wider", "no labels")),
    ):
        told = tell(convert, tmp_path / name, "to=yolo", f"out={tmp_path / 'out'}")
        assert told.code == 2 and told.err.count("\n") == 1 and all(text in told.err for text in says)
    # A list that is told is what it is, whatever else is there.
    labels = [f"data.{part}.labels={part}.txt" for part in ("train", "val")]
    told = tell(convert, tmp_path / "mine", *labels, "to=yolo", f"out={tmp_path / 'out'}")
    assert told.code == 0 and "data.format=wider" in told.out
