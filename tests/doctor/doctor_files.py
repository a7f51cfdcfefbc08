"""A small data set with every fault that the doctor looks for, and the doctor run on it."""

import csv
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fanet_lightning.doctor.__main__ import main
from tests.data.wider_files import turned, write_text


def scene(seed: int, size_hw: tuple[int, int] = (240, 320)) -> np.ndarray:
    """An image with structure at every scale, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    total = np.zeros((*size_hw, 3))
    for cells in (3, 6, 12, 24, 48):
        noise = rng.normal(size=(cells, cells, 3))
        total += cv2.resize(noise, size_hw[::-1], interpolation=cv2.INTER_CUBIC) * 24
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray, quality: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


FACE = (10, 10, 30, 40, 1, 0, 0, 0, 2, 0)
INVALID = (200, 100, 30, 40, 0, 0, 0, 1, 0, 0)
QUICK = ["page=false", "workers=1"]


def row(x: float, y: float, w: float, h: float) -> tuple[float, ...]:
    return (x, y, w, h, 0, 0, 0, 0, 0, 0)


def image_path(root: Path, split: str, image_id: str) -> Path:
    return root / f"WIDER_{split}" / "images" / f"{image_id}.jpg"


def plant(root: Path) -> None:
    """A set in WIDER FACE's layout: sound images, and one fault each in images named after it."""
    train = {
        "0--A/sound": [FACE, INVALID],
        "0--A/missing": [FACE, row(60, 60, 20, 20)],
        "0--A/empty": [FACE],
        "0--A/html": [FACE],
        "0--A/cut": [FACE],
        "0--A/turned": [row(280, 10, 30, 40)],
        "0--A/shown": [row(10, 280, 30, 30)],
        "0--A/outside": [FACE, row(320, 10, 30, 40), row(-10, 0, 10, 10)],
        "0--A/reaching": [row(-8, 10, 30, 40), row(300, 200, 40, 60)],
        "0--A/flat": [FACE, row(50, 50, 0, 9), row(60, 60, 9, -3)],
        "0--A/doubled": [FACE, FACE, row(10, 10, 30, 41)],
        "0--A/tiny": [FACE, row(50, 50, 0.5, 3)],
        "0--A/first": [FACE],
        "0--A/again": [FACE, row(120, 120, 20, 20)],
        "0--A/leaked": [FACE],
        "0--A/nearly": [FACE],
        "0--A/blank": [FACE],
        "0--A/faceless": [],
        "0--A/all_outside": [row(400, 10, 30, 40)],
        "0--A/infinite": [FACE, row(float("inf"), 10, 30, 40)],
    }
    val = {
        "1--B/sound": [FACE],
        "1--B/leaked": [FACE],
        "1--B/nearly": [FACE],
        "1--B/copy": [FACE],
        "1--B/reaching": [row(-8, 10, 30, 40)],
        "1--B/empty": [FACE],
    }
    for split, faces in (("train", train), ("val", val)):
        write_text(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", faces)  # type: ignore[arg-type]
        for seed, image_id in enumerate(faces):
            save(image_path(root, split, image_id), scene(seed + (100 if split == "val" else 0)))
    labels = root / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    # A row that is no label, and an image named twice, the second time with another face.
    text = labels.read_text() + "0--A/odd.jpg\n2\n" + " ".join(map(str, FACE)) + "\n10 twenty 30 40 0 0 0 0 0 0\n"
    labels.write_text(text + "0--A/first.jpg\n1\n70 70 20 20 0 0 0 0 0 0\n")
    save(image_path(root, "train", "0--A/odd"), scene(60))
    save(image_path(root, "train", "0--A/unlabelled"), scene(61))
    of_train = {name: image_path(root, "train", f"0--A/{name}") for name in ("missing", "empty", "html", "cut")}
    of_train["missing"].unlink()
    of_train["empty"].write_bytes(b"")
    of_train["html"].write_bytes(b"<html>Too many requests</html>")
    of_train["cut"].write_bytes(of_train["cut"].read_bytes()[:-4000])
    image_path(root, "val", "1--B/empty").write_bytes(b"")
    for name in ("turned", "shown"):
        path = image_path(root, "train", f"0--A/{name}")
        Image.fromarray(scene(70)).save(path, exif=turned(6), quality=90 + len(name))
    image_path(root, "train", "0--A/again").write_bytes(image_path(root, "train", "0--A/first").read_bytes())
    image_path(root, "train", "0--A/leaked").write_bytes(image_path(root, "val", "1--B/leaked").read_bytes())
    image_path(root, "val", "1--B/copy").write_bytes(image_path(root, "val", "1--B/sound").read_bytes())
    half = cv2.resize(cv2.imread(str(image_path(root, "val", "1--B/nearly"))), (160, 120), interpolation=cv2.INTER_AREA)
    save(image_path(root, "train", "0--A/nearly"), half, quality=60)
    save(image_path(root, "train", "0--A/blank"), np.full((240, 320, 3), 90, dtype=np.uint8))


def run(root: Path, out: Path, *words: str) -> int:
    return main(["data=wider_face", f"data.root={root}", f"out={out}", *QUICK, *words])


def found(out: Path) -> dict[str, set[str]]:
    """Kind → images, ``part:name``."""
    kinds: dict[str, set[str]] = {}
    with (out / "findings.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            name = line["image_id"].rpartition("/")[2] or Path(line["path"]).name
            kinds.setdefault(line["kind"], set()).add(f"{line['part']}:{name}")
    return kinds


EXPECTED = {
    "missing_image": {"train:missing"},
    "unreadable": {"train:empty", "val:empty", "train:html", "train:cut"},
    "mis_rotated": {"train:turned"},
    "malformed_label": {"train:wider_face_train_bbx_gt.txt"},
    "labelled_twice": {"train:first"},
    "leak": {"train:leaked"},
    "label_not_finite": {"train:infinite"},
    "label_outside": {"train:outside", "train:all_outside"},
    "near_leak": {"train:nearly"},
    "label_partly_outside": {"train:reaching", "val:reaching"},
    "label_without_area": {"train:flat"},
    "label_doubled": {"train:doubled"},
    "label_tiny": {"train:tiny"},
    "duplicate": {"train:again"},
    "duplicate_in_val": {"val:copy"},
    "blank_image": {"train:blank"},
    "unlabelled_image": {"train:unlabelled.jpg"},
    "no_faces": {"train:faceless"},
    "near_duplicate": {"train:shown"},
}
