"""``python -m fanet_lightning.score`` on every benchmark: files in the official layouts, expectations by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.score.__main__ import main
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, write_ground_truth
from fanet_lightning.score.wider_face.predictions import read_predictions
from tests.data.wider_files import write_image
from tests.score.fddb_files import write_detections as write_fddb_detections
from tests.score.fddb_files import write_folds, write_sizes
from tests.score.helpers import put, refused
from tests.score.pascal_face_files import CORRECTED, write_annotations

Rows = dict[str, list[tuple[float, ...]]]


def put_wider(folder: Path, rows: Rows, line: str = "{name}") -> Path:
    """``event/name`` → rows ``x y w h``, of score 0.9; ``line`` is the first line of a file."""
    for image_id, own in rows.items():
        event, _, name = image_id.rpartition("/")
        rows_of_image = (" ".join(map(str, (*row, 0.9))) for row in own)
        lines = [line.format(name=name, event=event), str(len(own)), *rows_of_image, ""]
        put(folder, image_id, "\n".join(lines))
    return folder


def faces_of(count: int) -> Rows:
    """Two faces an image, away from the origin, as x y w h."""
    return {f"0--Parade/0_Parade_{i}": [(30 + i, 20, 34, 32), (70, 40 + i, 44, 36)] for i in range(count)}


def coco_content(rows: Rows, name: str = "{}.jpg", **more: Any) -> dict[str, Any]:
    """An annotation file, its ids its own; with ``score`` the ``detections.json`` of ``detect``."""
    images = [{"id": n, "file_name": name.format(i), "width": 120, "height": 90} for n, i in enumerate(rows, 1)]
    boxes = [(n, box) for n, own in enumerate(rows.values(), 1) for box in own]
    entries = [{"id": k, "image_id": n, "category_id": 1, "bbox": box, **more} for k, (n, box) in enumerate(boxes, 1)]
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "face"}]}


def put_files(benchmark: str, folder: Path, faces: Rows, rows: Rows) -> tuple[Path, Path]:
    """Predictions with score 0.9 and ground truth of 120 × 90 pixels an image, in the layout of a benchmark."""
    truth, found = folder / "truth", folder / "found"
    folder.mkdir(exist_ok=True)
    if benchmark == "wider_face":
        boxes = [np.array(own, np.float64) for own in faces.values()]
        counted = {key: [np.ones(len(own), np.bool_) for own in boxes] for key in ("easy", "medium", "hard")}
        write_ground_truth(truth, GroundTruth(tuple(faces), boxes, counted))
        put_wider(found, rows)
    elif benchmark == "fddb":
        ellipses = {i: [(h / 2, w / 2, np.pi / 2, x + w / 2, y + h / 2) for x, y, w, h in o] for i, o in faces.items()}
        write_folds(truth, {1: ellipses})
        write_sizes(truth / "image_sizes.json", {1: ellipses}, (120, 90))
        write_fddb_detections(found, {1: {i: [(*row, 0.9) for row in own] for i, own in rows.items()}})
    elif benchmark == "pascal_face":
        corners, own = (
            {i.rpartition("/")[2]: [(x, y, x + w, y + h) for x, y, w, h in o] for i, o in part.items()}
            for part in (faces, rows)
        )
        write_annotations(truth / CORRECTED, corners)
        lines = [f"{name} 0.9 {' '.join(map(str, row))}\n" for name, each in own.items() for row in each]
        found = put(folder, "found", "".join(lines))
    else:
        truth = put(folder, "truth", json.dumps(coco_content(faces)), ".json")
        found = put(folder, "found", json.dumps(coco_content(rows, score=0.9)["annotations"]), ".json")
    return found, truth


def words_of(benchmark: str, folder: Path, faces: Rows, rows: Rows | None = None) -> list[str]:
    """The command's words."""
    found, truth = put_files(benchmark, folder, faces, faces if rows is None else rows)
    return [f"benchmark={benchmark}", f"predictions={found}", f"ground_truth={truth}", "bootstrap=0"]


@pytest.mark.parametrize("line", ["{event}/{name}.jpg", "./{name}", "{event}\\{name}.JPG", "{event}/{event}/{name}"])
def test_name_lines_that_name_the_same_image(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """S3FD and S3FD.pytorch write ``event/name.jpg``."""
    faces = faces_of(2)
    words = words_of("wider_face", tmp_path, faces)
    found = put_wider(tmp_path / "found", faces, line)
    (found / "0--Parade" / "._0_Parade_0.txt").write_bytes(b"\0\5\x16\7")
    (found / "0--Parade" / "0_Parade_0.txt").rename(found / "0--Parade" / "0_Parade_0.JPG.TXT")
    # A folder that is packed with its name as well.
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "found")
    for given in (found, archive):
        assert main([*words, f"predictions={given}"]) == 0
        printed = capsys.readouterr()
        assert printed.err == "" and "1.000000" in printed.out


def test_negative_sides_in_fddb_are_false_alarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = faces_of(2)
    words = words_of("fddb", tmp_path, faces)
    # Both rows of negative size cover a face if their edges are swapped.
    (first, (one, (x1, y1, w1, h1))), (second, (two, (x2, y2, w2, h2))) = faces.items()
    rows = {first: [(*one, 0.9), (x1 + w1, y1, -w1, h1, 0.8)], second: [(*two, 0.7), (x2, y2 + h2, w2, -h2, 0.6)]}
    write_fddb_detections(tmp_path / "found", {1: {f"./{image_id}.JPG": own for image_id, own in rows.items()}})
    assert main([*words, f"out={tmp_path / 'out'}"]) == 0
    assert "warning: 2 detections with a negative width or height" in capsys.readouterr().err
    # At the lowest threshold two of four faces, and the two as false positives.
    assert (tmp_path / "out" / "DiscROC.txt").read_text().splitlines()[0] == "0.5 2 0.6"
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["discrete"]["max"] == 0.5


@pytest.mark.parametrize("benchmark", ["wider_face", "fddb", "pascal_face", "coco"])
def test_intervals_do_not_depend_on_the_order_of_the_list(benchmark: str, tmp_path: Path) -> None:
    faces = faces_of(9)
    # One of two faces in the first images, so that resamples differ.
    rows = {image_id: own[: 1 + (i > 3)] for i, (image_id, own) in enumerate(faces.items())}
    other, _ = put_files(benchmark, tmp_path / "more", faces, {image_id: own[:1] for image_id, own in rows.items()})
    words = [*words_of(benchmark, tmp_path, faces, rows), "bootstrap=50", f"against={other}"]
    ids = [image_id.rpartition("/")[2] if benchmark == "pascal_face" else image_id for image_id in list(faces)[1:]]
    written = []
    for name, order in (("sorted", ids), ("turned", ids[::-1]), ("mixed", ids[3:] + ids[:3])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{image_id}.jpg\n" for image_id in order))
        assert main([*words, f"images={tmp_path / name}.txt", f"out={tmp_path / name}"]) == 0
        scores = json.loads((tmp_path / name / "scores.json").read_text())
        written.append((scores["intervals"], scores["against"]["intervals"]))
    assert written[0] == written[1] == written[2]
    bounds = str(written[0])
    assert len(set(bounds.replace("[", "").split())) > 3  # not all of them equal


@pytest.mark.parametrize("name", ["photos/{}.PNG", "base"])
def test_detections_of_detect_are_joined_by_file_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces, path = faces_of(4), tmp_path / "out" / "detections.json"
    words = words_of("coco", tmp_path, faces)
    # Ids count in another order; the image without a detection was looked at, and is not missing.
    turned = dict(reversed(faces.items())) | {"0--Parade/0_Parade_2": []}
    if name == "base":
        turned, name = {image_id.rpartition("/")[2]: own for image_id, own in turned.items()}, "{}.jpg"
    content = coco_content(turned, name, score=0.9)
    put(tmp_path, "out/detections", json.dumps(content), ".json")
    for given in (path, path.parent):
        assert main([*words, f"predictions={given}", f"out={tmp_path / 'scores'}", "strict=true"]) == 0
        assert capsys.readouterr().err == ""
        ap = json.loads((tmp_path / "scores" / "scores.json").read_text())["ap"]
        assert ap["50"] == pytest.approx(76 / 101)  # recall 6 of 8: 76 of 101 points at precision 1
    path.write_text(json.dumps({**content, "settings": {"threshold": 0.5}}))
    assert main([*words, f"predictions={path}"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: ") and "0.5" in said


def test_detections_whose_names_do_not_tell_the_image(tmp_path: Path) -> None:
    box: list[tuple[float, ...]] = [(30, 24, 20, 16)]
    words = words_of("coco", tmp_path, {"x/a": box, "y/a": box, "y/b": box})
    for faces, expected in [
        ({"a": box}, r"images\[0\] .*'a\.jpg' may be x/a or y/a"),
        ({"b": box, "z/y/b": box}, "images is there twice"),
        ({"x/a": box, "x/b": box}, r"images\[1\] .*'x/b\.jpg' is not in the annotations"),
    ]:
        path = put(tmp_path, "detections", json.dumps(coco_content(faces, score=0.9)), ".json")
        refused(expected, main, [*words, f"predictions={path}"])


def test_images_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    words = [*words_of("wider_face", tmp_path, faces_of(2)), "errors=true", f"pictures={pictures}"]
    words += [f"out={tmp_path / 'out'}", "attributes=true"]
    refused(f"{pictures} has none of them", main, words)
    write_image(pictures / "0--Parade" / "0_Parade_1.jpg", 0)
    assert main(words) == 0
    printed = capsys.readouterr()
    assert (
        printed.err.startswith("warning: 1 of 2 images on ") and "cannot be shown: 0--Parade/0_Parade_0" in printed.err
    )
    assert "the 2 worst of 2 images" in printed.out


def test_the_archive_for_the_test_server(tmp_path: Path) -> None:
    names, archive = tmp_path / "wider_face_test_filelist.txt", tmp_path / "out" / "submission.zip"
    faces = faces_of(2)
    names.write_text("".join(f"{image_id}.jpg\n" for image_id in faces))
    words = [*words_of("wider_face", tmp_path, faces), "split=test", f"out={tmp_path / 'out'}"]
    for given in (names, tmp_path):
        assert main([*words, f"ground_truth={given}"]) == 0
    packed = read_predictions(archive, tuple(faces))
    assert packed.scores.tolist() == [0.9] * 4 and packed.missing == ()
    before = archive.read_bytes()
    with names.open("a") as file:
        file.write("1--Riot/1_Riot_c.jpg\n")
    refused("1--Riot/1_Riot_c", main, [*words, f"ground_truth={names}"])
    assert archive.read_bytes() == before and not (tmp_path / "out" / "scores.json").exists()
