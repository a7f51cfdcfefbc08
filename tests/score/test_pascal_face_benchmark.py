"""PASCAL face and AFW as benchmarks and as sources of images, on small sets in the official layout."""

from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.data.sources import AfwSource, PascalFaceSource
from fanet_lightning.score.pascal_face.benchmark import AfwBenchmark, PascalFaceBenchmark
from fanet_lightning.score.wider_face.benchmark import read_curves
from tests.score.helpers import refused
from tests.score.pascal_face_files import AFW_CORRECTED, CORRECTED, ORIGINAL, write_annotations, write_images

FACES = {
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
AP = 0.5 * 1 + 0.5 * 2 / 3


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    write_annotations(tmp_path / "labels" / CORRECTED, FACES)
    write_annotations(tmp_path / "labels" / ORIGINAL, FACES, 4)
    return tmp_path / "labels"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "run.txt").write_text(DETECTIONS)
    return tmp_path / "predictions"


def test_scores_and_curves(labels: Path, predictions: Path, tmp_path: Path) -> None:
    benchmark = PascalFaceBenchmark()
    truth = benchmark.read_ground_truth(labels)
    scores = benchmark.score(truth, predictions, strict=True)
    assert scores.headline == "PASCAL face, 3 images"
    assert scores.image_ids == ("2008_1", "2008_2", "2008_3")
    assert scores.faces == {"all": 2}
    assert scores.values["ap"] == {"all": pytest.approx(AP)}
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


def test_labels_and_alignment_are_in_title_and_rules(labels: Path, predictions: Path) -> None:
    benchmark = PascalFaceBenchmark("original", alignment=False)
    scores = benchmark.score(benchmark.read_ground_truth(labels / ORIGINAL), predictions)
    assert scores.headline == "PASCAL face (original labels, not aligned), 3 images"
    assert (scores.rules["labels"], scores.rules["alignment"], scores.rules["passes"]) == ("original", False, 1)
    # Without flags the second face of 2008_3 counts and is found.
    assert scores.faces == {"all": 3}
    assert scores.values["ap"]["all"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)


@pytest.mark.parametrize(("folder", "annotations"), [("images", "."), ("JPEGImages", "annotations"), (".", ".")])
def test_source(tmp_path: Path, folder: str, annotations: str) -> None:
    write_images(tmp_path / folder, list(FACES))
    write_annotations(tmp_path / annotations / CORRECTED, FACES)
    source = PascalFaceSource(tmp_path)
    source.prepare()
    source.check(train=False)
    records = source.val()
    assert [record.image_id for record in records] == ["2008_1", "2008_2", "2008_3"]
    assert [record.image_id for record in records] == list(source.ground_truth().image_ids)
    assert all(record.path.is_file() and record.path.parent == tmp_path / folder for record in records)
    # The small face is usable, the flagged one and the one without width are not.
    assert [record.boxes_xyxy.tolist() for record in records] == [
        [[10, 10, 50, 60], [10, 10, 25, 25]],
        [],
        [[10, 10, 50, 60]],
    ]
    assert [record.ignored_xyxy.tolist() for record in records] == [[], [[5, 5, 5, 40]], [[100, 10, 150, 60]]]
    for testing_alone in (source.train, source.check):
        refused("data=pascal_face is for testing alone", testing_alone)


def test_source_gives_the_benchmark_that_scores_it(tmp_path: Path) -> None:
    write_images(tmp_path, list(FACES))
    write_annotations(tmp_path / "labels" / AFW_CORRECTED, FACES)
    (tmp_path / "list.txt").write_text("2008_1\n2008_3\n")
    source = AfwSource(tmp_path, "corrected", tmp_path / "labels", images=tmp_path / "list.txt", alignment=False)
    benchmark = source.benchmark()
    assert (benchmark.name, benchmark.release.labels, benchmark.alignment) == ("afw", "corrected", False)
    assert isinstance(benchmark, AfwBenchmark)
    assert type(PascalFaceSource(tmp_path).benchmark()) is PascalFaceBenchmark
    assert source.name == "afw"
    found = {record.image_id: (record.boxes_xyxy, np.ones(len(record.boxes_xyxy))) for record in source.val()}
    benchmark.write_predictions(tmp_path / "out", source.ground_truth(), found)
    scores = benchmark.score(source.ground_truth(), tmp_path / "out", strict=True)
    assert scores.values["ap"]["all"] == 1
    assert scores.headline == "AFW (not aligned) sample, 2 of 3 images"


def test_source_names_what_is_missing(tmp_path: Path) -> None:
    refused(f"{tmp_path}/{CORRECTED} cannot be read .*or the folder that holds it", PascalFaceSource(tmp_path).val)
    write_annotations(tmp_path / "labels" / CORRECTED, FACES)
    refused(r"are missing.*absent", PascalFaceSource(tmp_path / "absent", ground_truth=tmp_path / "labels").val)
    write_images(tmp_path / "images", ["2008_3.jpg"])
    refused(
        r"2 of the 3 images .*images/2008_1\.jpg",
        PascalFaceSource(tmp_path, ground_truth=tmp_path / "labels").check,
        train=False,
    )
