"""``python -m fanet_lightning.score`` on every benchmark: files in the official layouts, expectations by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.errors import InputError
from fanet_lightning.score import main
from fanet_lightning.scoring.ground_truth import GroundTruth, write_ground_truth
from fanet_lightning.scoring.predictions import read_predictions, write_predictions
from fddb_files import write_detections as write_fddb_detections
from fddb_files import write_folds, write_sizes
from pascal_face_files import AFW_CORRECTED, CORRECTED, ORIGINAL, write_annotations
from wider_files import write_image

A, B = "2002/08/11/big/img_591", "2002/08/26/big/img_265"
# One upright ellipse in each image.
FDDB_FACES = {1: {A: [(12, 8, np.pi / 2, 20, 15)]}, 2: {B: [(10, 10, 0, 30, 20)]}}


def call(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fanet_lightning.score", *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def fddb(tmp_path: Path) -> tuple[Path, Path]:
    """The ellipse of A as it is, and a circle beside that of B."""
    write_folds(tmp_path / "FDDB-folds", FDDB_FACES)
    write_sizes(tmp_path / "image_sizes.json", FDDB_FACES, (60, 40))
    rows = {1: {A: [(12, 8, np.pi / 2, 20, 15, 0.9)]}, 2: {B: [(5, 5, 0, 8, 30, 0.5)]}}
    write_fddb_detections(tmp_path / "found", rows)
    return tmp_path / "found", tmp_path / "FDDB-folds"


def test_fddb(fddb: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("benchmark=fddb", f"predictions={fddb[0]}", f"ground_truth={fddb[1]}", f"out={out}", "strict=true")
    assert done.returncode == 0
    assert done.stderr == "warning: 2 of 10 folds: the numbers do not compare with published ones\n"
    assert done.stdout.splitlines()[0] == "FDDB, 2 images"
    scores = json.loads((out / "scores.json").read_text())
    half = {"1000": 0.5, "2000": 0.5, "max": 0.5}
    assert (scores["benchmark"], scores["discrete"], scores["continuous"]) == ("fddb", half, half)
    assert (scores["faces"], scores["rules"]["ellipses"]) == ({"all": 2}, "as_given")
    # Resamples of two images hold the found one twice, once or never.
    assert scores["intervals"]["discrete"]["max"] == [0, 1]
    # By ascending threshold: at 0.5 one of two faces and one false positive, at 0.9 the face alone.
    assert (out / "DiscROC.txt").read_text().splitlines() == ["0.5 1 0.5", "0.5 0 0.9"]
    assert (out / "ContROC.txt").read_text().splitlines() == ["0.5 1", "0.5 0"]


def test_fddb_against_other_predictions(fddb: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    nothing = {1: {A: []}, 2: {B: []}}
    write_fddb_detections(tmp_path / "nothing", nothing)
    words = ["benchmark=fddb", f"predictions={fddb[0]}", f"ground_truth={fddb[1]}", f"out={out}"]
    done = call(*words, f"against={tmp_path / 'nothing'}", "bootstrap=100")
    assert done.returncode == 0, done.stderr
    against = json.loads((out / "scores.json").read_text())["against"]
    assert against["discrete"] == {"1000": 0, "2000": 0, "max": 0}
    assert against["difference"]["continuous"] == {"1000": 0.5, "2000": 0.5, "max": 0.5}
    assert against["intervals"]["discrete"]["max"] == [0, 1]


# Corners as they stand; the second face is flagged, the third too small.
PASCAL_FACES = {"one.jpg": [(10, 10, 50, 50), (60, 10, 100, 50, 1), (10, 60, 30, 80)], "two.jpg": [(5, 5, 65, 65)]}
PASCAL_ROWS = "one 0.9 10 10 50 50\none 0.8 60 10 100 50\ntwo 0.7 100 100 150 150\ntwo 0.6 5 5 65 65\n"


@pytest.mark.parametrize(("benchmark", "file_name"), [("pascal_face", CORRECTED), ("afw", AFW_CORRECTED)])
def test_pascal_face_and_afw(benchmark: str, file_name: str, tmp_path: Path) -> None:
    write_annotations(tmp_path / "labels" / file_name, PASCAL_FACES)
    (tmp_path / "rows.txt").write_text(PASCAL_ROWS)
    out = tmp_path / "out"
    words = [f"benchmark={benchmark}", f"predictions={tmp_path / 'rows.txt'}", f"ground_truth={tmp_path / 'labels'}"]
    done = call(*words, f"out={out}")
    assert done.returncode == 0
    # Labels of another number of images are scored, and it is said that they do not compare.
    assert done.stderr.startswith("warning: ")
    scores = json.loads((out / "scores.json").read_text())
    # Hit, flagged (counts neither way), false alarm, hit: 1/2 · 1 + 1/2 · 2/3.
    assert scores["ap"]["all"] == pytest.approx(1 / 2 + 1 / 3)
    assert scores["faces"] == {"all": 2}
    assert (scores["rules"]["labels"], scores["rules"]["alignment"]) == ("corrected", True)
    assert sorted(scores["files"]) == ["pr_curve.txt", "pr_curves.npz"]


def test_labels_and_alignment_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = {name: [row[:4] for row in rows] for name, rows in PASCAL_FACES.items()}
    write_annotations(tmp_path / ORIGINAL, faces, columns=4)
    (tmp_path / "rows.txt").write_text(PASCAL_ROWS)
    words = ["benchmark=pascal_face", f"predictions={tmp_path / 'rows.txt'}", f"ground_truth={tmp_path}"]
    assert main([*words, "benchmark.labels=original", "benchmark.alignment=false", "bootstrap=0"]) == 0
    # Three faces count now: hit, hit, false alarm, hit.
    assert f"{2 / 3 + 1 / 3 * 3 / 4:.6f}" in capsys.readouterr().out


def test_coco(tmp_path: Path) -> None:
    """400 perfect detections in one image, which COCO's own cap of 100 scores at 0.257."""
    boxes = [[20 * (i % 20), 20 * (i // 20), 10, 10] for i in range(400)]
    faces = [
        {"id": i + 1, "image_id": 7, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    truth = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "face"}],
        "annotations": faces,
    }
    rows = [{"image_id": 7, "category_id": 1, "bbox": box, "score": 0.5 + i / 1000} for i, box in enumerate(boxes)]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["benchmark=coco", f"predictions={tmp_path / 'rows.json'}", f"ground_truth={tmp_path / 'truth.json'}"]
    assert call(*words, f"out={tmp_path / 'out'}").returncode == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["ap"]["all"], scores["ap"]["50"]) == (pytest.approx(1), pytest.approx(1))
    assert (scores["faces"]["all"], scores["rules"]["max_detections"]) == (400, 1000)
    assert scores["ap"]["large"] is None
    done = call(*words, "benchmark.max_detections=100", "benchmark.backend=pycocotools")
    assert "0.257" in next(line for line in done.stdout.splitlines() if line.startswith("all"))


@pytest.fixture
def wider(tmp_path: Path) -> tuple[Path, Path]:
    """Two images: one face found and one missed; one found, and a false alarm."""
    boxes = [np.array([[10.0, 10, 40, 40], [100, 10, 20, 20]]), np.array([[0.0, 0, 30, 30]])]
    counted = {"easy": [np.array([True, False]), np.array([True])], "hard": [np.array([True, True]), np.array([True])]}
    counted["medium"] = counted["easy"]
    blur = {"blur": [np.array([0, 2], np.int8), np.array([0], np.int8)]}
    ids = ("0--Parade/0_Parade_a", "1--Riot/1_Riot_b")
    write_ground_truth(tmp_path / "gt", GroundTruth(ids, boxes, counted, attributes=blur))
    rows = {ids[0]: ([[10, 10, 50, 50]], [0.9]), ids[1]: ([[0, 0, 30, 30], [200, 200, 240, 240]], [0.8, 0.7])}
    write_predictions(tmp_path / "found", rows)
    return tmp_path / "found", tmp_path / "gt"


def test_attributes_and_errors_of_wider_face(wider: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call(f"predictions={wider[0]}", f"ground_truth={wider[1]}", f"out={out}", "attributes=true", "errors=true")
    assert (done.returncode, done.stderr) == (0, "")
    groups = json.loads((out / "attributes.json").read_text())["groups"]
    # All three faces: two hits, then the false alarm.
    assert groups["blur"]["heavy"]["faces"] == 1
    assert groups["blur"]["heavy"]["ap"] == 0
    assert groups["blur"]["clear"]["ap"] == 1
    assert groups["event"]["1--Riot"]["ap"] == 1
    errors = json.loads((out / "errors.json").read_text())["settings"]["hard"]
    assert errors["ap"] == pytest.approx(2 / 3)
    # Two hits and one missed face: without it AP is 1. The false alarm comes last and costs nothing.
    assert errors["dap"]["misses"] == pytest.approx(1 / 3)
    assert errors["dap"]["background"] == 0
    assert (out / "errors" / "index.html").is_file()
    assert "the 2 worst of 2 images" in done.stdout


def test_pictures_that_are_missing_are_named(wider: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    words = [f"predictions={wider[0]}", f"ground_truth={wider[1]}", f"out={tmp_path / 'out'}", "bootstrap=0"]
    words += ["errors=true", f"pictures={pictures}"]
    done = call(*words)
    assert done.returncode == 2
    assert f"{pictures} has none of them, the first would be {pictures}/0--Parade/0_Parade_a.jpg" in done.stderr
    write_image(pictures / "1--Riot" / "1_Riot_b.jpg", 0)
    done = call(*words)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: 1 of 2 images on ")
    assert "have no picture: 0--Parade/0_Parade_a" in done.stderr


def test_the_archive_for_the_test_server(wider: tuple[Path, Path], tmp_path: Path) -> None:
    names = tmp_path / "wider_face_test_filelist.txt"
    names.write_text("0--Parade/0_Parade_a.jpg\n1--Riot/1_Riot_b.jpg\n")
    words = [f"predictions={wider[0]}", "split=test", f"out={tmp_path / 'out'}"]
    for given in (names, tmp_path):
        done = call(*words, f"ground_truth={given}")
        assert (done.returncode, done.stderr) == (0, "")
    ids = ("0--Parade/0_Parade_a", "1--Riot/1_Riot_b")
    packed = read_predictions(tmp_path / "out" / "submission.zip", ids, strict=True)
    assert packed.scores.tolist() == [0.9, 0.8, 0.7]
    assert not (tmp_path / "out" / "scores.json").exists()
    names.write_text("0--Parade/0_Parade_a.jpg\n1--Riot/1_Riot_b.jpg\n1--Riot/1_Riot_c.jpg\n")
    done = call(*words, f"ground_truth={names}")
    assert done.returncode == 2
    assert "1--Riot/1_Riot_c" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["benchmark=pascal_face", "attributes=true"], "attributes=true is for benchmark=wider_face"),
        (["benchmark=fddb", "errors=true"], "errors=true is for benchmark=wider_face"),
        (["benchmark=coco", "split=test"], "split=test is for benchmark=wider_face"),
        (["attributes=perhaps"], "attributes=perhaps is neither true nor false"),
        (["worst=none"], "worst=none is not a whole number"),
        (["errors=true", "worst=0"], "worst=0 leaves nothing to show"),
        (["split=train"], "split=train is unknown; take val, or test"),
        (["split=test"], "give out=DIR"),
        (["split=test", "out=x", "attributes=true"], "attributes=True has no meaning with split=test"),
        (["split=test", "out=x", "against=y"], "against=y has no meaning with split=test"),
        (["pictures=."], "add errors=true"),
        (["errors=true", "pictures=nowhere"], "pictures=nowhere is not a folder"),
        (
            ["benchmark=fddb", "benchmark.ellipses=round"],
            "benchmark.ellipses=round is not known; choose one of as_given",
        ),
        (["benchmark=afw", "benchmark.labels=new"], "benchmark.labels=new is not known; choose corrected or original"),
        (["benchmark=coco", "benchmark.max_detections=0"], "benchmark.max_detections=0 is no number of detections"),
        (["benchmark=wider_face", "benchmark.labels=corrected"], "unknown key 'benchmark.labels'"),
    ],
)
def test_mistakes(wider: tuple[Path, Path], words: list[str], expected: str) -> None:
    with pytest.raises(InputError) as error:
        main([f"predictions={wider[0]}", f"ground_truth={wider[1]}", *words])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
