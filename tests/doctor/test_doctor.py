"""The doctor through its command line, on a small set with every fault planted."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.doctor.__main__ import main
from fanet_lightning.doctor.checks import KINDS
from tests.data.folder_files import write_voc
from tests.data.wider_files import write_text
from tests.doctor.doctor_files import EXPECTED, FACE, QUICK, found, image_path, run, save, scene


def test_every_planted_fault_is_found_and_nothing_else(examined: Path, planted: Path) -> None:
    assert found(examined) == EXPECTED
    with (examined / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows = {(line["kind"], line["image_id"]): line for line in csv.DictReader(file)}
    outside = rows["label_outside", "0--A/outside"]
    assert outside["boxes_xyxy"] == "320 10 350 50; -10 0 0 10"
    assert outside["severity"] == "error" and "320 × 240" in outside["detail"]
    leak = rows["leak", "0--A/leaked"]
    assert (leak["other_part"], leak["other_path"]) == ("val", str(image_path(planted, "val", "1--B/leaked")))
    text = (planted / "wider_face_split" / "wider_face_train_bbx_gt.txt").read_text().split("\n")
    line = text.index("10 twenty 30 40 0 0 0 0 0 0") + 1
    assert f"line {line}: '10 twenty 30 40" in rows["malformed_label", ""]["detail"]
    assert f"line {text.index('0--A/doubled.jpg') + 4}" in rows["label_doubled", "0--A/doubled"]["detail"]
    order = [kind.name for kind in KINDS]
    positions = [order.index(kind) for kind, _ in rows]
    assert positions == sorted(positions)


def test_summary_counts(examined: Path) -> None:
    summary = json.loads((examined / "doctor.json").read_text())
    assert summary["healthy"] is False and summary["level"] == "images"
    train = summary["parts"]["train"]
    assert (train["face_sizes"]["below_1_px"], train["images_without_faces"]) == (1, 1)
    assert train["images"] == 22  # 20, the odd one, and the one named twice again
    assert train["ignored_faces"] == 1 + 2 + 1  # flagged; without area; not finite
    assert summary["kinds"]["label_without_area"] == {
        "severity": "warning", "mended_by_fix": True, "findings": 1, "train": 1, "val": 0, "boxes": 2,
    }  # fmt: skip
    assert (examined / "page" / "index.html").is_file()


def test_headers_alone_find_all_but_what_shows_in_pixels(planted: Path, tmp_path: Path) -> None:
    assert run(planted, tmp_path / "out", "images=false") == 1
    pixels = {"near_leak", "near_duplicate", "blank_image"}
    assert found(tmp_path / "out") == {kind: names for kind, names in EXPECTED.items() if kind not in pixels}


def test_a_sound_set_is_healthy(tmp_path: Path) -> None:
    root = tmp_path / "wider"
    for number, split in enumerate(("train", "val")):
        faces = {f"0--A/{split}_{i}": [FACE] for i in range(3)}
        write_text(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", faces)
        for i, image_id in enumerate(faces):
            save(image_path(root, split, image_id), scene(10 * number + i))
    words = [f"data.root={root}", f"out={tmp_path / 'out'}", "workers=2", "fix=true", "augment.expand_max=1"]
    command = [sys.executable, "-m", "fanet_lightning.doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no errors, 0 findings" in done.stdout and "6 images, 6 boxes, 0 changes" in done.stdout
    assert found(tmp_path / "out") == {} and (tmp_path / "out" / "page" / "index.html").is_file()


def test_the_shared_sample(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "wider_face"
    lists = [f"data.train.images={root / 'train.txt'}", f"data.val.images={root / 'test.txt'}", "data.train.split=val"]
    assert run(root, tmp_path / "out", *lists, "images=false", "fix=true") == 0
    summary = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert {part: facts["images"] for part, facts in summary["parts"].items()} == {"train": 1698, "val": 320}
    counts = {kind: row["boxes"] for kind, row in summary["kinds"].items()}
    assert counts == {"label_without_area": 4, "label_doubled": 1, "no_faces": 0}
    again = tmp_path / "again"
    assert run(tmp_path / "out" / "cleaned", again, "images=false") == 0
    assert set(json.loads((again / "doctor.json").read_text())["kinds"]) == {"no_faces"}


def test_parts_that_share_a_folder_name_an_unlabelled_image_once(tmp_path: Path) -> None:
    root, face = tmp_path / "own", [(10, 20, 30, 40, False, "face")]
    write_voc(root, {"train": {"a": face, "b": face}, "val": {"c": face}})
    for seed, name in enumerate(["a", "b", "c", "nobody", "kept_back"]):
        save(root / "JPEGImages" / f"{name}.jpg", scene(seed, (100, 200)))
    # To test on: in no list, but with labels.
    (root / "Annotations" / "kept_back.xml").write_text((root / "Annotations" / "a.xml").read_text())
    assert main(["data=folder", f"data.root={root}", "data.format=voc", f"out={tmp_path / 'out'}", *QUICK]) == 0
    assert found(tmp_path / "out") == {"unlabelled_image": {"train:nobody.jpg"}}
    assert (tmp_path / "out" / "findings.csv").read_text().count("nobody") == 1


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("near_bits=17", "near_bits=17: give"), ("worst=many", "worst"), ("threshold=2.0", "threshold=2.0: give"),
        ("data=fddb", "FDDB|doctor"), ("data.root=nowhere", "no WIDER FACE here"), ("out=FILE/out", "Not a directory"),
    ],
)  # fmt: skip
def test_bad_words(planted: Path, tmp_path: Path, word: str, expected: str) -> None:
    (tmp_path / "file").write_text("")
    words = [f"data.root={planted}", f"out={tmp_path / 'out'}", word.replace("FILE", str(tmp_path / "file"))]
    with pytest.raises(InputError, match=expected):
        main(words)


@pytest.mark.parametrize("name", ["findings.csv", "doctor.json", "page/index.txt"])
def test_what_is_of_something_else_is_not_written_over(planted: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=Path(name).name):
        run(planted, out, "images=false", "page=true")
    assert (out / name).read_text() == "mine" and len(list(out.iterdir())) == 1


def test_other_files_stay_and_an_examination_that_was_cut_off_is_replaced(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.jpg").write_text("mine")
    for _ in range(2):
        assert run(planted, out, "images=false") == 1
        (out / "findings.csv").unlink()
    assert (out / "photo.jpg").read_text() == "mine"
    # Thumbnails of the page among the images of the set would be examined next time.
    with pytest.raises(InputError, match="out="):
        run(planted, planted / "WIDER_train" / "images", "images=false", "page=true")
