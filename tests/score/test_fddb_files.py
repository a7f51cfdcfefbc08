"""FDDB's files: what is accepted, the one line that each mistake gets, what is written, records to evaluate on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.data.sources import FddbSource
from fanet_lightning.score.fddb.benchmark import FddbBenchmark, FddbPredictions, read_fddb_predictions
from fanet_lightning.score.fddb.ground_truth import FddbGroundTruth, read_fddb_ground_truth
from tests.data.wider_files import write_image
from tests.score.fddb_files import block, write_detections, write_fddb, write_folds, write_sizes
from tests.score.helpers import put, refused

A, B, C = "2002/08/11/big/img_591", "2002/08/26/big/img_265", "2003/01/01/big/img_7"
FACES = {1: {A: [(12.5, 8.25, 1.5, 20, 15)], B: [(5, 4, 0.5, 30, 20), (6, 5, -1.0, 10, 10)]}, 3: {C: []}}


@pytest.fixture
def truth(tmp_path: Path) -> FddbGroundTruth:
    write_folds(tmp_path / "truth" / "FDDB-folds", FACES)
    write_sizes(tmp_path / "truth" / "image_sizes.json", FACES, (60, 40))
    return read_fddb_ground_truth(tmp_path / "truth")


def test_ground_truth(tmp_path: Path, truth: FddbGroundTruth) -> None:
    assert truth.image_ids == truth.known_ids == (A, B, C)
    assert truth.folds.tolist() == [1, 1, 3]
    assert [[*map(tuple, rows.tolist())] for rows in truth.ellipses] == [*FACES[1].values(), *FACES[3].values()]
    assert (truth.faces.tolist(), truth.sizes_wh.tolist()) == ([1, 2, 0], [[60, 40]] * 3)
    # The folder itself, and a list.
    images = tmp_path / "list.txt"
    images.write_text(f"{C}\n{B}.jpg\n")
    part = read_fddb_ground_truth(tmp_path / "truth" / "FDDB-folds", images=images)
    assert (part.image_ids, part.known_ids, part.folds.tolist()) == ((B, C), (A, B, C), [1, 3])
    assert part.select([C, B]).in_official_order().image_ids == (B, C)


def test_sizes_come_from_the_images_where_there_is_no_file(tmp_path: Path) -> None:
    write_fddb(tmp_path / "fddb", FACES, (60, 40))
    write_image(tmp_path / "fddb" / "originalPics" / f"{B}.jpg", 0, (31, 50))
    expected = [[60, 40], [50, 31], [60, 40]]
    assert read_fddb_ground_truth(tmp_path / "fddb").sizes_wh.tolist() == expected
    assert read_fddb_ground_truth(tmp_path / "fddb" / "FDDB-folds").sizes_wh.tolist() == expected
    # The file next to the folds comes first, unless the images are named.
    write_sizes(tmp_path / "fddb" / "image_sizes.json", FACES, (70, 70))
    assert read_fddb_ground_truth(tmp_path / "fddb").sizes_wh.tolist() == [[70, 70]] * 3
    for root in (tmp_path / "fddb", tmp_path / "fddb" / "originalPics"):
        assert read_fddb_ground_truth(tmp_path / "fddb", images_root=root).sizes_wh.tolist() == expected
    write_sizes(tmp_path / "other.json", FACES, (80, 80))
    other = read_fddb_ground_truth(tmp_path / "fddb", image_sizes=tmp_path / "other.json")
    assert other.sizes_wh.tolist() == [[80, 80]] * 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (None, "neither image_sizes.json nor originalPics"),
        ("{", "image_sizes.json cannot be read"),
        (json.dumps({A: [60, 40.0], B: [60, 40], C: [60, 40]}), "no whole numbers"),
        (json.dumps({A: [60, 40], B: [5, 7], C: [60, 40]}), r"a face of '.*265' is outside its 5 × 7 pixels"),
    ],
)
def test_sizes_that_are_wrong(tmp_path: Path, sizes: str | None, message: str) -> None:
    write_folds(tmp_path / "FDDB-folds", FACES)
    if sizes is not None:
        (tmp_path / "image_sizes.json").write_text(sizes)
    refused(message, read_fddb_ground_truth, tmp_path)


def test_ground_truth_that_is_no_fddb(tmp_path: Path, truth: FddbGroundTruth) -> None:
    more = tmp_path / "truth" / "FDDB-folds" / "FDDB-fold-04-ellipseList.txt"
    refused("no ellipse lists", read_fddb_ground_truth, tmp_path / "nowhere")
    for text in (f"{A}\n1\n5 4 0 20 20  1\n", "2004/a\n1\n5 4 0 20 20\n"):
        more.write_text(text)
        refused("fold-04-ellipseList.txt:1: an image twice, or", read_fddb_ground_truth, tmp_path / "truth")


def rows_of(predictions: FddbPredictions) -> list[list[list[float]]]:
    return [
        np.column_stack([rows, scores]).tolist()
        for rows, scores in zip(predictions.rows, predictions.scores, strict=True)
    ]


ALLOWED = f"\ufeff{B}.jpg \r\n 2 7 \r\n\r\n 1e1\t-2.5 +3 .25 1E-2\r\n7 7 0 0 -1\r\n\r\n{C}\r\n0\r\n{A}\n1\n1 2 3 4 0.5"


@pytest.mark.parametrize(
    ("text", "rows", "missing"),
    [
        (ALLOWED, [[[1, 2, 3, 4, 0.5]], [[10, -2.5, 3, 0.25, 0.01], [7, 7, 0, 0, -1]], []], ()),
        (f"{A}\n1\n5 4 -1.5 20 10 0.5\n", [[[5, 4, -1.5, 20, 10, 0.5]], [], []], (B, C)),
    ],
)
def test_everything_that_is_allowed(
    tmp_path: Path, truth: FddbGroundTruth, text: str, rows: list[Any], missing: tuple[str, ...]
) -> None:
    read = read_fddb_predictions(put(tmp_path, "joined", text), truth)
    assert (rows_of(read), read.missing, read.are_ellipses) == (rows, missing, len(rows[0][0]) == 6)
    # A selection leaves the other images aside.
    part = read_fddb_predictions(put(tmp_path, "joined", text), truth.select([A]))
    assert (part.image_ids, rows_of(part)) == ((A,), rows[:1])


@pytest.mark.parametrize("name", ["fold-{:02d}-out.txt", "FDDB-det-fold-{}.TXT", "processed-{}.txt"])
def test_a_folder_of_fold_files(tmp_path: Path, truth: FddbGroundTruth, name: str) -> None:
    folder = tmp_path / "run"
    write_detections(folder, {1: {A: [(1, 2, 3, 4, 0.5)], B: []}, 3: {C: [(5, 6, 7, 8, 0.25)]}}, name)
    for other in ("MyDiscROC.txt", "readme.md", ".hidden.txt"):
        (folder / other).write_text("junk")
    assert rows_of(read_fddb_predictions(folder, truth)) == [[[1, 2, 3, 4, 0.5]], [], [[5, 6, 7, 8, 0.25]]]


NAME = "should be the name of an image, the next line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((f"{A}\n{rest}", f":1: '{A}' {NAME}") for rest in ("", f"2\n1 2 3 4 0.5\n{B}\n0\n")),
        (f"{A}\n1\n1 2 3 4 0.5\n1 2 3 4 0.4\n", f":4: '1 2 3 4 0.4' {NAME}"),
        (f"{A}\n1\n1 2e6 3 4 0.5\n", ":3: '1 2e6 3 4 0.5'.* below 1e\\+06"),
        (f"{A}\n1\n1 2 3 4 0.5\n{B}\n1\n5 4 0 1 1 0.5\n", ":6: '5 4 0 1 1 0.5' is no row of 5 or 6"),
        (f"{A}\n0\n{B}\n0\n{A}\n0\n", f":5: '{A}' has a block already"),
        (f"{A}\n0\n2002/x\n0\n", ":3: the ground truth does not have '2002/x'"),
        (f"{A}\n0\n\N{LATIN SMALL LETTER E WITH ACUTE}\n0\n".encode("latin-1"), "cannot be read"),
    ],
)
def test_each_mistake_gets_its_line(tmp_path: Path, truth: FddbGroundTruth, text: str | bytes, message: str) -> None:
    assert "joined.txt" in refused(message, read_fddb_predictions, put(tmp_path, "joined", text), truth)


def test_mistakes_of_a_folder(tmp_path: Path, truth: FddbGroundTruth) -> None:
    folder = tmp_path / "run"
    refused("cannot be read", read_fddb_predictions, folder, truth)
    folder.mkdir()
    refused("there are no detections", read_fddb_predictions, folder, truth)
    (folder / "fold-01-out.txt").write_text(block(A, [(1, 2, 3, 4, 0.5)]))
    refused(f"run: 2 of 3 images .*{B}", FddbBenchmark().score, truth, folder, strict=True)
    (folder / "fold-03-out.txt").write_text(block(C, [(5, 4, 0, 1, 1, 0.5)]))
    refused("fold-03-out.txt:1: some rows have 5", read_fddb_predictions, folder, truth)


def test_written_predictions_are_read_back(tmp_path: Path, truth: FddbGroundTruth) -> None:
    folder = tmp_path / "run"
    detections = {
        B: ([[1.23456, 2, 11.5, 22.25], [0, 0, 5, 5]], [0.25, 0.123456]),
        A: ([[3, 4, 5, 6]], [0.5]),
        C: (np.zeros((0, 4)), []),
    }
    FddbBenchmark().write_predictions(folder, truth, detections)
    assert sorted(path.name for path in folder.iterdir()) == ["fold-01-out.txt", "fold-03-out.txt"]
    # The official order, best first, however they were given.
    assert (folder / "fold-01-out.txt").read_text() == (
        f"{A}\n1\n3.0000 4.0000 2.0000 2.0000 0.500000\n"
        f"{B}\n2\n1.2346 2.0000 10.2654 20.2500 0.250000\n0.0000 0.0000 5.0000 5.0000 0.123456\n"
    )
    assert (folder / "fold-03-out.txt").read_text() == f"{C}\n0\n"
    # Again, with fewer images: what was there is replaced.
    FddbBenchmark().write_predictions(folder, truth, {C: ([[3, 4, 5, 6]], [0.5])})
    assert read_fddb_predictions(folder, truth).missing == (A, B)
    assert FddbPredictions.from_detections({B: detections[B]}, [A, B]).missing == (A,)


def test_the_official_files_are_written_to_the_character(tmp_path: Path, shared_data: Path) -> None:
    official = shared_data / "predictions" / "fddb_mtcnn"
    benchmark = FddbBenchmark()
    scores = benchmark.score(benchmark.read_ground_truth(shared_data / "fddb"), official)
    for path in scores.write_curves(tmp_path):
        assert path.read_text() == (official / f"MTCNN{path.name}").read_text().replace("\r", "")


# The source of images

D = "2002/07/01/big/img_7"
DRAWN = {
    1: {A: [(12, 8, np.pi / 2, 20, 15)], B: [(5, 4, 0, 30, 20), (6, 5, 0, 2, 38)]},
    3: {D: [(1, 1, 0, 0, 0), (4, 4, 0, -4.5, 20)]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_fddb(tmp_path / "fddb", DRAWN, (60, 40))
    return tmp_path / "fddb"


def test_records_are_sorted_and_hold_the_boxes_around_the_ellipses(root: Path) -> None:
    source = FddbSource(root)
    source.prepare()
    source.check(train=False)
    records = source.val()
    assert [record.image_id for record in records] == [D, A, B]
    assert [record.path for record in records] == [root / "originalPics" / f"{name}.jpg" for name in (D, A, B)]
    # A point, and a face that reaches into the image with its drawn pixels only.
    assert records[0].boxes_xyxy.tolist() == [[0, 0, 1, 1]]
    assert records[0].ignored_xyxy.tolist() == [[0, 16, 0, 24]]
    assert records[1].boxes_xyxy[0] == pytest.approx([12, 3, 28, 27])
    assert records[2].boxes_xyxy.tolist() == [[25, 16, 35, 24], [0, 33, 8, 40]]  # cut to the image
    assert source.ground_truth().image_ids == (D, A, B)
    assert source.ground_truth().known_ids == (A, B, D)


def test_a_source_with_a_list_and_sizes_of_a_file(root: Path, tmp_path: Path) -> None:
    images = tmp_path / "list.txt"
    images.write_text(f"{B}\n{A}.jpg\n")
    write_sizes(tmp_path / "sizes.json", DRAWN, (33, 33))
    write_image(root / "originalPics" / f"{D}.jpg", 0, (7, 7))
    (root / "FDDB-folds").rename(tmp_path / "folds")
    source = FddbSource(
        root, val={"images": str(images)}, ground_truth=tmp_path / "folds", image_sizes=str(tmp_path / "sizes.json")
    )
    assert [record.image_id for record in source.val()] == [A, B]
    assert source.val()[1].boxes_xyxy.tolist()[0] == [25, 16, 33, 24]
    assert source.benchmark().image_sizes == tmp_path / "sizes.json"


def test_mistakes_of_a_source(root: Path, tmp_path: Path) -> None:
    (root / "originalPics" / f"{B}.jpg").unlink()
    refused("img_265.*cannot be read", FddbSource(root).val)
    write_sizes(tmp_path / "sizes.json", DRAWN, (60, 40))
    refused("1 of the 3 images .*img_265.jpg", FddbSource(root, image_sizes=tmp_path / "sizes.json").val)
    refused("data=fddb is for testing", FddbSource(root).check)
    refused(r"no FDDB here: .*originalPics is not there", FddbSource(tmp_path / "nowhere").check, train=False)
    refused("ellipses=fit is not known", FddbSource(root, ellipses="fit").benchmark)  # type: ignore[arg-type]
