"""FDDB on disk as records to evaluate on."""

from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.data.sources import FddbSource
from tests.score.fddb_files import write_fddb, write_image, write_sizes
from tests.score.helpers import refused

A, B, C = "2002/08/11/big/img_591", "2002/08/26/big/img_265", "2002/07/01/big/img_7"
FACES = {
    1: {A: [(12, 8, np.pi / 2, 20, 15)], B: [(5, 4, 0, 30, 20), (6, 5, 0, 2, 38)]},
    3: {C: [(1, 1, 0, 0, 0), (4, 4, 0, -4.5, 20)]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_fddb(tmp_path / "fddb", FACES, (60, 40))
    return tmp_path / "fddb"


def test_records_are_sorted_and_hold_the_boxes_around_the_ellipses(root: Path) -> None:
    source = FddbSource(root)
    source.prepare()
    source.check(train=False)
    records = source.val()
    assert [record.image_id for record in records] == [C, A, B]
    assert [record.path for record in records] == [root / "originalPics" / f"{name}.jpg" for name in (C, A, B)]
    # A point, and a face that reaches into the image with its drawn pixels only.
    assert records[0].boxes_xyxy.tolist() == [[0, 0, 1, 1]]
    assert records[0].ignored_xyxy.tolist() == [[0, 16, 0, 24]]
    assert records[1].boxes_xyxy[0] == pytest.approx([12, 3, 28, 27])
    assert records[2].boxes_xyxy.tolist() == [[25, 16, 35, 24], [0, 33, 8, 40]]  # cut to the image
    assert source.ground_truth().image_ids == (C, A, B)
    assert source.ground_truth().known_ids == (A, B, C)


def test_a_list_and_sizes_of_a_file(root: Path, tmp_path: Path) -> None:
    images = tmp_path / "list.txt"
    images.write_text(f"{B}\n{A}.jpg\n")
    write_sizes(tmp_path / "sizes.json", FACES, (33, 33))
    write_image(root / "originalPics" / f"{C}.jpg", (7, 7))
    (root / "FDDB-folds").rename(tmp_path / "folds")
    source = FddbSource(
        root, val={"images": str(images)}, ground_truth=tmp_path / "folds", image_sizes=str(tmp_path / "sizes.json")
    )
    assert [record.image_id for record in source.val()] == [A, B]
    assert source.val()[1].boxes_xyxy.tolist()[0] == [25, 16, 33, 24]
    assert source.benchmark().image_sizes == tmp_path / "sizes.json"


def test_mistakes(root: Path, tmp_path: Path) -> None:
    (root / "originalPics" / f"{B}.jpg").unlink()
    refused("img_265.*cannot be read", FddbSource(root).val)
    write_sizes(tmp_path / "sizes.json", FACES, (60, 40))
    refused("1 of the 3 images .*img_265.jpg", FddbSource(root, image_sizes=tmp_path / "sizes.json").val)
    refused("data=fddb is for testing", FddbSource(root).check)
    refused(r"no FDDB here: .*originalPics is not there", FddbSource(tmp_path / "nowhere").check, train=False)
    refused("ellipses=fit is not known", FddbSource(root, ellipses="fit").benchmark)  # type: ignore[arg-type]
