"""PASCAL face and AFW: label files and detections, what is said about faulty ones, scores, sources of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.data.sources import AfwSource, PascalFaceSource
from fanet_lightning.score.pascal_face.average_precision import evaluate_detections
from fanet_lightning.score.pascal_face.benchmark import AfwBenchmark, PascalFaceBenchmark, read_detections
from fanet_lightning.score.pascal_face.ground_truth import (
    AFW,
    PASCAL_FACE,
    PascalFaceDetections,
    PascalFaceGroundTruth,
    read_annotations,
)
from fanet_lightning.score.wider_face.benchmark import read_curves
from tests.score.helpers import refused
from tests.score.pascal_face_files import AFW_CORRECTED, CORRECTED, ORIGINAL, write_annotations, write_images

FACES = {
    "2008_000002.jpg": [(10, 20, 60, 80, 0), (100, 20, 160, 90, 1)],
    "2008_000001.jpg": [(5, 5, 25, 90, 0)],
    "2008_000003.jpg": [],
}
IDS = ("2008_000001", "2008_000002", "2008_000003")


@pytest.fixture
def truth(tmp_path: Path) -> PascalFaceGroundTruth:
    return read_annotations(write_annotations(tmp_path / "labels" / CORRECTED, FACES), PASCAL_FACE["corrected"])


def test_corrected_labels(truth: PascalFaceGroundTruth) -> None:
    assert truth.image_ids == IDS
    assert truth.file_names == tuple(f"{i}.jpg" for i in IDS)
    np.testing.assert_array_equal(truth.boxes_xyxy[1], [[10, 20, 60, 80], [100, 20, 160, 90]])
    assert [list(flags) for flags in truth.flagged] == [[False], [False, True], []]
    # The first image's face is 20 px wide.
    assert [list(counted) for counted in truth.counted] == [[False], [True, False], []]
    (warning,) = truth.warnings
    assert "3 images and 1 faces" in warning and "851 and 1,341" in warning


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_original_labels_do_not_overflow(tmp_path: Path, dtype: type) -> None:
    """In uint8, 255 + 1 is 0 and 10 - 250 is 16."""
    path = write_annotations(tmp_path / ORIGINAL, {"a.jpg": [(0, 0, 255, 255)], "b.jpg": [(250, 9, 10, 255)]}, 4, dtype)
    truth = read_annotations(path, PASCAL_FACE["original"])
    assert truth.boxes_xyxy[0].dtype == np.float64
    np.testing.assert_array_equal(truth.boxes_xyxy[1] - [[10, 0, 250, 0]], [[240, 9, -240, 255]])
    assert truth.faces == 2
    assert truth.labels == "original"
    found = PascalFaceDetections.from_detections({"a": ([[0, 0, 255, 255]], [1])}, truth.image_ids)
    assert evaluate_detections(truth, found, alignment=False).curve.ap == 0.5


def test_official_files(shared_data: Path) -> None:
    for release in (*PASCAL_FACE.values(), *AFW.values()):
        truth = read_annotations(shared_data / "pascal_face", release)
        assert (len(truth.image_ids), truth.faces, truth.warnings) == (release.images, release.faces, ())


@pytest.mark.parametrize(
    ("faces", "columns", "message"),
    [
        (None, 6, r"cannot be read \(No such file.*give face-eval's"),
        (FACES, 4, f"give face-eval's {CORRECTED}"),
        ({"a.jpg": [], "a.png": []}, 6, r"image a\.png twice"),
        ({"a.jpg": [(0, 0, 40, np.nan, 0)]}, 6, r"image a\.jpg .* not 6 finite"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path: Path, faces: Any, columns: int, message: str) -> None:
    if faces is not None:
        write_annotations(tmp_path / CORRECTED, faces, columns, np.float64)
    refused(rf"{CORRECTED} .*{message}", read_annotations, tmp_path, PASCAL_FACE["corrected"])


def test_list_of_images(tmp_path: Path, truth: PascalFaceGroundTruth) -> None:
    labels, images = tmp_path / "labels" / CORRECTED, tmp_path / "list.txt"
    images.write_text("2008_000003.jpg\n2008_000002\n")
    part = read_annotations(labels, PASCAL_FACE["corrected"], images)
    assert (part.image_ids, part.known_ids) == (IDS[1:], IDS)
    (tmp_path / "found.txt").write_text("2008_000001 1 0 0 50 50\n2008_000002 0.5 10 20 60 80\n")
    found = read_detections(tmp_path / "found.txt", part)
    assert (list(found.image_index), list(found.scores), found.missing) == ([0], [0.5], ("2008_000003",))


TEXT = "2008_000002.jpg 0.25 1 2 30.5 40\n2008_000001 -1.5e-1 1e1 .5 3E+1 40.\n2008_000002 7 0 0 0 0\n"


@pytest.mark.parametrize("content", ["\ufeff" + TEXT.replace("\n", "\r\n"), f"\n{TEXT}\n\n".replace(" ", "\t")])
@pytest.mark.parametrize("folder", [False, True])
def test_txt(tmp_path: Path, truth: PascalFaceGroundTruth, content: str, folder: bool) -> None:
    path = tmp_path / "run" / "run.txt"
    path.parent.mkdir()
    path.write_bytes(content.encode())
    for other in ("notes.md", ".hidden.txt"):
        path.with_name(other).write_text("not detections")
    found = read_detections(path.parent if folder else path, truth)
    assert (found.image_ids, list(found.image_index)) == (IDS, [1, 0, 1])
    np.testing.assert_array_equal(found.scores, [0.25, -0.15, 7])
    np.testing.assert_array_equal(found.boxes_xyxy, [[1, 2, 30.5, 40], [10, 0.5, 30, 40], [0, 0, 0, 0]])
    assert found.missing == ("2008_000003",)


@pytest.mark.parametrize("row", ["0,5 1 2 3 4", "", "0.5 1 2 3", "nan 1 2 3 4", "0.5 10 2 9 4"])
def test_faulty_row(tmp_path: Path, truth: PascalFaceGroundTruth, row: str) -> None:
    path = tmp_path / "run.txt"
    path.write_text(f"2008_000002 1 0 0 50 50\n\n2008_000001 {row}\n", encoding="utf-8")
    refused(f"^{path}:3: ", read_detections, path, truth)
    path.write_text("2008_000002 1 0 0 50 50\n16 1 0 0 50 50\n17 1 0 0 50 50\n16 1 0 0 50 50\n")
    refused(r":2: image '16' is.*of 2 other rows", read_detections, path, truth)


def test_what_is_written_ranks_as_it_did(tmp_path: Path, truth: PascalFaceGroundTruth) -> None:
    rng = np.random.default_rng(0)
    detections = {}
    for image_id in IDS[:2]:
        low = rng.uniform(-5, 100, (40, 2))
        boxes = np.concatenate([low, low + rng.uniform(0, 90, (40, 2))], axis=1).astype(np.float32)
        # Scores that need all digits of float32, and equal ones within and across images.
        scores = np.concatenate([rng.random(20), np.repeat([0.5, 1e-7], 10)]).astype(np.float32)
        detections[image_id] = boxes, scores
    path = tmp_path / "out" / "predictions" / "detections.txt"
    write = PascalFaceBenchmark().write_predictions
    write(path.parent, truth, detections)
    found = read_detections(path.parent, truth)
    before = PascalFaceDetections.from_detections(detections, truth.image_ids)
    order = np.argsort(-before.scores, kind="stable")
    np.testing.assert_array_equal(found.image_index, before.image_index[order])
    np.testing.assert_array_equal(found.scores.astype(np.float32), before.scores[order].astype(np.float32))
    np.testing.assert_allclose(found.boxes_xyxy, before.boxes_xyxy[order], atol=0.0005001)
    # A second time over the first; no other file of the person's is ever replaced.
    write(path.parent, truth, {})
    assert path.read_text() == ""
    (path.parent / "notes.md").write_text("mine")
    refused("holds something else", write, path.parent, truth, detections)
    assert (path.parent / "notes.md").read_text() == "mine"


# Scores, and the source of images

DRAWN = {
    "2008_3.jpg": [(10, 10, 50, 60, 0), (100, 10, 150, 60, 1)],
    "2008_1.jpg": [(10, 10, 50, 60, 0), (10, 10, 25, 25, 0)],
    "2008_2.jpg": [(5, 5, 5, 40, 0)],
}
# A hit, a false positive, a detection on a flagged face, a hit; then one more false positive.
DETECTIONS = (
    "2008_1 0.9 10 10 50 60\n"
    "2008_2 0.8 100 100 150 150\n"
    "2008_3 0.7 100 10 150 60\n"
    "2008_3 0.6 10 10 50 60\n"
    "2008_1 0.5 200 10 250 60\n"
)


def test_scores_and_curves(tmp_path: Path) -> None:
    write_annotations(tmp_path / CORRECTED, DRAWN)
    (tmp_path / "run.txt").write_text(DETECTIONS)
    benchmark = PascalFaceBenchmark()
    truth = benchmark.read_ground_truth(tmp_path)
    scores = benchmark.score(truth, tmp_path, strict=True)
    assert (scores.headline, scores.faces) == ("PASCAL face, 3 images", {"all": 2})
    assert scores.image_ids == ("2008_1", "2008_2", "2008_3")
    assert scores.values["ap"] == {"all": pytest.approx(0.5 * 1 + 0.5 * 2 / 3)}
    assert scores.rules["transform"] == {"tx": 0, "ty": 0, "sx": 1, "sy": 1}
    assert scores.warnings == truth.warnings != ()
    text, arrays = scores.write_curves(tmp_path / "out")
    assert text.read_text() == (
        "0.500000 1.000000 0.9\n0.500000 0.500000 0.8\n0.500000 0.500000 0.7\n1.000000 0.666667 0.6\n"
        "1.000000 0.500000 0.5\n"
    )
    (curve,) = read_curves(arrays).values()
    np.testing.assert_allclose(curve.recall, [0.5, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(curve.precision, [1, 0.5, 0.5, 2 / 3, 0.5])
    np.testing.assert_allclose(curve.thresholds, [0.9, 0.8, 0.7, 0.6, 0.5])


@pytest.mark.parametrize(("folder", "annotations"), [("images", "."), ("JPEGImages", "annotations"), (".", ".")])
def test_source(tmp_path: Path, folder: str, annotations: str) -> None:
    write_images(tmp_path / folder, list(DRAWN))
    write_annotations(tmp_path / annotations / CORRECTED, DRAWN)
    source = PascalFaceSource(tmp_path)
    source.prepare()
    source.check(train=False)
    records = source.val()
    assert tuple(record.image_id for record in records) == source.ground_truth().image_ids
    assert all(record.path.is_file() and record.path.parent == tmp_path / folder for record in records)
    # The small face is usable, the flagged one and the one without width are not.
    boxes = [record.boxes_xyxy.tolist() for record in records]
    assert boxes == [[[10, 10, 50, 60], [10, 10, 25, 25]], [], [[10, 10, 50, 60]]]
    assert [record.ignored_xyxy.tolist() for record in records] == [[], [[5, 5, 5, 40]], [[100, 10, 150, 60]]]
    for testing_alone in (source.train, source.check):
        refused("data=pascal_face is for testing alone", testing_alone)


def test_source_gives_the_benchmark_that_scores_it(tmp_path: Path) -> None:
    write_images(tmp_path, list(DRAWN))
    write_annotations(tmp_path / "labels" / AFW_CORRECTED, DRAWN)
    (tmp_path / "list.txt").write_text("2008_1\n2008_3\n")
    source = AfwSource(tmp_path, "corrected", tmp_path / "labels", images=tmp_path / "list.txt", alignment=False)
    benchmark = source.benchmark()
    assert (source.name, type(benchmark), benchmark.alignment) == ("afw", AfwBenchmark, False)
    assert type(PascalFaceSource(tmp_path).benchmark()) is PascalFaceBenchmark
    found = {record.image_id: (record.boxes_xyxy, np.ones(len(record.boxes_xyxy))) for record in source.val()}
    benchmark.write_predictions(tmp_path / "out", source.ground_truth(), found)
    scores = benchmark.score(source.ground_truth(), tmp_path / "out", strict=True)
    assert scores.values["ap"]["all"] == 1
    assert scores.headline == "AFW (not aligned) sample, 2 of 3 images"


def test_source_names_what_is_missing(tmp_path: Path) -> None:
    refused(f"{tmp_path}/{CORRECTED} cannot be read .*or the folder that holds it", PascalFaceSource(tmp_path).val)
    write_annotations(tmp_path / "labels" / CORRECTED, DRAWN)
    refused(r"are missing.*absent", PascalFaceSource(tmp_path / "absent", ground_truth=tmp_path / "labels").val)
    write_images(tmp_path / "images", ["2008_3.jpg"])
    incomplete = PascalFaceSource(tmp_path, ground_truth=tmp_path / "labels")
    refused(r"2 of the 3 images .*images/2008_1\.jpg", incomplete.check, train=False)
